/* embed and its gradient on the cuda device. For the gradient tokens are sorted by row
 * (id_sort.cuh), the table is cleared, and the first token of each row adds up all of that row, in
 * their order. */
#include "ops/id_sort.cuh"

extern "C" {
#include "ops/embed.h"
}

namespace
{

enum { ROW_THREADS = 128 };

/* The row of this rank's table, -1 for another rank's. Of a whole table a row that is not there is
 * the host's fault; row 0 keeps us inside. */
__device__ static int64_t row_of(int32_t id, int64_t first, unsigned cut_axes, int64_t rows)
{
    int64_t row = id - first;
    if (row >= 0 && row < rows) return row;
    return cut_axes ? -1 : 0;
}

/* A block of threads a token. */
template <class Y, class W, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    embed_kernel(const int32_t *ids, EmbedAttr attr, Rows w, Rows y)
{
    for (int64_t i = blockIdx.x; i < y.n; i += gridDim.x) {
        const int64_t row = row_of(ids[i], attr.first, attr.cut_axes, w.n);
        for (int64_t k = threadIdx.x * N; k < y.width; k += ROW_THREADS * N) {
            Neighbours<W, N> v = {};
            if (row >= 0) v = load_neighbours<N>(row_at<const W>(w, row) + k);
            Neighbours<Y, N> to;
            for (int j = 0; j < N; j++) to.at[j] = from_f32<Y>(to_f32(v.at[j]));
            store_neighbours(row_at<Y>(y, i) + k, to);
        }
    }
}

static Status run(KernelArgs *args)
{
    const int32_t *ids = (const int32_t *)args->in[0].data;
    const EmbedAttr attr = *(const EmbedAttr *)args->attr;
    Rows w = tensor_as_rows(&args->in[1], 1), y = tensor_as_rows(&args->out[0], 1);
    if (!y.n || !y.width) return OK;
    BY_ACTIVATION(y.dtype, Y, BY_ACTIVATION(w.dtype, W, {
                      constexpr int N = sizeof(Y) + sizeof(W) < 8 ? 8 : 4;
                      if (rows_align(&w, N) && rows_align(&y, N))
                          return GPU_LAUNCH(args->stream, grid_of(y.n), ROW_THREADS, 0,
                                            (embed_kernel<Y, W, N>), ids, attr, w, y);
                      return GPU_LAUNCH(args->stream, grid_of(y.n), ROW_THREADS, 0,
                                        (embed_kernel<Y, W, 1>), ids, attr, w, y);
                  }));
}

/* ---- embed_grad ---------------------------------------------------------------------------- */

/* Another rank's tokens get the key behind the last row. */
__global__ void __launch_bounds__(SORT_THREADS)
    key_kernel(const int32_t *ids, int64_t n, EmbedGradAttr attr, SortPairs to)
{
    int64_t i = (int64_t)blockIdx.x * SORT_THREADS + threadIdx.x;
    if (i >= n) return;
    int64_t rows = attr.table.dim[0], row = row_of(ids[i], attr.first, attr.cut_axes, rows);
    to.key[i] = (int32_t)(row < 0 ? rows : row);
    to.token[i] = (int32_t)i;
}

/* Of N columns: dy of the tokens from place p on that have the same key; four go to memory
 * together.
 */
template <class T, int N>
__device__ static Neighbours<float, N> sum_tokens(const Rows &dy, SortPairs sorted, int64_t p,
                                                  int64_t column)
{
    const int32_t key = sorted.key[p];
    Neighbours<float, N> sum;
    auto first = load_neighbours<N>(row_at<const T>(dy, sorted.token[p]) + column);
    for (int k = 0; k < N; k++) sum.at[k] = to_f32(first.at[k]);
    for (p++; p + 3 < dy.n && sorted.key[p + 3] == key; p += 4) {
        Neighbours<T, N> v[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] = load_neighbours<N>(row_at<const T>(dy, sorted.token[p + j]) + column);
#pragma unroll
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < N; k++) sum.at[k] += to_f32(v[j].at[k]);
    }
    for (; p < dy.n && sorted.key[p] == key; p++) {
        auto v = load_neighbours<N>(row_at<const T>(dy, sorted.token[p]) + column);
        for (int k = 0; k < N; k++) sum.at[k] += to_f32(v.at[k]);
    }
    return sum;
}

template <class T, int N>
__global__ void __launch_bounds__(ROW_THREADS)
    sum_kernel(Rows dy, SortPairs sorted, int32_t rows, float *dw)
{
    const int64_t p = blockIdx.x, column = ((int64_t)blockIdx.y * ROW_THREADS + threadIdx.x) * N;
    const int32_t key = sorted.key[p];
    if (key >= rows || (p && sorted.key[p - 1] == key) || column >= dy.width) return;
    store_neighbours(dw + key * dy.width + column, sum_tokens<T, N>(dy, sorted, p, column));
}

static Status run_grad(KernelArgs *args)
{
    const EmbedGradAttr attr = *(const EmbedGradAttr *)args->attr;
    const int32_t *ids = (const int32_t *)args->in[0].data;
    Rows dy = tensor_as_rows(&args->in[1], 1);
    float *dw = (float *)args->out[0].data;
    const int64_t rows = attr.table.dim[0];
    SortPairs sorted;
    TRY(gpu_fill(args->stream, dw, 0, tensor_bytes(&args->out[0])));
    if (!dy.n || !dy.width) return OK;
    TRY(GPU_LAUNCH(args->stream, grid_of(ceil_div(dy.n, SORT_THREADS)), SORT_THREADS, 0,
                   (key_kernel), ids, dy.n, attr, sort_pairs(args->workspace, dy.n, 0)));
    TRY(sort_by_key(args->stream, args->workspace, dy.n, rows, &sorted));
    BY_ACTIVATION(dy.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        dim3 grid((unsigned)dy.n, (unsigned)ceil_div(dy.width, ROW_THREADS * N));
        if (rows_align(&dy, N) && (uintptr_t)dw % (N * sizeof *dw) == 0)
            return GPU_LAUNCH(args->stream, grid, ROW_THREADS, 0, (sum_kernel<T, N>), dy, sorted,
                              (int32_t)rows, dw);
        grid.y = (unsigned)ceil_div(dy.width, ROW_THREADS);
        return GPU_LAUNCH(args->stream, grid, ROW_THREADS, 0, (sum_kernel<T, 1>), dy, sorted,
                          (int32_t)rows, dw);
    });
}

} // namespace

CUDA_KERNEL(embed) = {.run = run};
CUDA_KERNEL(embed_grad) = {.run = run_grad};
