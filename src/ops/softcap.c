/* softcap: y = cap tanh(x / cap): bounds logits and leaves small ones nearly as they are.
 * Gradient: dx = dy (1 - (y / cap)^2). */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(softcap);
CPU_DECLARE(softcap_grad);
CUDA_DECLARE(softcap);
CUDA_DECLARE(softcap_grad);

static Status check(const InferCtx *ctx, const char *what)
{
    float cap = *(const float *)ctx->attr;
    if (!(cap > 0)) return fail(ERR_ARG, "the cap is %g and must be positive", (double)cap);
    return need_activation(ctx->in[0], what);
}

static Status infer(InferCtx *ctx)
{
    TRY(check(ctx, "x"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    return op_softcap_grad(ctx->graph, node->out[0], ctx->dout[0], *(const float *)node->attr,
                           &ctx->din[0]);
}

/* exp counts as 12 */
static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 30); }

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "cap %.9g", (double)*(const float *)attr);
}

const OpDef op_def_softcap = {
    .name = "softcap",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "* -> *",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(softcap),
    .cuda = &cuda_softcap,
};

static Status infer_grad(InferCtx *ctx)
{
    TRY(check(ctx, "y"));
    TRY(need_like(ctx->in[1], ctx->in[0], "dy"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node) { return cost_streaming(g, node, 4); }

const OpDef op_def_softcap_grad = {
    .name = "softcap_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_SOURCE,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer_grad,
    .cut = "* * -> *",
    .cost = cost_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(softcap_grad),
    .cuda = &cuda_softcap_grad,
};

Status op_softcap(Graph *g, ValueId x, float cap, ValueId *y)
{
    return graph_add(g, &op_def_softcap, &cap, &x, 1, y);
}

Status op_softcap_grad(Graph *g, ValueId y, ValueId dy, float cap, ValueId *dx)
{
    return graph_add(g, &op_def_softcap_grad, &cap, (ValueId[]){y, dy}, 2, dx);
}
