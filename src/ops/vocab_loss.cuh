/* From what parts of the vocabulary say of tokens to the loss, and to the factors of its gradient
 * (vocab_loss.c). Shared by vocab_loss and linear_cross_entropy. Included by .cu files only. */
#ifndef OPS_VOCAB_LOSS_CUH
#define OPS_VOCAB_LOSS_CUH

#include "ops/kernel.cuh"

extern "C" {
#include "ops/vocab_loss.h"
}

typedef struct LossTokens {
    const float *stats; /* [parts tokens 3] */
    int64_t parts, tokens;
    const int32_t *targets;
    int64_t words; /* targets are below this, or none */
    const float *weights;
    float z_loss;
} LossTokens;

enum { LOSS_THREADS = 256 };

typedef struct TokenLoss {
    double lse, target;
    bool counts;
} TokenLoss;

/* Parts are joined in their order. */
__device__ static TokenLoss join_parts(const LossTokens &l, int64_t token)
{
    const float *at = l.stats + token * VOCAB_STATS;
    int64_t each = l.tokens * VOCAB_STATS;
    float most = -INFINITY;
    double sum = 0, target = 0;
    for (int64_t s = 0; s < l.parts; s++) most = fmaxf(most, at[s * each + VOCAB_MAX]);
    for (int64_t s = 0; s < l.parts; s++) {
        const float *p = at + s * each;
        sum += exp((double)p[VOCAB_MAX] - (double)most) * (double)p[VOCAB_SUM];
        target += (double)p[VOCAB_TARGET];
    }
    int32_t word = l.targets[token];
    TokenLoss t = {(double)most + log(sum), target, word >= 0 && word < l.words};
    return t;
}

/* What each token adds to the loss, and its nll (NULL: nobody wants it). */
__global__ static void __launch_bounds__(LOSS_THREADS)
    token_loss_kernel(LossTokens l, double *terms, float *nll)
{
    int64_t i = (int64_t)blockIdx.x * LOSS_THREADS + threadIdx.x;
    if (i >= l.tokens) return;
    TokenLoss t = join_parts(l, i);
    double each = t.lse - t.target;
    if (nll) nll[i] = t.counts ? (float)each : 0;
    terms[i] = t.counts ? (double)l.weights[i] * (each + (double)l.z_loss * t.lse * t.lse) : 0;
}

/* One block: each thread its terms in their order, then the threads'. */
__global__ static void __launch_bounds__(LOSS_THREADS)
    sum_terms_kernel(const double *terms, int64_t n, float *loss)
{
    __shared__ double sum[LOSS_THREADS];
    int self = (int)threadIdx.x;
    double mine = 0;
    for (int64_t i = self; i < n; i += LOSS_THREADS) mine += terms[i];
    sum[self] = mine;
    for (int half = LOSS_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (self < half) sum[self] += sum[self + half];
    }
    if (self == 0) *loss = (float)sum[0];
}

/* factors [tokens 3] */
__global__ static void __launch_bounds__(LOSS_THREADS)
    loss_factors_kernel(LossTokens l, const float *dloss, float *factors)
{
    int64_t i = (int64_t)blockIdx.x * LOSS_THREADS + threadIdx.x;
    if (i >= l.tokens) return;
    TokenLoss t = join_parts(l, i);
    float hit = t.counts ? l.weights[i] * *dloss : 0, lse = (float)t.lse;
    factors[i * VOCAB_STATS + VOCAB_LSE] = lse;
    factors[i * VOCAB_STATS + VOCAB_SCALE] = hit * (1 + 2 * l.z_loss * lse);
    factors[i * VOCAB_STATS + VOCAB_HIT] = hit;
}

/* loss and nll may be NULL; terms: a double for each token. */
static inline Status gpu_loss(GpuStream *stream, const LossTokens *l, double *terms, float *loss,
                              float *nll)
{
    if (l->tokens)
        TRY(GPU_LAUNCH(stream, grid_of(ceil_div(l->tokens, LOSS_THREADS)), LOSS_THREADS, 0,
                       token_loss_kernel, *l, terms, nll));
    if (!loss) return OK;
    return GPU_LAUNCH(stream, 1, LOSS_THREADS, 0, sum_terms_kernel, (const double *)terms,
                      l->tokens, loss);
}

static inline Status gpu_loss_factors(GpuStream *stream, const LossTokens *l, const float *dloss,
                                      float *factors)
{
    if (!l->tokens) return OK;
    return GPU_LAUNCH(stream, grid_of(ceil_div(l->tokens, LOSS_THREADS)), LOSS_THREADS, 0,
                      loss_factors_kernel, *l, dloss, factors);
}

#endif
