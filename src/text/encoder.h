/* The Encoder from inside, for the files of src/text that turn text into ids.
 *
 * Most pieces of a text are among a few thousand different ones. A cache from pieces of up to 16
 * bytes to their ids, small enough for the second-level cache of a core, answers for them.
 */
#ifndef TEXT_ENCODER_H
#define TEXT_ENCODER_H

#include "text/text_internal.h"

enum { CACHE_SLOTS = 1 << 14, CACHE_IDS = 11, CACHE_PIECE_BYTES = 16 };

/* One cache line. n_bytes 0 = empty. */
typedef struct CacheSlot {
    uint64_t low, high;
    uint8_t n_bytes, n_ids;
    int32_t id[CACHE_IDS];
} CacheSlot;
_Static_assert(sizeof(CacheSlot) == 64, "one cache line");

typedef struct AddedPass {
    AddedFilter filter;
    bool any[2]; /* [ENCODE_SPECIALS or not] whether a token of this pass can come out */
} AddedPass;

struct Encoder {
    const Tokenizer *tokenizer;
    CacheSlot *cache; /* [CACHE_SLOTS] */
    MergeScratch scratch;
    Matcher matcher; /* of a byte-level tokenizer with a foreign pattern */
    Str normal;      /* of a SentencePiece tokenizer: normalized text, some way ahead */
    AddedPass pass[ADDED_PASSES];
    bool is_first; /* no text of this call has been encoded yet, special tokens aside */
};

static inline CacheSlot *cache_slot(const Encoder *e, PieceKey key)
{
    return &e->cache[piece_key_hash(key) & (CACHE_SLOTS - 1)];
}

/* Appends the ids of the piece if they are known. */
static inline bool cache_get(const CacheSlot *slot, PieceKey key, IdVec *ids)
{
    if (slot->low != key.low || slot->high != key.high || slot->n_bytes != key.n) return false;
    for (int i = 0; i < slot->n_ids; i++) VEC_PUSH(ids, slot->id[i]);
    return true;
}

static inline void cache_put(CacheSlot *slot, PieceKey key, const int32_t *id, size_t n)
{
    if (n > CACHE_IDS) return;
    slot->low = key.low;
    slot->high = key.high;
    slot->n_bytes = (uint8_t)key.n;
    slot->n_ids = (uint8_t)n;
    memcpy(slot->id, id, n * sizeof *slot->id);
}

#endif
