/* grouped_linear, its gradients and chunked_grouped_linear on the cuda device.
 *
 * How many rows an expert has is known on the device alone: there are blocks for as many tiles as
 * there can be, each finds its expert and tile from the offsets, and those too many end at once. A
 * block multiplies TILE x TILE of the result, DEPTH of the contraction at a time out of shared
 * memory, while the next ones are copied there. bf16 is multiplied on tensor cores (on Hopper by
 * grouped_hopper.cuh), f32 is not.
 *
 * An element is summed in the order of the contraction, whatever tile it falls into.
 */
#include "ops/chunks.cuh"
#include "ops/grouped_hopper.cuh"
#include "ops/mma.cuh"

constexpr int DEPTH = 32, GROUPED_THREADS = 256;

/* ---- which tile --------------------------------------------------------------------------- */

__device__ static Tile find_tile(const Grouped &g)
{
    __shared__ int64_t product, index;
    if (threadIdx.x < WARP) {
        int64_t number = blockIdx.x, found = find_product(g, number, TILE);
        if (threadIdx.x == 0) product = found, index = number;
    }
    __syncthreads();
    Tile none = {-1, 0, 0};
    return product < 0 ? none : tile_at(g, product, index, TILE);
}

/* ---- into shared memory ------------------------------------------------------------------- */

/* One tile's operands, and how much of them there is. */
template <class T> struct Operand {
    const T *base; /* of the tile's first line or column, at the contraction's begin */
    int64_t pitch;
    int there; /* lines or columns, at most TILE */
};

/* How a tile of an operand lies in shared memory. BY_K: a line for each element of the contraction,
 * else one for each row or column of the result. Lines are an odd number of 16 bytes. */
template <class T, bool BY_K> struct Lines {
    enum {
        LINES = BY_K ? DEPTH : TILE,
        WIDTH = BY_K ? TILE : DEPTH,
        PITCH = WIDTH + 16 / (int)sizeof(T),
    };
};
template <class T> constexpr int TILE_ELEMENTS = TILE *Lines<T, false>::PITCH; /* the larger one */
template <class T> constexpr int STAGES = sizeof(T) == 2 ? 4 : 3;
template <class T>
constexpr size_t SHARED_BYTES = 2 * (size_t)STAGES<T> *TILE_ELEMENTS<T> * sizeof(T);

/* Elements first .. first + DEPTH - 1 of a contraction over k; zeros where there is nothing. N
 * neighbours at a time: 16 bytes, or one. */
template <class T, bool BY_K, int N>
__device__ static void load_tile(T *to, const Operand<T> &from, int64_t first, int64_t k)
{
    using L = Lines<T, BY_K>;
    constexpr int EACH = L::WIDTH / N;
    int depth = (int)min(k - first, (int64_t)DEPTH);
    int lines = BY_K ? depth : from.there, width = BY_K ? from.there : depth;
    const T *begin = from.base + (BY_K ? first * from.pitch : first);
#pragma unroll 4
    for (int v = (int)threadIdx.x; v < L::LINES * EACH; v += GROUPED_THREADS) {
        int line = v / EACH, column = v % EACH * N;
        bool there = line < lines && column < width;
        const T *p = there ? begin + line * from.pitch + column : from.base;
        T *q = to + line * L::PITCH + column;
        if constexpr (N * sizeof(T) >= 4)
            copy_async<N *(int)sizeof(T)>(q, p, there);
        else
            *q = there ? *p : from_f32<T>(0);
    }
}

/* ---- products of tiles -------------------------------------------------------------------- */

namespace
{ /* so that methods, which cannot be static functions, are this file's own */

template <class T, bool A_BY_K, bool B_BY_K> struct Sums;

/* bf16: 2 x 4 warps, of which each has 64 x 32 of the tile. */
template <bool A_BY_K, bool B_BY_K> struct Sums<bf16, A_BY_K, B_BY_K> {
    float c[4][4][4];

    __device__ static int row(void) { return (int)threadIdx.x / WARP / 4 * 64; }
    __device__ static int column(void) { return (int)threadIdx.x / WARP % 4 * 32; }

    __device__ void multiply(const bf16 *a, const bf16 *b)
    {
        constexpr int A_PITCH = Lines<bf16, A_BY_K>::PITCH, B_PITCH = Lines<bf16, B_BY_K>::PITCH;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t left[4][4], right[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int m = row() + 16 * i;
                if (A_BY_K)
                    load_a_columns(left[i], a + k * A_PITCH + m, A_PITCH);
                else
                    load_a(left[i], a + m * A_PITCH + k, A_PITCH);
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int n = column() + 16 * j;
                if (B_BY_K)
                    load_b_rows(right[j], b + k * B_PITCH + n, B_PITCH);
                else
                    load_b_columns(right[j], b + n * B_PITCH + k, B_PITCH);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    mma_bf16(c[i][j], left[i], right[j / 2][j % 2 * 2],
                             right[j / 2][j % 2 * 2 + 1]);
        }
    }

    /* N: 2 where pairs are aligned, else 1. */
    template <class C, int N> __device__ void store(const Result<C> &to) const
    {
        int lane = (int)threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int at = 0; at < 4; at += N) {
                    int m = row() + 16 * i + lane / 4 + at / 2 * 8;
                    int n = column() + 8 * j + lane % 4 * 2 + at % 2;
                    if (m >= to.m || n >= to.n) continue;
                    float v[N];
                    for (int k = 0; k < N; k++) v[k] = c[i][j][at + k];
                    put<C, N>(to.c + m * to.pitch + n, v, to.accumulate);
                }
    }
};

/* f32: 16 x 16 threads, of which each has every 16th row and column of the tile. What DEPTH
 * elements of the contraction give is summed apart, or long sums would lose digits. */
template <bool A_BY_K, bool B_BY_K> struct Sums<float, A_BY_K, B_BY_K> {
    enum { EACH = TILE / 16 };
    float c[EACH][EACH];

    __device__ static int row(void) { return (int)threadIdx.x / 16; }
    __device__ static int column(void) { return (int)threadIdx.x % 16; }

    __device__ void multiply(const float *a, const float *b)
    {
        constexpr int A_PITCH = Lines<float, A_BY_K>::PITCH, B_PITCH = Lines<float, B_BY_K>::PITCH;
        float part[EACH][EACH] = {};
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            float left[EACH], right[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int m = row() + 16 * i, n = column() + 16 * i;
                left[i] = a[A_BY_K ? k * A_PITCH + m : m * A_PITCH + k];
                right[i] = b[B_BY_K ? k * B_PITCH + n : n * B_PITCH + k];
            }
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) part[i][j] = fmaf(left[i], right[j], part[i][j]);
        }
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < EACH; j++) c[i][j] += part[i][j];
    }

    template <class C, int N> __device__ void store(const Result<C> &to) const
    {
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                int m = row() + 16 * i, n = column() + 16 * j;
                float v[1] = {c[i][j]};
                if (m < to.m && n < to.n) put<C, 1>(to.c + m * to.pitch + n, v, to.accumulate);
            }
    }
};

} // namespace

/* sums += a b over a contraction of k. */
template <class T, bool A_BY_K, bool B_BY_K, int N>
__device__ static void sum_tile(Sums<T, A_BY_K, B_BY_K> &sums, const Operand<T> &a,
                                const Operand<T> &b, int64_t k)
{
    GPU_DYNAMIC_SHARED(shared);
    T *a_tiles = (T *)(void *)shared, *b_tiles = a_tiles + STAGES<T> * TILE_ELEMENTS<T>;
    int64_t steps = (k + DEPTH - 1) / DEPTH;
    auto load = [&](int64_t step) {
        int64_t slot = step % STAGES<T> * TILE_ELEMENTS<T>;
        if (step < steps) {
            load_tile<T, A_BY_K, N>(a_tiles + slot, a, step * DEPTH, k);
            load_tile<T, B_BY_K, N>(b_tiles + slot, b, step * DEPTH, k);
        }
        copy_async_commit();
    };
    for (int step = 0; step < STAGES<T> - 1; step++) load(step);
    for (int64_t step = 0; step < steps; step++) {
        copy_async_wait<STAGES<T> - 2>();
        __syncthreads(); /* it is there for all, and all are done with the one before */
        load(step + STAGES<T> - 1);
        int64_t slot = step % STAGES<T> * TILE_ELEMENTS<T>;
        sums.multiply(a_tiles + slot, b_tiles + slot);
    }
    copy_async_wait<0>();
}

/* A_BY_K, B_BY_K: a lies as [k m], b as [k n]; else as [m k] and [n k]. */
template <class T, class C, bool A_BY_K, bool B_BY_K, int N>
__global__ static void __launch_bounds__(GROUPED_THREADS, sizeof(T) == 2 ? 2 : 1)
    grouped_kernel(Grouped g)
{
    Tile tile = find_tile(g);
    if (tile.product < 0) return;
    TileOf of = tile_of(g, tile);
    Result<C> result = result_at<C>(g, tile, of, TILE);
    Operand<T> a = {row_at<const T>(g.a, of.row) + tile.i * (A_BY_K ? 1 : g.a.pitch), g.a.pitch,
                    result.m};
    Operand<T> b = {(const T *)(const void *)g.b.data + tile.j * (B_BY_K ? 1 : g.b.pitch) +
                        (g.m ? of.row * g.b.pitch : of.expert * g.matrix),
                    g.b.pitch, result.n};
    Sums<T, A_BY_K, B_BY_K> sums = {};
    sum_tile<T, A_BY_K, B_BY_K, N>(sums, a, b, of.k);
    sums.template store<C, N == 1 ? 1 : 2>(result);
}

/* ---- launches ----------------------------------------------------------------------------- */

template <class T, class C, bool A_BY_K, bool B_BY_K, int N>
static Status launch_by(GpuStream *stream, const Grouped *g)
{
    int64_t down = most_tiles_down(g);
    if (!down || !g->n) return OK;
    TRY(GPU_ALLOW_SHARED((grouped_kernel<T, C, A_BY_K, B_BY_K, N>), SHARED_BYTES<T>));
    return GPU_LAUNCH(stream, (unsigned)(down * tiles_of(g->n)), GROUPED_THREADS, SHARED_BYTES<T>,
                      (grouped_kernel<T, C, A_BY_K, B_BY_K, N>), *g);
}

template <class T, class C, bool A_BY_K, bool B_BY_K>
static Status launch_typed(GpuStream *stream, const Grouped *g)
{
    constexpr int N = 16 / (int)sizeof(T);
    if constexpr (sizeof(T) == sizeof(bf16))
        if (hopper_takes(stream, g)) return launch_hopper<C, A_BY_K, B_BY_K>(stream, g);
    if (rows_align(&g->a, N) && rows_align(&g->b, N) && rows_align(&g->c, 2))
        return launch_by<T, C, A_BY_K, B_BY_K, N>(stream, g);
    return launch_by<T, C, A_BY_K, B_BY_K, 1>(stream, g);
}

/* Of rows: b lies as [k n], or as [n k]. */
template <class T, class C> static Status launch_rows(GpuStream *stream, const Grouped *g, int axis)
{
    return axis == 1 ? launch_typed<T, C, false, true>(stream, g)
                     : launch_typed<T, C, false, false>(stream, g);
}

/* ---- rows --------------------------------------------------------------------------------- */

static int sources_of(const Shape *offsets, const Shape *w)
{
    return (int)((offsets->dim[0] - 1) / w->dim[0]);
}

/* in: rows, w, offsets; rows meet axis `axis` of w. */
static Grouped rows_job(const KernelArgs *args, int axis)
{
    const Tensor *w = &args->in[1];
    const int64_t *dim = w->shape.dim;
    Grouped g = {tensor_as_rows(&args->in[0], 1)};
    Rows matrix = {(char *)w->data, w->dtype, dim[1], dim[2], dim[2]};
    g.b = matrix;
    g.c = tensor_as_rows(&args->out[0], 1);
    g.matrix = dim[1] * dim[2];
    g.offsets = (const int32_t *)args->in[2].data;
    g.sources = sources_of(&args->in[2].shape, &w->shape);
    g.products = args->in[2].shape.dim[0] - 1;
    g.rows = g.a.n;
    g.n = dim[3 - axis];
    g.k = dim[axis];
    return g;
}

static Status run_rows(KernelArgs *args, int axis)
{
    Grouped g = rows_job(args, axis);
    BY_ACTIVATION(g.a.dtype, T, return (launch_rows<T, T>(args->stream, &g, axis)));
}

static Status run(KernelArgs *args)
{
    return run_rows(args, grouped_in_axis((const GroupedAttr *)args->attr));
}
static Status run_dx(KernelArgs *args)
{
    return run_rows(args, 3 - grouped_in_axis((const GroupedAttr *)args->attr));
}

/* One chunk of the contraction, into rows at `out`. */
static Status make_chunk(void *context, int chunk, float *out)
{
    const KernelArgs *args = (const KernelArgs *)context;
    const ChunkedGroupedAttr *attr = (const ChunkedGroupedAttr *)args->attr;
    int axis = (int)attr->axis;
    for (int s = 0; s < attr->chunks.n_segments; s++) {
        ChunkPart part = chunk_part(&attr->chunks, chunk, s);
        Grouped g = rows_job(args, axis);
        int64_t bytes = (int64_t)dtype_bytes(g.a.dtype);
        g.a.data += part.first * bytes;
        g.b.data += part.first * bytes * (axis == 1 ? g.b.pitch : 1);
        g.k = g.a.width = part.n;
        if (axis == 2) g.b.width = part.n;
        g.c.data = (char *)out;
        g.accumulate = s > 0;
        BY_ACTIVATION(g.a.dtype, T, TRY((launch_rows<T, float>(args->stream, &g, axis))));
    }
    return OK;
}

static Status run_chunked(KernelArgs *args)
{
    const ChunkedGroupedAttr *attr = (const ChunkedGroupedAttr *)args->attr;
    Grouped g = rows_job(args, (int)attr->axis);
    Summands summands = {g.rows * g.n, g.offsets + g.products, g.n};
    return gpu_tree_of_leaves(args->stream, make_chunk, args, 0, attr->chunks.n,
                              (float *)args->out[0].data, (float *)args->workspace, &summands);
}

/* ---- dw ----------------------------------------------------------------------------------- */

/* in: dy, x, offsets; out: dw. Which of dy and x gives its axis 1 is the layout's. */
static Grouped dw_job(const KernelArgs *args)
{
    const Shape *w = &args->out[0].shape;
    bool out_first = ((const GroupedAttr *)args->attr)->layout == EXPERTS_OUT_IN;
    Grouped g = {tensor_as_rows(&args->in[out_first ? 0 : 1], 1),
                 tensor_as_rows(&args->in[out_first ? 1 : 0], 1)};
    Rows matrix = {(char *)args->out[0].data, DTYPE_F32, w->dim[1], w->dim[2], w->dim[2]};
    g.c = matrix;
    g.matrix = w->dim[1] * w->dim[2];
    g.offsets = (const int32_t *)args->in[2].data;
    g.sources = sources_of(&args->in[2].shape, w);
    g.products = w->dim[0];
    g.rows = g.a.n;
    g.m = w->dim[1];
    g.n = w->dim[2];
    return g;
}

/* Of the rows of one source, at `out`. */
static Status make_source(void *context, int source, float *out)
{
    const KernelArgs *args = (const KernelArgs *)context;
    Grouped g = dw_job(args);
    g.source = source;
    g.c.data = (char *)out;
    BY_ACTIVATION(g.a.dtype, T, return (launch_typed<T, float, true, true>(args->stream, &g)));
}

static Status run_dw(KernelArgs *args)
{
    Summands summands = {tensor_count(&args->out[0])};
    return gpu_tree_of_leaves(args->stream, make_source, args, 0,
                              sources_of(&args->in[2].shape, &args->out[0].shape),
                              (float *)args->out[0].data, (float *)args->workspace, &summands);
}

CUDA_KERNEL(grouped_linear) = {.run = run};
CUDA_KERNEL(grouped_linear_dx) = {.run = run_dx};
CUDA_KERNEL(grouped_linear_dw) = {.run = run_dw};
CUDA_KERNEL(chunked_grouped_linear) = {.run = run_chunked};
