/* add: y = a + b. */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(add);
CUDA_DECLARE(add);

static Status infer(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "a"));
    TRY(need_like(ctx->in[1], ctx->in[0], "b"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    ctx->din[0] = ctx->din[1] = ctx->dout[0];
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_add = {
    .name = "add",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_CHEAP,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer,
    .cut = "*~ *~ -> *",
    .grad = grad,
    .cost = cost,
    .cpu = CPU_KERNELS(add),
    .cuda = &cuda_add,
};

Status op_add(Graph *g, ValueId a, ValueId b, ValueId *y)
{
    return graph_add(g, &op_def_add, NULL, (ValueId[]){a, b}, 2, y);
}
