/* SentencePiece models: the definition, refusals by name, long texts, streaming, files. */
#include "text/text_test_util.h"

#include "text/sp_test_util.h"

static Tokenizer *parse_made(const SpMade *m)
{
    Str file = made_file(m);
    Tokenizer *t = NULL;
    assert_ok(sp_parse(bytes_of_str(&file), "made", &t));
    str_deinit(&file);
    return t;
}

static void add_text(SpMade *m, const char *text, float score, SpType type)
{
    made_add(m, bytes_of(text), score, type);
}

/* ---- the definition --------------------------------------------------------------------- */

static const char *const letters[] = {
    "a", "b", "c", " ", " ", "\n", "0", "\xc3\xa9", "\xe4\xb8\xad", SP_SPACE, "\xf0\x9f\x98\x80",
    "-"};

static void random_string(uint64_t seed, size_t n, int n_letters, Str *out)
{
    str_clear(out);
    for (size_t i = 0; i < n; i++) str_add(out, letters[rng_below(seed, i, (uint64_t)n_letters)]);
}

/* Pieces of a few letters with few different scores, so that equal ones meet; some are
 * user-defined, and some letters are no piece themselves. */
static SpMade random_model(uint64_t seed)
{
    SpMade m = {.byte_fallback = seed & 1,
                .add_dummy_prefix = seed & 2,
                .remove_extra_whitespaces = seed & 4,
                .escape_whitespaces = !(seed & 8)};
    Str text = {0};
    made_begin(&m);
    for (uint64_t i = 0; i < 60; i++) {
        SpType type = rng_below(seed, 100 + i, 9) ? SP_NORMAL : SP_USER;
        random_string(rng_key(seed, "piece") + i, i < 8 ? 1 : 1 + rng_below(seed, 300 + i, 5),
                      COUNT_OF(letters), &text);
        for (char *c = text.at; type == SP_NORMAL && m.escape_whitespaces && c < text.at + text.n;
             c++)
            if (*c == ' ') *c = 'c';
        if (!made_has(&m, bytes_of_str(&text)))
            made_add(&m, bytes_of_str(&text), (float)rng_below(seed, 200 + i, 9), type);
    }
    str_deinit(&text);
    return m;
}

static void encoding_is_the_definition(void **state)
{
    (void)state;
    Str text = {0};
    for (uint64_t seed = 0; seed < 200; seed++) {
        SpMade m = random_model(seed);
        Tokenizer *t = parse_made(&m);
        Encoder *e;
        assert_ok(encoder_create(t, &e));
        for (uint64_t round = 0; round < 30; round++) {
            IdVec fast = {0}, slow = {0};
            random_string(seed * 1000 + round, rng_below(seed, round, 60), 3 + (int)(round % 10),
                          &text);
            assert_ok(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &fast));
            slow_encode(&m, bytes_of_str(&text), &slow);
            for (size_t i = 0; i < fast.n && i < slow.n; i++)
                if (fast.at[i] != slow.at[i])
                    fail_msg("model %d, \"%s\": id %zu is %d, not %d", (int)seed, text.at, i,
                             fast.at[i], slow.at[i]);
            assert_int_equal(fast.n, slow.n);
            VEC_FREE(&fast);
            VEC_FREE(&slow);
        }
        encoder_destroy(e);
        tokenizer_destroy(t);
        made_deinit(&m);
    }
    str_deinit(&text);
}

/* The ids of normalized text, piece by piece between dashes, over which nothing merges. */
static void slow_encode_long(const SpMade *m, Bytes text, IdVec *ids)
{
    Str normal = {0};
    SpMade plain = *m;
    slow_normalize(m, text, &normal);
    plain.add_dummy_prefix = plain.remove_extra_whitespaces = plain.escape_whitespaces = false;
    for (size_t at = 0, end; at < normal.n; at = end + 1) {
        const char *dash = memchr(normal.at + at, '-', normal.n - at);
        end = dash ? (size_t)(dash - normal.at) : normal.n;
        if (end > at) slow_encode(&plain, (Bytes){(const uint8_t *)normal.at + at, end - at}, ids);
        if (dash) VEC_PUSH(ids, 3 + '-');
    }
    str_deinit(&normal);
}

/* The blocks in which text is normalized must not show. */
static void long_texts(void **state)
{
    (void)state;
    static const char *const pieces[] = {"a",  "b",        SP_SPACE,       SP_SPACE "a",
                                         "ab", "\xc3\xa9", "\xe4\xb8\xad", SP_SPACE SP_SPACE};
    Str text = {0};
    for (uint64_t seed = 0; seed < 8; seed++) {
        SpMade m = {.byte_fallback = true,
                    .add_dummy_prefix = seed & 1,
                    .remove_extra_whitespaces = seed & 2,
                    .escape_whitespaces = true};
        made_begin(&m);
        for (int i = 0; i < COUNT_OF(pieces); i++) add_text(&m, pieces[i], (float)-i, SP_NORMAL);
        add_text(&m, seed & 4 ? "0a0" : " a  b ", 0, SP_USER);
        add_text(&m, "\n\n\n\n\n\n\n\n", 0, SP_USER);
        Tokenizer *t = parse_made(&m);
        Encoder *e;
        IdVec fast = {0}, slow = {0};
        assert_ok(encoder_create(t, &e));
        random_string(seed, 40000, COUNT_OF(letters), &text);
        assert_ok(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &fast));
        slow_encode_long(&m, bytes_of_str(&text), &slow);
        assert_int_equal(fast.n, slow.n);
        assert_memory_equal(fast.at, slow.at, slow.n * sizeof *slow.at);
        VEC_FREE(&fast);
        VEC_FREE(&slow);
        encoder_destroy(e);
        tokenizer_destroy(t);
        made_deinit(&m);
    }
    str_deinit(&text);
}

/* A million letters of one part: the heap, and not the square of its length. */
static void one_letter(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    SpMade m = {.byte_fallback = true, .add_dummy_prefix = true, .escape_whitespaces = true};
    made_begin(&m);
    char run[65] = "";
    for (int n = 1; n <= 64; n *= 2) {
        memset(run, 'a', (size_t)n);
        run[n] = 0;
        add_text(&m, run, (float)-n, SP_NORMAL);
    }
    Tokenizer *t = parse_made(&m);
    Encoder *e;
    IdVec ids = {0};
    char *text = xmalloc(N);
    memset(text, 'a', N);
    assert_ok(encoder_create(t, &e));
    double start = processor_s();
    assert_ok(encoder_encode(e, text, N, ENCODE_TEXT, &ids));
    assert_true(processor_s() - start < 10); /* a quarter of a second; n squared would be hours */
    assert_int_equal(ids.n, SP_SPACE_BYTES + N / 64); /* the space in front is no piece here */
    free(text);
    VEC_FREE(&ids);
    encoder_destroy(e);
    tokenizer_destroy(t);
    made_deinit(&m);
}

/* ---- decoding --------------------------------------------------------------------------- */

static void decoder_knows_what_came_before(void **state)
{
    (void)state;
    SpMade m = {.byte_fallback = true, .add_dummy_prefix = true, .escape_whitespaces = true};
    made_begin(&m);
    add_text(&m, SP_SPACE "go", 0, SP_NORMAL);
    add_text(&m, SP_SPACE, -1, SP_NORMAL);
    Tokenizer *t = parse_made(&m);
    int32_t go = tokenizer_id_of(t, " go"), space = tokenizer_id_of(t, " ");
    assert_true(go == 259 && space == 260);
    const int32_t ids[] = {1, go, go, 3 + 0xc3, 3 + 0xa9, space, go, 2, 3 + 0xff};
    static const char *const expected[] = {"go go\xc3\xa9  go\xef\xbf\xbd",
                                           " go go\xc3\xa9  go\xef\xbf\xbd"};
    for (int continues = 0; continues < 2; continues++) {
        Decoder d = {.tokenizer = t, .skip_special = true, .continues = continues};
        Str out = {0};
        for (int i = 0; i < COUNT_OF(ids); i++) assert_ok(decoder_push(&d, ids[i], &out));
        decoder_finish(&d, &out);
        assert_string_equal(out.at, expected[continues]);
        str_deinit(&out);
    }
    Str out = {0};
    assert_ok(tokenizer_decode(t, ids, COUNT_OF(ids), &out));
    assert_string_equal(out.at, "<s>go go\xc3\xa9  go</s>\xff");
    str_deinit(&out);
    assert_int_equal(tokenizer_text_bytes(t, go, true), 2);
    assert_int_equal(tokenizer_text_bytes(t, go, false), 3);
    assert_int_equal(tokenizer_text_bytes(t, 1, false), 0);
    tokenizer_destroy(t);
    made_deinit(&m);
}

/* The space in front belongs to the first text of a call; a special token's name is found only if
 * asked. */
static void special_tokens_cut_text(void **state)
{
    (void)state;
    SpMade m = {.byte_fallback = true, .add_dummy_prefix = true, .escape_whitespaces = true};
    made_begin(&m);
    add_text(&m, SP_SPACE, 0, SP_NORMAL);
    add_text(&m, "a", 0, SP_NORMAL);
    Tokenizer *t = parse_made(&m);
    static const int32_t expected[] = {1, 259, 260, 2, 260};
    Encoder *e;
    IdVec ids = {0};
    assert_ok(encoder_create(t, &e));
    assert_ok(encoder_encode(e, "<s>a</s>a", 9, ENCODE_SPECIALS, &ids));
    assert_int_equal(ids.n, COUNT_OF(expected));
    assert_memory_equal(ids.at, expected, sizeof expected);
    ids.n = 0;
    assert_ok(encoder_encode(e, "<s>", 3, ENCODE_TEXT, &ids));
    assert_int_equal(ids.n, 4); /* three bytes behind the space */
    VEC_FREE(&ids);
    encoder_destroy(e);
    tokenizer_destroy(t);
    made_deinit(&m);
}

/* ---- refusals --------------------------------------------------------------------------- */

typedef struct Wrong {
    const char *reason;
    Status status;
    const char *piece; /* one more, of this type and score */
    SpType type;
    float score;
    uint32_t part, field; /* or a field in a part of the model: a number, or a text */
    uint64_t value;
    const char *text;
} Wrong;

static const Wrong wrong[] = {
    {.reason = NULL, .status = OK, .piece = "zz"},
    {.reason = "type unigram", .status = ERR_UNSUPPORTED, .part = 2, .field = 3, .value = 1},
    {.reason = "type word", .status = ERR_UNSUPPORTED, .part = 2, .field = 3, .value = 3},
    {.reason = "type unknown", .status = ERR_UNSUPPORTED, .part = 2, .field = 3, .value = 99},
    {.reason = "treat_whitespace_as_suffix",
     .status = ERR_UNSUPPORTED,
     .part = 2,
     .field = 24,
     .value = 1},
    {.reason = "\"identity\" has a table of 3 bytes",
     .status = ERR_UNSUPPORTED,
     .part = 3,
     .field = 2,
     .text = "abc"},
    {.reason = "denormalizer", .status = ERR_UNSUPPORTED, .part = 5, .field = 2, .text = "abc"},
    {.reason = "wire type", .status = ERR_FORMAT, .part = 2, .field = 3, .text = "bpe"},
    {.reason = "wire type", .status = ERR_FORMAT, .part = 3, .field = 2, .value = 1},
    {.reason = "unknown type 7", .status = ERR_UNSUPPORTED, .piece = "zz", .type = (SpType)7},
    {.reason = "marked unused", .status = ERR_UNSUPPORTED, .piece = "zz", .type = SP_UNUSED},
    {.reason = "control symbol of one character",
     .status = ERR_UNSUPPORTED,
     .piece = "\xc3\xa9",
     .type = SP_CONTROL},
    {.reason = "both the unknown one", .status = ERR_FORMAT, .piece = "zz", .type = SP_UNKNOWN},
    {.reason = "a byte without one", .status = ERR_FORMAT, .piece = "<0x0a>", .type = SP_BYTE},
    {.reason = "same text", .status = ERR_FORMAT, .piece = "<s>", .type = SP_NORMAL},
    {.reason = "same text", .status = ERR_FORMAT, .piece = "<s>", .type = SP_USER},
    {.reason = "same bytes", .status = ERR_FORMAT, .piece = "ab", .type = SP_NORMAL},
    {.reason = "same text", .status = ERR_FORMAT, .piece = "ab", .type = SP_USER},
    {.reason = "same text", .status = ERR_FORMAT, .piece = "<0x41>", .type = SP_BYTE},
    {.reason = "0 bytes", .status = ERR_FORMAT, .piece = ""},
    {.reason = "not UTF-8", .status = ERR_FORMAT, .piece = "a\xff"},
    {.reason = "not finite", .status = ERR_FORMAT, .piece = "zz", .score = 1.0f / 0.0f},
    {.reason = "not finite", .status = ERR_FORMAT, .piece = "zz", .score = 0.0f / 0.0f},
};

static void what_is_not_supported_is_refused_by_name(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(wrong); i++) {
        const Wrong *w = &wrong[i];
        SpMade m = {.byte_fallback = true, .add_dummy_prefix = true, .escape_whitespaces = true};
        made_begin(&m);
        add_text(&m, "a", 0, SP_NORMAL);
        add_text(&m, "ab", 0, SP_NORMAL);
        if (w->piece) add_text(&m, w->piece, w->score, w->type ? w->type : SP_NORMAL);
        Str file = made_file(&m), part = {0};
        if (w->text)
            put_bytes(&part, w->field, bytes_of(w->text));
        else if (w->part)
            put_number(&part, w->field, w->value);
        if (w->part) put_bytes(&file, w->part, bytes_of_str(&part));
        Tokenizer *t = NULL;
        Status status = sp_parse(bytes_of_str(&file), "M.model", &t);
        if (status != w->status) fail_msg("case %d: %s", i, status_message());
        if (status != OK &&
            (!strstr(status_message(), w->reason) || !strstr(status_message(), "M.model")))
            fail_msg("case %d: the sentence is \"%s\"", i, status_message());
        tokenizer_destroy(t);
        str_deinit(&file);
        str_deinit(&part);
        made_deinit(&m);
    }
}

/* Cut off anywhere, a model is refused or is one of the pieces before; never read beyond. */
static void damaged_models(void **state)
{
    (void)state;
    SpMade m = random_model(3);
    Str file = made_file(&m);
    Tokenizer *t = NULL;
    for (size_t n = 0; n < file.n; n += n < 200 || n + 200 > file.n ? 1 : 37) {
        uint8_t *exact = xmalloc(n + 1);
        memcpy(exact, file.at, n);
        if (sp_parse((Bytes){exact, n}, "M.model", &t) == OK) {
            assert_true(n > file.n - 32); /* what type it is stands near the end */
            tokenizer_destroy(t);
            t = NULL;
        }
        free(exact);
    }
    static const char *const bad[] = {"\x0b",
                                      "\x0c",
                                      "\x02",
                                      "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                                      "\x0a\xff\xff\xff\xff\x0f",
                                      "\x0d\x01",
                                      "\x09\x01",
                                      "\xff\xff\xff\xff\x7f"};
    for (int i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(sp_parse(bytes_of(bad[i]), "M.model", &t), ERR_FORMAT);
        assert_non_null(strstr(status_message(), "M.model: not a SentencePiece model"));
    }
    assert_null(t);
    str_deinit(&file);
    made_deinit(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encoding_is_the_definition),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(one_letter),
        cmocka_unit_test(decoder_knows_what_came_before),
        cmocka_unit_test(special_tokens_cut_text),
        cmocka_unit_test(what_is_not_supported_is_refused_by_name),
        cmocka_unit_test(damaged_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
