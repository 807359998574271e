#include "ops/kernel.h"
#include "ops/simd.h"

#include "ops/router.h"

enum { PARALLEL = 8192 }; /* logits below which one thread is faster */

typedef struct Operands {
    const RouterLossAttr *attr;
    const float *logits, *weights;
    const int32_t *choice;
    int64_t tokens, experts, k;
} Operands;

static Operands operands_of(const KernelArgs *args)
{
    const Shape *logits = &args->in[0].shape, *choice = &args->in[1].shape;
    Operands o = {.attr = args->attr, .logits = args->in[0].data, .choice = args->in[1].data};
    o.weights = args->in[2].data;
    o.experts = logits->dim[logits->rank - 1];
    o.tokens = shape_count(logits) / o.experts;
    o.k = choice->dim[choice->rank - 1];
    return o;
}

/* Probabilities over experts; *divisor is sum s with sigmoid scores, else 1. */
static float probabilities(const Operands *o, const float *logits, float *p, float *divisor)
{
    *divisor = 1;
    if (o->attr->kind == ROUTER_SOFTMAX) return router_softmax(logits, o->experts, p);
    float lse = o->attr->z != 0 ? router_softmax(logits, o->experts, p)
                                : 0; /* p is made again below */
    *divisor = router_sigmoid(logits, o->experts, p);
    for (int64_t e = 0; e < o->experts; e++) p[e] /= *divisor;
    return lse;
}

/* ---- loss ------------------------------------------------------------------------------- */

/* Sums of one block of tokens, in its part of the workspace: sum of p and choices by expert, then
 * the sum of lse^2 and the tokens counted. */
static void block_sums(const Operands *o, int64_t block, double *sums)
{
    double *p_sum = sums, *chosen = sums + o->experts, *last = sums + 2 * o->experts;
    int64_t end = min_i64((block + 1) * ROUTER_BLOCK, o->tokens);
    memset(sums, 0, (size_t)(2 * o->experts + 2) * sizeof *sums);
    for (int64_t t = block * ROUTER_BLOCK; t < end; t++) {
        float p[ROUTER_MAX_EXPERTS], divisor;
        if (o->weights[t] == 0) continue;
        double lse = (double)probabilities(o, o->logits + t * o->experts, p, &divisor);
        for (int64_t e = 0; e < o->experts; e++) p_sum[e] += (double)p[e];
        for (int64_t j = t * o->k; j < (t + 1) * o->k; j++) chosen[o->choice[j]] += 1;
        last[0] += lse * lse;
        last[1] += 1;
    }
}

static Status run(KernelArgs *args)
{
    Operands o = operands_of(args);
    double *sums = args->workspace, loss = 0;
    int64_t each = 2 * o.experts + 2, blocks = router_blocks(o.tokens);
    memset(sums, 0, (size_t)each * sizeof *sums); /* of the first block, should there be none */
#pragma omp parallel for num_threads(args->threads) if (o.tokens * o.experts >= PARALLEL)          \
    schedule(static)
    for (int64_t b = 0; b < blocks; b++) block_sums(&o, b, sums + b * each);
    for (int64_t b = 1; b < blocks; b++)
        for (int64_t i = 0; i < each; i++) sums[i] += sums[b * each + i];
    double n = sums[each - 1];
    for (int64_t e = 0; e < o.experts && n > 0; e++)
        loss += (double)o.attr->aux * (double)o.experts *
                (sums[o.experts + e] / (n * (double)o.k)) * (sums[e] / n);
    if (n > 0) loss += (double)o.attr->z * sums[each - 2] / n;
    *(float *)args->out[0].data = (float)loss;
    return OK;
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const Shape *logits = &graph_value(graph, node->in[0])->shape;
    int64_t experts = logits->dim[logits->rank - 1],
            blocks = router_blocks(shape_count(logits) / experts);
    return (size_t)(max_i64(blocks, 1) * (2 * experts + 2)) * sizeof(double);
}

const Kernel CPU(router_loss) = {.run = run, .workspace = workspace};

/* ---- gradient --------------------------------------------------------------------------- */

/* g_e = dloss aux E f_e / n into slope; returns dloss 2 z / n. */
static float make_slopes(const Operands *o, float dloss, float *slope)
{
    double n = 0;
    memset(slope, 0, (size_t)o->experts * sizeof *slope);
    for (int64_t t = 0; t < o->tokens; t++) {
        if (o->weights[t] == 0) continue;
        for (int64_t j = t * o->k; j < (t + 1) * o->k; j++) slope[o->choice[j]] += 1;
        n += 1;
    }
    if (n == 0) return 0;
    float factor = (float)((double)dloss * (double)o->attr->aux * (double)o->experts /
                           (n * n * (double)o->k));
    for (int64_t e = 0; e < o->experts; e++) slope[e] *= factor;
    return (float)((double)dloss * 2 * (double)o->attr->z / n);
}

static void token_grad(const Operands *o, const float *logits, const float *slope, float z_slope,
                       float *dlogits)
{
    float p[ROUTER_MAX_EXPERTS], soft[ROUTER_MAX_EXPERTS], divisor;
    bool softmax = o->attr->kind == ROUTER_SOFTMAX;
    float lse = probabilities(o, logits, p, &divisor);
    const float *q = p;
    if (!softmax && z_slope != 0) {
        router_softmax(logits, o->experts, soft);
        q = soft;
    }
    float mean = router_dot(p, slope, o->experts);
    for (int64_t e = 0; e < o->experts; e++) {
        float inner = softmax ? p[e] : p[e] * (1 - p[e] * divisor);
        dlogits[e] = inner * (slope[e] - mean) + (z_slope != 0 ? z_slope * lse * q[e] : 0);
    }
}

static Status run_grad(KernelArgs *args)
{
    Operands o = operands_of(args);
    float slope[ROUTER_MAX_EXPERTS], *dlogits = args->out[0].data;
    float z_slope = make_slopes(&o, *(const float *)args->in[3].data, slope);
#pragma omp parallel for num_threads(args->threads) if (o.tokens * o.experts >= PARALLEL)          \
    schedule(static)
    for (int64_t t = 0; t < o.tokens; t++) {
        if (o.weights[t] == 0)
            memset(dlogits + t * o.experts, 0, (size_t)o.experts * sizeof *dlogits);
        else
            token_grad(&o, o.logits + t * o.experts, slope, z_slope, dlogits + t * o.experts);
    }
    return OK;
}

const Kernel CPU(router_loss_grad) = {.run = run_grad};
