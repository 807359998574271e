/* repeat_heads and its gradient on the cuda device: a block of threads a token. Sums over copies
 * are in f32, in the order of copies; heads of which this rank has no copy get zero. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/repeat_heads.h"
}

namespace
{

enum { REPEAT_THREADS = 128 };

template <class T, int N>
__global__ void __launch_bounds__(REPEAT_THREADS)
    repeat_kernel(RepeatHeadsAttr attr, Rows x, Rows y, int d)
{
    const int pieces = d / N, steps = (int)attr.made * pieces;
    for (int64_t token = blockIdx.x; token < x.n; token += gridDim.x) {
        const T *from = row_at<const T>(x, token);
        T *to = row_at<T>(y, token);
        for (int i = threadIdx.x; i < steps; i += REPEAT_THREADS) {
            int copy = i / pieces, at = (i - copy * pieces) * N;
            int64_t head = (attr.first + copy) / attr.copies;
            store_neighbours(to + copy * d + at, load_neighbours<N>(from + head * d + at));
        }
    }
}

template <class T, int N>
__global__ void __launch_bounds__(REPEAT_THREADS)
    sum_copies_kernel(RepeatHeadsAttr attr, Rows dy, Rows dx, int d)
{
    const int pieces = d / N, steps = (int)attr.heads * pieces;
    for (int64_t token = blockIdx.x; token < dy.n; token += gridDim.x) {
        const T *from = row_at<const T>(dy, token);
        T *to = row_at<T>(dx, token);
        for (int i = threadIdx.x; i < steps; i += REPEAT_THREADS) {
            int head = i / pieces, at = (i - head * pieces) * N;
            /* the copies of this head that this rank has */
            int64_t begin = max(attr.first, head * attr.copies),
                    end = min(attr.first + attr.made, (head + 1) * attr.copies);
            Neighbours<float, N> sum = {};
            for (int64_t j = begin; j < end; j++) {
                auto v = load_neighbours<N>(from + (j - attr.first) * d + at);
                for (int k = 0; k < N; k++) sum.at[k] += to_f32(v.at[k]);
            }
            Neighbours<T, N> total;
            for (int k = 0; k < N; k++) total.at[k] = from_f32<T>(sum.at[k]);
            store_neighbours(to + head * d + at, total);
        }
    }
}

static Status run(KernelArgs *args)
{
    const RepeatHeadsAttr attr = *(const RepeatHeadsAttr *)args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), y = tensor_as_rows(&args->out[0], 2);
    const int d = (int)args->out[0].shape.dim[3];
    if (!x.n) return OK;
    BY_ACTIVATION(x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (d % N == 0 && rows_align(&x, N) && rows_align(&y, N))
            return GPU_LAUNCH(args->stream, grid_of(x.n), REPEAT_THREADS, 0, (repeat_kernel<T, N>),
                              attr, x, y, d);
        return GPU_LAUNCH(args->stream, grid_of(x.n), REPEAT_THREADS, 0, (repeat_kernel<T, 1>),
                          attr, x, y, d);
    });
}

static Status run_grad(KernelArgs *args)
{
    const RepeatHeadsAttr attr = *(const RepeatHeadsAttr *)args->attr;
    Rows dy = tensor_as_rows(&args->in[0], 2), dx = tensor_as_rows(&args->out[0], 2);
    const int d = (int)args->out[0].shape.dim[3];
    if (!dy.n) return OK;
    BY_ACTIVATION(dy.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (d % N == 0 && rows_align(&dy, N) && rows_align(&dx, N))
            return GPU_LAUNCH(args->stream, grid_of(dy.n), REPEAT_THREADS, 0,
                              (sum_copies_kernel<T, N>), attr, dy, dx, d);
        return GPU_LAUNCH(args->stream, grid_of(dy.n), REPEAT_THREADS, 0, (sum_copies_kernel<T, 1>),
                          attr, dy, dx, d);
    });
}

} // namespace

CUDA_KERNEL(repeat_heads) = {.run = run};
CUDA_KERNEL(repeat_heads_grad) = {.run = run_grad};
