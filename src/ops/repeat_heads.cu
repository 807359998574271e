/* repeat_heads and its gradient on the cuda device: a block of threads a token. Sums over copies
 * are in f32, as a balanced binary tree; heads of which this rank has no copy get zero. */
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

/* The sum of n copies of N neighbours, `step` apart: as in repeat_heads_cpu.c, the levels in
 * registers. */
template <int N, class T>
__device__ inline Neighbours<float, N> sum_copies(const T *from, int64_t n, int step)
{
    Neighbours<float, N> waiting[REPEAT_LEVELS], sum = {};
    for (int64_t j = 0; j < n; j++) {
        auto v = load_neighbours<N>(from + j * step);
        Neighbours<float, N> x;
        for (int k = 0; k < N; k++) x.at[k] = to_f32(v.at[k]);
        bool on_its_way = true;
#pragma unroll
        for (int level = 0; level < REPEAT_LEVELS; level++) {
            bool waits = !(j >> level & 1);
            if (on_its_way && waits) waiting[level] = x;
            on_its_way = on_its_way && !waits;
            for (int k = 0; k < N && on_its_way; k++) x.at[k] = waiting[level].at[k] + x.at[k];
        }
    }
#pragma unroll
    for (int level = 0; level < REPEAT_LEVELS; level++)
        if (n >> level & 1)
            for (int k = 0; k < N; k++) sum.at[k] = waiting[level].at[k] + sum.at[k];
    return sum;
}

template <class To, class T, int N>
__global__ void __launch_bounds__(REPEAT_THREADS)
    sum_copies_kernel(RepeatHeadsAttr attr, Rows dy, Rows dx, int d)
{
    const int pieces = d / N, steps = (int)attr.heads * pieces;
    for (int64_t token = blockIdx.x; token < dy.n; token += gridDim.x) {
        const T *from = row_at<const T>(dy, token);
        To *to = row_at<To>(dx, token);
        for (int i = threadIdx.x; i < steps; i += REPEAT_THREADS) {
            int head = i / pieces, at = (i - head * pieces) * N;
            /* the copies of this head that this rank has */
            int64_t begin = max(attr.first, head * attr.copies),
                    end = min(attr.first + attr.made, (head + 1) * attr.copies);
            auto sum = sum_copies<N>(from + (begin - attr.first) * d + at,
                                     max(end - begin, (int64_t)0), d);
            Neighbours<To, N> total;
            for (int k = 0; k < N; k++) total.at[k] = from_f32<To>(sum.at[k]);
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

template <class To, class T>
static Status sum_rows(KernelArgs *args, const Rows &dy, const Rows &dx, int d)
{
    const RepeatHeadsAttr attr = *(const RepeatHeadsAttr *)args->attr;
    constexpr int N = 16 / (int)(sizeof(To) > sizeof(T) ? sizeof(To) : sizeof(T));
    if (d % N == 0 && rows_align(&dy, N) && rows_align(&dx, N))
        return GPU_LAUNCH(args->stream, grid_of(dy.n), REPEAT_THREADS, 0,
                          (sum_copies_kernel<To, T, N>), attr, dy, dx, d);
    return GPU_LAUNCH(args->stream, grid_of(dy.n), REPEAT_THREADS, 0, (sum_copies_kernel<To, T, 1>),
                      attr, dy, dx, d);
}

static Status run_grad(KernelArgs *args)
{
    Rows dy = tensor_as_rows(&args->in[0], 2), dx = tensor_as_rows(&args->out[0], 2);
    const int d = (int)args->out[0].shape.dim[3];
    if (!dy.n) return OK;
    BY_ACTIVATION(dy.dtype, T, {
        if (dx.dtype == DTYPE_F32) return sum_rows<float, T>(args, dy, dx, d);
        return sum_rows<T, T>(args, dy, dx, d);
    });
}

} // namespace

CUDA_KERNEL(repeat_heads) = {.run = run};
CUDA_KERNEL(repeat_heads_grad) = {.run = run_grad};
