/* The golden files of tests/golden_text: ids and texts as sentencepiece and tokenizers give them.
 */
#include "text/text_test_util.h"

#include <jansson.h>

#define GOLDEN SOURCE_DIR "/tests/golden_text/"

typedef struct Golden {
    Arena arena;
    Tokenizer *t;
    Encoder *e;
    json_t *expected;
    const char *name;
} Golden;

static void open_golden(const char *name, const char *suffix, Golden *g)
{
    json_error_t error;
    *g = (Golden){.name = name};
    assert_ok(tokenizer_load(arena_printf(&g->arena, GOLDEN "%s%s", name, suffix), &g->t));
    assert_ok(encoder_create(g->t, &g->e));
    g->expected = json_load_file(arena_printf(&g->arena, GOLDEN "%s.expected.json", name),
                                 JSON_ALLOW_NUL, &error);
    if (!g->expected) fail_msg("%s: %s", name, error.text);
    assert_true(json_array_size(json_object_get(g->expected, "texts")) > 100);
}

static void close_golden(Golden *g)
{
    json_decref(g->expected);
    encoder_destroy(g->e);
    tokenizer_destroy(g->t);
    arena_deinit(&g->arena);
}

static Bytes text_at(const Golden *g, const char *key, size_t i)
{
    const json_t *value = json_array_get(json_object_get(g->expected, key), i);
    assert_true(json_is_string(value));
    return (Bytes){(const uint8_t *)json_string_value(value), json_string_length(value)};
}

/* Twice, so that the second time the cache answers. */
static void check_ids(Golden *g, size_t i, const char *key, unsigned flags)
{
    Bytes text = text_at(g, "texts", i);
    const json_t *row = json_array_get(json_object_get(g->expected, key), i);
    for (int round = 0; round < 2; round++) {
        IdVec ids = {0};
        assert_ok(encoder_encode(g->e, text.at, text.n, flags, &ids));
        for (size_t k = 0; k < ids.n && k < json_array_size(row); k++)
            if (ids.at[k] != json_integer_value(json_array_get(row, k)))
                fail_msg("%s, %s %zu \"%.*s\": id %zu is %d, not %lld", g->name, key, i,
                         (int)text.n, (const char *)text.at, k, ids.at[k],
                         (long long)json_integer_value(json_array_get(row, k)));
        if (ids.n != json_array_size(row))
            fail_msg("%s, %s %zu \"%.*s\": %zu ids, not %zu", g->name, key, i, (int)text.n,
                     (const char *)text.at, ids.n, json_array_size(row));
        VEC_FREE(&ids);
    }
}

static void check_decoded(Golden *g, size_t i)
{
    const json_t *row = json_array_get(json_object_get(g->expected, "ids"), i);
    Bytes expected = text_at(g, "decoded", i);
    Str back = {0}, stream = {0};
    Decoder d = {.tokenizer = g->t};
    for (size_t k = 0; k < json_array_size(row); k++)
        assert_ok(decoder_push(&d, (int32_t)json_integer_value(json_array_get(row, k)), &stream));
    decoder_finish(&d, &stream);
    int32_t *ids = xcalloc(json_array_size(row) + 1, sizeof *ids);
    for (size_t k = 0; k < json_array_size(row); k++)
        ids[k] = (int32_t)json_integer_value(json_array_get(row, k));
    assert_ok(tokenizer_decode(g->t, ids, json_array_size(row), &back));
    if (back.n != expected.n || (back.n && memcmp(back.at, expected.at, back.n) != 0))
        fail_msg("%s, decoded %zu: \"%s\", not \"%s\"", g->name, i, back.at ? back.at : "",
                 (const char *)expected.at);
    assert_int_equal(stream.n, back.n);
    if (stream.n) assert_memory_equal(stream.at, back.at, back.n);
    str_deinit(&back);
    str_deinit(&stream);
    free(ids);
}

static void sentencepiece_ids(void **state)
{
    (void)state;
    static const char *const names[] = {"sp-grok", "sp-default", "sp-noprefix", "sp-unknown"};
    for (int m = 0; m < COUNT_OF(names); m++) {
        Golden g;
        open_golden(names[m], ".model", &g);
        assert_string_equal(tokenizer_algorithm(g.t), "SentencePiece BPE");
        for (size_t i = 0; i < json_array_size(json_object_get(g.expected, "texts")); i++) {
            check_ids(&g, i, "ids", ENCODE_TEXT);
            check_decoded(&g, i);
        }
        close_golden(&g);
    }
}

static void added_token_ids(void **state)
{
    (void)state;
    static const char *const names[] = {"hf-plain",      "hf-strip",    "hf-word",
                                        "hf-normalized", "hf-in-vocab", "hf-one-piece"};
    for (int m = 0; m < COUNT_OF(names); m++) {
        Golden g;
        open_golden(names[m], ".json", &g);
        for (size_t i = 0; i < json_array_size(json_object_get(g.expected, "texts")); i++) {
            check_ids(&g, i, "ids", ENCODE_SPECIALS);
            check_ids(&g, i, "ids_as_text", ENCODE_TEXT);
        }
        close_golden(&g);
    }
}

/* The model of Grok-1's kind: what its pieces are, and that all that goes in comes out. */
static void sentencepiece_like_grok(void **state)
{
    (void)state;
    Golden g;
    open_golden("sp-grok", ".model", &g);
    assert_int_equal(tokenizer_vocab_size(g.t), 600);
    assert_int_equal(tokenizer_pad(g.t), 0);
    assert_int_equal(tokenizer_bos(g.t), 1);
    assert_int_equal(tokenizer_eos(g.t), 2);
    assert_false(tokenizer_adds_bos(g.t));
    assert_int_equal(tokenizer_token_kind(g.t, 2), TOKEN_SPECIAL);
    assert_int_equal(tokenizer_token_kind(g.t, 4), TOKEN_ADDED);
    assert_int_equal(tokenizer_id_of(g.t, "\n\n"), 5);
    assert_int_equal(tokenizer_id_of(g.t, "[EOS]"), 2);
    assert_int_equal(tokenizer_id_of(g.t, " the"), 288);
    assert_true(tokenizer_is_reversible(g.t));
    uint8_t bytes[600];
    for (uint64_t round = 0; round < 200; round++) {
        size_t n = 1 + rng_below(round, 0, sizeof bytes);
        for (size_t i = 0; i < n; i++)
            bytes[i] =
                round % 2
                    ? (uint8_t)rng_below(round, i + 1, 256)
                    : (uint8_t) "the\xe2\x96\x81 \n09\xff\xe7\x89\x9b"[rng_below(round, i + 1, 14)];
        for (size_t i = 0; i + 2 < n; i++) /* the one character that comes back as another */
            if (memcmp(bytes + i, "\xe2\x96\x81", 3) == 0) bytes[i] = 'x';
        IdVec ids = {0};
        Str back = {0};
        assert_ok(encoder_encode(g.e, bytes, n, ENCODE_SPECIALS, &ids));
        assert_ok(tokenizer_decode(g.t, ids.at, ids.n, &back));
        assert_int_equal(back.n, n);
        assert_memory_equal(back.at, bytes, n);
        VEC_FREE(&ids);
        str_deinit(&back);
    }
    close_golden(&g);
}

static void assert_round_trip(Golden *g, const Str *text)
{
    IdVec ids = {0};
    Str back = {0};
    assert_ok(encoder_encode(g->e, text->at, text->n, ENCODE_TEXT, &ids));
    assert_ok(tokenizer_decode(g->t, ids.at, ids.n, &back));
    assert_int_equal(back.n, text->n);
    assert_memory_equal(back.at, text->at, text->n);
    VEC_FREE(&ids);
    str_deinit(&back);
}

/* Every code point, and surrogates as three bytes that are none, in one text and alone between
 * spaces. */
static void every_code_point_comes_back(void **state)
{
    (void)state;
    static const char *const names[] = {"sp-grok", "sp-noprefix"};
    for (int m = 0; m < COUNT_OF(names); m++) {
        Golden g;
        Str text = {0}, spaced = {0};
        open_golden(names[m], ".model", &g);
        for (uint32_t c = 0; c < CODE_POINTS; c++) {
            uint8_t utf8[4] = {(uint8_t)(0xe0 | c >> 12), (uint8_t)(0x80 | (c >> 6 & 0x3f)),
                               (uint8_t)(0x80 | (c & 0x3f)), 0};
            int n = c >= 0xd800 && c < 0xe000 ? 3 : utf8_encode(c, utf8);
            if (c == 0x2581) continue; /* comes back as a space, which it is in the model */
            str_add_n(&text, (const char *)utf8, (size_t)n);
            str_add(&spaced, "  ");
            str_add_n(&spaced, (const char *)utf8, (size_t)n);
        }
        assert_round_trip(&g, &text);
        assert_round_trip(&g, &spaced);
        str_deinit(&text);
        str_deinit(&spaced);
        close_golden(&g);
    }
}

/* A tokenizer is written back byte for byte as it came. */
static void golden_files_survive_saving(void **state)
{
    (void)state;
    static const char *const names[] = {"sp-grok.model", "hf-strip.json"};
    char dir[] = "/tmp/drover-golden-XXXXXX";
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < COUNT_OF(names); i++) {
        Arena arena = {0};
        Tokenizer *t, *again;
        Bytes before, after;
        const char *path = path_join(&arena, GOLDEN, names[i]);
        const char *name = i == 0 ? "tokenizer.model" : "tokenizer.json";
        assert_ok(tokenizer_load(path, &t));
        assert_ok(tokenizer_save(t, dir)); /* the second time over the files of the other kind */
        assert_ok(file_read(&arena, path, 1 << 20, &before));
        assert_ok(file_read(&arena, path_join(&arena, dir, name), 1 << 20, &after));
        assert_int_equal(before.n, after.n);
        assert_memory_equal(before.at, after.at, after.n);
        assert_ok(tokenizer_load(dir, &again));
        assert_true(tokenizer_hash(t) == tokenizer_hash(again));
        assert_int_equal(tokenizer_eos(t), tokenizer_eos(again));
        tokenizer_destroy(t);
        tokenizer_destroy(again);
        arena_deinit(&arena);
    }
    assert_ok(dir_remove_tree(dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sentencepiece_ids),
        cmocka_unit_test(added_token_ids),
        cmocka_unit_test(sentencepiece_like_grok),
        cmocka_unit_test(every_code_point_comes_back),
        cmocka_unit_test(golden_files_survive_saving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
