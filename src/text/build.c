/* How a tokenizer's tables are made, whatever file or training its parts came from. */
#include "text/text_internal.h"

#include <stdlib.h>

Tokenizer *tokenizer_new(const TokenizerKind *kind)
{
    Tokenizer *t = xcalloc(1, sizeof *t);
    t->how = kind;
    t->bos = t->eos = t->pad = -1;
    t->whole_piece = true;
    return t;
}

void tokenizer_destroy(Tokenizer *t)
{
    if (!t) return;
    if (t->regex) pattern_free(t->regex);
    arena_deinit(&t->arena);
    free(t);
}

/* ---- vocabulary ------------------------------------------------------------------------- */

PieceKey piece_key(const uint8_t *piece, size_t n, size_t room)
{
    uint64_t word[2] = {0, 0};
    if (n > sizeof word) return (PieceKey){hash_bytes(piece, n), 0, (uint32_t)n};
    if (room >= sizeof word) {
        memcpy(word, piece, sizeof word);
        if (n <= 8) {
            word[0] &= n == 8 ? UINT64_MAX : ((uint64_t)1 << 8 * n) - 1;
            word[1] = 0;
        } else {
            word[1] &= n == 16 ? UINT64_MAX : ((uint64_t)1 << (8 * n - 64)) - 1;
        }
    } else {
        memcpy(word, piece, n);
    }
    return (PieceKey){word[0], word[1], (uint32_t)n};
}

uint64_t piece_key_hash(PieceKey key)
{
    uint64_t h = (key.low ^ key.n) * 0x9e3779b97f4a7c15u;
    h ^= (key.high + (h >> 29)) * 0xc2b2ae3d27d4eb4fu;
    h ^= h >> 32;
    h *= 0xff51afd7ed558ccdu;
    return h ^ h >> 29;
}

/* The slot of the piece, or the empty one where it would go, or NULL after MAX_PROBES. */
static VocabSlot *vocab_slot(const Tokenizer *t, const uint8_t *piece, PieceKey key)
{
    uint64_t i = piece_key_hash(key);
    for (int probe = 0; probe < MAX_PROBES; probe++, i++) {
        VocabSlot *slot = &t->vocab[i & t->vocab_mask];
        if (slot->n == 0) return slot;
        if (slot->low != key.low || slot->high != key.high || slot->n != key.n) continue;
        if (key.n <= 16 || memcmp(t->bytes + t->offset[slot->id], piece, key.n) == 0) return slot;
    }
    return NULL;
}

int32_t vocab_find(const Tokenizer *t, const uint8_t *piece, PieceKey key)
{
    if (key.n > t->max_plain_bytes) return -1;
    const VocabSlot *slot = vocab_slot(t, piece, key);
    return slot && slot->n ? slot->id : -1;
}

int32_t vocab_find_bytes(const Tokenizer *t, const uint8_t *piece, size_t n)
{
    return n == 0 || n > t->max_plain_bytes ? -1 : vocab_find(t, piece, piece_key(piece, n, n));
}

/* A hash table for n entries: a power of two of at least twice as many slots, zeroed. */
void *table_alloc(Tokenizer *t, size_t n_entries, size_t entry_bytes, uint64_t *mask)
{
    uint64_t size = 16;
    while (size < 2 * (uint64_t)n_entries) size *= 2;
    *mask = size - 1;
    return arena_alloc(&t->arena, size * entry_bytes);
}

static Status copy_tokens(Tokenizer *t, const TokenList *list)
{
    size_t total = 0;
    for (int32_t i = 0; i < list->n; i++) {
        size_t n = list->kind[i] == TOKEN_NONE ? 0 : list->token[i].n;
        if (list->kind[i] != TOKEN_NONE && (n == 0 || n > MAX_TOKEN_BYTES))
            return fail(ERR_FORMAT, "%s: token %d has %zu bytes; 1 to %d are allowed", list->where,
                        i, n, MAX_TOKEN_BYTES);
        total += n;
    }
    if (total > UINT32_MAX)
        return fail(ERR_FORMAT, "%s: a vocabulary of %zu bytes", list->where, total);
    t->n_ids = list->n;
    t->offset = ARENA_ARRAY(&t->arena, uint32_t, (size_t)list->n + 1);
    t->kind = arena_copy(&t->arena, list->kind, (size_t)list->n);
    t->flags = arena_alloc(&t->arena, (size_t)list->n);
    if (list->flags) memcpy(t->flags, list->flags, (size_t)list->n);
    t->bytes = arena_alloc(&t->arena, total + 16); /* keys read 16 bytes at once */
    uint32_t at = 0;
    for (int32_t i = 0; i < list->n; i++) {
        t->offset[i] = at;
        if (list->kind[i] == TOKEN_NONE) continue;
        memcpy(t->bytes + at, list->token[i].at, list->token[i].n);
        at += (uint32_t)list->token[i].n;
    }
    t->offset[list->n] = at;
    return OK;
}

static inline bool is_mergeable(const Tokenizer *t, int32_t id)
{
    return t->kind[id] == TOKEN_PLAIN || (t->flags[id] & ADDED_MERGEABLE);
}

static Status fill_vocab(Tokenizer *t, const char *where)
{
    size_t n_plain = 0;
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (!is_mergeable(t, id)) continue;
        n_plain++;
        uint32_t n = (uint32_t)token_bytes(t, id).n;
        if (n > t->max_plain_bytes) t->max_plain_bytes = n;
    }
    t->vocab = table_alloc(t, n_plain, sizeof *t->vocab, &t->vocab_mask);
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (!is_mergeable(t, id)) continue;
        Bytes b = token_bytes(t, id);
        PieceKey key = piece_key(b.at, b.n, 16);
        VocabSlot *slot = vocab_slot(t, b.at, key);
        if (!slot)
            return fail(ERR_REFUSED, "%s: token %d collides with %d others", where, id, MAX_PROBES);
        if (slot->n)
            return fail(ERR_FORMAT, "%s: tokens %d and %d are the same bytes", where, slot->id, id);
        *slot = (VocabSlot){key.low, key.high, key.n, id};
    }
    return OK;
}

static Status find_bytes(Tokenizer *t, const char *where)
{
    for (int b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        t->byte_id[b] = vocab_find_bytes(t, &byte, 1);
        if (t->byte_id[b] < 0)
            return fail(
                ERR_UNSUPPORTED,
                "%s: no token for byte 0x%02x: only byte-level vocabularies with all 256 are read",
                where, b);
    }
    return OK;
}

/* One pass over a text looks for the tokens of one set, so a token of both would have two ids. */
static Status sort_added(Tokenizer *t, const char *where)
{
    TRY(added_sort(t, &t->added[0], (AddedWanted){TOKEN_ADDED, TOKEN_SPECIAL, 0}, where));
    TRY(added_sort(t, &t->added[1], (AddedWanted){TOKEN_ADDED, TOKEN_SPECIAL, ADDED_NORMALIZED},
                   where));
    for (int32_t i = 0; i < t->added[1].n; i++) {
        Bytes text = token_bytes(t, t->added[1].id[i]);
        int32_t other = added_find(t, &t->added[0], text);
        if (other >= 0 && token_bytes(t, other).n == text.n)
            return fail(ERR_FORMAT, "%s: added tokens %d and %d have the same text", where, other,
                        t->added[1].id[i]);
    }
    return OK;
}

Status build_tokens(Tokenizer *t, const TokenList *list)
{
    TRY(copy_tokens(t, list));
    return fill_vocab(t, list->where);
}

Status build_vocabulary(Tokenizer *t, const TokenList *list)
{
    TRY(build_tokens(t, list));
    TRY(find_bytes(t, list->where));
    return sort_added(t, list->where);
}

/* ---- merges ----------------------------------------------------------------------------- */

static inline uint64_t pair_hash(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    return h * 0xc2b2ae3d27d4eb4fu >> 24;
}

static MergeRule *pair_slot(const Tokenizer *t, int32_t left, int32_t right)
{
    uint64_t i = pair_hash(left, right);
    for (int probe = 0; probe < MAX_PROBES; probe++, i++) {
        MergeRule *slot = &t->pairs[i & t->pairs_mask];
        if (slot->left == NO_MERGE || (slot->left == left && slot->right == right)) return slot;
    }
    return NULL;
}

const MergeRule *merge_find(const Tokenizer *t, int32_t left, int32_t right)
{
    const MergeRule *slot = pair_slot(t, left, right);
    return slot && slot->left != NO_MERGE ? slot : NULL;
}

/* The rules that join two single bytes, where no hashing is needed to find them. */
static void fill_byte_pairs(Tokenizer *t)
{
    t->byte_pairs = ARENA_ARRAY(&t->arena, MergeRule, 256 * 256);
    for (int i = 0; i < 256 * 256; i++)
        t->byte_pairs[i] = (MergeRule){NO_MERGE, NO_MERGE, NO_MERGE, PRIORITY_NONE};
    for (size_t i = 0; i < t->n_merges; i++) {
        Bytes b = token_bytes(t, t->merges[i].result);
        if (b.n == 2) t->byte_pairs[b.at[0] << 8 | b.at[1]] = t->merges[i];
    }
}

static Status hash_merges(Tokenizer *t, const char *where)
{
    t->pairs = table_alloc(t, t->n_merges, sizeof *t->pairs, &t->pairs_mask);
    for (uint64_t i = 0; i <= t->pairs_mask; i++) t->pairs[i].left = NO_MERGE;
    for (size_t i = 0; i < t->n_merges; i++) {
        const MergeRule *rule = &t->merges[i];
        MergeRule *slot = pair_slot(t, rule->left, rule->right);
        if (!slot)
            return fail(ERR_REFUSED, "%s: merge %zu collides with %d others", where, i, MAX_PROBES);
        if (slot->left != NO_MERGE)
            return fail(ERR_FORMAT, "%s: merge %zu is listed before", where, i);
        *slot = *rule;
    }
    return OK;
}

Status build_rules(Tokenizer *t, const MergeRule *rules, size_t n, const char *where)
{
    if (n > MAX_MERGES)
        return fail(ERR_REFUSED, "%s: %zu merges; at most %d are read", where, n, MAX_MERGES);
    t->merges = arena_copy(&t->arena, rules, n * sizeof *rules);
    t->n_merges = n;
    return hash_merges(t, where);
}

Status build_merges(Tokenizer *t, const MergeRule *rules, size_t n, const char *where)
{
    TRY(build_rules(t, rules, n, where));
    fill_byte_pairs(t);
    return OK;
}

static int compare_rules(const void *a, const void *b)
{
    const MergeRule *x = a, *y = b;
    return x->left != y->left ? (x->left > y->left) - (x->left < y->left)
                              : (x->right > y->right) - (x->right < y->right);
}

/* tiktoken's rule: any two neighbours may merge whose bytes together are a token, the token of
 * lowest rank first. So every cut of a token into two tokens is a merge of that token's rank. */
Status build_merges_by_rank(Tokenizer *t, const char *where)
{
    VEC(MergeRule) rules = {0};
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (t->kind[id] != TOKEN_PLAIN) continue;
        Bytes b = token_bytes(t, id);
        size_t first = rules.n;
        for (size_t cut = 1; cut < b.n; cut++) {
            int32_t left = vocab_find(t, b.at, piece_key(b.at, cut, 16));
            if (left < 0) continue;
            int32_t right = vocab_find(t, b.at + cut, piece_key(b.at + cut, b.n - cut, 16));
            if (right < 0) continue;
            VEC_PUSH(&rules, ((MergeRule){left, right, id, (uint32_t)id}));
        }
        if (rules.n > MAX_MERGES) break; /* build_rules says so */
        if (rules.n > first + 1)
            qsort(rules.at + first, rules.n - first, sizeof *rules.at, compare_rules);
    }
    Status status = build_merges(t, rules.at, rules.n, where);
    VEC_FREE(&rules);
    return status;
}

/* ---- the rest --------------------------------------------------------------------------- */

Status build_pattern(Tokenizer *t, const char *pattern, const char *where)
{
    t->pattern = arena_strdup(&t->arena, pattern);
    if (strcmp(pattern, pattern_llama3) == 0)
        t->pattern_kind = PATTERN_LLAMA3;
    else if (strcmp(pattern, pattern_llama4) == 0)
        t->pattern_kind = PATTERN_LLAMA4;
    else {
        t->pattern_kind = PATTERN_PCRE2;
        return pattern_compile(pattern, where, &t->regex);
    }
    t->classes = arena_alloc(&t->arena, CODE_POINTS);
    unicode_expand(t->classes);
    return OK;
}

static int32_t first_of(const Tokenizer *t, const char *const *names, int n)
{
    for (int i = 0; i < n; i++) {
        int32_t id = tokenizer_id_of(t, names[i]);
        if (id >= 0 && t->kind[id] >= TOKEN_ADDED) return id;
    }
    return -1;
}

static void add_stop(Tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_stops; i++)
        if (t->stops[i] == id) return;
    if (id >= 0 && t->n_stops < MAX_STOPS) t->stops[t->n_stops++] = id;
}

void build_finish(Tokenizer *t)
{
    static const char *const bos[] = {"<|begin_of_text|>", "<s>", "<|startoftext|>"};
    static const char *const eos[] = {"<|end_of_text|>", "</s>", "<|endoftext|>"};
    static const char *const pad[] = {"<|finetune_right_pad|>", "<|finetune_right_pad_id|>",
                                      "<pad>"};
    static const char *const stops[] = {"<|end_of_text|>", "<|eom|>",       "<|eom_id|>", "<|eot|>",
                                        "<|eot_id|>",      "<|endoftext|>", "</s>"};
    if (t->bos < 0) t->bos = first_of(t, bos, COUNT_OF(bos));
    if (t->eos < 0) t->eos = first_of(t, eos, COUNT_OF(eos));
    if (t->pad < 0) t->pad = first_of(t, pad, COUNT_OF(pad));
    for (int i = 0; i < COUNT_OF(stops); i++) add_stop(t, first_of(t, stops + i, 1));
    add_stop(t, t->eos);
    uint64_t part[] = {t->how->hash(t), (uint64_t)t->bos, (uint64_t)t->eos, (uint64_t)t->pad};
    t->hash = hash_bytes(part, sizeof part);
}
