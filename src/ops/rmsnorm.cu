/* rmsnorm, add_rmsnorm and their gradient on the cuda device: a block of threads a row; in the
 * gradient a block for some rows, whose dw it sums in shared memory, each thread its own columns.
 */
#include "ops/column_sums.cuh"

namespace
{

enum { NORM_THREADS = 256, MAX_SHARED_BYTES = 200 << 10 };

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
            auto weight = load_neighbours<N>(w + i);
            for (int k = 0; k < N; k++) v.at[k] = from_f32<T>(to_f32(v.at[k]) * r * weight.at[k]);
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
        if (rows_align(a, N) && rows_align(b, N) && rows_align(h, N) && rows_align(y, N) &&
            vector_aligns(w, N))
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
    bool shared;       /* there is shared memory for a block's */
} GradRows;

/* dx of one row, r its inverse root: r dy w - shift x; dw (NULL: not wanted) grows by its part. */
template <class T, int N>
__device__ static void grad_row(const GradRows &job, int64_t row, float r, float shift, float *dw)
{
    const T *x = row_at<const T>(job.x, row), *dy = row_at<const T>(job.dy, row);
    for (int64_t i = threadIdx.x * N; i < job.x.width; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(x + i), d = load_neighbours<N>(dy + i);
        auto w = load_neighbours<N>(job.w + i);
        if (dw) {
            auto more = load_neighbours<N>((const float *)dw + i);
            for (int k = 0; k < N; k++)
                more.at[k] = fmaf(to_f32(d.at[k]) * to_f32(v.at[k]), r, more.at[k]);
            store_neighbours(dw + i, more);
        }
        if (!job.dx.data) continue;
        Neighbours<T, N> rest = {};
        if (job.residual.data) rest = load_neighbours<N>(row_at<const T>(job.residual, row) + i);
        for (int k = 0; k < N; k++) {
            float dx = r * to_f32(d.at[k]) * w.at[k] - to_f32(v.at[k]) * shift;
            v.at[k] = from_f32<T>(job.residual.data ? dx + to_f32(rest.at[k]) : dx);
        }
        store_neighbours(row_at<T>(job.dx, row) + i, v);
    }
}

/* The sums of a block of rows lie in shared memory, or where rows are too wide for it at once where
 * they go. Each thread has columns of its own. */
template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS) grad_kernel(GradRows job)
{
    GPU_DYNAMIC_SHARED(shared);
    __shared__ float scratch[2 * WARP];
    const int64_t width = job.x.width, first = blockIdx.x * job.rows_each,
                  end = min(first + job.rows_each, job.x.n);
    float *to = job.partial ? job.partial + blockIdx.x * width : NULL;
    float *dw = to && job.shared ? (float *)shared : to;
    const Neighbours<float, N> zero = {};
    for (int64_t i = threadIdx.x * N; i < width && dw; i += NORM_THREADS * N)
        store_neighbours(dw + i, zero);
    for (int64_t row = first; row < end; row++) {
        const T *x = row_at<const T>(job.x, row), *dy = row_at<const T>(job.dy, row);
        float squares = 0, products = 0;
        for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
            auto v = load_neighbours<N>(x + i), d = load_neighbours<N>(dy + i);
            auto w = load_neighbours<N>(job.w + i);
            for (int k = 0; k < N; k++) {
                float a = to_f32(v.at[k]);
                squares = fmaf(a, a, squares);
                products = fmaf(to_f32(d.at[k]) * a, w.at[k], products);
            }
        }
        float r = inverse_root(block_sum(squares, scratch), width, job.eps);
        float shift = r * r * r * (block_sum(products, scratch + WARP) / (float)width);
        grad_row<T, N>(job, row, r, shift, dw);
        __syncthreads(); /* before scratch is written again */
    }
    if (!to || dw == to) return;
    for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N)
        store_neighbours(to + i, load_neighbours<N>((const float *)dw + i));
}

static Status grad_blocks(GpuStream *stream, const GradRows *job, int64_t blocks)
{
    size_t shared = job->shared ? (size_t)job->x.width * sizeof(float) : 0;
    BY_ACTIVATION(job->x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&job->x, N) && rows_align(&job->dy, N) && rows_align(&job->residual, N) &&
            rows_align(&job->dx, N) && vector_aligns(job->w, N)) {
            TRY(GPU_ALLOW_SHARED((grad_kernel<T, N>), shared));
            return GPU_LAUNCH(stream, (unsigned)blocks, NORM_THREADS, shared, (grad_kernel<T, N>),
                              *job);
        }
        TRY(GPU_ALLOW_SHARED((grad_kernel<T, 1>), shared));
        return GPU_LAUNCH(stream, (unsigned)blocks, NORM_THREADS, shared, (grad_kernel<T, 1>),
                          *job);
    });
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
    const int64_t blocks = gpu_row_blocks(job.x.n), width = job.x.width;
    job.shared = job.partial && width * (int64_t)sizeof(float) <= MAX_SHARED_BYTES;
    if (blocks) TRY(grad_blocks(args->stream, &job, blocks));
    if (!job.partial) return OK;
    return sum_row_blocks(args->stream, job.partial, blocks, width, &args->out[1]);
}

} // namespace

CUDA_KERNEL(rmsnorm) = {.run = run};
CUDA_KERNEL(add_rmsnorm) = {.run = run_add};
CUDA_KERNEL(rmsnorm_grad) = {.run = run_grad};
