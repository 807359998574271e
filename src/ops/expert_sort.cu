/* expert_sort on the cuda device: a stable counting sort. Each run of pairs belongs to one warp:
 *   1. it counts its pairs of each expert;
 *   2. one block turns the counts into the pairs of earlier runs, and sums into offsets;
 *   3. the warp walks its pairs again and gives each its row.
 * Among the 32 pairs that a warp looks at together, those of one expert are numbered by lane. So
 * nothing depends on which warp runs first.
 *
 * A choice that is no expert has no row (place -1), and its token becomes NaN when rows are
 * gathered back: a step can not go on with it unnoticed.
 */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/expert_sort.h"
#include "ops/ops.h"
}

enum { SORT_THREADS = 256, SORT_WARPS = SORT_THREADS / WARP, SORT_AHEAD = 8 };

typedef struct Sort {
    const int32_t *choice;
    int64_t pairs;
    int64_t experts, runs;
    int32_t *counts; /* [runs experts]; then of each expert */
    int32_t *offsets, *source, *place;
    float *load;
} Sort;

/* Which pair the lane looks at in step `step` of run `run`, and its expert; -1: none. */
__device__ static int expert_of(const Sort &s, int64_t pair)
{
    int e = pair < s.pairs ? s.choice[pair] : -1;
    return e >= 0 && e < s.experts ? e : -1;
}

__global__ static void __launch_bounds__(SORT_THREADS) count_kernel(Sort s)
{
    int64_t run = (int64_t)blockIdx.x * SORT_WARPS + threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP;
    if (run >= s.runs) return;
    int32_t *count = s.counts + run * s.experts;
    for (int64_t e = lane; e < s.experts; e += WARP) count[e] = 0;
    __syncwarp();
    for (int at = lane; at < GPU_SORT_RUN; at += WARP) {
        int e = expert_of(s, run * GPU_SORT_RUN + at);
        unsigned peers = __match_any_sync(FULL_WARP, e);
        if (e >= 0 && lane == __ffs((int)peers) - 1) count[e] += __popc(peers);
        __syncwarp();
    }
}

/* Of one expert: its pairs in earlier runs in place of each run's; returns all. */
__device__ static int32_t sum_runs(const Sort &s, int64_t expert)
{
    int32_t sum = 0, *count = s.counts + expert, ahead[SORT_AHEAD];
    for (int64_t run = 0; run < s.runs; run += SORT_AHEAD) {
        int n = (int)min((int64_t)SORT_AHEAD, s.runs - run);
        for (int i = 0; i < SORT_AHEAD; i++) ahead[i] = i < n ? count[(run + i) * s.experts] : 0;
        for (int i = 0; i < n; i++) {
            count[(run + i) * s.experts] = sum;
            sum += ahead[i];
        }
    }
    return sum;
}

/* One block. */
__global__ static void __launch_bounds__(SORT_THREADS) offsets_kernel(Sort s)
{
    int32_t *total = s.counts + s.runs * s.experts, start = 0;
    for (int64_t e = threadIdx.x; e < s.experts; e += SORT_THREADS) {
        total[e] = sum_runs(s, e);
        if (s.load) s.load[e] = (float)total[e];
    }
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    for (int64_t first = 0; first < s.experts; first += WARP) {
        int64_t e = first + threadIdx.x;
        int32_t rows = e < s.experts ? total[e] : 0;
        rows = (rows + EXPERT_ROW_ALIGN - 1) / EXPERT_ROW_ALIGN * EXPERT_ROW_ALIGN;
        int32_t end = rows; /* of the warp's experts up to this one */
        for (int by = 1; by < (int)WARP; by *= 2) {
            int32_t before = __shfl_up_sync(FULL_WARP, end, by);
            if ((int)threadIdx.x >= by) end += before;
        }
        if (e < s.experts) s.offsets[e] = start + end - rows;
        start += __shfl_sync(FULL_WARP, end, WARP - 1);
    }
    if (threadIdx.x == 0) s.offsets[s.experts] = start;
}

__global__ static void __launch_bounds__(SORT_THREADS) place_kernel(Sort s)
{
    int64_t run = (int64_t)blockIdx.x * SORT_WARPS + threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP;
    if (run >= s.runs) return;
    int32_t *next = s.counts + run * s.experts;
    for (int at = lane; at < GPU_SORT_RUN; at += WARP) {
        int64_t pair = run * GPU_SORT_RUN + at;
        int e = expert_of(s, pair);
        unsigned peers = __match_any_sync(FULL_WARP, e);
        int before = __popc(peers & ((1u << lane) - 1)), row = -1;
        if (e >= 0) row = s.offsets[e] + next[e] + before;
        if (row >= 0) s.source[row] = (int32_t)pair;
        if (s.place && pair < s.pairs) s.place[pair] = row;
        __syncwarp(); /* all have read next */
        if (e >= 0 && before == 0) next[e] += __popc(peers);
        __syncwarp();
    }
}

static Status run(KernelArgs *args)
{
    Sort s = {};
    s.choice = (const int32_t *)args->in[0].data;
    s.pairs = tensor_count(&args->in[0]);
    s.experts = *(const int64_t *)args->attr;
    s.runs = gpu_sort_runs(s.pairs);
    s.counts = (int32_t *)args->workspace;
    s.offsets = (int32_t *)args->out[0].data;
    s.source = (int32_t *)args->out[1].data;
    s.place = (int32_t *)args->out[2].data;
    s.load = (float *)args->out[3].data;
    unsigned blocks = grid_of(ceil_div(s.runs, SORT_WARPS));
    TRY(gpu_fill(args->stream, s.source, 0xff, tensor_bytes(&args->out[1]))); /* -1 */
    if (s.runs) TRY(GPU_LAUNCH(args->stream, blocks, SORT_THREADS, 0, count_kernel, s));
    TRY(GPU_LAUNCH(args->stream, 1, SORT_THREADS, 0, offsets_kernel, s));
    return s.runs ? GPU_LAUNCH(args->stream, blocks, SORT_THREADS, 0, place_kernel, s) : OK;
}

CUDA_KERNEL(expert_sort) = {.run = run};
