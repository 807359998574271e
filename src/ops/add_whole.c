/* add_whole: y = a + b, of sums whose summands must have come together before: a and b are never
 * partial sums, where add would pass on theirs. In canonical mode the gradients of a weight that
 * two nodes read are each a sum over all leaves by itself, and these two are added last: so a
 * pipeline, whose stages have one each, makes the same bits. */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(add);
CUDA_DECLARE(add);

static Status infer(InferCtx *ctx)
{
    TRY(need_dtype(ctx->in[0], DTYPE_F32, "a"));
    TRY(need_like(ctx->in[1], ctx->in[0], "b"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_add_whole = {
    .name = "add_whole",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_SOURCE,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer,
    .cut = "* * -> *",
    .cost = cost,
    .cpu = CPU_KERNELS(add),
    .cuda = &cuda_add,
};

Status op_add_whole(Graph *g, ValueId a, ValueId b, ValueId *y)
{
    return graph_add(g, &op_def_add_whole, NULL, (ValueId[]){a, b}, 2, y);
}
