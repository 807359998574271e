/* rope_table and rope on the cuda device. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/rope_internal.h"
}

namespace
{

/* ---- rope_table ---------------------------------------------------------------------------- */

enum { TABLE_THREADS = 64, TABLE_TOKENS = 16 };

/* A thread has one frequency, for some tokens. Sine and cosine are made in double, as on the
 * processor: angles of far positions are large. */
__global__ void __launch_bounds__(TABLE_THREADS)
    table_kernel(RopeTableAttr attr, const int32_t *pos, int64_t n, float *table)
{
    const int64_t half = attr.head_dim / 2, first = (int64_t)blockIdx.x * TABLE_TOKENS,
                  end = min(first + TABLE_TOKENS, n);
    for (int64_t j = threadIdx.x; j < half; j += TABLE_THREADS) {
        float frequency = rope_frequency(&attr, j);
        for (int64_t i = first; i < end; i++) {
            float angle = (float)pos[i] * frequency;
            table[i * 2 * half + j] = (float)cos((double)angle);
            table[i * 2 * half + half + j] = (float)sin((double)angle);
        }
    }
}

static Status run_table(KernelArgs *args)
{
    const int64_t n = tensor_count(&args->in[0]);
    if (!n) return OK;
    return GPU_LAUNCH(args->stream, grid_of(ceil_div(n, TABLE_TOKENS)), TABLE_THREADS, 0,
                      (table_kernel), *(const RopeTableAttr *)args->attr,
                      (const int32_t *)args->in[0].data, n, (float *)args->out[0].data);
}

/* ---- rope ---------------------------------------------------------------------------------- */

enum { ROPE_THREADS = 256 };

typedef struct RopeRows {
    Rows x, y; /* tokens of `heads` heads of 2 half elements */
    const float *table;
    int heads, half;
    float sign; /* -1 turns back */
} RopeRows;

/* A block of threads a token; a thread turns N pairs: of halves, the elements from j on and as many
 * from half + j on; interleaved, the 2 N from 2 j on. */
template <class T, int N, bool INTERLEAVED>
__global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(RopeRows job)
{
    const int pieces = job.half / N, steps = job.heads * pieces;
    for (int64_t token = blockIdx.x; token < job.x.n; token += gridDim.x) {
        const float *table = job.table + token * 2 * job.half;
        for (int i = threadIdx.x; i < steps; i += (int)blockDim.x) {
            int head = i / pieces, j = (i - head * pieces) * N;
            int64_t first = (int64_t)head * 2 * job.half + (INTERLEAVED ? 2 * j : j);
            int64_t second = first + (INTERLEAVED ? N : job.half);
            auto c = load_neighbours<N>(table + j), s = load_neighbours<N>(table + job.half + j);
            const T *x = row_at<const T>(job.x, token);
            T *y = row_at<T>(job.y, token);
            Neighbours<T, N> v[2] = {load_neighbours<N>(x + first), load_neighbours<N>(x + second)};
#pragma unroll
            for (int k = 0; k < N; k++) {
                /* where the two of pair k lie in v, as one array of 2 N */
                int at = INTERLEAVED ? 2 * k : k, other = INTERLEAVED ? 2 * k + 1 : N + k;
                float sine = job.sign * s.at[k];
                float a = to_f32(v[at / N].at[at % N]), b = to_f32(v[other / N].at[other % N]);
                v[at / N].at[at % N] = from_f32<T>(fmaf(a, c.at[k], -(b * sine)));
                v[other / N].at[other % N] = from_f32<T>(fmaf(b, c.at[k], a * sine));
            }
            store_neighbours(y + first, v[0]);
            store_neighbours(y + second, v[1]);
        }
    }
}

template <class T, int N>
static Status turn(GpuStream *stream, const RopeRows &job, bool interleaved)
{
    int64_t steps = (int64_t)job.heads * (job.half / N);
    unsigned threads = (unsigned)min_i64(ROPE_THREADS, ceil_div(steps, WARP) * WARP);
    if (interleaved)
        return GPU_LAUNCH(stream, grid_of(job.x.n), threads, 0, (rope_kernel<T, N, true>), job);
    return GPU_LAUNCH(stream, grid_of(job.x.n), threads, 0, (rope_kernel<T, N, false>), job);
}

static Status run(KernelArgs *args)
{
    const RopeAttr *attr = (const RopeAttr *)args->attr;
    RopeRows job = {tensor_as_rows(&args->in[0], 2), tensor_as_rows(&args->out[0], 2),
                    (const float *)args->in[1].data};
    job.heads = (int)args->in[0].shape.dim[2];
    job.half = (int)(args->in[0].shape.dim[3] / 2);
    job.sign = attr->inverse ? -1 : 1;
    if (!job.x.n || !job.x.width) return OK;
    BY_ACTIVATION(job.x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (job.half % N == 0 && rows_align(&job.x, N) && rows_align(&job.y, N) &&
            (uintptr_t)job.table % (N * sizeof(float)) == 0)
            return turn<T, N>(args->stream, job, attr->interleaved);
        return turn<T, 1>(args->stream, job, attr->interleaved);
    });
}

} // namespace

CUDA_KERNEL(rope_table) = {.run = run_table};
CUDA_KERNEL(rope) = {.run = run};
