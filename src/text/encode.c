/* Encoding: added tokens are cut out, the rest is split into pieces, each piece becomes ids.
 *
 * Most pieces of a text are among a few thousand different ones. A cache from pieces of up to 16
 * bytes to their ids, small enough for the second-level cache of a core, answers for them; what it
 * does not hold goes through the vocabulary and then through merging.
 */
#include "text/text_internal.h"

#include <stdlib.h>

enum { CACHE_SLOTS = 1 << 14, CACHE_IDS = 11, CACHE_PIECE_BYTES = 16 };

/* One cache line. n_bytes 0 = empty. */
typedef struct CacheSlot {
    uint64_t low, high;
    uint8_t n_bytes, n_ids;
    int32_t id[CACHE_IDS];
} CacheSlot;
_Static_assert(sizeof(CacheSlot) == 64, "one cache line");

/* Where added tokens can begin in text: by their first two bytes. */
typedef struct AddedFilter {
    bool any;
    uint8_t first[256];      /* 1: some token begins with this byte */
    uint8_t pair[65536 / 8]; /* bit: some token begins with these two, or is the first alone */
} AddedFilter;

struct Encoder {
    const Tokenizer *tokenizer;
    CacheSlot *cache; /* [CACHE_SLOTS] */
    MergeScratch scratch;
    Matcher matcher;
    AddedFilter added[2]; /* [ENCODE_SPECIALS or not] */
};

static void fill_filter(const Tokenizer *t, bool specials, AddedFilter *filter)
{
    for (int32_t i = 0; i < t->n_added; i++) {
        int32_t id = t->added[i];
        if (!specials && t->kind[id] != TOKEN_ADDED) continue;
        Bytes b = token_bytes(t, id);
        filter->any = true;
        filter->first[b.at[0]] = 1;
        for (int second = b.n > 1 ? b.at[1] : 0; second < (b.n > 1 ? b.at[1] + 1 : 256); second++) {
            int pair = b.at[0] << 8 | second;
            filter->pair[pair / 8] |= (uint8_t)(1 << pair % 8);
        }
    }
}

Status encoder_create(const Tokenizer *tokenizer, Encoder **out)
{
    Encoder *e = xcalloc(1, sizeof *e);
    e->tokenizer = tokenizer;
    e->cache = aligned_alloc(sizeof(CacheSlot), CACHE_SLOTS * sizeof(CacheSlot));
    if (!e->cache) {
        free(e);
        return fail(ERR_MEMORY, "no memory for an encoder's cache of %zu bytes",
                    CACHE_SLOTS * sizeof(CacheSlot));
    }
    memset(e->cache, 0, CACHE_SLOTS * sizeof(CacheSlot));
    if (tokenizer->regex) matcher_init(&e->matcher, tokenizer->regex);
    for (int specials = 0; specials < 2; specials++)
        fill_filter(tokenizer, specials, &e->added[specials]);
    *out = e;
    return OK;
}

void encoder_destroy(Encoder *e)
{
    if (!e) return;
    if (e->tokenizer->regex) matcher_deinit(&e->matcher);
    merge_scratch_deinit(&e->scratch);
    free(e->cache);
    free(e);
}

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
    CacheSlot *slot = &e->cache[piece_key_hash(key) & (CACHE_SLOTS - 1)];
    if (slot->low == key.low && slot->high == key.high && slot->n_bytes == piece.n) {
        for (int i = 0; i < slot->n_ids; i++) VEC_PUSH(ids, slot->id[i]);
        return;
    }
    size_t start = ids->n;
    encode_fresh(e, piece, key, ids);
    size_t n = ids->n - start;
    if (n > CACHE_IDS) return;
    slot->low = key.low;
    slot->high = key.high;
    slot->n_bytes = (uint8_t)piece.n;
    slot->n_ids = (uint8_t)n;
    memcpy(slot->id, ids->at + start, n * sizeof *slot->id);
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

/* Text without added tokens. */
static Status encode_bytes(Encoder *e, Bytes text, IdVec *ids)
{
    while (text.n > 0) {
        size_t n = utf8_valid_run(text.at, text.n);
        TRY(encode_valid(e, (Bytes){text.at, n}, ids));
        size_t bad = utf8_invalid_run(text.at + n, text.n - n);
        if (bad) encode_piece(e, (Bytes){text.at + n, bad}, text.n - n, ids);
        text = (Bytes){text.at + n + bad, text.n - n - bad};
    }
    return OK;
}

/* The next added token at or after pos: its start, text.n when there is none. */
static size_t next_added(const Encoder *e, Bytes text, size_t pos, bool specials, int32_t *id)
{
    const AddedFilter *filter = &e->added[specials];
    for (; pos < text.n; pos++) {
        if (!filter->first[text.at[pos]]) continue;
        int pair = text.at[pos] << 8 | (pos + 1 < text.n ? text.at[pos + 1] : 0);
        if (pos + 1 < text.n && !(filter->pair[pair / 8] >> pair % 8 & 1)) continue;
        *id = added_find(e->tokenizer, (Bytes){text.at + pos, text.n - pos}, specials);
        if (*id >= 0) return pos;
    }
    return text.n;
}

Status encoder_encode(Encoder *e, const void *text, size_t n, unsigned flags, IdVec *ids)
{
    Bytes all = {text, n};
    bool specials = (flags & ENCODE_SPECIALS) != 0;
    if (!e->added[specials].any) return encode_bytes(e, all, ids);
    size_t pos = 0;
    while (pos < n) {
        int32_t id = -1;
        size_t start = next_added(e, all, pos, specials, &id);
        TRY(encode_bytes(e, (Bytes){all.at + pos, start - pos}, ids));
        if (start == n) break;
        VEC_PUSH(ids, id);
        pos = start + token_bytes(e->tokenizer, id).n;
    }
    return OK;
}
