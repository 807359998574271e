/* Text: nearest names, strict numbers, UTF-8, and figures for people. */
#include "base/base.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ------------------------------------------------------------------------------ */

enum { MAX_NAME = 64 };

static int min_int(int a, int b) { return a < b ? a : b; }

/* In ASCII: keys and flags have no other letters, and no locale has a say. */
static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

/* Optimal string alignment: insertions, deletions, substitutions, swaps of neighbours. Letters that
 * differ only in case are equal. */
static int distance(const char *a, int n, const char *b, int m)
{
    int rows[3][MAX_NAME + 1];
    int *before = rows[0], *above = rows[1], *row = rows[2];
    for (int j = 0; j <= m; j++) above[j] = j;
    for (int i = 1; i <= n; i++) {
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            char x = lower(a[i - 1]), y = lower(b[j - 1]);
            int best = min_int(above[j - 1] + (x != y), 1 + min_int(above[j], row[j - 1]));
            if (i > 1 && j > 1 && x == lower(b[j - 2]) && y == lower(a[i - 2]))
                best = min_int(best, before[j - 2] + 1);
            row[j] = best;
        }
        int *oldest = before;
        before = above;
        above = row;
        row = oldest;
    }
    return above[m];
}

const char *name_nearest(const char *word, const char *const *candidates, int n)
{
    const char *nearest = NULL;
    size_t length = strlen(word);
    if (length > MAX_NAME) return NULL;
    int best = MAX_NAME;
    for (int i = 0; i < n; i++) {
        size_t other = strlen(candidates[i]);
        if (other > MAX_NAME) continue;
        int limit = ((int)(length > other ? length : other) + 1) / 3;
        int d = distance(word, (int)length, candidates[i], (int)other);
        if (d > limit || d >= best) continue;
        best = d;
        nearest = candidates[i];
    }
    return nearest;
}

/* ---- numbers ---------------------------------------------------------------------------- */

bool parse_i64(const char *text, int64_t *out)
{
    if (!isdigit((unsigned char)text[text[0] == '-'])) return false;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*end || errno) return false;
    *out = value;
    return true;
}

bool parse_f64(const char *text, double *out)
{
    /* strtod also takes white space, "inf", "nan" and hexadecimal; none of them contains only
     these */
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return false;
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !isfinite(value)) return false;
    *out = value;
    return true;
}

/* ---- UTF-8 ------------------------------------------------------------------------------ */

int utf8_decode(const uint8_t *text, size_t n, uint32_t *code_point)
{
    uint8_t first = text[0];
    if (first < 0x80) {
        *code_point = first;
        return 1;
    }
    int length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || n < (size_t)length) return 0;
    uint32_t c = first & (0x7fu >> length);
    for (int i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (text[i] & 0x3fu);
    }
    /* overlong forms, surrogates, beyond the last plane */
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[length] || (c >= 0xd800 && c <= 0xdfff) || c > 0x10ffff) return 0;
    *code_point = c;
    return length;
}

bool utf8_valid(const uint8_t *text, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint64_t eight;
        if (n - i >= 8 && (memcpy(&eight, text + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        uint32_t c;
        int length = utf8_decode(text + i, n - i, &c);
        if (!length) return false;
        i += (size_t)length;
    }
    return true;
}

/* Returns 0 for what is no code point. */
int utf8_encode(uint32_t c, uint8_t out[4])
{
    if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) return 0;
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 0x3f));
    out[0] = (uint8_t)(0xf00u >> length | c); /* 110, 1110, 11110 in front */
    return length;
}

/* ---- figures for people ----------------------------------------------------------------- */

/* Three significant digits of 0 <= x < 1000. */
static void three_digits(double x, char buf[32], const char *unit)
{
    snprintf(buf, 32, "%.*f%s", x < 9.995 ? 2 : x < 99.95 ? 1 : 0, x, unit);
}

char *format_bytes(double bytes, char buf[32])
{
    static const char *const units[] = {" kB", " MB", " GB", " TB", " PB", " EB"};
    if (!isfinite(bytes)) return memcpy(buf, "?", 2);
    if (fabs(bytes) < 999.5) {
        snprintf(buf, 32, "%.0f byte%s", bytes, fabs(bytes - 1) < 0.5 ? "" : "s");
        return buf;
    }
    int unit = 0;
    for (bytes /= 1e3; bytes >= 999.5 && unit + 1 < COUNT_OF(units); unit++) bytes /= 1e3;
    three_digits(bytes, buf, units[unit]);
    return buf;
}

char *format_duration(double seconds, char buf[32])
{
    double s = fabs(seconds);
    if (!isfinite(s) || s > 1e12)
        snprintf(buf, 32, "?");
    else if (s < 0.9995e-3)
        snprintf(buf, 32, "%.0fus", seconds * 1e6);
    else if (s < 0.9995)
        three_digits(seconds * 1e3, buf, "ms");
    else if (s < 59.95)
        snprintf(buf, 32, "%.1fs", seconds);
    else {
        int64_t whole = llrint(s);
        const char *sign = seconds < 0 ? "-" : "";
        long long days = whole / 86400, hours = whole / 3600, minutes = whole / 60;
        if (days)
            snprintf(buf, 32, "%s%lldd%02lldh", sign, days, hours % 24);
        else if (hours)
            snprintf(buf, 32, "%s%lldh%02lldm", sign, hours, minutes % 60);
        else
            snprintf(buf, 32, "%s%lldm%02llds", sign, minutes, (long long)whole % 60);
    }
    return buf;
}

char *format_count(double count, char buf[32])
{
    double n = fabs(count);
    if (!isfinite(n))
        snprintf(buf, 32, "?");
    else if (n < 999.5)
        snprintf(buf, 32, "%.0f", count);
    else if (n < 999999.5) {
        long long whole = llrint(count);
        snprintf(buf, 32, "%lld,%03lld", whole / 1000, llabs(whole) % 1000);
    } else if (n < 999.5e6)
        three_digits(count / 1e6, buf, "M");
    else if (n < 999.5e9)
        three_digits(count / 1e9, buf, "B");
    else if (n < 999.5e12)
        three_digits(count / 1e12, buf, "T");
    else
        snprintf(buf, 32, "%.3g", count);
    return buf;
}

bool json_is_deeper(const char *text, size_t n, int levels)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > levels) return true;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return false;
}
