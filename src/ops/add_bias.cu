/* add_bias and bias_grad on the cuda device. */
#include "ops/column_sums.cuh"

namespace
{

enum { BIAS_THREADS = 256, SUM_THREADS = 64 };

template <class T, int N>
__global__ void __launch_bounds__(BIAS_THREADS) add_bias_kernel(Rows x, Rows y, const float *b)
{
    const int64_t pieces = x.width / N, steps = x.n * pieces,
                  each = (int64_t)gridDim.x * BIAS_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * BIAS_THREADS + threadIdx.x; i < steps; i += each) {
        int64_t row = i / pieces, column = (i - row * pieces) * N;
        auto v = load_neighbours<N>(row_at<const T>(x, row) + column);
        auto more = load_neighbours<N>(b + column);
        for (int k = 0; k < N; k++) v.at[k] = from_f32<T>(to_f32(v.at[k]) + more.at[k]);
        store_neighbours(row_at<T>(y, row) + column, v);
    }
}

static Status run(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), y = tensor_as_rows(&args->out[0], 1);
    const float *b = (const float *)args->in[1].data;
    if (!x.n || !x.width) return OK;
    BY_ACTIVATION(x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&x, N) && rows_align(&y, N) && (uintptr_t)b % (N * sizeof *b) == 0)
            return GPU_LAUNCH(args->stream, grid_of(ceil_div(x.n * (x.width / N), BIAS_THREADS)),
                              BIAS_THREADS, 0, (add_bias_kernel<T, N>), x, y, b);
        return GPU_LAUNCH(args->stream, grid_of(ceil_div(x.n * x.width, BIAS_THREADS)),
                          BIAS_THREADS, 0, (add_bias_kernel<T, 1>), x, y, b);
    });
}

/* ---- bias_grad ----------------------------------------------------------------------------- */

/* Each thread has N columns, blockIdx.y the block of rows. */
template <class T, int N>
__global__ void __launch_bounds__(SUM_THREADS)
    sum_rows_kernel(Rows dy, int64_t rows_each, float *partial)
{
    const int64_t column = ((int64_t)blockIdx.x * SUM_THREADS + threadIdx.x) * N;
    const int64_t first = blockIdx.y * rows_each, end = min(first + rows_each, dy.n);
    if (column >= dy.width) return;
    Neighbours<float, N> sum = {};
    for (int64_t row = first; row < end; row++) {
        auto v = load_neighbours<N>(row_at<const T>(dy, row) + column);
        for (int k = 0; k < N; k++) sum.at[k] += to_f32(v.at[k]);
    }
    for (int k = 0; k < N; k++) partial[blockIdx.y * dy.width + column + k] = sum.at[k];
}

static Status run_grad(KernelArgs *args)
{
    Rows dy = tensor_as_rows(&args->in[0], 1);
    float *partial = (float *)args->workspace;
    const int64_t blocks = gpu_row_blocks(dy.n), each = gpu_row_block_rows(dy.n);
    if (!dy.width) return OK;
    if (blocks) {
        BY_ACTIVATION(dy.dtype, T, {
            constexpr int N = 16 / (int)sizeof(T);
            if (rows_align(&dy, N)) {
                dim3 grid((unsigned)ceil_div(dy.width / N, SUM_THREADS), (unsigned)blocks);
                TRY(GPU_LAUNCH(args->stream, grid, SUM_THREADS, 0, (sum_rows_kernel<T, N>), dy,
                               each, partial));
            } else {
                dim3 grid((unsigned)ceil_div(dy.width, SUM_THREADS), (unsigned)blocks);
                TRY(GPU_LAUNCH(args->stream, grid, SUM_THREADS, 0, (sum_rows_kernel<T, 1>), dy,
                               each, partial));
            }
        });
    }
    return sum_row_blocks(args->stream, partial, blocks, dy.width, &args->out[0]);
}

} // namespace

CUDA_KERNEL(add_bias) = {.run = run};
CUDA_KERNEL(bias_grad) = {.run = run_grad};
