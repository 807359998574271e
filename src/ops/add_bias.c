/* add_bias: y = x + b, one number for each column. x [..., N], b [N] f32, y as x.
 *
 * The bias of a product whose columns are cut is cut with them. Where the product is a sum of
 * ranks' summands that is made whole first, so that b is added once.
 *
 * Gradient: dx = dy; db = sum over rows of dy, f32 (bias_grad). */
#include "ops/kernel.h"
#include "ops/row_blocks.h"
#include "ops/rules.h"

CPU_DECLARE(add_bias);
CPU_DECLARE(bias_grad);
CUDA_DECLARE(add_bias);
CUDA_DECLARE(bias_grad);

static Status infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0];
    TRY(need_activation(x, "x"));
    if (x->shape.rank < 1) return fail(ERR_SHAPE, "a scalar has no columns");
    TRY(need_vector(ctx->in[1], last_dim(x), DTYPE_F32, "b"));
    ctx->out[0] = infer_like(x);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    ctx->din[0] = ctx->dout[0];
    return ctx->need[1] ? op_bias_grad(ctx->graph, ctx->dout[0], &ctx->din[1]) : OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 1); }

const OpDef op_def_add_bias = {
    .name = "add_bias",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*n n -> *n",
    .grad = grad,
    .cost = cost,
    .cpu = CPU_KERNELS(add_bias),
    .cuda = &cuda_add_bias,
};

Status op_add_bias(Graph *g, ValueId x, ValueId b, ValueId *y)
{
    return graph_add(g, &op_def_add_bias, NULL, (ValueId[]){x, b}, 2, y);
}

/* ---- bias_grad(dy) -> db ---------------------------------------------------------------- */

static Status infer_grad(InferCtx *ctx)
{
    const Value *dy = ctx->in[0];
    TRY(need_activation(dy, "dy"));
    if (dy->shape.rank < 1) return fail(ERR_SHAPE, "a scalar has no columns");
    int last = dy->shape.rank - 1;
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(1, &dy->shape.dim[last], &dy->shape.axis[last]));
    return OK;
}

/* Sums of each block of rows. */
static size_t gpu_workspace_grad(const Graph *g, const Node *node)
{
    const Value *dy = graph_value(g, node->in[0]);
    int64_t width = last_dim(dy), rows = width ? shape_count(&dy->shape) / width : 0;
    return (size_t)(gpu_row_blocks(rows) * width) * sizeof(float);
}

const OpDef op_def_bias_grad = {
    .name = "bias_grad",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = OP_SOURCE,
    .strided_in = 1,
    .infer = infer_grad,
    .cut = "*n -> n",
    .cost = cost,
    .cpu = CPU_KERNELS(bias_grad),
    .cuda = &cuda_bias_grad,
    .gpu_workspace = gpu_workspace_grad,
};

Status op_bias_grad(Graph *g, ValueId dy, ValueId *db)
{
    return graph_add(g, &op_def_bias_grad, NULL, &dy, 1, db);
}
