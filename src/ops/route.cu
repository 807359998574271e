/* route and its gradient on the cuda device: a warp for each token. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/router.h"
}

enum { ROUTE_THREADS = 128, ROUTE_TOKENS = ROUTE_THREADS / WARP };

/* Whether key a of expert i comes before key b of expert j: the higher key, the lower expert among
 * equals. What is taken has the key NaN and comes before nothing. */
__device__ static bool precedes(float a, int i, float b, int j)
{
    return a > b || (a == b && i < j);
}

/* The warp's next choice, which every lane gets; keys [n]. */
__device__ static int choose(const float *keys, int n)
{
    float key = -INFINITY;
    int at = INT32_MAX;
    for (int e = (int)threadIdx.x % WARP; e < n; e += WARP)
        if (precedes(keys[e], e, key, at)) key = keys[e], at = e;
    for (int mask = WARP / 2; mask; mask /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, key, mask);
        int place = __shfl_xor_sync(FULL_WARP, at, mask);
        if (precedes(other, place, key, at)) key = other, at = place;
    }
    return at;
}

typedef struct Softmax {
    float most, sum;
} Softmax;

/* Of a row of n logits, by a warp. */
__device__ static Softmax softmax_of(const float *logits, int n)
{
    Softmax s = {-INFINITY, 0};
    int lane = (int)threadIdx.x % WARP;
    for (int e = lane; e < n; e += WARP) s.most = fmaxf(s.most, logits[e]);
    s.most = warp_max(s.most);
    for (int e = lane; e < n; e += WARP) s.sum += expf(logits[e] - s.most);
    s.sum = warp_sum(s.sum);
    return s;
}

typedef struct Tokens {
    const float *logits; /* [n experts] */
    int64_t pitch, n;
    int experts;
    RouteAttr attr;
} Tokens;

__global__ static void __launch_bounds__(ROUTE_THREADS)
    route_kernel(Tokens t, const float *bias, int32_t *choice, float *score)
{
    __shared__ float all_keys[ROUTE_TOKENS][ROUTER_MAX_EXPERTS];
    int64_t token = (int64_t)blockIdx.x * ROUTE_TOKENS + threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP;
    float *keys = all_keys[threadIdx.x / WARP];
    if (token >= t.n) return;
    const float *logits = t.logits + token * t.pitch;
    for (int e = lane; e < t.experts; e += WARP) {
        float key = bias ? logits[e] + bias[e] : logits[e];
        keys[e] = key == key ? key : -INFINITY; /* a NaN is never preferred */
    }
    __syncwarp();
    Softmax s = {};
    if (score && t.attr.kind == ROUTER_SOFTMAX) s = softmax_of(logits, t.experts);
    for (int j = 0; j < t.attr.k; j++) {
        int e = choose(keys, t.experts);
        __syncwarp();
        if (lane == 0) {
            keys[e] = NAN;
            choice[token * t.attr.k + j] = e;
            if (score)
                score[token * t.attr.k + j] = t.attr.kind == ROUTER_SOFTMAX
                                                  ? expf(logits[e] - s.most) / s.sum
                                                  : 1 / (1 + expf(-logits[e]));
        }
        __syncwarp();
    }
}

static Tokens tokens_of(const KernelArgs *args)
{
    Rows rows = tensor_as_rows(&args->in[0], 1);
    Tokens t = {(const float *)(const void *)rows.data, rows.pitch, rows.n, (int)rows.width,
                *(const RouteAttr *)args->attr};
    return t;
}

static unsigned route_blocks(const Tokens *t) { return grid_of(ceil_div(t->n, ROUTE_TOKENS)); }

static Status run(KernelArgs *args)
{
    Tokens t = tokens_of(args);
    if (!t.n) return OK;
    return GPU_LAUNCH(args->stream, route_blocks(&t), ROUTE_THREADS, 0, route_kernel, t,
                      (const float *)args->in[1].data, (int32_t *)args->out[0].data,
                      (float *)args->out[1].data);
}

/* ---- gradient ----------------------------------------------------------------------------- */

__global__ static void __launch_bounds__(ROUTE_THREADS)
    route_grad_kernel(Tokens t, const int32_t *choice, const float *score, const float *dscore,
                      float *dlogits)
{
    int64_t token = (int64_t)blockIdx.x * ROUTE_TOKENS + threadIdx.x / WARP;
    int k = t.attr.k;
    bool softmax = t.attr.kind == ROUTER_SOFTMAX;
    if (token >= t.n) return;
    const float *logits = t.logits + token * t.pitch;
    Softmax s = {};
    float sum = 0;
    choice += token * k, score += token * k, dscore += token * k;
    if (softmax) s = softmax_of(logits, t.experts);
    for (int j = 0; j < k; j++) sum = fmaf(dscore[j], score[j], sum);
    for (int e = (int)threadIdx.x % WARP; e < t.experts; e += WARP) {
        float d = softmax ? -sum * (expf(logits[e] - s.most) / s.sum) : 0;
        for (int j = 0; j < k; j++)
            if (choice[j] == e)
                d = fmaf(dscore[j], softmax ? score[j] : score[j] * (1 - score[j]), d);
        dlogits[token * t.experts + e] = d;
    }
}

static Status run_grad(KernelArgs *args)
{
    Tokens t = tokens_of(args);
    if (!t.n) return OK;
    return GPU_LAUNCH(args->stream, route_blocks(&t), ROUTE_THREADS, 0, route_grad_kernel, t,
                      (const int32_t *)args->in[1].data, (const float *)args->in[2].data,
                      (const float *)args->in[3].data, (float *)args->out[0].data);
}

CUDA_KERNEL(route) = {.run = run};
CUDA_KERNEL(route_grad) = {.run = run_grad};
