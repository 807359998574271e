/* cast: f32 to bf16, rounded to nearest even, and back. */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(cast);
CUDA_DECLARE(cast);

static Status infer(InferCtx *ctx)
{
    DType dtype = *(const DType *)ctx->attr;
    TRY(need_activation(ctx->in[0], "x"));
    if (!dtype_is_activation(dtype))
        return fail(ERR_ARG, "y cannot be %s, only f32 or bf16", dtype_name(dtype));
    ctx->out[0] = infer_out(dtype, ctx->in[0]->shape);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    DType dtype = graph_value(ctx->graph, graph_node(ctx->graph, ctx->node)->in[0])->dtype;
    return op_cast(ctx->graph, ctx->dout[0], dtype, &ctx->din[0]);
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

static void attr_text(const void *attr, Str *out)
{
    str_add(out, dtype_name(*(const DType *)attr));
}

const OpDef op_def_cast = {
    .name = "cast",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(DType),
    .flags = OP_CHEAP,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*~ -> *",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(cast),
    .cuda = &cuda_cast,
};

Status op_cast(Graph *g, ValueId x, DType dtype, ValueId *y)
{
    if (graph_value(g, x)->dtype == dtype) { /* nothing to do, no node */
        *y = x;
        return OK;
    }
    return graph_add(g, &op_def_cast, &dtype, &x, 1, y);
}
