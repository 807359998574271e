#include "ops/kernel.h"
#include "ops/simd.h"

#include "ops/router.h"

enum { PARALLEL = 32768 }; /* logits below which one thread is faster */

/* keys[0..n) from logits and bias, padded with -inf to whole vectors; a NaN is never preferred. */
static void make_keys(const float *logits, const float *bias, int64_t n, float *keys)
{
    int64_t padded = (n + VL - 1) / VL * VL;
    for (int64_t i = 0; i < n; i++) {
        float key = bias ? logits[i] + bias[i] : logits[i];
        keys[i] = key == key ? key : -INFINITY;
    }
    for (int64_t i = n; i < padded; i++) keys[i] = -INFINITY;
}

static int32_t first_untaken(const int32_t *choice, int taken)
{
    for (int32_t e = 0;; e++) {
        bool found = false;
        for (int j = 0; j < taken; j++) found = found || choice[j] == e;
        if (!found) return e;
    }
}

/* The k highest keys in falling order, the lowest index among equals: k times the maximum, k is
 * small. */
static void choose(float *keys, int64_t n, int k, int32_t *choice)
{
    for (int j = 0; j < k; j++) {
        Vf highest = vf_set(-INFINITY);
        for (int64_t i = 0; i < n; i += VL) highest = vf_max(highest, vf_load(keys + i));
        float key = vf_max_lane(highest);
        int64_t at = 0;
        while (at < n - 1 && keys[at] != key) at++;
        choice[j] = key == -INFINITY ? first_untaken(choice, j) : (int32_t)at;
        keys[choice[j]] = -INFINITY;
    }
}

static Status run(KernelArgs *args)
{
    const RouteAttr *attr = args->attr;
    Rows logits = tensor_as_rows(&args->in[0], 1);
    const float *bias = args->in[1].data;
    int64_t n = logits.width;
    int k = attr->k;
    int32_t *all_choices = args->out[0].data;
    float *all_scores = args->out[1].data;
#pragma omp parallel for num_threads(args->threads) if (logits.n * n >= PARALLEL) schedule(static)
    for (int64_t t = 0; t < logits.n; t++) {
        float keys[ROUTER_MAX_EXPERTS + VL];
        const float *row = row_f32(&logits, t);
        int32_t *choice = all_choices + t * k;
        float *score = all_scores ? all_scores + t * k : NULL;
        make_keys(row, bias, n, keys);
        choose(keys, n, k, choice);
        if (!score) continue;
        if (attr->kind == ROUTER_SOFTMAX) router_softmax(row, n, keys);
        for (int j = 0; j < k; j++)
            score[j] = attr->kind == ROUTER_SOFTMAX ? keys[choice[j]]
                                                    : 1 / (1 + expf(-row[choice[j]]));
    }
    return OK;
}

const Kernel CPU(route) = {.run = run};

/* ---- gradient --------------------------------------------------------------------------- */

static void token_grad(const float *logits, int64_t n, const RouteAttr *attr, const int32_t *choice,
                       const float *score, const float *dscore, float *dlogits)
{
    float sum = 0;
    for (int j = 0; j < attr->k; j++) sum += dscore[j] * score[j];
    if (attr->kind == ROUTER_SOFTMAX) {
        router_softmax(logits, n, dlogits);
        for (int64_t i = 0; i < n; i++) dlogits[i] *= -sum;
    } else {
        memset(dlogits, 0, (size_t)n * sizeof *dlogits);
    }
    for (int j = 0; j < attr->k; j++) {
        float slope = attr->kind == ROUTER_SOFTMAX ? score[j] : score[j] * (1 - score[j]);
        dlogits[choice[j]] += dscore[j] * slope;
    }
}

static Status run_grad(KernelArgs *args)
{
    const RouteAttr *attr = args->attr;
    int64_t n = args->in[0].shape.dim[args->in[0].shape.rank - 1],
            tokens = tensor_count(&args->in[0]) / n;
    const float *logits = args->in[0].data, *score = args->in[2].data, *dscore = args->in[3].data;
    const int32_t *choice = args->in[1].data;
    float *dlogits = args->out[0].data;
#pragma omp parallel for num_threads(args->threads) if (tokens * n >= PARALLEL) schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        token_grad(logits + t * n, n, attr, choice + t * attr->k, score + t * attr->k,
                   dscore + t * attr->k, dlogits + t * n);
    return OK;
}

const Kernel CPU(route_grad) = {.run = run_grad};
