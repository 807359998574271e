/* expert_gather, expert_combine and the gradient on the cuda device: a warp for each row or token,
 * whose lanes walk its columns 16 bytes at a time where they can. */
#include "ops/kernel.cuh"

enum { WALKERS = 8, WALK_THREADS = WALKERS * WARP };

static unsigned walk_blocks(int64_t rows) { return grid_of(ceil_div(rows, WALKERS)); }
__device__ static int64_t walker(void)
{
    return (int64_t)blockIdx.x * WALKERS + threadIdx.x / WARP;
}
__device__ static int lane(void) { return (int)threadIdx.x % WARP; }

/* ---- gather: x [tokens D] -> rows [R D] --------------------------------------------------- */

template <class T, int N>
__global__ static void __launch_bounds__(WALK_THREADS)
    gather_kernel(Rows x, Rows rows, const float *score, const int32_t *source, int k)
{
    int64_t r = walker();
    if (r >= rows.n) return;
    int32_t pair = source[r], width = (int32_t)rows.width;
    T *to = row_at<T>(rows, r);
    const T *from = pair < 0 ? NULL : row_at<const T>(x, pair / k);
    float factor = score && pair >= 0 ? score[pair] : 1;
    for (int i = lane() * N; i < width; i += WARP * N) {
        Neighbours<T, N> v;
        if (from) {
            v = load_neighbours<N>(from + i);
            for (int n = 0; n < N && score; n++) v.at[n] = from_f32<T>(to_f32(v.at[n]) * factor);
        } else {
            for (int n = 0; n < N; n++) v.at[n] = from_f32<T>(0);
        }
        store_neighbours(to + i, v);
    }
}

static Status run_gather(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), rows = tensor_as_rows(&args->out[0], 1);
    const float *score = (const float *)args->in[1].data;
    const int32_t *source = (const int32_t *)args->in[2].data;
    int k = (int)args->in[3].shape.dim[args->in[3].shape.rank - 1];
    unsigned blocks = walk_blocks(rows.n);
    if (!rows.n) return OK;
    BY_ACTIVATION(x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&x, N) && rows_align(&rows, N))
            return GPU_LAUNCH(args->stream, blocks, WALK_THREADS, 0, (gather_kernel<T, N>), x, rows,
                              score, source, k);
        return GPU_LAUNCH(args->stream, blocks, WALK_THREADS, 0, (gather_kernel<T, 1>), x, rows,
                          score, source, k);
    });
}

/* ---- combine: rows [R D] -> y [tokens D] -------------------------------------------------- */

/* The rows of each token, with factors (NULL: one). */
typedef struct Slots {
    Rows rows;
    const int32_t *place;
    const float *factor;
    int k;
} Slots;

/* sum += factor row, slot by slot, of columns i..i+N-1. A pair that has no row makes it NaN. */
template <class T, int N>
__device__ static void add_slots(const Slots &s, int64_t token, int i, float (&sum)[N])
{
    const int32_t *place = s.place + token * s.k;
    for (int j = 0; j < s.k; j++) {
        int32_t row = place[j];
        float factor = row < 0 ? NAN : s.factor ? s.factor[token * s.k + j] : 1;
        auto v = load_neighbours<N>(row_at<const T>(s.rows, max(row, 0)) + i);
        for (int n = 0; n < N; n++) sum[n] = fmaf(to_f32(v.at[n]), factor, sum[n]);
    }
}

template <class T, int N>
__global__ static void __launch_bounds__(WALK_THREADS) combine_kernel(Slots s, Rows base, Rows y)
{
    int64_t token = walker();
    if (token >= y.n) return;
    int32_t width = (int32_t)y.width;
    for (int i = lane() * N; i < width; i += WARP * N) {
        float sum[N] = {};
        Neighbours<T, N> v;
        if (base.data) {
            v = load_neighbours<N>(row_at<const T>(base, token) + i);
            for (int n = 0; n < N; n++) sum[n] = to_f32(v.at[n]);
        }
        add_slots<T, N>(s, token, i, sum);
        for (int n = 0; n < N; n++) v.at[n] = from_f32<T>(sum[n]);
        store_neighbours(row_at<T>(y, token) + i, v);
    }
}

static Slots slots_of(const Tensor *rows, const Tensor *place, const Tensor *factor)
{
    Slots s = {tensor_as_rows(rows, 1), (const int32_t *)place->data, (const float *)factor->data,
               (int)place->shape.dim[place->shape.rank - 1]};
    return s;
}

static Status run_combine(KernelArgs *args)
{
    Slots s = slots_of(&args->in[0], &args->in[2], &args->in[3]);
    Rows y = tensor_as_rows(&args->out[0], 1), base = {};
    if (args->in[4].data) base = tensor_as_rows(&args->in[4], 1);
    unsigned blocks = walk_blocks(y.n);
    if (!y.n) return OK;
    BY_ACTIVATION(y.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&s.rows, N) && rows_align(&base, N) && rows_align(&y, N))
            return GPU_LAUNCH(args->stream, blocks, WALK_THREADS, 0, (combine_kernel<T, N>), s,
                              base, y);
        return GPU_LAUNCH(args->stream, blocks, WALK_THREADS, 0, (combine_kernel<T, 1>), s, base,
                          y);
    });
}

/* ---- gradient of gather: drows [R D] -> dx [tokens D], dscore [tokens k] ------------------ */

template <class T, int N> __device__ static float row_dot(const T *a, const T *b, int32_t width)
{
    float sum = 0;
    for (int i = lane() * N; i < width; i += WARP * N) {
        auto u = load_neighbours<N>(a + i), v = load_neighbours<N>(b + i);
        for (int n = 0; n < N; n++) sum = fmaf(to_f32(u.at[n]), to_f32(v.at[n]), sum);
    }
    return warp_sum(sum);
}

/* dx last, and by the lanes that read the same columns of x: it may lie where x does. */
template <class T, int N>
__global__ static void __launch_bounds__(WALK_THREADS)
    gather_grad_kernel(Slots s, Rows x, Rows dx, float *dscore)
{
    int64_t token = walker();
    if (token >= x.n) return;
    int32_t width = (int32_t)x.width;
    for (int j = 0; j < s.k && dscore; j++) {
        int32_t row = s.place[token * s.k + j];
        float dot = row_dot<T, N>(row_at<const T>(x, token), row_at<const T>(s.rows, max(row, 0)),
                                  width);
        if (lane() == 0) dscore[token * s.k + j] = row < 0 ? NAN : dot;
    }
    for (int i = lane() * N; i < width && dx.data; i += WARP * N) {
        float sum[N] = {};
        Neighbours<T, N> v;
        add_slots<T, N>(s, token, i, sum);
        for (int n = 0; n < N; n++) v.at[n] = from_f32<T>(sum[n]);
        store_neighbours(row_at<T>(dx, token) + i, v);
    }
}

static Status run_gather_grad(KernelArgs *args)
{
    Slots s = slots_of(&args->in[3], &args->in[2], &args->in[1]);
    Rows x = tensor_as_rows(&args->in[0], 1), dx = {};
    float *dscore = (float *)args->out[1].data;
    if (args->out[0].data) dx = tensor_as_rows(&args->out[0], 1);
    unsigned blocks = walk_blocks(x.n);
    if (!x.n) return OK;
    BY_ACTIVATION(x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&s.rows, N) && rows_align(&x, N) && rows_align(&dx, N))
            return GPU_LAUNCH(args->stream, blocks, WALK_THREADS, 0, (gather_grad_kernel<T, N>), s,
                              x, dx, dscore);
        return GPU_LAUNCH(args->stream, blocks, WALK_THREADS, 0, (gather_grad_kernel<T, 1>), s, x,
                          dx, dscore);
    });
}

CUDA_KERNEL(expert_gather) = {.run = run_gather};
CUDA_KERNEL(expert_combine) = {.run = run_combine};
CUDA_KERNEL(expert_gather_grad) = {.run = run_gather_grad};
