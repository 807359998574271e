/* quantise on the cuda device: a block of threads a tile of 128 rows and columns, which lies in
 * shared memory and goes from there as rows, as columns, or as both: x is read once. A warp has a
 * whole line of a tile, so that the maximum of 128 neighbours is one of its lanes'. Scales over
 * whole lines ask for the maxima of all their tiles first: x is read once more. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/quantise.h"
}
#ifdef GPU_EMULATED
#include "tensor/small_float.h"
#else
#include <cuda_fp8.h>
#endif

namespace
{

constexpr int W = SCALING_WIDTH, THREADS = 256, WARPS = THREADS / WARP;
constexpr int EACH = W / (int)WARP; /* elements of a line that a lane has, side by side */
constexpr int PITCH = W / 2 + 1;    /* words of two elements from row to row of the tile */
constexpr int SCALES_THREADS = 128;

/* One of the two results; q NULL: not wanted. */
typedef struct Side {
    uint8_t *q;
    float *scale;
    float *most; /* maxima of tiles [tiles along the line][lines]: of scales over whole lines */
    int64_t n, width;      /* lines; numbers in each */
    int64_t blocks, pitch; /* tiles along a line; scales from row to row of squares */
    bool aligned;          /* EACH numbers of a line may be written at once */
} Side;

typedef struct Job {
    Rows x;
    Side rows, columns;
    int64_t tiles; /* side by side */
    ScalingUnit scaling;
    bool wide; /* four elements of x may be read at once */
} Job;

/* E5M2 or E4M3. */
template <bool E5M2> struct Format {
    static constexpr float largest = E5M2 ? 57344.0f : 448.0f;
    __device__ static uint8_t code(float x)
    {
#ifdef GPU_EMULATED
        return f8_from_f32_saturated(E5M2 ? e5m2_format : e4m3_format, x);
#else
        return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, E5M2 ? __NV_E5M2 : __NV_E4M3);
#endif
    }
};

__device__ float scale_of(float most, float largest) { return fmaxf(most / largest, FLT_MIN); }

__device__ float low_half(uint32_t word) { return __uint_as_float(word << 16); }
__device__ float high_half(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

/* The tile's rows from `row` and columns from `column` on, zeros beyond; the maximum of what this
 * thread has read. */
__device__ float load(const Job &job, int64_t row, int64_t column, uint32_t tile[W][PITCH])
{
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int64_t from = column + lane * EACH;
    float most = 0;
    for (int r = warp; r < W; r += WARPS) {
        Neighbours<bf16, EACH> v = {};
        if (row + r < job.x.n) {
            const bf16 *x = row_at<const bf16>(job.x, row + r) + from;
            if (job.wide && from + EACH <= job.x.width) {
                v = load_neighbours<EACH>(x);
            } else {
                for (int k = 0; k < EACH; k++)
                    if (from + k < job.x.width) v.at[k] = x[k];
            }
        }
        for (int k = 0; k < EACH; k += 2) {
            tile[r][(lane * EACH + k) / 2] = v.at[k].bits | (uint32_t)v.at[k + 1].bits << 16;
            most = fmaxf(most, fmaxf(fabsf(to_f32(v.at[k])), fabsf(to_f32(v.at[k + 1]))));
        }
    }
    return most;
}

/* What is to be done with a line. */
typedef struct Line {
    int64_t at, from, block; /* its number; its first element here; which tile of the line it is */
} Line;

/* This lane's numbers of a line, whose scale is over them all (BLOCK), was told by its maxima (ROW)
 * or is that of the tile (square). */
template <bool E5M2, bool MEASURE>
__device__ void put(const Side &side, ScalingUnit scaling, const Line &line, const float (&x)[EACH],
                    float square)
{
    const int lane = (int)threadIdx.x % WARP;
    float most = 0, scale = square;
    if (MEASURE || scaling == SCALING_BLOCK) {
        for (int k = 0; k < EACH; k++) most = fmaxf(most, fabsf(x[k]));
        most = warp_max(most);
    }
    if (line.at >= side.n) return;
    const int64_t place = line.block * side.n + line.at;
    if (MEASURE) {
        if (lane == 0) side.most[place] = most;
        return;
    }
    if (scaling == SCALING_BLOCK) {
        scale = scale_of(most, Format<E5M2>::largest);
        if (lane == 0) side.scale[place] = scale;
    } else if (scaling == SCALING_ROW) {
        scale = side.scale[line.at];
    }
    const float inverse = 1 / scale;
    const int64_t from = line.from + lane * EACH;
    uint8_t *q = side.q + line.at * side.width + from;
    Neighbours<uint8_t, EACH> codes;
    for (int k = 0; k < EACH; k++) codes.at[k] = Format<E5M2>::code(x[k] * inverse);
    if (side.aligned && from + EACH <= side.width) {
        store_neighbours(q, codes);
        return;
    }
    for (int k = 0; k < EACH; k++)
        if (from + k < side.width) q[k] = codes.at[k];
}

/* The scale of a square, and zeros behind the last of a row of them. */
__device__ void put_square(const Side &side, int64_t line, int64_t block, float scale)
{
    if (!side.q || threadIdx.x) return;
    float *to = side.scale + line * side.pitch;
    to[block] = scale;
    if (block + 1 == side.blocks)
        for (int64_t b = block + 1; b < side.pitch; b++) to[b] = 0;
}

template <bool E5M2, bool MEASURE> __global__ void __launch_bounds__(THREADS) tile_kernel(Job job)
{
    __shared__ uint32_t tile[W][PITCH];
    __shared__ float scratch[WARP];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int64_t down = blockIdx.x / job.tiles, right = blockIdx.x % job.tiles, row = down * W,
                  column = right * W;
    float most = load(job, row, column, tile), square = 0;
    __syncthreads();
    if (!MEASURE && job.scaling == SCALING_SQUARE) {
        square = scale_of(block_max(most, scratch), Format<E5M2>::largest);
        put_square(job.rows, down, right, square);
        put_square(job.columns, right, down, square);
    }
    for (int r = warp; r < W && job.rows.q; r += WARPS) {
        float x[EACH];
        for (int k = 0; k < EACH; k += 2) {
            uint32_t word = tile[r][(lane * EACH + k) / 2];
            x[k] = low_half(word);
            x[k + 1] = high_half(word);
        }
        put<E5M2, MEASURE>(job.rows, job.scaling, Line{row + r, column, right}, x, square);
    }
    for (int c = warp; c < W / 2 && job.columns.q; c += WARPS) { /* two columns in a word */
        float x[2][EACH];
        for (int k = 0; k < EACH; k++) {
            uint32_t word = tile[lane * EACH + k][c];
            x[0][k] = low_half(word);
            x[1][k] = high_half(word);
        }
        for (int h = 0; h < 2; h++)
            put<E5M2, MEASURE>(job.columns, job.scaling, Line{column + 2 * c + h, row, down}, x[h],
                               square);
    }
}

/* Of whole lines, from the maxima of their tiles. */
__global__ void __launch_bounds__(SCALES_THREADS)
    scales_kernel(const float *most, int64_t n, int64_t tiles, float largest, float *scale)
{
    int64_t i = (int64_t)blockIdx.x * SCALES_THREADS + threadIdx.x;
    if (i >= n) return;
    float all = 0;
    for (int64_t t = 0; t < tiles; t++) all = fmaxf(all, most[t * n + i]);
    scale[i] = scale_of(all, largest);
}

Status set_scales(GpuStream *stream, const Side &side, float largest)
{
    if (!side.q) return OK;
    return GPU_LAUNCH(stream, grid_of(ceil_div(side.n, SCALES_THREADS)), SCALES_THREADS, 0,
                      (scales_kernel), (const float *)side.most, side.n, scaling_blocks(side.width),
                      largest, side.scale);
}

template <bool E5M2> Status quantise(GpuStream *stream, const Job &job)
{
    unsigned grid = grid_of(scaling_blocks(job.x.n) * job.tiles);
    if (job.scaling == SCALING_ROW) {
        TRY(GPU_LAUNCH(stream, grid, THREADS, 0, (tile_kernel<E5M2, true>), job));
        TRY(set_scales(stream, job.rows, Format<E5M2>::largest));
        TRY(set_scales(stream, job.columns, Format<E5M2>::largest));
    }
    return GPU_LAUNCH(stream, grid, THREADS, 0, (tile_kernel<E5M2, false>), job);
}

Side side_of(const KernelArgs *args, int first, int64_t n, int64_t width)
{
    Side s = {(uint8_t *)args->out[first].data, (float *)args->out[first + 1].data};
    s.n = n;
    s.width = width;
    s.blocks = scaling_blocks(width);
    s.pitch = scaling_square_pitch(width);
    s.aligned = width % EACH == 0 && (uintptr_t)s.q % EACH == 0;
    return s;
}

Status run(KernelArgs *args)
{
    const QuantiseAttr *a = (const QuantiseAttr *)args->attr;
    Job job = {tensor_as_rows(&args->in[0], 1)};
    const Rows &x = job.x;
    if (!x.n || !x.width) return OK;
    if (a->rows) job.rows = side_of(args, ROWS_Q, x.n, x.width);
    if (a->columns) job.columns = side_of(args, COLUMNS_Q, x.width, x.n);
    job.rows.most = (float *)args->workspace;
    job.columns.most = job.rows.most + (a->rows ? job.rows.blocks * x.n : 0);
    job.tiles = scaling_blocks(x.width);
    job.scaling = a->scaling;
    job.wide = x.pitch % EACH == 0 && (uintptr_t)x.data % (EACH * sizeof(bf16)) == 0;
    return a->dtype == DTYPE_F8_E5M2 ? quantise<true>(args->stream, job)
                                     : quantise<false>(args->stream, job);
}

} // namespace

CUDA_KERNEL(quantise) = {.run = run};
