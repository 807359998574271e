/* The length of all gradients as one vector: sum_squares of all, then root; clip_factor: what brings it down to
 * the limit. Between the two, sums of ranks that hold parts of the gradients are added. */
#include "ops/grad_norm.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <math.h>

CPU_DECLARE(sum_squares);

/* ---- sum_squares(gradients...) ---------------------------------------------------------------- */

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

/* With cut gradients the result is a summand; those that all ranks hold are counted on the first of them. */
static Status cut_rule(CutCtx *ctx)
{
    const SumSquaresAttr *attr = ctx->attr;
    bool any = attr->partial_axes >> ctx->axis & 1;
    for (int i = 0; i < ctx->n_in; i++) {
        if (place_is_cut(ctx->place[i])) any = true;
        if (ctx->place[i].kind == PLACE_PARTIAL) ctx->want[i] = (Place){PLACE_SAME, 0};
    }
    if (any) ctx->out[0] = (Place){PLACE_PARTIAL, 0};
    for (int i = 0; any && ctx->drop && i < ctx->n_in; i++) ctx->drop[i] = !place_is_cut(ctx->want[i]) && ctx->rank > 0;
    return OK;
}

static Status cut_attr(const CutCtx *ctx, void *attribute)
{
    SumSquaresAttr *attr = attribute;
    if (ctx->out[0].kind == PLACE_PARTIAL) attr->partial_axes |= 1u << ctx->axis;
    return OK;
}

const OpDef op_def_sum_squares = {
    .name = "sum_squares",
    .min_in = 0,
    .max_in = -1,
    .n_out = 1,
    .attr_bytes = sizeof(SumSquaresAttr),
    .flags = OP_SOURCE,
    .infer = infer,
    .cost = cost,
    .cut_rule = cut_rule,
    .cut_attr = cut_attr,
    .cpu = CPU_KERNELS(sum_squares),
};

/* ---- root(x) ------------------------------------------------------------------------------------ */

static Status infer_root(InferCtx *ctx)
{
    TRY(need_scalar(ctx->in[0], "x"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status run_root(KernelArgs *args)
{
    *(float *)args->out[0].data = sqrtf(*(const float *)args->in[0].data);
    return OK;
}

static const CpuKernel root_kernel = {.run = run_root};

static Cost cost_root(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_root = {
    .name = "root",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = OP_SOURCE,
    .infer = infer_root,
    .cost = cost_root,
    .cpu = CPU_KERNEL_ANY(&root_kernel),
};

Status op_grad_norm(Graph *g, int n, const ValueId *grads, ValueId *norm)
{
    ValueId sum;
    SumSquaresAttr attr = {0};
    TRY(graph_add(g, &op_def_sum_squares, &attr, grads, n, &sum));
    return graph_add(g, &op_def_root, NULL, &sum, 1, norm);
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
