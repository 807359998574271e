/* Classes of code points, and where text stops being valid UTF-8. */
#include "text/text_internal.h"

/* A flat table of 1.1 MB: one load per character, and only the pages of the scripts in use are ever
 * touched after this. */
void unicode_expand(uint8_t classes[CODE_POINTS])
{
    for (int i = 0; i < UNICODE_RANGES; i++) {
        uint32_t first = unicode_ranges[i] >> 8;
        uint32_t end = i + 1 < UNICODE_RANGES ? unicode_ranges[i + 1] >> 8 : CODE_POINTS;
        memset(classes + first, (int)(unicode_ranges[i] & 0xff), end - first);
    }
}

size_t utf8_valid_run(const uint8_t *text, size_t n)
{
    size_t i = 0;
    while (i < n) {
        if (text[i] < 0x80) { /* ASCII, eight at a time */
            uint64_t word;
            while (i + sizeof word <= n) {
                memcpy(&word, text + i, sizeof word);
                if (word & 0x8080808080808080u) break;
                i += sizeof word;
            }
            while (i < n && text[i] < 0x80) i++;
        } else {
            uint32_t code_point;
            int length = utf8_decode(text + i, n - i, &code_point);
            if (length == 0) break;
            i += (size_t)length;
        }
    }
    return i;
}

size_t utf8_invalid_run(const uint8_t *text, size_t n)
{
    size_t i = 0;
    uint32_t code_point;
    while (i < n && utf8_decode(text + i, n - i, &code_point) == 0) i++;
    return i;
}

/* Of an array of ranges the last that begins at or before the code point; -1: none. */
static int range_of(const uint32_t *first, int n, size_t stride, uint32_t code_point, int shift)
{
    int low = 0, high = n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (first[(size_t)middle * stride] >> shift <= code_point)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

static uint8_t class_of(uint32_t code_point)
{
    return (uint8_t)unicode_ranges[range_of(unicode_ranges, UNICODE_RANGES, 1, code_point, 8)];
}

bool unicode_is_word(uint32_t code_point)
{
    if (code_point >= CODE_POINTS) return false;
    int i = range_of(unicode_word_ranges[0], UNICODE_WORD_RANGES, 2, code_point, 0);
    bool flipped = i >= 0 && code_point <= unicode_word_ranges[i][1];
    return ((class_of(code_point) & (CHAR_L | CHAR_MARK | CHAR_NUMBER)) != 0) != flipped;
}

bool unicode_is_space(uint32_t code_point)
{
    return code_point < CODE_POINTS && (class_of(code_point) & CHAR_S);
}
