/* Encoding: the published ids, round trips of any bytes, the two ways of merging, added tokens. */
#include "text/text_test_util.h"

static void encode(const Tokenizer *t, Bytes text, unsigned flags, IdVec *ids)
{
    Encoder *e;
    ids->n = 0;
    assert_ok(encoder_create(t, &e));
    assert_ok(encoder_encode(e, text.at, text.n, flags, ids));
    encoder_destroy(e);
}

static void assert_round_trip(Encoder *e, const Tokenizer *t, Bytes text)
{
    IdVec ids = {0};
    Str back = {0};
    assert_ok(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &ids));
    assert_ok(tokenizer_decode(t, ids.at, ids.n, &back));
    assert_int_equal(back.n, text.n);
    if (text.n) assert_memory_equal(back.at, text.at, text.n);
    str_deinit(&back);
    VEC_FREE(&ids);
}

/* ---- merging ---------------------------------------------------------------------------- */

/* The definition, literally: look at all neighbours, join the lowest, again. */
static void merge_slowly(const Tokenizer *t, Bytes piece, IdVec *ids)
{
    ids->n = 0;
    for (size_t i = 0; i < piece.n; i++) VEC_PUSH(ids, t->byte_id[piece.at[i]]);
    for (;;) {
        const MergeRule *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < ids->n; i++) {
            const MergeRule *rule = merge_find(t, ids->at[i], ids->at[i + 1]);
            if (rule && (!best || rule->priority < best->priority)) {
                best = rule;
                at = i;
            }
        }
        if (!best) return;
        ids->at[at] = best->result;
        ids->n--;
        memmove(ids->at + at + 1, ids->at + at + 2, (ids->n - at - 1) * sizeof *ids->at);
    }
}

static void assert_same(const IdVec *a, const IdVec *b)
{
    assert_int_equal(a->n, b->n);
    if (a->n) assert_memory_equal(a->at, b->at, a->n * sizeof *a->at);
}

static void fast_merging_equals_slow(void **state)
{
    (void)state;
    MergeScratch scratch = {0};
    IdVec slow = {0}, fast = {0};
    for (uint64_t round = 0; round < 60; round++) {
        Tokenizer *t = make_tokenizer(rng_key(round, "merge"), 60 + 4 * (int)round, pattern_llama4);
        for (uint64_t i = 0; i < 100; i++) {
            uint8_t text[300];
            size_t n = 1 + rng_below(round, i, i % 4 ? MERGE_SHORT_BYTES : sizeof text);
            int letters = i % 3 ? 4 : 1 + (int)(i % 2);
            for (size_t k = 0; k < n; k++)
                text[k] = (uint8_t)('a' + rng_below(round * 1000 + i, k, (uint64_t)letters));
            merge_slowly(t, (Bytes){text, n}, &slow);
            fast.n = 0;
            merge_long(t, &scratch, (Bytes){text, n}, &fast);
            assert_same(&slow, &fast);
            if (n > MERGE_SHORT_BYTES) continue;
            fast.n = 0;
            merge_short(t, (Bytes){text, n}, &fast);
            assert_same(&slow, &fast);
        }
        tokenizer_destroy(t);
    }
    merge_scratch_deinit(&scratch);
    VEC_FREE(&slow);
    VEC_FREE(&fast);
}

/* A cache hit gives what a miss gave. */
static void cache_changes_nothing(void **state)
{
    (void)state;
    Tokenizer *t = make_tokenizer(5, 400, pattern_llama4);
    IdVec first = {0}, again = {0};
    Str text = {0};
    Encoder *e;
    random_text(77, 4000, &text);
    for (int i = 0; i < 3000; i++)
        str_printf(&text, " %c%c%cab", 'a' + i % 4, 'a' + i / 4 % 4, 'a' + i / 16 % 4);
    assert_ok(encoder_create(t, &e));
    assert_ok(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &first));
    assert_ok(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &again));
    assert_same(&first, &again);
    again.n = 0;
    Bytes all = {(const uint8_t *)text.at, text.n};
    IdVec slow = {0};
    for (size_t pos = 0, end; pos < all.n; pos = end) { /* piece by piece without any cache */
        end = split_llama4(t->classes, all, pos);
        Bytes piece = {all.at + pos, end - pos};
        int32_t id = vocab_find_bytes(t, piece.at, piece.n);
        slow.n = 0;
        if (id >= 0)
            VEC_PUSH(&slow, id);
        else
            merge_slowly(t, piece, &slow);
        for (size_t i = 0; i < slow.n; i++) VEC_PUSH(&again, slow.at[i]);
    }
    assert_same(&first, &again);
    encoder_destroy(e);
    tokenizer_destroy(t);
    str_deinit(&text);
    VEC_FREE(&first);
    VEC_FREE(&again);
    VEC_FREE(&slow);
}

/* ---- round trips ------------------------------------------------------------------------ */

static void round_trips(void **state)
{
    (void)state;
    static const char *const patterns[] = {pattern_llama3, pattern_llama4, pattern_gpt2, "[a-z]+"};
    for (int p = 0; p < COUNT_OF(patterns); p++) {
        Tokenizer *t = make_tokenizer(9, 100, patterns[p]);
        Encoder *e;
        Str text = {0};
        assert_ok(encoder_create(t, &e));
        assert_round_trip(e, t, (Bytes){NULL, 0});
        uint8_t bytes[3000];
        for (uint64_t round = 0; round < 50; round++) {
            for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)rng_below(round, i, 256);
            assert_round_trip(e, t, (Bytes){bytes, 1 + (size_t)(round * 59)});
            random_text(round, 2000, &text);
            text.at[rng_below(round, 1, text.n)] = (char)0xff; /* mostly valid */
            assert_round_trip(e, t, (Bytes){(const uint8_t *)text.at, text.n});
        }
        str_clear(&text);
        for (uint32_t c = 0; c < CODE_POINTS; c++) { /* surrogates too: as three invalid bytes */
            uint8_t utf8[4] = {(uint8_t)(0xe0 | c >> 12), (uint8_t)(0x80 | (c >> 6 & 0x3f)),
                               (uint8_t)(0x80 | (c & 0x3f)), 0};
            int n = c >= 0xd800 && c < 0xe000 ? 3 : utf8_encode(c, utf8);
            str_add_n(&text, (const char *)utf8, (size_t)n);
        }
        assert_round_trip(e, t, (Bytes){(const uint8_t *)text.at, text.n});
        encoder_destroy(e);
        str_deinit(&text);
        tokenizer_destroy(t);
    }
}

static void one_letter_takes_no_square_time(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    Tokenizer *t = make_tokenizer(3, 300, pattern_llama4);
    Encoder *e;
    char *text = xmalloc(N);
    assert_ok(encoder_create(t, &e));
    for (int i = 0; i < 3; i++) {
        memset(text, "a \n"[i], N);
        double start = processor_s();
        assert_round_trip(e, t, (Bytes){(const uint8_t *)text, N});
        assert_true(processor_s() - start <
                    10); /* a quarter of a second; n squared would be hours */
    }
    free(text);
    encoder_destroy(e);
    tokenizer_destroy(t);
}

/* ---- added tokens ----------------------------------------------------------------------- */

static void added_tokens_are_recognised(void **state)
{
    (void)state;
    Tokenizer *t = make_tokenizer(1, 50, pattern_llama4);
    int32_t a = tokenizer_id_of(t, "<|a|>"), ab = tokenizer_id_of(t, "<|ab|>"),
            ok = tokenizer_id_of(t, "<ok>");
    assert_true(a == 306 && ab == 307 && ok == 308);
    assert_int_equal(tokenizer_id_of(t, "<|abc|>"), -1);
    IdVec ids = {0};
    Bytes text = {(const uint8_t *)"x<|a|><|ab|><|<ok><|a|", 22};
    encode(t, text, ENCODE_SPECIALS, &ids);
    static const int32_t expected[] = {'x', 306, 307, '<', '|', 308, '<', '|', 'a', '|'};
    assert_int_equal(ids.n, COUNT_OF(expected));
    assert_memory_equal(ids.at, expected, sizeof expected);
    encode(t, text, ENCODE_TEXT, &ids);
    int n_added = 0;
    for (size_t i = 0; i < ids.n; i++) {
        assert_true(ids.at[i] != a && ids.at[i] != ab);
        n_added += ids.at[i] == ok; /* a word, not a command: recognised in any text */
    }
    assert_int_equal(n_added, 1);
    VEC_FREE(&ids);
    tokenizer_destroy(t);
}

static void streaming_decoder_gives_whole_characters(void **state)
{
    (void)state;
    Tokenizer *t = make_tokenizer(1, 10, pattern_llama4);
    static const uint8_t bytes[] = {'a', 0xe6, 0x9d, 0xb1, 0xff, 0xe6,
                                    'b', 0xf0, 0x9f, 0x98, 0x80, 0xc3};
    Decoder d = {.tokenizer = t};
    Str out = {0};
    for (int i = 0; i < COUNT_OF(bytes); i++) {
        assert_ok(decoder_push(&d, t->byte_id[bytes[i]], &out));
        assert_true(utf8_valid((const uint8_t *)out.at, out.n));
    }
    decoder_finish(&d, &out);
    assert_string_equal(out.at, "a\xe6\x9d\xb1\xef\xbf\xbd\xef\xbf\xbd"
                                "b\xf0\x9f\x98\x80\xef\xbf\xbd");
    assert_int_equal(decoder_push(&d, 1 << 20, &out), ERR_ARG);
    int32_t wrong = -1;
    assert_int_equal(tokenizer_decode(t, &wrong, 1, &out), ERR_ARG);
    str_deinit(&out);
    tokenizer_destroy(t);
}

/* ---- the published vocabularies --------------------------------------------------------- */

typedef struct Spot {
    const char *text;
    int32_t llama3[16], llama4[16]; /* ended by 0, which no spot contains but at its end */
} Spot;

static const Spot spots[] = {
    {"The quick brown fox jumps.",
     {791, 4062, 14198, 39935, 35308, 13},
     {954, 7202, 27756, 92637, 67072, 26}},
    {"na\xc3\xafve caf\xc3\xa9 \xe2\x80\x94 \xe6\x9d\xb1\xe4\xba\xac 2025!",
     {3458, 38672, 588, 53050, 2001, 119109, 220, 2366, 20, 0},
     {1499, 164301, 49652, 2290, 124590, 220, 837, 33, 13}},
    {"x = [1, 2, 3]  # ok\n",
     {87, 284, 510, 16, 11, 220, 17, 11, 220, 18, 60, 220, 674, 5509, 198},
     {100, 319, 612, 29, 24, 220, 30, 24, 220, 31, 73, 220, 919, 6286, 198}},
    {"system", {9125}, {15651}},
    {"user", {882}, {1556}},
    {"assistant", {78191}, {140680}},
    {"ipython", {23799, 4690}, {607, 6934}},
    {"\n\n", {271}, {368}},
};

/* The files are too large for the repository: DROVER_TOKENIZERS names the directory that has them.
 */
static Tokenizer *load_published(const char *name)
{
    Arena arena = {0};
    Tokenizer *t = NULL;
    const char *dir = getenv("DROVER_TOKENIZERS");
    const char *path = dir ? path_join(&arena, dir, name) : NULL;
    if (path && file_exists(path)) assert_ok(tokenizer_load(path, &t));
    arena_deinit(&arena);
    return t;
}

static void check_spots(const Tokenizer *t, bool is_llama4)
{
    IdVec ids = {0};
    for (int i = 0; i < COUNT_OF(spots); i++) {
        const int32_t *expected = is_llama4 ? spots[i].llama4 : spots[i].llama3;
        encode(t, (Bytes){(const uint8_t *)spots[i].text, strlen(spots[i].text)}, ENCODE_TEXT,
               &ids);
        for (size_t k = 0; k < ids.n; k++) assert_int_equal(ids.at[k], expected[k]);
        assert_true(ids.n == 16 || expected[ids.n] == 0);
    }
    VEC_FREE(&ids);
}

static void published_llama3(void **state)
{
    (void)state;
    Tokenizer *t = load_published("llama3.model");
    if (!t) skip();
    check_spots(t, false);
    assert_int_equal(tokenizer_vocab_size(t), 128256);
    assert_int_equal(tokenizer_merge_count(t), 280147);
    assert_int_equal(tokenizer_id_of(t, "<|start_header_id|>"), 128006);
    assert_int_equal(tokenizer_id_of(t, "<|reserved_special_token_2|>"), 128012);
    int n;
    const int32_t *stops = tokenizer_stops(t, &n);
    assert_true(n == 3 && stops[0] == 128001 && stops[1] == 128008 && stops[2] == 128009);
    tokenizer_destroy(t);
}

static void published_llama4(void **state)
{
    (void)state;
    Tokenizer *t = load_published("llama4.model");
    if (!t) skip();
    check_spots(t, true);
    assert_int_equal(tokenizer_vocab_size(t), 202048);
    assert_int_equal(tokenizer_merge_count(t), 439802);
    assert_int_equal(tokenizer_bos(t), 200000);
    assert_int_equal(tokenizer_pad(t), 200018);
    assert_int_equal(tokenizer_id_of(t, "<|patch|>"), 200092);
    assert_int_equal(tokenizer_id_of(t, "<|vision_reserved_special_token_1047|>"), 201133);
    assert_int_equal(tokenizer_id_of(t, "<|reserved_special_token_903|>"), 202047);
    IdVec ids = {0};
    static const char chat[] = "<|header_start|>assistant<|header_end|>\n\n";
    static const int32_t expected[] = {200005, 140680, 200006, 368};
    encode(t, (Bytes){(const uint8_t *)chat, strlen(chat)}, ENCODE_SPECIALS, &ids);
    assert_int_equal(ids.n, 4);
    assert_memory_equal(ids.at, expected, sizeof expected);
    VEC_FREE(&ids);
    tokenizer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fast_merging_equals_slow),
        cmocka_unit_test(cache_changes_nothing),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(one_letter_takes_no_square_time),
        cmocka_unit_test(added_tokens_are_recognised),
        cmocka_unit_test(streaming_decoder_gives_whole_characters),
        cmocka_unit_test(published_llama3),
        cmocka_unit_test(published_llama4),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
