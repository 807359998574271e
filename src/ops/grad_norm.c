/* grad_norm: the length of all gradients as one vector; clip_factor: what brings it down to the limit. */
#include "ops/grad_norm.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <math.h>

CPU_DECLARE(grad_norm);

static Status infer(InferCtx *ctx)
{
    for (int i = 0; i < ctx->n_in; i++) TRY(need_activation(ctx->in[i], "a gradient"));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    Cost cost = cost_streaming(g, node, 0);
    for (int i = 0; i < node->n_in; i++) cost.flop += 2 * value_count(g, node->in[i]);
    return cost;
}

const OpDef op_def_grad_norm = {
    .name = "grad_norm",
    .min_in = 0,
    .max_in = -1,
    .n_out = 1,
    .flags = OP_SOURCE,
    .infer = infer,
    .cost = cost,
    .cpu = CPU_KERNELS(grad_norm),
};

Status op_grad_norm(Graph *g, int n, const ValueId *grads, ValueId *norm)
{
    return graph_add(g, &op_def_grad_norm, NULL, grads, n, norm);
}

/* ---- clip_factor(norm, hyper) --------------------------------------------------------------- */

static Status infer_clip(InferCtx *ctx)
{
    TRY(need_scalar(ctx->in[0], "norm"));
    TRY(need_vector(ctx->in[1], HYPER_COUNT, DTYPE_F32, "hyper"));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    return OK;
}

/* A norm that is no number gives a factor that is none: adamw then leaves everything as it is. */
static Status run_clip(KernelArgs *args)
{
    float norm = *(const float *)args->in[0].data, clip = ((const float *)args->in[1].data)[HYPER_CLIP];
    float *factor = args->out[0].data;
    if (!isfinite(norm))
        *factor = NAN;
    else
        *factor = clip > 0 && norm > clip ? clip / norm : 1;
    return OK;
}

static const CpuKernel clip_kernel = {.run = run_clip};

static Cost cost_clip(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_clip_factor = {
    .name = "clip_factor",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_SOURCE,
    .infer = infer_clip,
    .cost = cost_clip,
    .cpu = CPU_KERNEL_ANY(&clip_kernel),
};

Status op_clip_factor(Graph *g, ValueId norm, ValueId hyper, ValueId *factor)
{
    return graph_add(g, &op_def_clip_factor, NULL, (ValueId[]){norm, hyper}, 2, factor);
}
