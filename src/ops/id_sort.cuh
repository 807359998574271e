/* A stable sort of tokens by a key below 2^31 (radix sort, a digit of 8 bits at a time): counts of
 * digits in each tile of tokens, running sums of the counts, then every token to its place. The
 * places follow from the keys alone, so that the order is the same every time. Included by .cu
 * files only. */
#ifndef OPS_ID_SORT_CUH
#define OPS_ID_SORT_CUH

#include "ops/kernel.cuh"

extern "C" {
#include "ops/id_sort.h"
}

enum { SCAN_THREADS = 1024, SORT_WARPS = (int)SORT_THREADS / (int)WARP };

/* Keys and the tokens that have them. */
typedef struct SortPairs {
    int32_t *key, *token;
} SortPairs;

/* counts [digits][tiles] */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort_count_kernel(const int32_t *key, int64_t n, int shift, int32_t *counts)
{
    __shared__ int32_t count[SORT_DIGITS];
    const int64_t first = (int64_t)blockIdx.x * SORT_TILE, end = min(first + SORT_TILE, n);
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += SORT_THREADS)
        atomicAdd(&count[key[i] >> shift & (SORT_DIGITS - 1)], 1);
    __syncthreads();
    counts[threadIdx.x * (int64_t)gridDim.x + blockIdx.x] = count[threadIdx.x];
}

/* Sum of x of the threads before this one in the block. */
__device__ static inline int32_t sum_before(int32_t x, int32_t *scratch)
{
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int32_t sum = x;
    for (int by = 1; by < (int)WARP; by *= 2) {
        int32_t other = __shfl_up_sync(FULL_WARP, sum, by);
        if (lane >= by) sum += other;
    }
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    int32_t before = 0;
    for (int w = 0; w < warp; w++) before += scratch[w];
    return before + sum - x;
}

/* Counts become the sums of those before them: one block of threads, a run of counts each. */
static __global__ void __launch_bounds__(SCAN_THREADS) sort_scan_kernel(int32_t *counts, int64_t n)
{
    __shared__ int32_t scratch[WARP];
    const int64_t each = (n + SCAN_THREADS - 1) / SCAN_THREADS, first = threadIdx.x * each,
                  end = min(first + each, n);
    int32_t sum = 0;
    for (int64_t i = first; i < end; i++) sum += counts[i];
    sum = sum_before(sum, scratch);
    for (int64_t i = first; i < end; i++) {
        int32_t count = counts[i];
        counts[i] = sum;
        sum += count;
    }
}

/* Lanes of the warp whose digit is the same, of those that have one. */
__device__ static inline unsigned same_digit(int digit, bool there)
{
    unsigned same = __ballot_sync(FULL_WARP, there);
    for (int bit = 0; bit < SORT_DIGIT_BITS; bit++) {
        bool set = digit >> bit & 1;
        unsigned lanes = __ballot_sync(FULL_WARP, set);
        same &= set ? lanes : ~lanes;
    }
    return same;
}

/* A tile is walked in order; `next` is where the next token of each digit goes. */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort_place_kernel(SortPairs from, SortPairs to, int64_t n, int shift, const int32_t *starts)
{
    __shared__ int32_t next[SORT_DIGITS], place[SORT_WARPS][SORT_DIGITS];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int64_t first = (int64_t)blockIdx.x * SORT_TILE, end = min(first + SORT_TILE, n);
    next[threadIdx.x] = starts[threadIdx.x * (int64_t)gridDim.x + blockIdx.x];
    for (int64_t at = first; at < end; at += SORT_THREADS) {
        const int64_t i = at + threadIdx.x;
        const bool there = i < end;
        const int32_t key = there ? from.key[i] : 0;
        const int digit = key >> shift & (SORT_DIGITS - 1);
        const unsigned same = same_digit(digit, there);
        const int rank = __popc(same & ((1u << lane) - 1));
        for (int d = lane; d < SORT_DIGITS; d += WARP) place[warp][d] = 0;
        __syncwarp();
        if (there && rank == 0) place[warp][digit] = __popc(same);
        __syncthreads();
        int32_t running = next[threadIdx.x];
        for (int w = 0; w < SORT_WARPS; w++) {
            int32_t count = place[w][threadIdx.x];
            place[w][threadIdx.x] = running;
            running += count;
        }
        next[threadIdx.x] = running;
        __syncthreads();
        if (there) {
            int32_t to_place = place[warp][digit] + rank;
            to.key[to_place] = key;
            to.token[to_place] = from.token[i];
        }
        __syncwarp(); /* before the warp's places are written again */
    }
}

/* The two halves of the workspace, and the counts behind them. */
static inline SortPairs sort_pairs(void *workspace, int64_t n, int half)
{
    int32_t *at = (int32_t *)workspace + 2 * n * half;
    return SortPairs{at, at + n};
}

/* Sorts what stands in sort_pairs(workspace, n, 0); keys are at most `largest`. */
static inline Status sort_by_key(GpuStream *stream, void *workspace, int64_t n, int64_t largest,
                                 SortPairs *sorted)
{
    SortPairs pairs[2] = {sort_pairs(workspace, n, 0), sort_pairs(workspace, n, 1)};
    int32_t *counts = (int32_t *)workspace + 4 * n;
    const unsigned tiles = grid_of(sort_tiles(n));
    int from = 0;
    for (int shift = 0; largest >> shift; shift += SORT_DIGIT_BITS, from ^= 1) {
        TRY(GPU_LAUNCH(stream, tiles, SORT_THREADS, 0, (sort_count_kernel),
                       (const int32_t *)pairs[from].key, n, shift, counts));
        TRY(GPU_LAUNCH(stream, 1, SCAN_THREADS, 0, (sort_scan_kernel), counts,
                       (int64_t)tiles * SORT_DIGITS));
        TRY(GPU_LAUNCH(stream, tiles, SORT_THREADS, 0, (sort_place_kernel), pairs[from],
                       pairs[from ^ 1], n, shift, (const int32_t *)counts));
    }
    *sorted = pairs[from];
    return OK;
}

#endif
