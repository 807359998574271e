/* Learning merges from counted pieces (Sennrich et al., ACL 2016).
 *
 * Every pair of neighbouring symbols has a count and a list of the words it occurs in. The most
 * frequent pair comes out of a heap, becomes a token, and only the words on its list are rewritten.
 * Counts of pairs already in the heap fall as their neighbours are merged away; such an item goes
 * back with its present count when it comes out, so the order is exact.
 *
 * Two pairs may spell the same token ("ab" + "c", "a" + "bc"). The second is a merge of its own
 * with the first one's id.
 */
#include "text/train_internal.h"

#include <stdlib.h>

enum { PROGRESS_EVERY = 256 };

typedef struct Pair {
    int32_t left, right, result; /* result: -1 until merged */
    uint32_t n_words, cap_words;
    uint32_t *words; /* indices; one may occur again, or lack the pair by now */
    int64_t count;
    bool is_risen; /* in Trainer.risen */
} Pair;

typedef struct PairItem {
    int64_t count;
    uint32_t pair;
} PairItem;

/* A word as symbols, shrinking in place. */
typedef struct Symbols {
    uint64_t at; /* in Trainer.symbols */
    int64_t count;
    uint32_t n;
} Symbols;

typedef struct PairSlot {
    uint64_t key;
    uint32_t pair; /* index + 1; 0 = empty */
} PairSlot;

typedef struct Trainer {
    const TokenizerTrainOptions *options;
    int32_t max_token_bytes;
    int64_t min_count;
    VEC(Symbols) words;
    VEC(int32_t) symbols;
    VEC(Pair) pairs;
    PairSlot *slots;
    uint64_t mask;
    VEC(PairItem) heap;
    VEC(uint32_t) risen; /* pairs whose count grew in this merge: they go into the heap after it */
    Arena arena;
    VEC(Bytes) tokens; /* by id */
    int32_t *spelled;  /* hash of token bytes -> id + 1 */
    uint64_t spelled_mask;
    VEC(MergeRule) rules;
} Trainer;

/* ---- pairs ------------------------------------------------------------------------------ */

static inline uint64_t slot_of(const Trainer *t, uint64_t key)
{
    uint64_t i = key * 0x9e3779b97f4a7c15u;
    i ^= i >> 32;
    i *= 0xc2b2ae3d27d4eb4fu;
    for (i >>= 20;; i++) {
        const PairSlot *slot = &t->slots[i & t->mask];
        if (slot->pair == 0 || slot->key == key) return i & t->mask;
    }
}

static void grow_slots(Trainer *t)
{
    uint64_t size = t->slots ? 2 * (t->mask + 1) : 1 << 10;
    PairSlot *old = t->slots;
    uint64_t n_old = old ? t->mask + 1 : 0;
    t->slots = xcalloc(size, sizeof *t->slots);
    t->mask = size - 1;
    for (uint64_t i = 0; i < n_old; i++)
        if (old[i].pair) t->slots[slot_of(t, old[i].key)] = old[i];
    free(old);
}

/* The index of the pair, made if it is new. */
static uint32_t pair_index(Trainer *t, int32_t left, int32_t right)
{
    if (2 * t->pairs.n >= t->mask) grow_slots(t);
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    PairSlot *slot = &t->slots[slot_of(t, key)];
    if (slot->pair) return slot->pair - 1;
    CHECK(t->pairs.n < UINT32_MAX);
    VEC_PUSH(&t->pairs, ((Pair){.left = left, .right = right, .result = -1}));
    *slot = (PairSlot){key, (uint32_t)t->pairs.n};
    return slot->pair - 1;
}

static void pair_gains(Trainer *t, uint32_t index, uint32_t word, int64_t count)
{
    Pair *pair = &t->pairs.at[index];
    pair->count += count;
    if (pair->n_words && pair->words[pair->n_words - 1] == word) return;
    if (pair->n_words == pair->cap_words) {
        pair->cap_words = pair->cap_words ? 2 * pair->cap_words : 2;
        pair->words = xrealloc(pair->words, pair->cap_words * sizeof *pair->words);
    }
    pair->words[pair->n_words++] = word;
}

/* ---- the heap: highest count, then lowest left, then lowest right ----------------------- */

static inline bool item_before(const Trainer *t, PairItem a, PairItem b)
{
    if (a.count != b.count) return a.count > b.count;
    const Pair *x = &t->pairs.at[a.pair], *y = &t->pairs.at[b.pair];
    return x->left != y->left ? x->left < y->left : x->right < y->right;
}

static void heap_push(Trainer *t, uint32_t pair)
{
    PairItem item = {t->pairs.at[pair].count, pair};
    if (item.count < t->min_count) return;
    VEC_PUSH(&t->heap, item);
    size_t i = t->heap.n - 1;
    for (; i > 0 && item_before(t, item, t->heap.at[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap.at[i] = t->heap.at[(i - 1) / 2];
    t->heap.at[i] = item;
}

static PairItem heap_pop(Trainer *t)
{
    PairItem *heap = t->heap.at, top = heap[0], last = heap[--t->heap.n];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < t->heap.n) {
        if (child + 1 < t->heap.n && item_before(t, heap[child + 1], heap[child])) child++;
        if (!item_before(t, heap[child], last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* ---- tokens ----------------------------------------------------------------------------- */

static int32_t *spelled_slot(const Trainer *t, Bytes token)
{
    for (uint64_t i = hash_bytes(token.at, token.n);; i++) {
        int32_t *slot = &t->spelled[i & t->spelled_mask];
        if (*slot == 0) return slot;
        Bytes other = t->tokens.at[*slot - 1];
        if (other.n == token.n && memcmp(other.at, token.at, token.n) == 0) return slot;
    }
}

/* The id of these bytes, a new one if no token has them. */
static int32_t token_of(Trainer *t, Bytes token)
{
    int32_t *slot = spelled_slot(t, token);
    if (*slot) return *slot - 1;
    token.at = arena_copy(&t->arena, token.at, token.n);
    VEC_PUSH(&t->tokens, token);
    *slot = (int32_t)t->tokens.n;
    return *slot - 1;
}

static void init(Trainer *t, const WordCounts *words)
{
    uint64_t size = 1024;
    while (size < 2 * (uint64_t)t->options->vocab_size) size *= 2;
    t->spelled = ARENA_ARRAY(&t->arena, int32_t, size);
    t->spelled_mask = size - 1;
    for (int b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        (void)token_of(t, (Bytes){&byte, 1});
    }
    for (uint64_t i = 0; words->slots && i <= words->mask; i++) {
        const Word *word = &words->slots[i];
        if (word->n < 2) continue;
        const uint8_t *bytes = (const uint8_t *)words->bytes.at + word->at;
        VEC_PUSH(&t->words, ((Symbols){t->symbols.n, word->count, word->n}));
        for (uint32_t k = 0; k < word->n; k++) VEC_PUSH(&t->symbols, bytes[k]);
    }
    for (uint32_t w = 0; w < t->words.n; w++) {
        const Symbols *word = &t->words.at[w];
        const int32_t *s = t->symbols.at + word->at;
        for (uint32_t k = 0; k + 1 < word->n; k++)
            pair_gains(t, pair_index(t, s[k], s[k + 1]), w, word->count);
    }
    for (uint32_t i = 0; i < t->pairs.n; i++) heap_push(t, i);
}

/* ---- merging ---------------------------------------------------------------------------- */

static void gain(Trainer *t, int32_t left, int32_t right, uint32_t word)
{
    uint32_t index = pair_index(t, left, right);
    pair_gains(t, index, word, t->words.at[word].count);
    if (t->pairs.at[index].is_risen) return;
    t->pairs.at[index].is_risen = true;
    VEC_PUSH(&t->risen, index);
}

static void lose(Trainer *t, int32_t left, int32_t right, uint32_t word)
{
    t->pairs.at[pair_index(t, left, right)].count -= t->words.at[word].count;
}

/* Rewrites one word: every left right, from the left, becomes result; the pairs around change. */
static void merge_in_word(Trainer *t, uint32_t w, int32_t left, int32_t right, int32_t result)
{
    Symbols *word = &t->words.at[w];
    int32_t *s = t->symbols.at + word->at;
    uint32_t n = word->n, out = 0;
    for (uint32_t i = 0; i < n; out++) {
        if (i + 1 >= n || s[i] != left || s[i + 1] != right) {
            s[out] = s[i++];
            continue;
        }
        if (out > 0) {
            lose(t, s[out - 1], left, w);
            gain(t, s[out - 1], result, w);
        }
        if (i + 2 < n) {
            lose(t, right, s[i + 2], w);
            gain(t, result, s[i + 2], w);
        }
        s[out] = result;
        i += 2;
    }
    word->n = out;
}

static void merge_pair(Trainer *t, uint32_t index)
{
    Pair pair = t->pairs.at[index]; /* a copy: the array may move */
    Bytes a = t->tokens.at[pair.left], b = t->tokens.at[pair.right];
    uint8_t joined[2 * MAX_TOKEN_BYTES];
    memcpy(joined, a.at, a.n);
    memcpy(joined + a.n, b.at, b.n);
    if (pair.result < 0) {
        pair.result = token_of(t, (Bytes){joined, a.n + b.n});
        MergeRule rule = {pair.left, pair.right, pair.result, (uint32_t)t->rules.n};
        VEC_PUSH(&t->rules, rule);
    }
    t->pairs.at[index] = (Pair){.left = pair.left, .right = pair.right, .result = pair.result};
    t->risen.n = 0;
    for (uint32_t i = 0; i < pair.n_words; i++)
        merge_in_word(t, pair.words[i], pair.left, pair.right, pair.result);
    t->pairs.at[index].count = 0; /* "aaa" counted its second pair too: it is gone with the first */
    for (size_t i = 0; i < t->risen.n; i++) {
        t->pairs.at[t->risen.at[i]].is_risen = false;
        heap_push(t, t->risen.at[i]);
    }
    free(pair.words);
}

static Status find_merges(Trainer *t, int32_t n_tokens, TrainProgress *seen)
{
    seen->max_merges = n_tokens - 256;
    while ((int32_t)t->tokens.n < n_tokens && t->heap.n > 0) {
        PairItem item = heap_pop(t);
        const Pair *pair = &t->pairs.at[item.pair];
        if (item.count > pair->count) heap_push(t, item.pair);
        if (item.count != pair->count)
            continue; /* lower: the higher item has been merged or will be */
        if ((int32_t)(t->tokens.at[pair->left].n + t->tokens.at[pair->right].n) >
            t->max_token_bytes)
            continue;
        merge_pair(t, item.pair);
        seen->n_merges = (int64_t)t->tokens.n - 256;
        if (t->options->progress && seen->n_merges % PROGRESS_EVERY == 0)
            TRY(t->options->progress(t->options->progress_context, seen));
    }
    return t->options->progress ? t->options->progress(t->options->progress_context, seen) : OK;
}

/* ---- the whole -------------------------------------------------------------------------- */

/* Tokens found, then special ones up to vocab_size. */
static Status build(Trainer *t, Tokenizer *tokenizer)
{
    int32_t n = t->options->vocab_size, n_plain = (int32_t)t->tokens.n;
    uint8_t *kind = arena_alloc(&t->arena, (size_t)n);
    for (int32_t i = 0; i < n_plain; i++) kind[i] = TOKEN_PLAIN;
    for (int32_t i = n_plain; i < n; i++) {
        char *name = special_name(&t->arena, SPECIALS_TRAINED, i - n_plain);
        VEC_PUSH(&t->tokens, ((Bytes){(const uint8_t *)name, strlen(name)}));
        kind[i] = TOKEN_SPECIAL;
    }
    TokenList list = {
        .n = n, .token = t->tokens.at, .kind = kind, .where = "the trained tokenizer"};
    TRY(build_vocabulary(tokenizer, &list));
    TRY(build_merges(tokenizer, t->rules.at, t->rules.n, list.where));
    TRY(build_pattern(tokenizer, pattern_llama4, list.where));
    tokenizer->adds_bos = true;
    build_finish(tokenizer);
    return OK;
}

static void trainer_deinit(Trainer *t)
{
    for (size_t i = 0; i < t->pairs.n; i++) free(t->pairs.at[i].words);
    VEC_FREE(&t->words);
    VEC_FREE(&t->symbols);
    VEC_FREE(&t->pairs);
    VEC_FREE(&t->heap);
    VEC_FREE(&t->risen);
    VEC_FREE(&t->tokens);
    VEC_FREE(&t->rules);
    free(t->slots);
    arena_deinit(&t->arena);
}

static Status train(Trainer *t, CountOptions *count, const TextSource *source, Tokenizer *tokenizer)
{
    WordCounts words = {0};
    TRY(words_count(count, source, &words));
    if (words.n == 0) {
        words_deinit(&words);
        return fail(ERR_ARG, "there is no text to train a tokenizer on");
    }
    init(t, &words);
    words_deinit(&words);
    int32_t n_tokens = t->options->vocab_size - TRAINED_SPECIALS;
    TRY(find_merges(t, n_tokens, &count->seen));
    if ((int32_t)t->tokens.n < n_tokens)
        log_warn("the text gives %d merges of %d: the other %d ids are reserved special tokens",
                 (int)t->tokens.n - 256, n_tokens - 256, n_tokens - (int)t->tokens.n);
    return build(t, tokenizer);
}

Status tokenizer_train(const TokenizerTrainOptions *options, const TextSource *source,
                       Tokenizer **out)
{
    int least = 256 + TRAINED_SPECIALS;
    if (options->vocab_size < least || options->vocab_size > MAX_TOKENS)
        return fail(
            ERR_ARG,
            "a vocabulary of %d: from %d (256 bytes and %d special tokens) to %d are possible",
            options->vocab_size, least, TRAINED_SPECIALS, MAX_TOKENS);
    Trainer t = {.options = options,
                 .max_token_bytes = options->max_token_bytes ? options->max_token_bytes : 128,
                 .min_count = options->min_count ? options->min_count : 2};
    if (t.max_token_bytes < 2 || t.max_token_bytes > MAX_TOKEN_BYTES)
        return fail(ERR_ARG, "tokens of up to %d bytes: 2 to %d are possible", t.max_token_bytes,
                    MAX_TOKEN_BYTES);
    CountOptions count = {options->threads > 0 ? options->threads : cpu_count(),
                          options->progress,
                          options->progress_context,
                          {0}};
    Tokenizer *tokenizer = tokenizer_new(&kind_byte_level);
    Status status = train(&t, &count, source, tokenizer);
    trainer_deinit(&t);
    if (status == OK)
        *out = tokenizer;
    else
        tokenizer_destroy(tokenizer);
    return status;
}
