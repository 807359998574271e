/* The pre-tokenizer patterns of Llama 3 and Llama 4 as hand-written scanners.
 *
 * A regular expression engine spends more time on these two patterns than everything else in
 * encoding together. The scanners give the same pieces (split_test.c holds them against PCRE2);
 * each takes time linear in the piece and what it looked at, also on hostile text.
 *
 * Both patterns are tried alternative by alternative, leftmost first; the comments name them. A
 * scanner runs on valid UTF-8 only.
 */
#include "text/text_internal.h"

const char pattern_llama3[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,"
                              "3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                              "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char pattern_llama4[] =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char pattern_gpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum {
    NEITHER_L_N = CHAR_OTHER | CHAR_MARK,         /* of [^\s\p{L}\p{N}] */
    PREFIX = CHAR_OTHER | CHAR_MARK | CHAR_SPACE, /* [^\r\n\p{L}\p{N}] */
    CASELESS = CHAR_LETTER | CHAR_MARK,           /* in both of the next two */
    HEAD = CHAR_UPPER | CASELESS,                 /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
    TAIL = CHAR_LOWER | CASELESS,                 /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
};

typedef struct Scan {
    const uint8_t *classes, *s;
    size_t n;
} Scan;

/* Class of the character at i < n, and its length. */
static inline uint8_t class_at(const Scan *c, size_t i, size_t *length)
{
    const uint8_t *s = c->s + i;
    uint32_t b = s[0];
    if (b < 0x80) {
        *length = 1;
        return c->classes[b];
    }
    if (b < 0xe0) {
        *length = 2;
        return c->classes[(b & 0x1f) << 6 | (s[1] & 0x3f)];
    }
    if (b < 0xf0) {
        *length = 3;
        return c->classes[(b & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f)];
    }
    *length = 4;
    return c->classes[(b & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 |
                      (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f)];
}

/* The end of the run of characters in `mask` that begins at i. */
static inline size_t run(const Scan *c, size_t i, unsigned mask)
{
    size_t length;
    while (i < c->n && (class_at(c, i, &length) & mask)) i += length;
    return i;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d) at i: its end, or i. Under case folding U+017F is an s too. */
static size_t contraction(const Scan *c, size_t i)
{
    if (i + 1 >= c->n || c->s[i] != '\'') return i;
    int a = c->s[i + 1] | 0x20, b = i + 2 < c->n ? c->s[i + 2] | 0x20 : 0;
    if (c->s[i + 1] == 0xc5 && i + 2 < c->n && c->s[i + 2] == 0xbf) return i + 3;
    if (c->s[i + 1] >= 0x80) return i;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
    return i;
}

/* \p{N}{1,3} at i, where a number stands. */
static size_t digits(const Scan *c, size_t i)
{
    size_t length;
    for (int k = 0; k < 3 && i < c->n && (class_at(c, i, &length) & CHAR_NUMBER); k++) i += length;
    return i;
}

/* \s*[\r\n]+ | \s+(?!\S) | \s+ at i, where white space stands. */
static size_t white_space(const Scan *c, size_t i)
{
    size_t end = i, last = i, newline_end = 0, length;
    while (end < c->n) {
        uint8_t class = class_at(c, end, &length);
        if (!(class & CHAR_S)) break;
        last = end;
        end += length;
        if (class & CHAR_NEWLINE) newline_end = end;
    }
    if (newline_end) return newline_end;
    return end == c->n || last == i ? end
                                    : last; /* before a non-space the last one is given back */
}

/*  ?[^\s\p{L}\p{N}]+ at i: its end, or i. */
static size_t symbols(const Scan *c, size_t i)
{
    size_t start = c->s[i] == ' ' ? i + 1 : i;
    size_t end = run(c, start, NEITHER_L_N);
    return end > start ? end : i;
}

size_t split_llama3(const uint8_t *classes, Bytes text, size_t pos)
{
    Scan c = {classes, text.at, text.n};
    size_t end = contraction(&c, pos), length;
    if (end > pos) return end;
    uint8_t class = class_at(&c, pos, &length);
    if (class & CHAR_L) return run(&c, pos + length, CHAR_L); /* [^\r\n\p{L}\p{N}]?\p{L}+ */
    if (class & PREFIX) {
        end = run(&c, pos + length, CHAR_L);
        if (end > pos + length) return end;
    }
    if (class & CHAR_NUMBER) return digits(&c, pos);
    end = symbols(&c, pos);
    if (end > pos) return run(&c, end, CHAR_NEWLINE);
    return white_space(&c, pos);
}

/* The first two alternatives of Llama 4 behind their optional prefix, together: a word with a
 * capital or without, then one all in capitals. From q, HEAD* takes all it can, up to r.
 *   A lower case letter at r: TAIL+ goes on from there.
 *   Else HEAD* must give back, one by one, until TAIL+ can begin: at the last caseless letter b,
 * and behind it stand capitals only, so that the word ends after b. No such letter: this prefix
 * fails the first alternative (*caps = r when the second would do). */
static size_t word(const Scan *c, size_t q, size_t *caps)
{
    size_t r = q, caseless_end = 0, length;
    uint8_t class = 0;
    while (r < c->n) {
        class = class_at(c, r, &length);
        if (!(class & HEAD)) break;
        r += length;
        if (class & CASELESS) caseless_end = r;
    }
    if (r < c->n && (class & CHAR_LOWER)) return run(c, r, TAIL);
    *caps = r;
    return caseless_end;
}

size_t split_llama4(const uint8_t *classes, Bytes text, size_t pos)
{
    Scan c = {classes, text.at, text.n};
    size_t length, end = 0, caps = 0;
    uint8_t class = class_at(&c, pos, &length);
    if (class & PREFIX) {
        caps = pos + length;
        end = word(&c, pos + length, &caps);
        /* Without the prefix a mark is a letter; alone, for had a word followed it were found. */
        if (!end && (class & CHAR_MARK)) end = pos + length;
        if (!end && caps > pos + length) end = caps;
    } else if (class & CHAR_L) {
        end = word(&c, pos, &caps);
        if (!end) end = caps;
    }
    if (end) return contraction(&c, end);
    if (class & CHAR_NUMBER) return digits(&c, pos);
    end = symbols(&c, pos);
    if (end > pos) {
        while (end < text.n &&
               (text.at[end] == '\r' || text.at[end] == '\n' || text.at[end] == '/'))
            end++;
        return end;
    }
    return white_space(&c, pos);
}
