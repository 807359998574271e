/* How linear_cross_entropy cuts its work: by shape only, for the kernel and its cost. Internal to
 * ops/. */
#ifndef OPS_LINEAR_CROSS_ENTROPY_H
#define OPS_LINEAR_CROSS_ENTROPY_H

#include "graph/graph.h"

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

/* On GPUs: tokens whose logits are there at a time, and elements from row to row of these. */
static inline int64_t gpu_logits_rows(int64_t tokens) { return min_i64(tokens, GPU_LOGITS_ROWS); }
static inline int64_t gpu_logits_pitch(int64_t words) { return (words + 7) / 8 * 8; }

/* Where on GPUs things lie in the workspace, behind that of the products. */
typedef struct LogitsSpace {
    size_t logits; /* [rows pitch] */
    size_t stats;  /* [tokens 3], and the loss's terms: doubles */
    size_t terms;
    size_t factors; /* [rows 3] */
    size_t sums;    /* so many as asked for */
    size_t bytes;
} LogitsSpace;

static inline LogitsSpace gpu_logits_space(int64_t tokens, int64_t words, int64_t sums)
{
    int64_t rows = gpu_logits_rows(tokens);
    LogitsSpace at;
    at.logits = GPU_PRODUCT_WORKSPACE_BYTES;
    at.stats = at.logits + (size_t)(rows * gpu_logits_pitch(words)) * sizeof(float);
    at.terms = at.stats + ((size_t)tokens * 3 * sizeof(float) + 255) / 256 * 256;
    at.factors = at.terms + (size_t)tokens * sizeof(double);
    at.sums = (at.factors + (size_t)rows * 3 * sizeof(float) + 255) / 256 * 256;
    at.bytes = at.sums + (size_t)sums * sizeof(float);
    return at;
}

/* Words of the vocabulary that a thread takes at a time. */
static inline int64_t cross_entropy_chunk(int64_t vocab) { return vocab >= 16384 ? 512 : 256; }

#endif
