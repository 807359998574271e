/* l2norm and its gradient on the cuda device: a few lanes of a warp for each head of a token. */
#include "ops/kernel.cuh"

namespace
{

enum { HEAD_THREADS = 256 };

/* x, y and for the gradient dy: rows are tokens, `heads` of d elements each. */
typedef struct HeadRows {
    Rows x, dy, y;
    int64_t heads, d;
    float eps;
} HeadRows;

/* Of LANES neighbours, all of which get it. */
template <int LANES> __device__ static float lanes_sum(float x)
{
    for (int at = LANES / 2; at; at /= 2) x += __shfl_xor_sync(FULL_WARP, x, at);
    return x;
}

/* What a row sums up, and what becomes of it; with GRAD y is dx. */
template <class T, int N, int LANES, bool GRAD>
__device__ static void head_row(const HeadRows &job, int64_t token, int64_t head, bool there)
{
    const int64_t first = head * job.d, lane = threadIdx.x % LANES;
    const T *x = row_at<const T>(job.x, token) + first;
    const T *dy = GRAD ? row_at<const T>(job.dy, token) + first : NULL;
    T *y = row_at<T>(job.y, token) + first;
    float squares = 0, products = 0;
    for (int64_t i = lane * N; i < job.d && there; i += LANES * N) {
        auto v = load_neighbours<N>(x + i);
        Neighbours<T, N> g = {};
        if (GRAD) g = load_neighbours<N>(dy + i);
        for (int k = 0; k < N; k++) {
            float a = to_f32(v.at[k]);
            squares = fmaf(a, a, squares);
            if (GRAD) products = fmaf(a, to_f32(g.at[k]), products);
        }
    }
    const float n = (float)job.d, r = rsqrtf(lanes_sum<LANES>(squares) / n + job.eps);
    const float slope = GRAD ? r * r * r * lanes_sum<LANES>(products) / n : 0;
    for (int64_t i = lane * N; i < job.d && there; i += LANES * N) {
        auto v = load_neighbours<N>(x + i);
        Neighbours<T, N> g = {};
        if (GRAD) g = load_neighbours<N>(dy + i);
        for (int k = 0; k < N; k++) {
            float a = to_f32(v.at[k]);
            v.at[k] = from_f32<T>(GRAD ? fmaf(r, to_f32(g.at[k]), -slope * a) : a * r);
        }
        store_neighbours(y + i, v);
    }
}

template <class T, int N, int LANES, bool GRAD>
__global__ void __launch_bounds__(HEAD_THREADS) heads_kernel(HeadRows job)
{
    constexpr int TOGETHER = HEAD_THREADS / LANES;
    const int64_t n = job.x.n * job.heads;
    for (int64_t first = (int64_t)blockIdx.x * TOGETHER; first < n;
         first += (int64_t)gridDim.x * TOGETHER) {
        int64_t i = first + threadIdx.x / LANES;
        bool there = i < n; /* the others take part in sums */
        int64_t token = there ? i / job.heads : 0, head = there ? i - token * job.heads : 0;
        head_row<T, N, LANES, GRAD>(job, token, head, there);
    }
}

template <class T, int N, bool GRAD> static Status heads(GpuStream *stream, const HeadRows &job)
{
    const int64_t n = job.x.n * job.heads, pieces = job.d / N;
    if (pieces <= 8)
        return GPU_LAUNCH(stream, grid_of(ceil_div(n, HEAD_THREADS / 8)), HEAD_THREADS, 0,
                          (heads_kernel<T, N, 8, GRAD>), job);
    if (pieces <= 16)
        return GPU_LAUNCH(stream, grid_of(ceil_div(n, HEAD_THREADS / 16)), HEAD_THREADS, 0,
                          (heads_kernel<T, N, 16, GRAD>), job);
    return GPU_LAUNCH(stream, grid_of(ceil_div(n, HEAD_THREADS / 32)), HEAD_THREADS, 0,
                      (heads_kernel<T, N, 32, GRAD>), job);
}

template <bool GRAD> static Status run_heads(KernelArgs *args)
{
    HeadRows job = {};
    job.x = tensor_as_rows(&args->in[0], 2);
    if (GRAD) job.dy = tensor_as_rows(&args->in[1], 2);
    job.y = tensor_as_rows(&args->out[0], 2);
    job.d = args->in[0].shape.dim[args->in[0].shape.rank - 1];
    if (!job.x.n || !job.x.width) return OK;
    job.heads = job.x.width / job.d;
    job.eps = *(const float *)args->attr;
    BY_ACTIVATION(job.x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (job.d % N == 0 && rows_align(&job.x, N) && rows_align(&job.dy, N) &&
            rows_align(&job.y, N))
            return heads<T, N, GRAD>(args->stream, job);
        return heads<T, 1, GRAD>(args->stream, job);
    });
}

} // namespace

CUDA_KERNEL(l2norm) = {.run = run_heads<false>};
CUDA_KERNEL(l2norm_grad) = {.run = run_heads<true>};
