/* linear_dx: dx[..., i] = sum_o dy[..., o] w[o, i], the input gradient of linear. dy [..., O], w [O
 * I], dx [..., I] in dy's dtype. dy and dx may be strided by row.
 *
 * It is also the product with a weight that is published as [in out], so it has a gradient itself:
 * with e the gradient of dx, that of dy is linear(e, w), that of w is linear_dw(dy, e). */
#include "ops/linear.h"
#include "ops/ops.h"

static Status infer(InferCtx *ctx)
{
    const Value *dy = ctx->in[0], *w = ctx->in[1];
    TRY(linear_check_operands(ctx, dy, w, 0));
    ctx->out[0].dtype = dy->dtype;
    ctx->out[0].shape = dy->shape;
    ctx->out[0].shape.dim[dy->shape.rank - 1] = w->shape.dim[1];
    ctx->out[0].shape.axis[dy->shape.rank - 1] = w->shape.axis[1];
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    ValueId dy = graph_node(g, ctx->node)->in[0], w = graph_node(g, ctx->node)->in[1];
    if (ctx->need[0]) TRY(op_linear(g, ctx->dout[0], w, &ctx->din[0]));
    return ctx->need[1] ? op_linear_dw(g, dy, ctx->dout[0], &ctx->din[1]) : OK;
}

static Cost cost(const Graph *graph, const Node *node)
{
    return linear_cost(graph, node->in[0], node->in[1], node->out[0]);
}

CPU_DECLARE(linear_dx);
CUDA_DECLARE(linear_dx);
const OpDef op_def_linear_dx = {.name = "linear_dx",
                                .min_in = 2,
                                .max_in = 2,
                                .n_out = 1,
                                .strided_in = 1,
                                .strided_out = 1,
                                .infer = infer,
                                .cut = "*o oi -> *i",
                                .grad = grad,
                                .cost = cost,
                                .cpu = CPU_KERNELS(linear_dx),
                                .cuda = &cuda_linear_dx,
                                .gpu_workspace = linear_gpu_workspace};

Status op_linear_dx(Graph *g, ValueId dy, ValueId w, ValueId *dx)
{
    return graph_add(g, &op_def_linear_dx, NULL, (ValueId[]){dy, w}, 2, dx);
}
