/* router_loss and its gradient on the cuda device: a warp a token. */
#include "ops/gelu.cuh"
#include "ops/wide_sums.cuh"

extern "C" {
#include "ops/router.h"
}

namespace
{

enum {
    TOKENS_TOGETHER = 8,
    LOSS_THREADS = TOKENS_TOGETHER * WARP,
    COUNT_TOKENS = 1024,
    TOTAL_THREADS = 1024
};

typedef struct RouterOperands {
    RouterLossAttr attr;
    const float *logits, *weights;
    const int32_t *choice;
    int64_t tokens;
    int experts, k;
} RouterOperands;

static RouterOperands operands_of(const KernelArgs *args)
{
    const Shape *logits = &args->in[0].shape, *choice = &args->in[1].shape;
    RouterOperands o = {*(const RouterLossAttr *)args->attr, (const float *)args->in[0].data,
                        (const float *)args->in[2].data, (const int32_t *)args->in[1].data};
    o.experts = (int)logits->dim[logits->rank - 1];
    o.tokens = shape_count(logits) / o.experts;
    o.k = (int)choice->dim[choice->rank - 1];
    return o;
}

/* Of one token, in all lanes of its warp: what its probabilities p are made of. */
typedef struct Scores {
    float lse;     /* of the logits; 0 where nobody needs it */
    float divisor; /* p = sigmoid / divisor, or e^(logit - highest) / divisor */
    float highest;
} Scores;

__device__ static Scores scores_of(const RouterOperands &o, const float *logits)
{
    const int lane = (int)threadIdx.x % WARP;
    const bool softmax = o.attr.kind == ROUTER_SOFTMAX;
    Scores s = {0, 0, -INFINITY};
    float sum = 0, sigmoids = 0;
    for (int e = lane; e < o.experts; e += WARP) s.highest = fmaxf(s.highest, logits[e]);
    s.highest = warp_max(s.highest);
    for (int e = lane; e < o.experts; e += WARP) {
        sum += expf(logits[e] - s.highest);
        if (!softmax) sigmoids += sigmoid(logits[e]);
    }
    sum = warp_sum(sum);
    s.divisor = softmax ? sum : warp_sum(sigmoids);
    if (softmax || o.attr.z != 0) s.lse = s.highest + logf(sum);
    return s;
}

__device__ static float probability(const RouterOperands &o, Scores s, float logit)
{
    float score = o.attr.kind == ROUTER_SOFTMAX ? expf(logit - s.highest) : sigmoid(logit);
    return score / s.divisor;
}

/* ---- loss ---------------------------------------------------------------------------------- */

/* Sums of one block of ROUTER_BLOCK tokens: sum of p and choices by expert, then the sum of lse^2
 * and the tokens counted. A warp makes the probabilities of a token, the threads add those of
 * TOKENS_TOGETHER tokens up, each for its own experts. */
__global__ void __launch_bounds__(LOSS_THREADS) loss_kernel(RouterOperands o, double *sums)
{
    GPU_DYNAMIC_SHARED(shared);
    __shared__ float lse[TOKENS_TOGETHER];
    __shared__ int counted[TOKENS_TOGETHER];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, E = o.experts;
    const int64_t first = (int64_t)blockIdx.x * ROUTER_BLOCK,
                  end = min(first + ROUTER_BLOCK, o.tokens);
    double *p_sum = (double *)shared, squares = 0, n = 0;
    float *p = (float *)(p_sum + E);
    int *chosen = (int *)(p + TOKENS_TOGETHER * E);
    for (int e = threadIdx.x; e < E; e += LOSS_THREADS) {
        p_sum[e] = 0;
        chosen[e] = 0;
    }
    __syncthreads();
    for (int64_t at = first; at < end; at += TOKENS_TOGETHER) {
        const int64_t t = at + warp;
        const bool counts = t < end && o.weights[t] != 0;
        Scores s = {0, 1, 0};
        if (counts) s = scores_of(o, o.logits + t * E);
        for (int e = lane; e < E; e += WARP)
            p[warp * E + e] = counts ? probability(o, s, o.logits[t * E + e]) : 0;
        for (int j = lane; j < o.k && counts; j += WARP)
            atomicAdd(&chosen[o.choice[t * o.k + j]], 1);
        if (lane == 0) {
            lse[warp] = s.lse;
            counted[warp] = counts;
        }
        __syncthreads();
        for (int e = threadIdx.x; e < E; e += LOSS_THREADS)
            for (int w = 0; w < TOKENS_TOGETHER; w++) p_sum[e] += (double)p[w * E + e];
        for (int w = 0; w < TOKENS_TOGETHER; w++) {
            squares += (double)lse[w] * (double)lse[w];
            n += counted[w];
        }
        __syncthreads(); /* before they are written again */
    }
    double *to = sums + blockIdx.x * (2 * (int64_t)E + 2);
    for (int e = threadIdx.x; e < E; e += LOSS_THREADS) {
        to[e] = p_sum[e];
        to[E + e] = chosen[e];
    }
    if (threadIdx.x == 0) {
        to[2 * E] = squares;
        to[2 * E + 1] = n;
    }
}

/* By a warp, all of whose lanes get it. */
__device__ static double sum_of_blocks(const double *sums, int64_t blocks, int64_t each, int64_t at)
{
    double sum = 0;
    for (int64_t b = threadIdx.x % WARP; b < blocks; b += WARP) sum += sums[b * each + at];
    return wide_warp_sum(sum);
}

/* Each warp has experts of its own. */
__global__ void __launch_bounds__(TOTAL_THREADS)
    loss_total_kernel(RouterOperands o, const double *sums, int64_t blocks, float *out)
{
    __shared__ double scratch[WARP];
    const int64_t E = o.experts, each = 2 * E + 2;
    const double n = sum_of_blocks(sums, blocks, each, each - 1);
    double loss = 0;
    for (int64_t e = threadIdx.x / WARP; e < E && n > 0; e += TOTAL_THREADS / (int)WARP)
        loss += (double)o.attr.aux * (double)E *
                (sum_of_blocks(sums, blocks, each, E + e) / (n * (double)o.k)) *
                (sum_of_blocks(sums, blocks, each, e) / n);
    loss = wide_block_sum(threadIdx.x % WARP ? 0 : loss, scratch);
    const double squares = sum_of_blocks(sums, blocks, each, each - 2);
    if (threadIdx.x) return;
    if (n > 0) loss += (double)o.attr.z * squares / n;
    *out = (float)loss;
}

static Status run(KernelArgs *args)
{
    RouterOperands o = operands_of(args);
    const int64_t blocks = router_blocks(o.tokens);
    double *sums = (double *)args->workspace;
    const size_t shared = (size_t)o.experts *
                          (sizeof(double) + sizeof(int) + TOKENS_TOGETHER * sizeof(float));
    if (blocks)
        TRY(GPU_LAUNCH(args->stream, grid_of(blocks), LOSS_THREADS, shared, (loss_kernel), o,
                       sums));
    return GPU_LAUNCH(args->stream, 1, TOTAL_THREADS, 0, (loss_total_kernel), o,
                      (const double *)sums, blocks, (float *)args->out[0].data);
}

/* ---- gradient ------------------------------------------------------------------------------ */

/* How often each expert was chosen, and behind that how many tokens count. */
__global__ void __launch_bounds__(LOSS_THREADS) count_kernel(RouterOperands o, int *counts)
{
    GPU_DYNAMIC_SHARED(shared);
    int *count = (int *)shared;
    const int64_t first = (int64_t)blockIdx.x * COUNT_TOKENS,
                  end = min(first + COUNT_TOKENS, o.tokens);
    for (int e = threadIdx.x; e <= o.experts; e += LOSS_THREADS) count[e] = 0;
    __syncthreads();
    for (int64_t t = first + threadIdx.x; t < end; t += LOSS_THREADS) {
        if (o.weights[t] == 0) continue;
        for (int j = 0; j < o.k; j++) atomicAdd(&count[o.choice[t * o.k + j]], 1);
        atomicAdd(&count[o.experts], 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e <= o.experts; e += LOSS_THREADS)
        if (count[e]) atomicAdd(&counts[e], count[e]);
}

__global__ void __launch_bounds__(LOSS_THREADS)
    loss_grad_kernel(RouterOperands o, const int *counts, const float *dloss, float *dlogits)
{
    const int lane = (int)threadIdx.x % WARP;
    const int64_t t = (int64_t)blockIdx.x * TOKENS_TOGETHER + threadIdx.x / WARP;
    const bool softmax = o.attr.kind == ROUTER_SOFTMAX;
    if (t >= o.tokens) return; /* with its whole warp */
    const float *logits = o.logits + t * o.experts;
    float *to = dlogits + t * o.experts;
    if (o.weights[t] == 0) {
        for (int e = lane; e < o.experts; e += WARP) to[e] = 0;
        return;
    }
    const double n = counts[o.experts], d = (double)*dloss;
    /* g_e = factor times how often e was chosen */
    const float factor = (float)(d * (double)o.attr.aux * o.experts / (n * n * o.k));
    const float z_slope = (float)(d * 2 * (double)o.attr.z / n);
    const Scores s = scores_of(o, logits);
    float mean = 0;
    for (int e = lane; e < o.experts; e += WARP)
        mean = fmaf(probability(o, s, logits[e]), (float)counts[e] * factor, mean);
    mean = warp_sum(mean);
    for (int e = lane; e < o.experts; e += WARP) {
        const float logit = logits[e], p = probability(o, s, logit);
        const float inner = softmax ? p : p * (1 - p * s.divisor);
        const float z = z_slope != 0 ? z_slope * s.lse * expf(logit - s.lse) : 0;
        to[e] = inner * ((float)counts[e] * factor - mean) + z;
    }
}

static Status run_grad(KernelArgs *args)
{
    RouterOperands o = operands_of(args);
    int *counts = (int *)args->workspace;
    const size_t bytes = (size_t)(o.experts + 1) * sizeof *counts;
    if (!o.tokens) return OK;
    TRY(gpu_fill(args->stream, counts, 0, bytes));
    TRY(GPU_LAUNCH(args->stream, grid_of(ceil_div(o.tokens, COUNT_TOKENS)), LOSS_THREADS, bytes,
                   (count_kernel), o, counts));
    return GPU_LAUNCH(args->stream, grid_of(ceil_div(o.tokens, TOKENS_TOGETHER)), LOSS_THREADS, 0,
                      (loss_grad_kernel), o, (const int *)counts, (const float *)args->in[3].data,
                      (float *)args->out[0].data);
}

} // namespace

CUDA_KERNEL(router_loss) = {.run = run};
CUDA_KERNEL(router_loss_grad) = {.run = run_grad};
