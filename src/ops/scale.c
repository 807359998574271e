/* scale: y = factor x. */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(scale);
CUDA_DECLARE(scale);

static Status infer(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "x"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    float factor = *(const float *)graph_node(ctx->graph, ctx->node)->attr;
    return op_scale(ctx->graph, ctx->dout[0], factor, &ctx->din[0]);
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "factor %.9g", (double)*(const float *)attr);
}

const OpDef op_def_scale = {
    .name = "scale",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*~ -> *",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(scale),
    .cuda = &cuda_scale,
};

Status op_scale(Graph *g, ValueId x, float factor, ValueId *y)
{
    return graph_add(g, &op_def_scale, &factor, &x, 1, y);
}
