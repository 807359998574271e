/* Training against its definition, over thread counts, and at its limits. */
#include "text/text_test_util.h"
#include "text/train_internal.h"

typedef struct TextList {
    Bytes text[64];
    int n, at;
} TextList;

static Status next_text(void *context, Bytes *text)
{
    TextList *list = context;
    *text = list->at < list->n ? list->text[list->at++] : (Bytes){0};
    return OK;
}

static Tokenizer *train(const TokenizerTrainOptions *options, TextList *list)
{
    Tokenizer *t = NULL;
    TextSource source = {next_text, list};
    list->at = 0;
    assert_ok(tokenizer_train(options, &source, &t));
    return t;
}

/* Words of few letters, so that pairs meet often, with some text of all kinds between. */
static void make_text(uint64_t seed, int n_words, Str *out)
{
    str_clear(out);
    for (int i = 0; i < n_words; i++) {
        uint64_t word = rng_below(seed, (uint64_t)i, 200);
        word = word * word / 200; /* some words often */
        str_add(out, i % 11 ? " " : ".\n");
        for (uint64_t k = 0; k < 1 + word % 9; k++) {
            char letter = (char)('a' + rng_below(word, k, 5));
            str_add_n(out, &letter, 1);
        }
    }
}

/* ---- against the definition ------------------------------------------------------------- */

typedef struct Naive {
    int32_t symbol[20000]; /* words one after the other, each ended by -1 */
    int n;
    Bytes token[600];
    int n_tokens;
    Arena arena;
} Naive;

static int count_pair(const Naive *v, int32_t left, int32_t right)
{
    int count = 0;
    for (int i = 0; i + 1 < v->n; i++) count += v->symbol[i] == left && v->symbol[i + 1] == right;
    return count;
}

/* The most frequent pair, the lowest ids among equals; its count. */
static int best_pair(const Naive *v, int32_t *left, int32_t *right)
{
    int best = 0;
    for (int i = 0; i + 1 < v->n; i++) {
        int32_t a = v->symbol[i], b = v->symbol[i + 1];
        if (a < 0 || b < 0) continue;
        int count = count_pair(v, a, b);
        if (count < best || (count == best && (a > *left || (a == *left && b >= *right)))) continue;
        best = count;
        *left = a;
        *right = b;
    }
    return best;
}

static int32_t spell(Naive *v, int32_t left, int32_t right)
{
    size_t n = v->token[left].n + v->token[right].n;
    uint8_t *joined = arena_alloc(&v->arena, n);
    memcpy(joined, v->token[left].at, v->token[left].n);
    memcpy(joined + v->token[left].n, v->token[right].at, v->token[right].n);
    for (int32_t i = 0; i < v->n_tokens; i++)
        if (v->token[i].n == n && memcmp(v->token[i].at, joined, n) == 0) return i;
    v->token[v->n_tokens] = (Bytes){joined, n};
    return v->n_tokens++;
}

static void replace(Naive *v, int32_t left, int32_t right, int32_t result)
{
    int out = 0;
    for (int i = 0; i < v->n; out++) {
        bool found = i + 1 < v->n && v->symbol[i] == left && v->symbol[i + 1] == right;
        v->symbol[out] = found ? result : v->symbol[i];
        i += found ? 2 : 1;
    }
    v->n = out;
}

static void training_follows_the_definition(void **state)
{
    (void)state;
    Naive *v = xcalloc(1, sizeof *v);
    Str text = {0};
    make_text(4, 700, &text);
    str_add(&text, " aaaaaaaa aaaaaa aaaaa aaaaaaa aaa aaaa"); /* pairs that overlap themselves */
    Bytes all = {(const uint8_t *)text.at, text.n};
    Tokenizer *plain = make_tokenizer(1, 1, pattern_llama4);
    for (size_t pos = 0, end; pos < all.n; pos = end) {
        end = split_llama4(plain->classes, all, pos);
        for (size_t i = pos; i < end; i++) v->symbol[v->n++] = all.at[i];
        v->symbol[v->n++] = -1;
    }
    for (; v->n_tokens < 256; v->n_tokens++) {
        uint8_t byte = (uint8_t)v->n_tokens;
        v->token[byte] = (Bytes){arena_copy(&v->arena, &byte, 1), 1};
    }
    TextList list = {.text = {all}, .n = 1};
    Tokenizer *t = train(&(TokenizerTrainOptions){.vocab_size = 256 + 120 + TRAINED_SPECIALS},
                         &list);
    for (size_t i = 0; i < tokenizer_merge_count(t); i++) {
        int32_t left = -1, right = -1;
        assert_true(best_pair(v, &left, &right) >= 2);
        int32_t result = spell(v, left, right);
        replace(v, left, right, result);
        assert_int_equal(t->merges[i].left, left);
        assert_int_equal(t->merges[i].right, right);
        assert_int_equal(t->merges[i].result, result);
    }
    assert_int_equal(v->n_tokens, 256 + 120);
    tokenizer_destroy(t);
    tokenizer_destroy(plain);
    arena_deinit(&v->arena);
    str_deinit(&text);
    free(v);
}

/* ---- determinism ------------------------------------------------------------------------ */

/* Small and large texts, and one long enough to be cut, at one to five threads. */
static void threads_change_nothing(void **state)
{
    (void)state;
    Str text[12] = {0};
    TextList list = {.n = 12};
    for (int i = 0; i < 12; i++) {
        make_text((uint64_t)i + 1, i == 5 ? 700000 : 2000, &text[i]);
        if (i % 3 == 0) {
            Str wild = {0};
            random_text((uint64_t)i, 3000, &wild);
            str_add_n(&text[i], wild.at, wild.n);
            str_add_n(&text[i], "\xff\xfe", 2);
            str_deinit(&wild);
        }
        list.text[i] = (Bytes){(const uint8_t *)text[i].at, text[i].n};
    }
    assert_true(text[5].n > 3 << 20);
    uint64_t hash = 0;
    for (int threads = 1; threads <= 5; threads += 2) {
        Tokenizer *t = train(&(TokenizerTrainOptions){.vocab_size = 600, .threads = threads},
                             &list);
        if (threads == 1) hash = tokenizer_hash(t);
        assert_true(hash == tokenizer_hash(t));
        assert_int_equal(tokenizer_vocab_size(t), 600);
        tokenizer_destroy(t);
    }
    for (int i = 0; i < 12; i++) str_deinit(&text[i]);
}

/* Cutting a long text gives the pieces that it would have had in one. */
static void cuts_fall_between_pieces(void **state)
{
    (void)state;
    Str text = {0};
    make_text(3, 600000, &text);
    assert_true(text.n > 2 << 20);
    WordCounts words = {0};
    CountOptions options = {.threads = 2};
    TextList list = {.text = {{(const uint8_t *)text.at, text.n}}, .n = 1};
    TextSource source = {next_text, &list};
    assert_ok(words_count(&options, &source, &words));
    Tokenizer *plain = make_tokenizer(1, 1, pattern_llama4);
    int64_t n_pieces = 0, n_counted = 0;
    for (size_t pos = 0; pos < text.n; n_pieces++)
        pos = split_llama4(plain->classes, list.text[0], pos);
    for (uint64_t i = 0; i <= words.mask; i++) n_counted += words.slots[i].count;
    assert_int_equal(n_counted, n_pieces);
    tokenizer_destroy(plain);
    words_deinit(&words);
    str_deinit(&text);
}

/* ---- limits ----------------------------------------------------------------------------- */

static void specials_fill_the_vocabulary(void **state)
{
    (void)state;
    TextList list = {.text = {{(const uint8_t *)"ab ab ab", 8}}, .n = 1};
    log_set_level(LOG_ERROR);
    Tokenizer *t = train(&(TokenizerTrainOptions){.vocab_size = 1000}, &list);
    assert_int_equal(tokenizer_vocab_size(t), 1000);
    assert_int_equal(tokenizer_merge_count(t), 2); /* "ab", " ab" */
    assert_int_equal(tokenizer_bos(t), 258);
    assert_int_equal(tokenizer_id_of(t, "<|begin_of_text|>"), 258);
    assert_int_equal(tokenizer_id_of(t, "<|reserved_special_token_723|>"), 999);
    assert_true(tokenizer_eos(t) == 259 && tokenizer_pad(t) >= 0);
    int n_stops;
    (void)tokenizer_stops(t, &n_stops);
    assert_int_equal(n_stops, 3);
    tokenizer_destroy(t);
}

static Status stop_at_once(void *context, const TrainProgress *progress)
{
    (void)context;
    (void)progress;
    return ERR_CANCELLED;
}

static Status broken_source(void *context, Bytes *text)
{
    (void)context;
    (void)text;
    return ERR_IO;
}

static void wrong_wishes_are_refused(void **state)
{
    (void)state;
    Tokenizer *t = NULL;
    TextList list = {.n = 0};
    TextSource source = {next_text, &list}, broken = {broken_source, NULL};
    TokenizerTrainOptions options = {.vocab_size = 287};
    assert_int_equal(tokenizer_train(&options, &source, &t), ERR_ARG);
    options.vocab_size = 300;
    assert_int_equal(tokenizer_train(&options, &source, &t), ERR_ARG); /* no text */
    assert_int_equal(tokenizer_train(&options, &broken, &t), ERR_IO);
    list = (TextList){.text = {{(const uint8_t *)"abab", 4}}, .n = 1};
    options.progress = stop_at_once;
    assert_int_equal(tokenizer_train(&options, &source, &t), ERR_CANCELLED);
    assert_null(t);
}

/* One endless piece: its merges double, up to the longest token allowed. */
static void endless_line(void **state)
{
    (void)state;
    enum { N = 3 << 20 };
    uint8_t *text = xmalloc(N);
    memset(text, 'x', N);
    TextList list = {.text = {{text, N}}, .n = 1};
    log_set_level(LOG_ERROR);
    Tokenizer *t = train(&(TokenizerTrainOptions){.vocab_size = 400, .max_token_bytes = 64}, &list);
    size_t longest = 0;
    for (int32_t id = 0; id < 400; id++)
        if (tokenizer_token_kind(t, id) == TOKEN_PLAIN && token_bytes(t, id).n > longest)
            longest = token_bytes(t, id).n;
    assert_int_equal(longest, 64);
    tokenizer_destroy(t);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(training_follows_the_definition),
                                       cmocka_unit_test(threads_change_nothing),
                                       cmocka_unit_test(cuts_fall_between_pieces),
                                       cmocka_unit_test(specials_fill_the_vocabulary),
                                       cmocka_unit_test(wrong_wishes_are_refused),
                                       cmocka_unit_test(endless_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
