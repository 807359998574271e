/* ring_sum on the cuda device: a block of threads a token. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/collective.h"
#include "ops/ring_sum.h"
}

namespace
{

enum { RING_THREADS = 128 };

/* sum, y [B T K d] with any pitch of tokens, x [B T or T/2 K d]: of each sequence's tokens those
 * from `first` on have one of x's x_tokens. */
typedef struct RingRows {
    Rows sum, x, y;
    int64_t tokens, first, x_tokens;
    bool in_place; /* what has no summand is there already */
} RingRows;

template <class Y, class X, int N>
__global__ void __launch_bounds__(RING_THREADS) ring_sum_kernel(RingRows job)
{
    for (int64_t i = blockIdx.x; i < job.sum.n; i += gridDim.x) {
        const int64_t b = i / job.tokens, t = i - b * job.tokens - job.first;
        const bool there = t >= 0 && t < job.x_tokens;
        if (!there && job.in_place) continue;
        const X *x = there ? row_at<const X>(job.x, b * job.x_tokens + t) : NULL;
        for (int64_t k = threadIdx.x * N; k < job.sum.width; k += RING_THREADS * N) {
            auto v = load_neighbours<N>(row_at<const float>(job.sum, i) + k);
            Neighbours<X, N> more = {};
            if (x) more = load_neighbours<N>(x + k);
            Neighbours<Y, N> y;
            for (int j = 0; j < N; j++)
                y.at[j] = from_f32<Y>(x ? v.at[j] + to_f32(more.at[j]) : v.at[j]);
            store_neighbours(row_at<Y>(job.y, i) + k, y);
        }
    }
}

static Status run(KernelArgs *args)
{
    const RingSumAttr *attr = (const RingSumAttr *)args->attr;
    RingRows job = {tensor_as_rows(&args->in[0], 2), tensor_as_rows(&args->in[1], 2),
                    tensor_as_rows(&args->out[0], 2)};
    job.tokens = args->in[0].shape.dim[1];
    job.x_tokens = args->in[1].shape.dim[1];
    job.first = attr->halves == HALF_SECOND ? job.tokens / 2 : 0;
    job.in_place = job.y.dtype == DTYPE_F32 && job.y.data == job.sum.data;
    const unsigned grid = grid_of(job.sum.n);
    if (!job.sum.n || !job.sum.width) return OK;
    BY_ACTIVATION(job.y.dtype, Y, BY_ACTIVATION(job.x.dtype, X, {
                      constexpr int N = 4;
                      if (rows_align(&job.sum, N) && rows_align(&job.x, N) && rows_align(&job.y, N))
                          return GPU_LAUNCH(args->stream, grid, RING_THREADS, 0,
                                            (ring_sum_kernel<Y, X, N>), job);
                      return GPU_LAUNCH(args->stream, grid, RING_THREADS, 0,
                                        (ring_sum_kernel<Y, X, 1>), job);
                  }));
}

} // namespace

CUDA_KERNEL(ring_sum) = {.run = run};
