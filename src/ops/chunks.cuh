/* Trees of sums on the device, as tree_of_leaves (chunks.h) makes them. Included by .cu files only.
 */
#ifndef OPS_CHUNKS_CUH
#define OPS_CHUNKS_CUH

#include "ops/kernel.cuh"

extern "C" {
#include "ops/chunks.h"
}

/* Buffers of [count] f32 that are summed. Where only some rows are there: `rows` says on the device
 * how many, each of `width`; what lies behind them is left as it is. */
typedef struct Summands {
    int64_t count;
    const int32_t *rows; /* NULL: all are there */
    int64_t width;
} Summands;

__global__ static void __launch_bounds__(256)
    add_leaves_kernel(float *to, const float *from, Summands s)
{
    int64_t count = s.rows ? min(s.count, *s.rows * s.width) : s.count;
    for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * 256)
        to[i] += from[i];
}

/* Puts on the stream what writes leaf number `leaf`. */
typedef Status GpuLeafFn(void *context, int leaf, float *out);

/* out = the sum of leaves lo .. hi - 1, of which there are a power of two; scratch: tree_levels(hi
 * - lo) buffers. */
static inline Status gpu_tree_of_leaves(GpuStream *stream, GpuLeafFn *leaf, void *context, int lo,
                                        int hi, float *out, float *scratch, const Summands *s)
{
    if (hi - lo == 1) return leaf(context, lo, out);
    int mid = lo + (hi - lo) / 2;
    TRY(gpu_tree_of_leaves(stream, leaf, context, lo, mid, out, scratch, s));
    TRY(gpu_tree_of_leaves(stream, leaf, context, mid, hi, scratch, scratch + s->count, s));
    if (!s->count) return OK;
    return GPU_LAUNCH(stream, grid_of(ceil_div(s->count, 256)), 256, 0, add_leaves_kernel, out,
                      (const float *)scratch, *s);
}

#endif
