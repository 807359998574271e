/* cache_append: its operands, for both devices. */
#ifndef OPS_CACHE_APPEND_H
#define OPS_CACHE_APPEND_H

#include "ops/attention/attention_internal.h"

/* k v [B n K d] by tokens, pos [B n], table [B W], copy [B], the pools [P S K d] */
enum { APPEND_K, APPEND_V, APPEND_POS, APPEND_TABLE, APPEND_COPY, APPEND_K_POOL, APPEND_V_POOL };

/* The position of the first new token of a sequence; -1: it has none. */
static DEVICE_TOO inline int64_t cache_first_position(const int32_t *pos, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (pos[i] >= 0) return pos[i];
    return -1;
}

#endif
