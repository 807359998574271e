/* layernorm, add_layernorm and their gradient on the cuda device: a block of threads a row; in the
 * gradient a block for some rows, whose dw and db it sums, each thread its own columns. */
#include "ops/column_sums.cuh"

namespace
{

enum { NORM_THREADS = 256, MAX_SHARED_BYTES = 200 << 10 };

/* A row is walked twice for its statistics: the mean first, so that the squares are of differences
 * and lose nothing where the mean is large. */
typedef struct Moments {
    float mean, r; /* r = 1 / sqrt(var + eps) */
} Moments;

template <class T, int N>
__device__ static float row_mean(const T *x, int64_t width, float *scratch)
{
    float sum = 0;
    for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(x + i);
        for (int k = 0; k < N; k++) sum += to_f32(v.at[k]);
    }
    return block_sum(sum, scratch) / (float)width;
}

/* ---- layernorm, add_layernorm -------------------------------------------------------------- */

typedef struct NormRows {
    Rows a, b, h, y;       /* with b, x is a + b, which is kept in h */
    const float *w, *bias; /* bias NULL: none */
    float eps;
} NormRows;

template <class T, int N>
__device__ static Moments row_moments(const T *x, int64_t width, float eps, float *scratch)
{
    Moments m = {row_mean<T, N>(x, width, scratch), 0};
    float squares = 0;
    for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(x + i);
        for (int k = 0; k < N; k++) {
            float d = to_f32(v.at[k]) - m.mean;
            squares = fmaf(d, d, squares);
        }
    }
    m.r = rsqrtf(block_sum(squares, scratch + WARP) / (float)width + eps);
    return m;
}

template <class T, int N> __device__ static const T *kept_sum(const NormRows &job, int64_t row)
{
    const T *a = row_at<const T>(job.a, row), *b = row_at<const T>(job.b, row);
    T *h = row_at<T>(job.h, row);
    for (int64_t i = threadIdx.x * N; i < job.a.width; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(a + i), more = load_neighbours<N>(b + i);
        for (int k = 0; k < N; k++) v.at[k] = from_f32<T>(to_f32(v.at[k]) + to_f32(more.at[k]));
        store_neighbours(h + i, v);
    }
    return h;
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS) norm_kernel(NormRows job)
{
    __shared__ float scratch[2 * WARP];
    const int64_t width = job.a.width;
    for (int64_t row = blockIdx.x; row < job.a.n; row += gridDim.x) {
        const T *x = job.b.data ? kept_sum<T, N>(job, row) : row_at<const T>(job.a, row);
        T *y = row_at<T>(job.y, row);
        Moments m = row_moments<T, N>(x, width, job.eps, scratch);
        for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
            auto v = load_neighbours<N>(x + i);
            auto w = load_neighbours<N>(job.w + i);
            Neighbours<float, N> bias = {};
            if (job.bias) bias = load_neighbours<N>(job.bias + i);
            for (int k = 0; k < N; k++) {
                float normal = (to_f32(v.at[k]) - m.mean) * m.r;
                v.at[k] = from_f32<T>(fmaf(normal, w.at[k], bias.at[k]));
            }
            store_neighbours(y + i, v);
        }
        __syncthreads(); /* before scratch is written again */
    }
}

static Status norm(KernelArgs *args, NormRows job, int w)
{
    job.w = (const float *)args->in[w].data;
    if (args->n_in > w + 1) job.bias = (const float *)args->in[w + 1].data;
    job.eps = *(const float *)args->attr;
    unsigned grid = grid_of(job.a.n);
    if (!job.a.n) return OK;
    BY_ACTIVATION(job.a.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&job.a, N) && rows_align(&job.b, N) && rows_align(&job.h, N) &&
            rows_align(&job.y, N) && vector_aligns(job.w, N) && vector_aligns(job.bias, N))
            return GPU_LAUNCH(args->stream, grid, NORM_THREADS, 0, (norm_kernel<T, N>), job);
        return GPU_LAUNCH(args->stream, grid, NORM_THREADS, 0, (norm_kernel<T, 1>), job);
    });
}

static Status run(KernelArgs *args)
{
    NormRows job = {};
    job.a = tensor_as_rows(&args->in[0], 1);
    job.y = tensor_as_rows(&args->out[0], 1);
    return norm(args, job, 1);
}

static Status run_add(KernelArgs *args)
{
    NormRows job = {tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1),
                    tensor_as_rows(&args->out[0], 1), tensor_as_rows(&args->out[1], 1)};
    return norm(args, job, 2);
}

/* ---- layernorm_grad ------------------------------------------------------------------------ */

typedef struct GradRows {
    Rows dy, x, residual, dx; /* data NULL: none */
    const float *w;
    float eps;
    int64_t rows_each; /* of a block */
    float *dw, *db;    /* of each block; NULL: nobody wants it */
    bool shared;       /* there is shared memory for a block's */
} GradRows;

/* One row: dx = r dy w - slope (x - mean) - shift,  slope = r^2 mean(g n),  shift = r mean(g). */
typedef struct RowFactors {
    float mean, r, slope, shift;
} RowFactors;

template <class T, int N>
__device__ static RowFactors row_factors(const GradRows &job, int64_t row, float *scratch)
{
    const T *x = row_at<const T>(job.x, row), *dy = row_at<const T>(job.dy, row);
    const int64_t width = job.x.width;
    RowFactors f = {row_mean<T, N>(x, width, scratch), 0, 0, 0};
    float squares = 0, products = 0, gradients = 0;
    for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(x + i), d = load_neighbours<N>(dy + i);
        auto w = load_neighbours<N>(job.w + i);
        for (int k = 0; k < N; k++) {
            float off = to_f32(v.at[k]) - f.mean, g = to_f32(d.at[k]) * w.at[k];
            squares = fmaf(off, off, squares);
            products = fmaf(g, off, products);
            gradients += g;
        }
    }
    const float n = (float)width;
    f.r = rsqrtf(block_sum(squares, scratch + WARP) / n + job.eps);
    f.slope = f.r * f.r * f.r * (block_sum(products, scratch + 2 * WARP) / n);
    f.shift = f.r * (block_sum(gradients, scratch + 3 * WARP) / n);
    return f;
}

/* dx of one row; dw and db (NULL: not wanted) grow by its part. */
template <class T, int N>
__device__ static void grad_row(const GradRows &job, int64_t row, RowFactors f, float *dw,
                                float *db)
{
    const T *x = row_at<const T>(job.x, row), *dy = row_at<const T>(job.dy, row);
    for (int64_t i = threadIdx.x * N; i < job.x.width; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(x + i), d = load_neighbours<N>(dy + i);
        auto w = load_neighbours<N>(job.w + i);
        Neighbours<T, N> rest = {};
        if (job.residual.data) rest = load_neighbours<N>(row_at<const T>(job.residual, row) + i);
        Neighbours<float, N> more_dw = {}, more_db = {};
        if (dw) more_dw = load_neighbours<N>((const float *)dw + i);
        if (db) more_db = load_neighbours<N>((const float *)db + i);
        for (int k = 0; k < N; k++) {
            float off = to_f32(v.at[k]) - f.mean, g = to_f32(d.at[k]);
            more_dw.at[k] = fmaf(g * off, f.r, more_dw.at[k]);
            more_db.at[k] += g;
            float dx = fmaf(-off, f.slope, fmaf(g * w.at[k], f.r, -f.shift));
            v.at[k] = from_f32<T>(job.residual.data ? dx + to_f32(rest.at[k]) : dx);
        }
        if (dw) store_neighbours(dw + i, more_dw);
        if (db) store_neighbours(db + i, more_db);
        if (job.dx.data) store_neighbours(row_at<T>(job.dx, row) + i, v);
    }
}

/* The sums of a block of rows lie in shared memory, or where rows are too wide for it at once where
 * they go. Each thread has columns of its own. */
template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS) grad_kernel(GradRows job)
{
    GPU_DYNAMIC_SHARED(shared);
    __shared__ float scratch[4 * WARP];
    const int64_t width = job.x.width, first = blockIdx.x * job.rows_each,
                  end = min(first + job.rows_each, job.x.n);
    float *to[2] = {job.dw ? job.dw + blockIdx.x * width : NULL,
                    job.db ? job.db + blockIdx.x * width : NULL};
    float *space = (float *)shared, *sum[2] = {to[0], to[1]};
    for (int k = 0; k < 2 && job.shared; k++) {
        if (!to[k]) continue;
        sum[k] = space;
        space += width;
    }
    for (int64_t i = threadIdx.x * N; i < width; i += NORM_THREADS * N)
        for (int k = 0; k < N; k++) {
            if (sum[0]) sum[0][i + k] = 0;
            if (sum[1]) sum[1][i + k] = 0;
        }
    for (int64_t row = first; row < end; row++) {
        RowFactors f = row_factors<T, N>(job, row, scratch);
        grad_row<T, N>(job, row, f, sum[0], sum[1]);
        __syncthreads(); /* before scratch is written again */
    }
    for (int64_t i = threadIdx.x * N; i < width && job.shared; i += NORM_THREADS * N)
        for (int k = 0; k < N; k++) {
            if (to[0]) to[0][i + k] = sum[0][i + k];
            if (to[1]) to[1][i + k] = sum[1][i + k];
        }
}

static Status grad_blocks(GpuStream *stream, const GradRows *job, int64_t blocks, size_t shared)
{
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
    const int64_t blocks = gpu_row_blocks(job.x.n), width = job.x.width;
    float *partial = (float *)args->workspace;
    size_t shared = 0;
    for (int k = 1; k < 3; k++) {
        if (!args->out[k].data) continue;
        (k == 1 ? job.dw : job.db) = partial;
        partial += blocks * width;
        shared += (size_t)width * sizeof(float);
    }
    job.shared = shared <= MAX_SHARED_BYTES;
    if (blocks) TRY(grad_blocks(args->stream, &job, blocks, job.shared ? shared : 0));
    if (job.dw) TRY(sum_row_blocks(args->stream, job.dw, blocks, width, &args->out[1]));
    if (job.db) TRY(sum_row_blocks(args->stream, job.db, blocks, width, &args->out[2]));
    return OK;
}

} // namespace

CUDA_KERNEL(layernorm) = {.run = run};
CUDA_KERNEL(add_layernorm) = {.run = run_add};
CUDA_KERNEL(layernorm_grad) = {.run = run_grad};
