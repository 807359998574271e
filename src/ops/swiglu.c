/* swiglu: y = silu(gate) * up, silu(x) = x s(x), s the logistic function.
 * Gradient, with s = s(gate):  dup = dy gate s;  dgate = dy up s (1 + gate (1 - s)). */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(swiglu);
CPU_DECLARE(swiglu_grad);

static Status infer(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "gate"));
    TRY(need_like(ctx->in[1], ctx->in[0], "up"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId gate = node->in[0], up = node->in[1];
    return op_swiglu_grad(ctx->graph, gate, up, ctx->dout[0], &ctx->din[0], &ctx->din[1]);
}

/* exp counts as 12 */
static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 17); }

const OpDef op_def_swiglu = {
    .name = "swiglu",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = OP_CHEAP,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer,
    .cut = "* * -> *",
    .grad = grad,
    .cost = cost,
    .cpu = CPU_KERNELS(swiglu),
};

static Status infer_grad(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "gate"));
    TRY(need_like(ctx->in[1], ctx->in[0], "up"));
    TRY(need_like(ctx->in[2], ctx->in[0], "dy"));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[1] = infer_like(ctx->in[1]);
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node) { return cost_streaming(g, node, 23); }

const OpDef op_def_swiglu_grad = {
    .name = "swiglu_grad",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .flags = OP_SOURCE,
    .inplace = 7,
    .strided_in = 7,
    .strided_out = 3,
    .infer = infer_grad,
    .cut = "* * * -> * *",
    .cost = cost_grad,
    .cpu = CPU_KERNELS(swiglu_grad),
};

Status op_swiglu(Graph *g, ValueId gate, ValueId up, ValueId *y)
{
    return graph_add(g, &op_def_swiglu, NULL, (ValueId[]){gate, up}, 2, y);
}

Status op_swiglu_grad(Graph *g, ValueId gate, ValueId up, ValueId dy, ValueId *dgate, ValueId *dup)
{
    ValueId out[2];
    TRY(graph_add(g, &op_def_swiglu_grad, NULL, (ValueId[]){gate, up, dy}, 3, out));
    *dgate = out[0];
    *dup = out[1];
    return OK;
}
