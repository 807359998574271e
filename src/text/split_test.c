/* The scanners and the class table against PCRE2. */
#include "text/text_test_util.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* For each code point whether the pattern of one class matches it, as `bit` in found. */
static void ask_pcre2(const char *pattern, uint8_t bit, uint8_t *found)
{
    void *regex;
    assert_ok(pattern_compile(pattern, "test", &regex));
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(regex, NULL);
    for (uint32_t c = 0; c < CODE_POINTS; c++) {
        uint8_t utf8[4];
        if (c >= 0xd800 && c < 0xe000) continue;
        size_t n = (size_t)utf8_encode(c, utf8);
        if (pcre2_match(regex, utf8, n, 0, PCRE2_NO_UTF_CHECK, data, NULL) > 0) found[c] |= bit;
    }
    pcre2_match_data_free(data);
    pattern_free(regex);
}

/* The library may be of an older or newer Unicode than our table: they may differ on characters
 * that one of them does not know, and on the few that Unicode itself moved. */
static void classes_agree_with_pcre2(void **state)
{
    (void)state;
    uint8_t *classes = xmalloc(CODE_POINTS), *found = xcalloc(CODE_POINTS, 1);
    unicode_expand(classes);
    ask_pcre2("[\\p{Lu}\\p{Lt}]", CHAR_UPPER, found);
    ask_pcre2("\\p{Ll}", CHAR_LOWER, found);
    ask_pcre2("[\\p{Lm}\\p{Lo}]", CHAR_LETTER, found);
    ask_pcre2("\\p{M}", CHAR_MARK, found);
    ask_pcre2("\\p{N}", CHAR_NUMBER, found);
    ask_pcre2("\\s", CHAR_SPACE, found);
    int moved = 0, differ = 0;
    for (uint32_t c = 0; c < CODE_POINTS; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        uint8_t pcre2 = found[c] ? found[c] : CHAR_OTHER;
        if (c == '\r' || c == '\n') pcre2 = CHAR_NEWLINE;
        if (pcre2 == classes[c]) continue;
        differ++;
        moved += pcre2 != CHAR_OTHER && classes[c] != CHAR_OTHER;
    }
    assert_true(moved < 20);
    assert_true(differ < 20000);
    assert_int_equal(classes[0x10ffff], CHAR_OTHER);
    assert_int_equal(classes[0x1c89], CHAR_UPPER); /* new in Unicode 16 */
    assert_int_equal(classes[0x180e],
                     CHAR_OTHER); /* no white space since Unicode 6.3, still so in PCRE2 */
    assert_int_equal(classes[0x85], CHAR_SPACE);
    free(classes);
    free(found);
}

typedef size_t Split(const uint8_t *classes, Bytes text, size_t pos);

/* Gives the scanner PCRE2's own classes, so that only the scanning is compared. */
static uint8_t *pcre2_classes(void)
{
    uint8_t *found = xcalloc(CODE_POINTS, 1);
    ask_pcre2("[\\p{Lu}\\p{Lt}]", CHAR_UPPER, found);
    ask_pcre2("\\p{Ll}", CHAR_LOWER, found);
    ask_pcre2("[\\p{Lm}\\p{Lo}]", CHAR_LETTER, found);
    ask_pcre2("\\p{M}", CHAR_MARK, found);
    ask_pcre2("\\p{N}", CHAR_NUMBER, found);
    ask_pcre2("\\s", CHAR_SPACE, found);
    for (uint32_t c = 0; c < CODE_POINTS; c++)
        if (!found[c]) found[c] = CHAR_OTHER;
    found['\r'] = found['\n'] = CHAR_NEWLINE;
    return found;
}

static void compare(Split *split, const uint8_t *classes, Matcher *m, void *regex, Bytes text)
{
    for (size_t pos = 0; pos < text.n;) {
        size_t expected = 0, end = split(classes, text, pos);
        assert_ok(matcher_split(m, regex, text, pos, &expected));
        if (end != expected)
            fail_msg("piece at %zu of \"%.*s\" (%zu bytes): ends at %zu, PCRE2 says %zu", pos,
                     (int)text.n, (const char *)text.at, text.n, end, expected);
        pos = end;
    }
}

static void check_scanner(const char *pattern, Split *split)
{
    uint8_t *classes = pcre2_classes();
    void *regex;
    Matcher m;
    Str text = {0};
    assert_ok(pattern_compile(pattern, "test", &regex));
    matcher_init(&m, regex);
    for (uint64_t round = 0; round < 60000; round++) {
        random_text(rng_key(1, "split") + round, 1 + (int)(round % 24), &text);
        compare(split, classes, &m, regex, (Bytes){(const uint8_t *)text.at, text.n});
    }
    for (uint64_t round = 0; round < 20; round++) {
        random_text(rng_key(2, "split") + round, 10000, &text);
        compare(split, classes, &m, regex, (Bytes){(const uint8_t *)text.at, text.n});
    }
    str_deinit(&text);
    matcher_deinit(&m);
    pattern_free(regex);
    free(classes);
}

static void llama3_scanner_equals_pcre2(void **state)
{
    (void)state;
    check_scanner(pattern_llama3, split_llama3);
}

static void llama4_scanner_equals_pcre2(void **state)
{
    (void)state;
    check_scanner(pattern_llama4, split_llama4);
}

/* Every byte string is cut into valid and invalid runs, each the longest. */
static void utf8_runs(void **state)
{
    (void)state;
    static const char *const invalid[] = {
        "\x80", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88", "\xff\xfe"};
    for (int i = 0; i < COUNT_OF(invalid); i++) {
        Str s = {0};
        str_add(&s, "caf\xc3\xa9 12345678 ");
        size_t n_valid = s.n, n_bad = strlen(invalid[i]);
        str_add(&s, invalid[i]);
        str_add(&s, "z\xe6\x9d\xb1");
        const uint8_t *at = (const uint8_t *)s.at;
        assert_int_equal(utf8_valid_run(at, s.n), n_valid);
        assert_int_equal(utf8_invalid_run(at + n_valid, s.n - n_valid), n_bad);
        assert_int_equal(utf8_valid_run(at + n_valid + n_bad, s.n - n_valid - n_bad), 4);
        assert_int_equal(utf8_valid_run(at + n_valid + n_bad, 3),
                         1); /* cut in the middle of a character */
        str_deinit(&s);
    }
}

/* Patterns that cannot be used are refused with a reason, ones that explode are stopped. */
static void hostile_patterns(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "", "(", "[a", "a{5,1}", "\\p{Nothing}", "\\C+", "((((a{999}){999}){999}){999})"};
    void *regex = NULL;
    for (int i = 0; i < COUNT_OF(wrong); i++)
        assert_int_equal(pattern_compile(wrong[i], "test", &regex), ERR_FORMAT);
    assert_ok(pattern_compile("(a+)+$|(a|aa)+b", "test", &regex));
    Matcher m;
    matcher_init(&m, regex);
    uint8_t text[4000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'c';
    size_t end;
    assert_int_equal(matcher_split(&m, regex, (Bytes){text, sizeof text}, 0, &end), ERR_REFUSED);
    matcher_deinit(&m);
    pattern_free(regex);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes_agree_with_pcre2), cmocka_unit_test(llama3_scanner_equals_pcre2),
        cmocka_unit_test(llama4_scanner_equals_pcre2), cmocka_unit_test(utf8_runs),
        cmocka_unit_test(hostile_patterns)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
