/* How tokens are sorted by id on the cuda device (id_sort.cuh): what its workspace holds. */
#ifndef OPS_ID_SORT_H
#define OPS_ID_SORT_H

#include "base/base.h"

enum {
    SORT_DIGIT_BITS = 8, /* sorted by at a time */
    SORT_DIGITS = 1 << SORT_DIGIT_BITS,
    SORT_THREADS = SORT_DIGITS,
    SORT_TILE = 8 * SORT_THREADS, /* tokens of one block of threads */
};

static inline int64_t sort_tiles(int64_t n) { return (n + SORT_TILE - 1) / SORT_TILE; }

/* Two arrays of keys and two of tokens, by turns from and to; how often each digit is in each tile.
 */
static inline size_t sort_workspace(int64_t n)
{
    return (size_t)(4 * n + sort_tiles(n) * SORT_DIGITS) * sizeof(int32_t);
}

#endif
