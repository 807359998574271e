/* What plans know of attention's kernels on GPUs: how the keys of caches are split among blocks of
 * threads, what the library computes instead, and workspaces. By shapes only. */
#ifndef OPS_ATTENTION_GPU_H
#define OPS_ATTENTION_GPU_H

#include "ops/attention/attention_internal.h"

/* Tokens of a tile in the gradient's pass over queries for blocks of keys. */
enum { ATTENTION_TILE_TOKENS = 64 };
/* With fewer keys to a block than this, what splits cost is more than they gain. */
enum { ATTENTION_SPLIT_KEYS = 128 };
/* Blocks of threads that are at work on a GPU at a time, about: four for each multiprocessor. */
enum { ATTENTION_BLOCKS = 528 };

/* In how many parts the keys of caches are walked side by side. q [B n H d], k [P S K d], `context`
 * positions that a sequence can have. */
static inline int64_t attention_splits(const Shape *q, const Shape *k, int64_t context)
{
    int64_t rows = q->dim[1] * (q->dim[2] / max_i64(1, k->dim[2]));
    int64_t blocks = max_i64(1, q->dim[0] * k->dim[2] * ((rows + 63) / 64));
    int64_t most = (context + ATTENTION_SPLIT_KEYS - 1) / ATTENTION_SPLIT_KEYS;
    return max_i64(1, min_i64(ATTENTION_BLOCKS / blocks, most));
}

/* Of each split: the output of each row, its maximum and its sum. */
static inline size_t attention_split_bytes(const Shape *q, const Shape *k, int64_t context)
{
    int64_t splits = attention_splits(q, k, context), rows = q->dim[0] * q->dim[1] * q->dim[2];
    return splits > 1 ? (size_t)(splits * rows * (q->dim[3] + 2)) * sizeof(float) : 0;
}

/* What the gradient's kernels are told of queries, by kernels before them. */
typedef struct AttentionRange { /* keys that a token sees: first..end-1 */
    int32_t first, end;
} AttentionRange;
typedef struct AttentionStat { /* of a query of a head */
    float shift;               /* log-sum-exp times log2 e */
    float delta;               /* sum of do o, times the scale */
} AttentionStat;
typedef struct AttentionTile { /* of ATTENTION_TILE_TOKENS tokens: keys that some see, that all see
                                */
    int32_t first, end, all_first, all_end;
} AttentionTile;

/* Where they lie in the workspace: tiles [B tiles], ranges [B T], stats [B H T]. */
typedef struct AttentionGradSpace {
    int64_t tiles; /* of a sequence */
    size_t ranges_at, stats_at, bytes;
} AttentionGradSpace;

static inline AttentionGradSpace attention_grad_space(const Shape *q)
{
    AttentionGradSpace space = {0};
    int64_t tokens = q->dim[0] * q->dim[1];
    space.tiles = (q->dim[1] + ATTENTION_TILE_TOKENS - 1) / ATTENTION_TILE_TOKENS;
    space.ranges_at = (size_t)(q->dim[0] * space.tiles) * sizeof(AttentionTile);
    space.stats_at = space.ranges_at + (size_t)tokens * sizeof(AttentionRange);
    space.bytes = space.stats_at + (size_t)(tokens * q->dim[2]) * sizeof(AttentionStat);
    return space;
}

/* The library's gradient keeps a matrix of all pairs of tokens to be the same every time; beyond
 * this our own kernels, which need none, are taken. */
enum { ATTENTION_LIBRARY_BYTES = 1 << 30 };

/* Operands as they lie, or will. */
typedef struct AttentionShapes {
    DType dtype;
    const Shape *q, *k;
} AttentionShapes;

/* Why the library does not compute this; NULL: it does. */
const char *attention_library_refusal(const AttentionAttr *attr, const AttentionShapes *shapes,
                                      bool gradient);
/* Where the keys begin that each token sees, i32 [B T], then the library's own. */
size_t attention_library_first_bytes(const Shape *q);
size_t attention_library_bytes(const AttentionShapes *shapes, bool gradient);

#endif
