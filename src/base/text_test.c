/* Names, strict numbers, every code point, figures. */
#include "base/base.h"

#include <math.h>
#include <string.h>

#include <setjmp.h>
#include <cmocka.h>

static void nearest_names(void **state)
{
    (void)state;
    static const char *const keys[] = {"steps",  "batch", "micro_batch",
                                       "warmup", "lr",    "weight_decay"};
    int n = COUNT_OF(keys);
    assert_string_equal(name_nearest("step", keys, n), "steps");
    assert_string_equal(name_nearest("setps", keys, n), "steps"); /* a swap is one mistake */
    assert_string_equal(name_nearest("microbatch", keys, n), "micro_batch");
    assert_string_equal(name_nearest("Weight_Decay", keys, n), "weight_decay");
    assert_string_equal(name_nearest("l", keys, n), "lr");
    assert_string_equal(name_nearest("bacht", keys, n), "batch");
    assert_null(name_nearest("optimizer", keys, n));
    assert_null(name_nearest("", keys, n));
    char endless[5000];
    memset(endless, 'a', sizeof endless);
    endless[4999] = 0;
    assert_null(name_nearest(endless, keys, n));
    assert_null(name_nearest("x", keys, 0));
}

static void integers(void **state)
{
    (void)state;
    int64_t x = 77;
    static const char *const bad[] = {"",
                                      "-",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1.0",
                                      "1e3",
                                      "0x10",
                                      "9223372036854775808",
                                      "-9223372036854775809",
                                      "--1",
                                      "abc",
                                      "1k"};
    for (int i = 0; i < COUNT_OF(bad); i++) assert_false(parse_i64(bad[i], &x));
    assert_int_equal(x, 77); /* outputs only on success */
    assert_true(parse_i64("-9223372036854775808", &x) && x == INT64_MIN);
    assert_true(parse_i64("9223372036854775807", &x) && x == INT64_MAX);
    assert_true(parse_i64("007", &x) && x == 7);
    assert_true(parse_i64("-0", &x) && x == 0);
}

static void reals(void **state)
{
    (void)state;
    double x = 77;
    static const char *const bad[] = {"",     "-",        ".",     "e5",  "nan", "inf",
                                      "-inf", "infinity", "0x1p3", " 1",  "1 ",  "1e999",
                                      "1,5",  "1e",       "1.2.3", "3 e4"};
    for (int i = 0; i < COUNT_OF(bad); i++) assert_false(parse_f64(bad[i], &x));
    assert_true(x == 77);
    assert_true(parse_f64("3e-4", &x) && x == 3e-4);
    assert_true(parse_f64("-.5", &x) && x == -0.5);
    assert_true(parse_f64("10", &x) && x == 10);
    assert_true(parse_f64("1e-400", &x) && x == 0);
}

static void every_code_point(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x112000; c++) {
        uint8_t bytes[4];
        int n = utf8_encode(c, bytes);
        bool exists = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
        if (!exists) {
            assert_int_equal(n, 0);
            continue;
        }
        uint32_t back = UINT32_MAX;
        if (utf8_decode(bytes, (size_t)n, &back) != n || back != c) fail_msg("code point %x", c);
        if (n > 1 && utf8_decode(bytes, (size_t)n - 1, &back) != 0)
            fail_msg("cut code point %x", c);
    }
}

/* Every start of up to three bytes: what decodes must encode to the same bytes (so no overlong
 * forms). */
static void every_three_bytes(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 1 << 24; i++) {
        uint8_t text[4] = {(uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i, 0xbf}, again[4];
        if (text[0] < 0x80) {
            i |= 0xffff;
            continue;
        }
        uint32_t c;
        int n = utf8_decode(text, 4, &c);
        if (n && (utf8_encode(c, again) != n || memcmp(text, again, (size_t)n) != 0))
            fail_msg("bytes %06x", i);
    }
}

static void valid_texts(void **state)
{
    (void)state;
    uint8_t text[] = "0123456789 gr\xc3\xbc\xc3\x9f"
                     "e 0123456789 \xf0\x9f\x90\x84 end";
    size_t n = sizeof text - 1;
    assert_true(utf8_valid(text, n));
    assert_true(utf8_valid(text, 0));
    for (size_t i = 0; i < n; i++) { /* any byte broken at any place, fast path or not */
        uint8_t kept = text[i];
        text[i] = 0xff;
        assert_false(utf8_valid(text, n));
        text[i] = kept;
    }
    assert_false(utf8_valid(text, 14)); /* in the middle of a letter */
}

static void figures(void **state)
{
    (void)state;
    char b[32];
    assert_string_equal(format_bytes(0, b), "0 bytes");
    assert_string_equal(format_bytes(1, b), "1 byte");
    assert_string_equal(format_bytes(789, b), "789 bytes");
    assert_string_equal(format_bytes(1230000000, b), "1.23 GB");
    assert_string_equal(format_bytes(456e6, b), "456 MB");
    assert_string_equal(format_bytes(999999, b), "1.00 MB");
    assert_string_equal(format_bytes(45.67e12, b), "45.7 TB");
    assert_string_equal(format_duration(3720, b), "1h02m");
    assert_string_equal(format_duration(184, b), "3m04s");
    assert_string_equal(format_duration(5.6, b), "5.6s");
    assert_string_equal(format_duration(59.97, b), "1m00s");
    assert_string_equal(format_duration(0.0123, b), "12.3ms");
    assert_string_equal(format_duration(45e-6, b), "45us");
    assert_string_equal(format_duration(200000, b), "2d07h");
    assert_string_equal(format_duration((double)NAN, b), "?");
    assert_string_equal(format_count(1.24e9, b), "1.24B");
    assert_string_equal(format_count(17.2e6, b), "17.2M");
    assert_string_equal(format_count(3210, b), "3,210");
    assert_string_equal(format_count(999999, b), "999,999");
    assert_string_equal(format_count(405e9, b), "405B");
    assert_string_equal(format_count(2e12, b), "2.00T");
    assert_string_equal(format_count(12, b), "12");
    assert_string_equal(format_count(1e30, b), "1e+30");
}

static void json_depth(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int depth;
    } cases[] = {{"", 0},   {"1", 0}, {"[[],{}]", 2}, {"[[[\"]]\"", 3}, {"\"[[[\\\"[\"", 0},
                 {"]][", 1}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const char *text = cases[i].text;
        assert_false(json_is_deeper(text, strlen(text), cases[i].depth));
        if (cases[i].depth) assert_true(json_is_deeper(text, strlen(text), cases[i].depth - 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nearest_names),
        cmocka_unit_test(integers),
        cmocka_unit_test(reals),
        cmocka_unit_test(every_code_point),
        cmocka_unit_test(every_three_bytes),
        cmocka_unit_test(valid_texts),
        cmocka_unit_test(figures),
        cmocka_unit_test(json_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
