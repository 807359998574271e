/* UTF-8, numbers and names on any bytes: what decodes must encode to itself, and what the fast
 * check accepts must be what the decoder walks through. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 0;
    while (at < size) {
        uint32_t c;
        uint8_t again[4];
        int n = utf8_decode(data + at, size - at, &c);
        if (n == 0) break;
        CHECK(utf8_encode(c, again) == n && memcmp(again, data + at, (size_t)n) == 0);
        at += (size_t)n;
    }
    CHECK(utf8_valid(data, size) == (at == size));

    char *text = xmalloc(size + 1);
    if (size) memcpy(text, data, size);
    text[size] = 0;
    int64_t i, j;
    double x;
    char figure[32], printed[32];
    if (parse_i64(text, &i)) {
        snprintf(printed, sizeof printed, "%lld", (long long)i);
        CHECK(parse_i64(printed, &j) && i == j);
    }
    if (parse_f64(text, &x)) {
        format_bytes(x, figure);
        format_duration(x, figure);
        format_count(x, figure);
    }
    static const char *const names[] = {"steps", "batch", "learning_rate"};
    const char *nearest = name_nearest(text, names, COUNT_OF(names));
    CHECK(!nearest || strlen(nearest) < 3 * strlen(text) + 3);
    path_is_plain_name(path_base(text));
    free(text);
    return 0;
}
