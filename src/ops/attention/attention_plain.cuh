/* Tiles of f32 in shared memory and products of them without tensor cores, for any head dimension
 * and any mix of f32 and bf16. A thread makes 4 x 4 elements of a product at a time, operands four
 * at a time. Included by .cu files only. */
#ifndef OPS_ATTENTION_PLAIN_CUH
#define OPS_ATTENTION_PLAIN_CUH

#include "ops/attention/attention.cuh"

constexpr int PLAIN_THREADS = 256;

/* Columns of a tile of rows of n elements: a multiple of 4, zeros behind the n, and 4 more so that
 * rows lie in different banks. */
__host__ __device__ inline int plain_columns(int n) { return (n + 3) / 4 * 4; }
__host__ __device__ inline int plain_pitch(int n) { return plain_columns(n) + 4; }

/* As many rows and keys to a tile, 64 or fewer and no more than there are of rows, as leave `tiles`
 * tiles of rows and `squares` of scores within a multiprocessor's shared memory; 0: not even 4 do.
 */
static inline int plain_tile(int64_t rows, int d, int tiles, int squares, size_t shared_bytes,
                             size_t row_bytes)
{
    int most = rows > 32 ? 64 : rows > 16 ? 32 : 16;
    for (int n = most; n >= 4; n /= 2) {
        size_t floats = (size_t)tiles * n * plain_pitch(d) + (size_t)squares * n * plain_pitch(n);
        if (floats * sizeof(float) + n * row_bytes <= shared_bytes) return n;
    }
    return 0;
}

__device__ inline float plain_read(const Rows &rows, int64_t at)
{
    return rows.dtype == DTYPE_BF16 ? to_f32(((const bf16 *)(void *)rows.data)[at])
                                    : ((const float *)(void *)rows.data)[at];
}
__device__ inline void plain_write(const Rows &rows, int64_t at, float x)
{
    if (rows.dtype == DTYPE_BF16)
        ((bf16 *)(void *)rows.data)[at] = from_f32<bf16>(x);
    else
        ((float *)(void *)rows.data)[at] = x;
}

/* n rows of d elements into a tile; from(i): where row i begins, below 0: zeros. */
template <class From>
__device__ inline void plain_load(float *to, const Rows &rows, int n, int d, From from)
{
    int columns = plain_columns(d), pitch = plain_pitch(d);
    for (int i = (int)threadIdx.x; i < n * columns; i += PLAIN_THREADS) {
        int row = i / columns, c = i - row * columns;
        int64_t at = from(row);
        to[row * pitch + c] = at >= 0 && c < d ? plain_read(rows, at + c) : 0;
    }
}

__device__ inline void plain_zero(float *to, int n)
{
    for (int i = (int)threadIdx.x; i < n; i += PLAIN_THREADS) to[i] = 0;
}

/* One element of a row times one of another, four columns at a time. */
__device__ inline float plain_dot4(const Neighbours<float, 4> &a, const Neighbours<float, 4> &b,
                                   float sum)
{
    for (int i = 0; i < 4; i++) sum += a.at[i] * b.at[i];
    return sum;
}

/* x[i][j] = row a0 + i of a times row b0 + j step of b, over `columns` */
__device__ inline void plain_dots(float (&x)[4][4], const float *a, const float *b, int pitch,
                                  int b_step, int columns)
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) x[i][j] = 0;
    for (int c = 0; c < columns; c += 4) {
        Neighbours<float, 4> right[4];
#pragma unroll
        for (int j = 0; j < 4; j++) right[j] = load_neighbours<4>(b + j * b_step * pitch + c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            auto left = load_neighbours<4>(a + i * pitch + c);
#pragma unroll
            for (int j = 0; j < 4; j++) x[i][j] = plain_dot4(left, right[j], x[i][j]);
        }
    }
}

/* All elements of a product of n x n dots: each(i, j, dots) is given rows 4i.. of a and rows
 * j, j + n/4, ... of b, so that neighbouring threads read neighbouring rows. */
template <class Each> __device__ inline void plain_squares(int n, Each each)
{
    int quarter = n / 4;
    for (int i = (int)threadIdx.x; i < quarter * quarter; i += PLAIN_THREADS)
        each(i / quarter * 4, i % quarter, quarter);
}

/* c += a b: a [n n] of pitch plain_pitch(n), b and c tiles of rows of d elements */
__device__ inline void plain_add(float *c, const float *a, const float *b, int n, int d)
{
    int quads = plain_columns(d) / 4, pitch = plain_pitch(d), a_pitch = plain_pitch(n);
    for (int job = (int)threadIdx.x; job < n / 4 * quads; job += PLAIN_THREADS) {
        int row = job / quads * 4, column = job % quads * 4;
        float *to = c + row * pitch + column;
        Neighbours<float, 4> sum[4];
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = load_neighbours<4>(to + i * pitch);
        for (int k = 0; k < n; k += 4) {
            Neighbours<float, 4> right[4];
#pragma unroll
            for (int j = 0; j < 4; j++) right[j] = load_neighbours<4>(b + (k + j) * pitch + column);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                auto left = load_neighbours<4>(a + (row + i) * a_pitch + k);
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int l = 0; l < 4; l++) sum[i].at[l] += left.at[j] * right[j].at[l];
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) store_neighbours(to + i * pitch, sum[i]);
    }
}

/* ---- scores ------------------------------------------------------------------------------- */

/* A score times log2 e; of softcap also its slope over scale. */
__device__ inline float plain_score(const AttentionJob &job, const AttentionRow &row, float dot,
                                    int key, int split, float *slope)
{
    float z = dot * job.scale;
    *slope = 1;
    if (job.softcap > 0) {
        float part = tanhf(z / job.softcap);
        *slope = 1 - part * part;
        return job.softcap * part * LOG2_E;
    }
    return fmaf(z, LOG2_E, job.alibi > 0 ? attention_lean(row, key, split) : 0.0f);
}

__device__ inline bool plain_sees(const AttentionRow &row, int key)
{
    return key >= row.first && key < row.end;
}

#endif
