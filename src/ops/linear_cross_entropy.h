/* How linear_cross_entropy cuts its work: by shape only, for the kernel and its cost. Internal to
 * ops/. */
#ifndef OPS_LINEAR_CROSS_ENTROPY_H
#define OPS_LINEAR_CROSS_ENTROPY_H

#include "base/base.h"

enum {
    CROSS_ENTROPY_BYTES = 32 << 20, /* of f32 logits in one block of tokens */
    CROSS_ENTROPY_MIN_ROWS = 64,
    CROSS_ENTROPY_MAX_ROWS = 512,
};

/* Tokens in a block, a multiple of 32. */
static inline int64_t cross_entropy_rows(int64_t vocab)
{
    int64_t rows = CROSS_ENTROPY_BYTES / 4 / vocab / 32 * 32;
    return max_i64(CROSS_ENTROPY_MIN_ROWS, min_i64(rows, CROSS_ENTROPY_MAX_ROWS));
}

/* Words of the vocabulary that a thread takes at a time. */
static inline int64_t cross_entropy_chunk(int64_t vocab) { return vocab >= 16384 ? 512 : 256; }

#endif
