/* grad_norm, join_norms and clip_factor on the cuda device: each block of threads sums the squares
 * of GPU_NORM_BLOCK elements, the last launch the sums of the blocks, in their order. */
#include "ops/elementwise.cuh"
#include "ops/wide_sums.cuh"

extern "C" {
#include "ops/collective.h"
#include "ops/exact_sum.h"
#include "ops/grad_norm.h"
#include "ops/ops.h"
}

namespace
{

enum { NORM_THREADS = 256, JOIN_THREADS = 1024 };

/* What a block of threads does with its elements: one by one, in the order of the threads. */
template <class T, int N, class F> __device__ static void each_element(const T *x, int64_t n, F &f)
{
    const int64_t first = (int64_t)blockIdx.x * GPU_NORM_BLOCK,
                  end = min(first + GPU_NORM_BLOCK, n), whole = end - (end - first) % N;
    for (int64_t i = first + threadIdx.x * N; i < whole; i += NORM_THREADS * N) {
        auto v = load_neighbours<N>(x + i);
        for (int k = 0; k < N; k++) f.add(to_f32(v.at[k]));
    }
    int64_t i = whole + threadIdx.x;
    if (i < end) f.add(to_f32(x[i]));
}

/* ---- sums in double ------------------------------------------------------------------------ */

struct Squares {
    double sum;
    __device__ void add(float x) { sum = fma((double)x, (double)x, sum); }
};

template <class T, int N>
__global__ void __launch_bounds__(NORM_THREADS) squares_kernel(const T *x, int64_t n, double *sums)
{
    __shared__ double scratch[WARP];
    Squares squares = {0};
    each_element<T, N>(x, n, squares);
    double total = wide_block_sum(squares.sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(JOIN_THREADS)
    root_kernel(const double *sums, int64_t blocks, float *norm)
{
    __shared__ double scratch[WARP];
    double total = 0;
    for (int64_t b = threadIdx.x; b < blocks; b += JOIN_THREADS) total += sums[b];
    total = wide_block_sum(total, scratch);
    if (threadIdx.x == 0) *norm = (float)sqrt(total);
}

/* ---- sums without rounding (exact_sum.h) --------------------------------------------------- */

struct ExactSquares {
    ExactSum s;
    __device__ void add(float x) { exact_add_bits(&s, __float_as_uint(x)); }
};

/* Digit j of block b goes to sums[j * all + b]; behind the digits stands what was not finite. */
template <class T, int N>
__global__ void __launch_bounds__(NORM_THREADS)
    exact_squares_kernel(const T *x, int64_t n, int64_t *sums, int64_t all)
{
    __shared__ int64_t scratch[WARP];
    ExactSquares squares = {};
    each_element<T, N>(x, n, squares);
    ExactSum total = {};
    for (int j = 0; j < EXACT_DIGITS; j++)
        total.digit[j] = wide_block_sum(squares.s.digit[j], scratch);
    int64_t bad = wide_block_sum((int64_t)squares.s.bad, scratch);
    if (threadIdx.x) return;
    exact_carry(&total);
    for (int j = 0; j < EXACT_DIGITS; j++) sums[j * all + blockIdx.x] = total.digit[j];
    sums[EXACT_DIGITS * all + blockIdx.x] = bad;
}

/* Every digit is below 2^16 after the carries of its block. */
__global__ void __launch_bounds__(JOIN_THREADS)
    exact_total_kernel(const int64_t *sums, int64_t blocks, int32_t *words)
{
    __shared__ int64_t scratch[WARP];
    ExactSum total = {};
    int64_t bad = 0;
    for (int j = 0; j <= EXACT_DIGITS; j++) {
        int64_t sum = 0;
        for (int64_t b = threadIdx.x; b < blocks; b += JOIN_THREADS) sum += sums[j * blocks + b];
        sum = wide_block_sum(sum, scratch);
        if (j < EXACT_DIGITS)
            total.digit[j] = sum;
        else
            bad = sum;
    }
    if (threadIdx.x) return;
    total.bad = bad != 0;
    exact_carry(&total);
    exact_write(&total, words);
}

/* ---- grad_norm ----------------------------------------------------------------------------- */

/* The squares of one gradient, from block `first` on of `all`. */
template <class T>
static Status squares(GpuStream *stream, const Tensor *x, bool exact, void *sums, int64_t first,
                      int64_t all)
{
    const int64_t n = tensor_count(x);
    const T *data = (const T *)x->data;
    unsigned grid = grid_of(gpu_norm_blocks(n));
    bool aligned = (uintptr_t)data % 16 == 0;
    constexpr int N = WIDE<T>;
    if (exact) {
        int64_t *to = (int64_t *)sums + first;
        if (aligned)
            return GPU_LAUNCH(stream, grid, NORM_THREADS, 0, (exact_squares_kernel<T, N>), data, n,
                              to, all);
        return GPU_LAUNCH(stream, grid, NORM_THREADS, 0, (exact_squares_kernel<T, 1>), data, n, to,
                          all);
    }
    double *to = (double *)sums + first;
    if (aligned)
        return GPU_LAUNCH(stream, grid, NORM_THREADS, 0, (squares_kernel<T, N>), data, n, to);
    return GPU_LAUNCH(stream, grid, NORM_THREADS, 0, (squares_kernel<T, 1>), data, n, to);
}

static Status run(KernelArgs *args)
{
    const bool exact = ((const GradNormAttr *)args->attr)->exact;
    void *sums = args->workspace, *out = args->out[0].data;
    int64_t all = 0, first = 0;
    for (int k = 0; k < args->n_in; k++) all += gpu_norm_blocks(tensor_count(&args->in[k]));
    for (int k = 0; k < args->n_in; k++) {
        const Tensor *x = &args->in[k];
        int64_t blocks = gpu_norm_blocks(tensor_count(x));
        if (!blocks) continue;
        BY_ACTIVATION(x->dtype, T, TRY(squares<T>(args->stream, x, exact, sums, first, all)));
        first += blocks;
    }
    if (exact)
        return GPU_LAUNCH(args->stream, 1, JOIN_THREADS, 0, (exact_total_kernel),
                          (const int64_t *)sums, all, (int32_t *)out);
    return GPU_LAUNCH(args->stream, 1, JOIN_THREADS, 0, (root_kernel), (const double *)sums, all,
                      (float *)out);
}

/* ---- join_norms, clip_factor --------------------------------------------------------------- */

/* Of n ranks. */
__global__ void join_kernel(const void *norms, int n, bool exact, float *norm)
{
    if (exact) {
        ExactSum sum = {};
        for (int i = 0; i < n; i++) {
            ExactSum one = exact_read((const int32_t *)norms + i * EXACT_WORDS);
            exact_add(&sum, &one);
        }
        *norm = (float)sqrt(exact_value(&sum));
    } else {
        double sum = 0;
        for (int i = 0; i < n; i++) {
            double one = (double)((const float *)norms)[i];
            sum += one * one;
        }
        *norm = (float)sqrt(sum);
    }
}

static Status prepare_join(KernelArgs *args)
{
    const GradNormAttr *attr = (const GradNormAttr *)args->attr;
    Comm *comm;
    if (!attr->cut_axes) return OK;
    TRY(collective_gpu_group(args, attr->cut_axes, &comm));
    args->state = comm;
    return OK;
}

static void release_join(KernelArgs *args) { args->state = NULL; /* the group is the device's */ }

/* The norms of all ranks that hold other parts are gathered first. */
static Status run_join(KernelArgs *args)
{
    const GradNormAttr *attr = (const GradNormAttr *)args->attr;
    const void *norms = args->in[0].data;
    int n = 1;
    if (args->state) {
        Comm *comm = (Comm *)args->state;
        CommOp op = {};
        op.kind = COMM_ALL_GATHER;
        op.dtype = args->in[0].dtype;
        op.send = norms;
        op.recv = args->workspace;
        op.count = tensor_count(&args->in[0]);
        op.node = args->node;
        TRY(collective_gpu_run(args, comm, &op));
        norms = args->workspace;
        n = comm_size(comm);
    }
    return GPU_LAUNCH(args->stream, 1, 1, 0, (join_kernel), norms, n, attr->exact,
                      (float *)args->out[0].data);
}

__global__ void clip_kernel(const float *norm, const float *hyper, float *factor)
{
    const float n = *norm, clip = hyper[HYPER_CLIP];
    *factor = !isfinite(n) ? NAN : clip > 0 && n > clip ? clip / n : 1;
}

static Status run_clip(KernelArgs *args)
{
    return GPU_LAUNCH(args->stream, 1, 1, 0, (clip_kernel), (const float *)args->in[0].data,
                      (const float *)args->in[1].data, (float *)args->out[0].data);
}

} // namespace

CUDA_KERNEL(grad_norm) = {.run = run};
CUDA_KERNEL(join_norms) = {.run = run_join, .prepare = prepare_join, .release = release_join};
CUDA_KERNEL(clip_factor) = {.run = run_clip};
