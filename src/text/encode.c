/* Encoding: added tokens are cut out (added.c), the rest goes the way of the tokenizer's kind. */
#include "text/encoder.h"

#include <stdlib.h>

static void prepare_pass(const Tokenizer *t, const AddedSet *set, AddedPass *pass)
{
    added_fill(t, set, &pass->filter);
    for (int32_t i = 0; i < set->n; i++) {
        pass->any[ENCODE_SPECIALS] = true;
        if (t->kind[set->id[i]] != TOKEN_SPECIAL) pass->any[ENCODE_TEXT] = true;
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
    for (int i = 0; i < ADDED_PASSES; i++)
        prepare_pass(tokenizer, &tokenizer->added[i], &e->pass[i]);
    *out = e;
    return OK;
}

void encoder_destroy(Encoder *e)
{
    if (!e) return;
    if (e->tokenizer->regex) matcher_deinit(&e->matcher);
    merge_scratch_deinit(&e->scratch);
    str_deinit(&e->normal);
    free(e->cache);
    free(e);
}

Status encoder_encode(Encoder *e, const void *text, size_t n, unsigned flags, IdVec *ids)
{
    return added_encode(e, (Bytes){text, n}, flags, ids);
}
