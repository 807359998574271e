/* l2norm: y = x / sqrt(mean(x^2) + eps) over the last axis, no weight: Llama 4's norm of queries
 * and keys (models.md 2.2). Two ops: l2norm and its gradient. */
#include "ops/kernel.h"
#include "ops/ops.h"

CPU_DECLARE(l2norm);
CPU_DECLARE(l2norm_grad);
CUDA_DECLARE(l2norm);
CUDA_DECLARE(l2norm_grad);
extern const OpDef op_def_l2norm, op_def_l2norm_grad;

/* in: x, and for the gradient dy */
static Status infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    if (x->dtype != DTYPE_F32 && x->dtype != DTYPE_BF16)
        return fail(ERR_SHAPE, "%s: x must be f32 or bf16, not %s", ctx->op->name,
                    dtype_name(x->dtype));
    if (x->shape.rank < 2)
        return fail(ERR_SHAPE, "%s: x is [%s], wanted [... H d]", ctx->op->name,
                    shape_text(&x->shape, a));
    if (ctx->n_in == 2 &&
        (ctx->in[1]->dtype != x->dtype || !shape_equal(&ctx->in[1]->shape, &x->shape)))
        return fail(ERR_SHAPE, "l2norm_grad: x is %s [%s] but its gradient %s [%s]",
                    dtype_name(x->dtype), shape_text(&x->shape, a), dtype_name(ctx->in[1]->dtype),
                    shape_text(&ctx->in[1]->shape, b));
    ctx->out[0].dtype = x->dtype;
    ctx->out[0].shape = x->shape;
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    if (!ctx->need[0]) return OK;
    ValueId in[2] = {node->in[0], ctx->dout[0]};
    return graph_add(ctx->graph, &op_def_l2norm_grad, node->attr, in, 2, &ctx->din[0]);
}

static Cost cost(const Graph *graph, const Node *node)
{
    const Value *x = graph_value(graph, node->in[0]);
    double n = (double)shape_count(&x->shape), bytes = n * (double)dtype_bytes(x->dtype);
    return (Cost){.flop = (node->n_in == 2 ? 7 : 3) * n,
                  .read_bytes = bytes * node->n_in,
                  .write_bytes = bytes};
}

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "eps=%g", (double)*(const float *)attr);
}

const OpDef op_def_l2norm = {
    .name = "l2norm",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*d! -> *d!",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(l2norm),
    .cuda = &cuda_l2norm,
};

const OpDef op_def_l2norm_grad = {
    .name = "l2norm_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_SOURCE,
    .inplace = 2,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer,
    .cut = "*d! *d! -> *d!",
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(l2norm_grad),
    .cuda = &cuda_l2norm_grad,
};

Status op_l2norm(Graph *g, ValueId x, float eps, ValueId *y)
{
    return graph_add(g, &op_def_l2norm, &eps, &x, 1, y);
}
