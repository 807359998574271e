/* Byte-level BPE: text is split into pieces by a pattern, each piece becomes ids. What the cache of
 * pieces does not hold goes through the vocabulary and then through merging. */
#include "text/encoder.h"

/* A piece that no cache answers for. */
static void encode_fresh(Encoder *e, Bytes piece, PieceKey key, IdVec *ids)
{
    const Tokenizer *t = e->tokenizer;
    int32_t id = t->whole_piece ? vocab_find(t, piece.at, key) : -1;
    if (id >= 0)
        VEC_PUSH(ids, id);
    else
        merge_piece(t, &e->scratch, piece, ids);
}

/* room: how many bytes may be read from piece.at on. */
static inline void encode_piece(Encoder *e, Bytes piece, size_t room, IdVec *ids)
{
    if (piece.n == 1) {
        VEC_PUSH(ids, e->tokenizer->byte_id[piece.at[0]]);
        return;
    }
    while (piece.n > MAX_PIECE_BYTES) {
        Bytes part = {piece.at, MAX_PIECE_BYTES};
        encode_fresh(e, part, piece_key(part.at, part.n, part.n), ids);
        piece = (Bytes){piece.at + part.n, piece.n - part.n};
        room -= part.n;
    }
    PieceKey key = piece_key(piece.at, piece.n, room);
    if (piece.n > CACHE_PIECE_BYTES) {
        encode_fresh(e, piece, key, ids);
        return;
    }
    CacheSlot *slot = cache_slot(e, key);
    if (cache_get(slot, key, ids)) return;
    size_t start = ids->n;
    encode_fresh(e, piece, key, ids);
    cache_put(slot, key, ids->at + start, ids->n - start);
}

/* Text that is valid UTF-8. */
static Status encode_valid(Encoder *e, Bytes text, IdVec *ids)
{
    const Tokenizer *t = e->tokenizer;
    for (size_t pos = 0, end = 0; pos < text.n; pos = end) {
        switch (t->pattern_kind) {
        case PATTERN_LLAMA3: end = split_llama3(t->classes, text, pos); break;
        case PATTERN_LLAMA4: end = split_llama4(t->classes, text, pos); break;
        case PATTERN_PCRE2: TRY(matcher_split(&e->matcher, t->regex, text, pos, &end)); break;
        }
        encode_piece(e, (Bytes){text.at + pos, end - pos}, text.n - pos, ids);
    }
    return OK;
}

static Status encode(Encoder *e, Bytes text, bool is_first, IdVec *ids)
{
    (void)is_first;
    while (text.n > 0) {
        size_t n = utf8_valid_run(text.at, text.n);
        TRY(encode_valid(e, (Bytes){text.at, n}, ids));
        size_t bad = utf8_invalid_run(text.at + n, text.n - n);
        if (bad) encode_piece(e, (Bytes){text.at + n, bad}, text.n - n, ids);
        text = (Bytes){text.at + n + bad, text.n - n - bad};
    }
    return OK;
}

static Bytes surface(const Tokenizer *t, int32_t id, bool *at_start)
{
    if (t->kind[id] != TOKEN_SPECIAL) *at_start = false;
    return token_bytes(t, id);
}

static int32_t find(const Tokenizer *t, Bytes text) { return vocab_find_bytes(t, text.at, text.n); }

static uint64_t hash(const Tokenizer *t)
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
        hash_bytes(t->flags, (size_t)t->n_ids),
        pairs,
        hash_bytes(t->pattern, strlen(t->pattern)),
        t->whole_piece,
    };
    return hash_bytes(part, sizeof part);
}

static bool is_reversible(const Tokenizer *t)
{
    for (int32_t id = 0; id < t->n_ids; id++)
        if (t->flags[id] & (ADDED_LSTRIP | ADDED_RSTRIP)) return false;
    return true;
}

const TokenizerKind kind_byte_level = {.name = "byte-level BPE",
                                       .encode = encode,
                                       .surface = surface,
                                       .find = find,
                                       .hash = hash,
                                       .is_reversible = is_reversible};
