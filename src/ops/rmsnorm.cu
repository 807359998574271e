/* rmsnorm, add_rmsnorm and their gradient on the cuda device: a block of threads a row; in the
 * gradient a block for some rows, whose dw it sums in shared memory, each thread its own columns.
 */
#include "ops/column_sums.cuh"

enum { NORM_THREADS = 256 };

/* Of a row, over the block. */
__device__ static float inverse_root(float squares, int64_t width, float eps)
{
    return rsqrtf(squares / (float)width + eps);
}

/* With b, x is a + b, which is kept in h. */
template <class T, int N>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_kernel(Rows a, Rows b, Rows h, Rows y, const float *w, float eps)
{
    __shared__ float scratch[WARP];
    int64_t width = a.width;
    for (int64_t row = blockIdx.x; row < a.n; row += gridDim.x) {
        const T *x = row_at<const T>(a, row);
        T *to = row_at<T>(y, row);
        float squares = 0;
        for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
            auto v = load_neighbours<N>(x + i);
            if (b.data) {
                auto other = load_neighbours<N>(row_at<const T>(b, row) + i);
                for (int k = 0; k < N; k++)
                    v.at[k] = from_f32<T>(to_f32(v.at[k]) + to_f32(other.at[k]));
                store_neighbours(row_at<T>(h, row) + i, v);
            }
            for (int k = 0; k < N; k++) squares = fmaf(to_f32(v.at[k]), to_f32(v.at[k]), squares);
        }
        float r = inverse_root(block_sum(squares, scratch), width, eps);
        if (b.data) x = row_at<const T>(h, row);
        for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
            auto v = load_neighbours<N>(x + i);
            for (int k = 0; k < N; k++) v.at[k] = from_f32<T>(to_f32(v.at[k]) * r * w[i + k]);
            store_neighbours(to + i, v);
        }
        __syncthreads(); /* before scratch is written again */
    }
}

static Status norm(KernelArgs *args, const Rows *a, const Rows *b, const Rows *h, const Rows *y,
                   const float *w)
{
    float eps = *(const float *)args->attr;
    unsigned grid = grid_of(a->n);
    if (!a->n) return OK;
    BY_ACTIVATION(a->dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(a, N) && rows_align(b, N) && rows_align(h, N) && rows_align(y, N))
            return GPU_LAUNCH(args->stream, grid, NORM_THREADS, 0, (norm_kernel<T, N>), *a, *b, *h,
                              *y, w, eps);
        return GPU_LAUNCH(args->stream, grid, NORM_THREADS, 0, (norm_kernel<T, 1>), *a, *b, *h, *y,
                          w, eps);
    });
}

static Status run(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), y = tensor_as_rows(&args->out[0], 1), none = {};
    return norm(args, &x, &none, &none, &y, (const float *)args->in[1].data);
}

static Status run_add(KernelArgs *args)
{
    Rows a = tensor_as_rows(&args->in[0], 1), b = tensor_as_rows(&args->in[1], 1);
    Rows h = tensor_as_rows(&args->out[0], 1), y = tensor_as_rows(&args->out[1], 1);
    return norm(args, &a, &b, &h, &y, (const float *)args->in[2].data);
}

/* ---- rmsnorm_grad ------------------------------------------------------------------------- */

typedef struct GradRows {
    Rows dy, x, residual, dx; /* data NULL: none */
    const float *w;
    float eps;
    int64_t rows_each; /* of a block */
    float *partial;    /* dw of each block; NULL: nobody wants it */
} GradRows;

template <class T> __global__ void __launch_bounds__(NORM_THREADS) grad_kernel(GradRows job)
{
    GPU_DYNAMIC_SHARED(shared);
    __shared__ float scratch[2 * WARP];
    float *dw = (float *)shared;
    int64_t width = job.x.width, first = blockIdx.x * job.rows_each,
            end = min(first + job.rows_each, job.x.n);
    for (int64_t i = threadIdx.x; i < width && job.partial; i += NORM_THREADS) dw[i] = 0;
    for (int64_t row = first; row < end; row++) {
        const T *x = row_at<const T>(job.x, row), *dy = row_at<const T>(job.dy, row);
        float squares = 0, products = 0;
        for (int64_t i = threadIdx.x; i < width; i += NORM_THREADS) {
            float v = to_f32(x[i]);
            squares = fmaf(v, v, squares);
            products = fmaf(to_f32(dy[i]) * v, job.w[i], products);
        }
        float r = inverse_root(block_sum(squares, scratch), width, job.eps);
        float shift = r * r * r * (block_sum(products, scratch + WARP) / (float)width);
        for (int64_t i = threadIdx.x; i < width; i += NORM_THREADS) {
            float v = to_f32(x[i]), g = to_f32(dy[i]);
            if (job.partial) dw[i] = fmaf(g * v, r, dw[i]);
            if (!job.dx.data) continue;
            float d = r * g * job.w[i] - v * shift;
            if (job.residual.data) d += to_f32(row_at<const T>(job.residual, row)[i]);
            row_at<T>(job.dx, row)[i] = from_f32<T>(d);
        }
        __syncthreads(); /* before scratch is written again */
    }
    for (int64_t i = threadIdx.x; i < width && job.partial; i += NORM_THREADS)
        job.partial[blockIdx.x * width + i] = dw[i];
}

static Status run_grad(KernelArgs *args)
{
    GradRows job = {tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1)};
    if (args->n_in > 3 && args->in[3].data) job.residual = tensor_as_rows(&args->in[3], 1);
    if (args->out[0].data) job.dx = tensor_as_rows(&args->out[0], 1);
    job.w = (const float *)args->in[2].data;
    job.eps = *(const float *)args->attr;
    job.rows_each = gpu_row_block_rows(job.x.n);
    if (args->out[1].data) job.partial = (float *)args->workspace;
    int64_t blocks = gpu_row_blocks(job.x.n), width = job.x.width;
    size_t shared = job.partial ? (size_t)width * sizeof(float) : 0;
    if (blocks) {
        BY_ACTIVATION(job.x.dtype, T, {
            TRY(GPU_ALLOW_SHARED((grad_kernel<T>), shared));
            TRY(GPU_LAUNCH(args->stream, (unsigned)blocks, NORM_THREADS, shared, (grad_kernel<T>),
                           job));
        });
    }
    if (!job.partial) return OK;
    return sum_row_blocks(args->stream, job.partial, blocks, width, &args->out[1]);
}

CUDA_KERNEL(rmsnorm) = {.run = run};
CUDA_KERNEL(add_rmsnorm) = {.run = run_add};
CUDA_KERNEL(rmsnorm_grad) = {.run = run_grad};
