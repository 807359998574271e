/* How a tokenizer's tables are made, whatever file or training its parts came from. */
#include "text/text_internal.h"

#include <stdlib.h>

Tokenizer *tokenizer_new(void)
{
    Tokenizer *t = xcalloc(1, sizeof *t);
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

/* ---- vocabulary ------------------------------------------------------------------------ */

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

/* A power of two of at least twice n slots. */
static uint64_t table_size(size_t n)
{
    uint64_t size = 16;
    while (size < 2 * (uint64_t)n) size *= 2;
    return size;
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

static Status fill_vocab(Tokenizer *t, const char *where)
{
    size_t n_plain = 0;
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (t->kind[id] != TOKEN_PLAIN) continue;
        n_plain++;
        uint32_t n = (uint32_t)token_bytes(t, id).n;
        if (n > t->max_plain_bytes) t->max_plain_bytes = n;
    }
    uint64_t size = table_size(n_plain);
    t->vocab = ARENA_ARRAY(&t->arena, VocabSlot, size);
    t->vocab_mask = size - 1;
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (t->kind[id] != TOKEN_PLAIN) continue;
        Bytes b = token_bytes(t, id);
        PieceKey key = piece_key(b.at, b.n, 16);
        VocabSlot *slot = vocab_slot(t, b.at, key);
        if (!slot)
            return fail(ERR_REFUSED, "%s: token %d collides with %d others", where, id, MAX_PROBES);
        if (slot->n)
            return fail(ERR_FORMAT, "%s: tokens %d and %d are the same bytes", where, slot->id, id);
        *slot = (VocabSlot){key.low, key.high, key.n, id};
    }
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

/* Shorter first where one begins the other, as memcmp and length order them. */
static int compare_bytes(Bytes a, Bytes b)
{
    int order = memcmp(a.at, b.at, a.n < b.n ? a.n : b.n);
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

static int compare_added(const void *a, const void *b, void *tokenizer)
{
    const Tokenizer *t = tokenizer;
    return compare_bytes(token_bytes(t, *(const int32_t *)a), token_bytes(t, *(const int32_t *)b));
}

static Status sort_added(Tokenizer *t, const char *where)
{
    for (int32_t id = 0; id < t->n_ids; id++) t->n_added += t->kind[id] >= TOKEN_ADDED;
    t->added = ARENA_ARRAY(&t->arena, int32_t, t->n_added);
    int32_t n = 0;
    for (int32_t id = 0; id < t->n_ids; id++)
        if (t->kind[id] >= TOKEN_ADDED) t->added[n++] = id;
    qsort_r(t->added, (size_t)n, sizeof *t->added, compare_added, t);
    for (int32_t i = 1; i < n; i++)
        if (compare_added(&t->added[i - 1], &t->added[i], t) == 0)
            return fail(ERR_FORMAT, "%s: added tokens %d and %d have the same text", where,
                        t->added[i - 1], t->added[i]);
    return OK;
}

Status build_vocabulary(Tokenizer *t, const TokenList *list)
{
    TRY(copy_tokens(t, list));
    TRY(fill_vocab(t, list->where));
    return sort_added(t, list->where);
}

/* Narrows the sorted range of added tokens byte by byte; a token that ends at a depth is the first
 * of its range there. O(length of the match x log n_added). */
int32_t added_find(const Tokenizer *t, Bytes text, bool specials)
{
    int32_t low = 0, high = t->n_added, found = -1;
    for (size_t depth = 0; low < high; depth++) {
        Bytes first = token_bytes(t, t->added[low]);
        if (first.n == depth) {
            if (specials || t->kind[t->added[low]] == TOKEN_ADDED) found = t->added[low];
            low++;
        }
        if (depth == text.n) break;
        uint8_t byte = text.at[depth];
        for (int side = 0; side < 2; side++) { /* first not below byte, then first above it */
            int32_t a = low, b = high;
            while (a < b) {
                int32_t middle = a + (b - a) / 2;
                uint8_t other = token_bytes(t, t->added[middle]).at[depth];
                if (side == 0 ? other < byte : other <= byte)
                    a = middle + 1;
                else
                    b = middle;
            }
            if (side == 0)
                low = a;
            else
                high = a;
        }
    }
    return found;
}

/* ---- merges ---------------------------------------------------------------------------- */

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
    uint64_t size = table_size(t->n_merges);
    t->pairs = ARENA_ARRAY(&t->arena, MergeRule, size);
    t->pairs_mask = size - 1;
    for (uint64_t i = 0; i < size; i++) t->pairs[i].left = NO_MERGE;
    for (size_t i = 0; i < t->n_merges; i++) {
        const MergeRule *rule = &t->merges[i];
        MergeRule *slot = pair_slot(t, rule->left, rule->right);
        if (!slot)
            return fail(ERR_REFUSED, "%s: merge %zu collides with %d others", where, i, MAX_PROBES);
        if (slot->left != NO_MERGE)
            return fail(ERR_FORMAT, "%s: merge %zu is listed before", where, i);
        *slot = *rule;
    }
    fill_byte_pairs(t);
    return OK;
}

Status build_merges(Tokenizer *t, const MergeRule *rules, size_t n, const char *where)
{
    t->merges = arena_copy(&t->arena, rules, n * sizeof *rules);
    t->n_merges = n;
    return hash_merges(t, where);
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
        if (rules.n > first + 1)
            qsort(rules.at + first, rules.n - first, sizeof *rules.at, compare_rules);
    }
    Status status = build_merges(t, rules.at, rules.n, where);
    VEC_FREE(&rules);
    return status;
}

/* ---- the rest -------------------------------------------------------------------------- */

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

static uint64_t content_hash(const Tokenizer *t)
{
    uint64_t pairs = 0;
    for (size_t i = 0; i < t->n_merges;
         i++) { /* the order counts, the priorities may be ranks or indices */
        int32_t link[4] = {t->merges[i].left, t->merges[i].right, (int32_t)(pairs >> 32),
                           (int32_t)pairs};
        pairs = hash_bytes(link, sizeof link);
    }
    uint64_t part[] = {
        hash_bytes(t->offset, ((size_t)t->n_ids + 1) * sizeof *t->offset),
        hash_bytes(t->bytes, t->offset[t->n_ids]),
        hash_bytes(t->kind, (size_t)t->n_ids),
        pairs,
        hash_bytes(t->pattern, strlen(t->pattern)),
        t->whole_piece,
        (uint64_t)t->bos,
        (uint64_t)t->eos,
        (uint64_t)t->pad,
    };
    return hash_bytes(part, sizeof part);
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
    t->hash = content_hash(t);
}
