/* rmsnorm: y = w * x * r, r = 1 / sqrt(mean(x^2) + eps), over the last axis; add_rmsnorm: the same
 * of a sum that is kept. Statistics in f32, w [D] f32.
 *
 * Gradient, with g = dy * w:  dx = r g - x r^3 mean(g x);  dw = sum over rows of dy x r.
 * r is made again from x: reading x is needed anyway, and storing it would save one multiplication.
 */
#include "ops/kernel.h"
#include "ops/row_blocks.h"
#include "ops/rules.h"

CPU_DECLARE(rmsnorm);
CPU_DECLARE(add_rmsnorm);
CPU_DECLARE(rmsnorm_grad);
CUDA_DECLARE(rmsnorm);
CUDA_DECLARE(add_rmsnorm);
CUDA_DECLARE(rmsnorm_grad);

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "eps %g", (double)*(const float *)attr);
}

static Status check_norm(const Value *x, const Value *w)
{
    TRY(need_activation(x, "x"));
    if (x->shape.rank < 1 || last_dim(x) < 1)
        return fail(ERR_SHAPE, "x has no elements to normalise");
    return need_vector(w, last_dim(x), DTYPE_F32, "w");
}

/* ---- rmsnorm(x, w) ---------------------------------------------------------------------- */

static Status infer(InferCtx *ctx)
{
    TRY(check_norm(ctx->in[0], ctx->in[1]));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId x = node->in[0], w = node->in[1];
    return op_rmsnorm_grad(ctx->graph, ctx->dout[0], x, w, NO_VALUE, *(const float *)node->attr,
                           &ctx->din[0], &ctx->din[1]);
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 4); }

const OpDef op_def_rmsnorm = {
    .name = "rmsnorm",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*d! d! -> *d!",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(rmsnorm),
    .cuda = &cuda_rmsnorm,
};

Status op_rmsnorm(Graph *g, ValueId x, ValueId w, float eps, ValueId *y)
{
    return graph_add(g, &op_def_rmsnorm, &eps, (ValueId[]){x, w}, 2, y);
}

/* ---- add_rmsnorm(a, b, w) -> h, y ------------------------------------------------------- */

static Status infer_add(InferCtx *ctx)
{
    TRY(check_norm(ctx->in[0], ctx->in[2]));
    TRY(need_like(ctx->in[1], ctx->in[0], "b"));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[1] = infer_like(ctx->in[0]);
    return OK;
}

/* dh flows to a and b as it is, with the norm's part on top. */
static Status grad_add(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId h = node->out[0], w = node->in[2], dh = ctx->dout[0];
    if (value_ok(ctx->dout[1]))
        TRY(op_rmsnorm_grad(ctx->graph, ctx->dout[1], h, w, ctx->dout[0],
                            *(const float *)node->attr, &dh, &ctx->din[2]));
    ctx->din[0] = ctx->din[1] = dh;
    return OK;
}

static Cost cost_add(const Graph *g, const Node *node) { return cost_streaming(g, node, 5); }

const OpDef op_def_add_rmsnorm = {
    .name = "add_rmsnorm",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 3,
    .infer = infer_add,
    .cut = "*d! *d! d! -> *d! *d!",
    .grad = grad_add,
    .cost = cost_add,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(add_rmsnorm),
    .cuda = &cuda_add_rmsnorm,
};

Status op_add_rmsnorm(Graph *g, ValueId a, ValueId b, ValueId w, float eps, ValueId *h, ValueId *y)
{
    ValueId out[2];
    TRY(graph_add(g, &op_def_add_rmsnorm, &eps, (ValueId[]){a, b, w}, 3, out));
    *h = out[0];
    *y = out[1];
    return OK;
}

/* ---- rmsnorm_grad(dy, x, w [, residual]) -> dx, dw -------------------------------------- */

static Status infer_grad(InferCtx *ctx)
{
    const Value *x = ctx->in[1];
    TRY(check_norm(x, ctx->in[2]));
    TRY(need_like(ctx->in[0], x, "dy"));
    if (ctx->n_in > 3 && ctx->in[3]) TRY(need_like(ctx->in[3], x, "residual"));
    ctx->out[0] = infer_like(x);
    ctx->out[1] = infer_like(ctx->in[2]);
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node) { return cost_streaming(g, node, 11); }

/* dw of each block of rows. */
static size_t gpu_workspace_grad(const Graph *g, const Node *node)
{
    const Value *x = graph_value(g, node->in[1]);
    int64_t width = last_dim(x), rows = shape_count(&x->shape) / width;
    return (size_t)(gpu_row_blocks(rows) * width) * sizeof(float);
}

const OpDef op_def_rmsnorm_grad = {
    .name = "rmsnorm_grad",
    .min_in = 3,
    .max_in = 4,
    .n_out = 2,
    .attr_bytes = sizeof(float),
    .flags = OP_SOURCE,
    .inplace = 1 | 2 | 8,
    .strided_in = 1 | 2 | 8,
    .strided_out = 1,
    .optional_in = 8,
    .infer = infer_grad,
    .cut = "*d! *d! d! *d! -> *d! d!",
    .cost = cost_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(rmsnorm_grad),
    .cuda = &cuda_rmsnorm_grad,
    .gpu_workspace = gpu_workspace_grad,
};

Status op_rmsnorm_grad(Graph *g, ValueId dy, ValueId x, ValueId w, ValueId residual, float eps,
                       ValueId *dx, ValueId *dw)
{
    ValueId out[2];
    int n = value_ok(residual) ? 4 : 3;
    TRY(graph_add(g, &op_def_rmsnorm_grad, &eps, (ValueId[]){dy, x, w, residual}, n, out));
    *dx = out[0];
    *dw = out[1];
    return OK;
}
