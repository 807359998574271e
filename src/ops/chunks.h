/* Contractions in chunks (canonical mode): a product whose contraction tensor parallelism may cut
 * is made in a fixed number of pieces, each summed by itself, and the pieces are added as a
 * balanced binary tree. A rank has a run of the chunks, whose tree is a branch of the whole one;
 * the sum over ranks is the rest of it (comm/comm.h). Internal to ops/.
 *
 * A contraction may be the axes of several weights that were fused behind one another, such as q, k
 * and v, of each of which a rank has a part: a chunk takes its part of every one of these segments.
 */
#ifndef OPS_CHUNKS_H
#define OPS_CHUNKS_H

#include "ops/ops.h"

/* What a rank of n keeps of the chunks. */
static inline Status chunks_cut(Chunks *c, const char *op, int n)
{
    if (c->n % n)
        return fail(ERR_REFUSED, "%s: %d chunks cannot be shared out over parallel.tp %d", op, c->n,
                    n);
    c->n /= n;
    for (int s = 0; s < c->n_segments; s++) c->width[s] /= n;
    return OK;
}

/* The segments are the whole contraction, and the chunks share each evenly. */
static inline Status chunks_check(const Chunks *c, int64_t contraction)
{
    int64_t sum = 0;
    if (c->n < 1 || c->n & (c->n - 1) || c->n_segments < 1 || c->n_segments > CHUNK_SEGMENTS)
        return fail(ERR_ARG, "%d chunks of %d segments", c->n, c->n_segments);
    for (int s = 0; s < c->n_segments; s++) {
        if (c->width[s] % c->n)
            return fail(ERR_REFUSED, "a contraction over %lld cannot be cut into %d equal chunks",
                        (long long)c->width[s], c->n);
        sum += c->width[s];
    }
    return sum == contraction ? OK
                              : fail(ERR_SHAPE, "segments of %lld in a contraction over %lld",
                                     (long long)sum, (long long)contraction);
}

/* Where chunk c begins in segment s, and how long its part there is. */
typedef struct ChunkPart {
    int64_t first, n;
} ChunkPart;
static inline ChunkPart chunk_part(const Chunks *c, int chunk, int segment)
{
    ChunkPart part = {0, c->width[segment] / c->n};
    for (int s = 0; s < segment; s++) part.first += c->width[s];
    part.first += chunk * part.n;
    return part;
}

/* Rows that GPUs sum at a time: the tree's buffers are so long. */
static inline int64_t gpu_chunk_rows(int64_t rows) { return min_i64(rows, 4096); }

/* ---- trees ------------------------------------------------------------------------------ */

/* Writes leaf number `leaf` of a sum, [count] f32. */
typedef void LeafFn(void *context, int leaf, float *out);

/* Buffers of [count] that the sum of n leaves needs beside its result. */
static inline int tree_levels(int n)
{
    int levels = 0;
    while (1 << levels < n) levels++;
    return levels;
}

/* out = the sum of leaves lo .. hi - 1, of which there are a power of two; scratch: tree_levels(hi
 * - lo) buffers. */
static inline void tree_of_leaves(LeafFn *leaf, void *context, int lo, int hi, float *out,
                                  float *scratch, int64_t count)
{
    if (hi - lo == 1) {
        leaf(context, lo, out);
        return;
    }
    int mid = lo + (hi - lo) / 2;
    tree_of_leaves(leaf, context, lo, mid, out, scratch, count);
    tree_of_leaves(leaf, context, mid, hi, scratch, scratch + count, count);
    for (int64_t i = 0; i < count; i++) out[i] += scratch[i];
}

#endif
