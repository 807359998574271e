/* attention by tensor cores: tiles of bf16 in shared memory and products of them in registers. A
 * warp has 16 M rows of a product; of N columns a lane has c[m][n / 8][4], as ops/mma.cuh says.
 * Rows of head dimension d lie in tiles of D >= d columns, with zeros behind, and 16 bytes more
 * from row to row so that eight rows lie in different banks. Included by .cu files only. */
#ifndef OPS_ATTENTION_MMA_CUH
#define OPS_ATTENTION_MMA_CUH

#include "ops/attention/attention.cuh"

template <int D> constexpr int ATTENTION_PITCH = D + ATTENTION_CHUNK;

/* ROWS rows of d elements into a tile; from(i) is where row i is, or NULL: zeros then. `any`: an
 * address of the device. */
template <int D, int ROWS, int THREADS, class From>
__device__ __forceinline__ void attention_load(bf16 *to, int d, bool aligned, const void *any,
                                               From from)
{
    constexpr int CHUNKS = D / ATTENTION_CHUNK, STEP = THREADS / CHUNKS;
    int c = (int)threadIdx.x % CHUNKS * ATTENTION_CHUNK;
#pragma unroll 1
    for (int row = (int)threadIdx.x / CHUNKS; row < ROWS; row += STEP) {
        const bf16 *p = from(row);
        bf16 *at = to + row * ATTENTION_PITCH<D> + c;
        bool there = p && c < d;
        if (aligned) {
            copy_async<16>(at, there ? (const void *)(p + c) : any, there);
            continue;
        }
        Neighbours<bf16, ATTENTION_CHUNK> x;
        for (int j = 0; j < ATTENTION_CHUNK; j++) x.at[j] = there && c + j < d ? p[c + j] : bf16{0};
        store_neighbours(at, x);
    }
}

/* A block of keys and their values. */
template <class S>
__device__ __forceinline__ void attention_load_stage(const AttentionJob &job, bool aligned,
                                                     const AttentionPlace &place,
                                                     const AttentionKeys &keys, int block, bf16 *to)
{
    for (int i = 0; i < 2; i++) {
        const Rows &rows = i ? job.v : job.k;
        attention_load<S::D, S::KEYS, S::THREADS>(
            to + i * S::KEYS * S::PITCH, job.d, aligned, rows.data, [&](int r) -> const bf16 * {
                int key = block * S::KEYS + r;
                if (key < keys.first || key >= keys.end) return NULL;
                return (const bf16 *)(void *)rows.data +
                       attention_key_at<S::PAGED>(job, place, keys.origin, key, rows);
            });
    }
}

/* The keys that any row of a warp sees, and those that all do. */
struct AttentionSight {
    int first, end, all_first, all_end;
};

__device__ __forceinline__ AttentionSight attention_sight(const AttentionRow *row, int rows)
{
    AttentionSight sight = {INT32_MAX, 0, 0, INT32_MAX};
    for (int i = (int)threadIdx.x % WARP; i < rows; i += WARP) {
        if (row[i].first < row[i].end) sight.first = min(sight.first, row[i].first);
        sight.end = max(sight.end, row[i].end);
        sight.all_first = max(sight.all_first, row[i].first);
        sight.all_end = min(sight.all_end, row[i].end);
    }
    sight.first = warp_min_int(sight.first);
    sight.end = warp_max_int(sight.end);
    sight.all_first = warp_max_int(sight.all_first);
    sight.all_end = warp_min_int(sight.all_end);
    return sight;
}

/* c = a b^T over D: a 16 M rows of a tile, b N rows of one */
template <int D, int M, int N>
__device__ __forceinline__ void attention_dots(float (&c)[M][N / 8][4], const bf16 *a,
                                               const bf16 *b)
{
    constexpr int PITCH = ATTENTION_PITCH<D>;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0;
#pragma unroll 4
    for (int k = 0; k < D; k += 16) {
        uint32_t x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_a(x[m], a + m * 16 * PITCH + k, PITCH);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t y[4];
            load_b_columns(y, b + n * 16 * PITCH + k, PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16(c[m][2 * n], x[m], y[0], y[1]);
                mma_bf16(c[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* A product as the left side of the next. */
template <int M, int N>
__device__ __forceinline__ void attention_pack(uint32_t (&a)[M][N / 16][4],
                                               const float (&c)[M][N / 8][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 16; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&from)[4] = c[m][2 * n + i / 2];
                a[m][n][i] = pack_bf16(from[i % 2 * 2], from[i % 2 * 2 + 1]);
            }
}

/* c += a b: a [16 M K], b K rows of a tile of pitch PITCH, N columns of them */
template <int PITCH, int M, int K, int N>
__device__ __forceinline__ void attention_add(float (&c)[M][N / 8][4],
                                              const uint32_t (&a)[M][K / 16][4], const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t y[4];
            load_b_rows(y, b + k * 16 * PITCH + n * 16, PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_bf16(c[m][2 * n], a[m][k], y[0], y[1]);
                mma_bf16(c[m][2 * n + 1], a[m][k], y[2], y[3]);
            }
        }
}

/* Of element i of a lane: which of the 8 or 16 rows, which column of the n-th eight. */
__device__ inline int attention_lane_row(int half)
{
    return (int)threadIdx.x % WARP / 4 + half * 8;
}
__device__ inline int attention_lane_column(int n, int i)
{
    return n * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
}

/* x and y to columns c and c + 1 of a row of d elements that begins at element `at` of `rows`,
 * f32 or bf16. */
__device__ inline void attention_store_two(const Rows &rows, int64_t at, int c, int d, float x,
                                           float y)
{
    bool both = c + 1 < d;
    if (c >= d) return;
    if (rows.dtype == DTYPE_BF16) {
        bf16 *to = (bf16 *)(void *)rows.data + at + c;
        if (both && ((uintptr_t)to & 3) == 0) {
            *(uint32_t *)(void *)to = pack_bf16(x, y);
            return;
        }
        to[0] = from_f32<bf16>(x);
        if (both) to[1] = from_f32<bf16>(y);
    } else {
        float *to = (float *)(void *)rows.data + at + c;
        to[0] = x;
        if (both) to[1] = y;
    }
}

#endif
