/* layernorm (Ba, Kiros and Hinton 2016): y = w * (x - mean) * r + b, r = 1 / sqrt(var + eps), over
 * the last axis; add_layernorm: the same of a sum that is kept. Statistics in f32; w [D] and b [D]
 * f32, b may be left out. var is the mean of (x - mean)^2.
 *
 * Gradient, with g = dy * w and n = (x - mean) r:
 *   dx = r (g - mean(g) - n mean(g n));  dw = sum over rows of dy n;  db = sum over rows of dy.
 * mean and r are made again from x, as in rmsnorm.c. */
#include "ops/kernel.h"
#include "ops/row_blocks.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(layernorm);
CPU_DECLARE(add_layernorm);
CPU_DECLARE(layernorm_grad);
CUDA_DECLARE(layernorm);
CUDA_DECLARE(add_layernorm);
CUDA_DECLARE(layernorm_grad);

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "eps %g", (double)*(const float *)attr);
}

/* b is operand `at`, if it is there. */
static Status check_norm(const InferCtx *ctx, const Value *x, const Value *w, int at)
{
    TRY(need_activation(x, "x"));
    if (x->shape.rank < 1 || last_dim(x) < 1)
        return fail(ERR_SHAPE, "x has no elements to normalise");
    TRY(need_vector(w, last_dim(x), DTYPE_F32, "w"));
    return ctx->n_in > at && ctx->in[at] ? need_vector(ctx->in[at], last_dim(x), DTYPE_F32, "b")
                                         : OK;
}

/* ---- layernorm(x, w [, b]) -------------------------------------------------------------- */

static Status infer(InferCtx *ctx)
{
    TRY(check_norm(ctx, ctx->in[0], ctx->in[1], 2));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId in[4] = {ctx->dout[0], node->in[0], node->in[1], NO_VALUE}, out[3];
    const int n = node->n_in; /* the node moves when the graph grows */
    TRY(op_layernorm_grad(ctx->graph, in, *(const float *)node->attr, n > 2, out));
    memcpy(ctx->din, out, sizeof *out * (size_t)n);
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 7); }

const OpDef op_def_layernorm = {
    .name = "layernorm",
    .min_in = 2,
    .max_in = 3,
    .n_out = 1,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*d! d! d! -> *d!",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(layernorm),
    .cuda = &cuda_layernorm,
};

Status op_layernorm(Graph *g, ValueId x, ValueId w, ValueId b, float eps, ValueId *y)
{
    return graph_add(g, &op_def_layernorm, &eps, (ValueId[]){x, w, b}, value_ok(b) ? 3 : 2, y);
}

/* ---- add_layernorm(a, b, w [, bias]) -> h, y -------------------------------------------- */

static Status infer_add(InferCtx *ctx)
{
    TRY(check_norm(ctx, ctx->in[0], ctx->in[2], 3));
    TRY(need_like(ctx->in[1], ctx->in[0], "b"));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[1] = infer_like(ctx->in[0]);
    return OK;
}

/* dh flows to a and b as it is, with the norm's part on top. */
static Status grad_add(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId in[4] = {ctx->dout[1], node->out[0], node->in[2], ctx->dout[0]}, out[3];
    ctx->din[0] = ctx->din[1] = ctx->dout[0];
    if (!value_ok(ctx->dout[1])) return OK;
    int n = node->n_in;
    TRY(op_layernorm_grad(ctx->graph, in, *(const float *)node->attr, n > 3, out));
    ctx->din[0] = out[0];
    memcpy(ctx->din + 1, out, sizeof *out * (size_t)(n - 1));
    return OK;
}

static Cost cost_add(const Graph *g, const Node *node) { return cost_streaming(g, node, 8); }

const OpDef op_def_add_layernorm = {
    .name = "add_layernorm",
    .min_in = 3,
    .max_in = 4,
    .n_out = 2,
    .attr_bytes = sizeof(float),
    .flags = OP_CHEAP,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 3,
    .infer = infer_add,
    .cut = "*d! *d! d! d! -> *d! *d!",
    .grad = grad_add,
    .cost = cost_add,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(add_layernorm),
    .cuda = &cuda_add_layernorm,
};

Status op_add_layernorm(Graph *g, const ValueId in[4], float eps, ValueId *h, ValueId *y)
{
    ValueId out[2];
    TRY(graph_add(g, &op_def_add_layernorm, &eps, in, value_ok(in[3]) ? 4 : 3, out));
    *h = out[0];
    *y = out[1];
    return OK;
}

/* ---- layernorm_grad(dy, x, w [, residual]) -> dx, dw [, db] ----------------------------- */

typedef struct GradAttr {
    float eps; /* where the kernels of all three look for it */
    int32_t bias;
} GradAttr;

static Status infer_grad(InferCtx *ctx)
{
    const Value *x = ctx->in[1];
    TRY(check_norm(ctx, x, ctx->in[2], ctx->n_in));
    TRY(need_like(ctx->in[0], x, "dy"));
    if (ctx->n_in > 3 && ctx->in[3]) TRY(need_like(ctx->in[3], x, "residual"));
    ctx->out[0] = infer_like(x);
    ctx->out[1] = ctx->out[2] = infer_like(ctx->in[2]);
    ctx->out[2].wanted = ((const GradAttr *)ctx->attr)->bias != 0;
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node) { return cost_streaming(g, node, 17); }

/* dw and db of each block of rows, where they are wanted. */
static size_t gpu_workspace_grad(const Graph *g, const Node *node)
{
    const Value *x = graph_value(g, node->in[1]);
    int64_t width = last_dim(x), rows = shape_count(&x->shape) / width;
    int wanted = value_ok(node->out[1]) + value_ok(node->out[2]);
    return (size_t)(gpu_row_blocks(rows) * width * wanted) * sizeof(float);
}

const OpDef op_def_layernorm_grad = {
    .name = "layernorm_grad",
    .min_in = 3,
    .max_in = 4,
    .n_out = 3,
    .attr_bytes = sizeof(GradAttr),
    .flags = OP_SOURCE,
    .inplace = 1 | 2 | 8,
    .strided_in = 1 | 2 | 8,
    .strided_out = 1,
    .optional_in = 8,
    .infer = infer_grad,
    .cut = "*d! *d! d! *d! -> *d! d! d!",
    .cost = cost_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(layernorm_grad),
    .cuda = &cuda_layernorm_grad,
    .gpu_workspace = gpu_workspace_grad,
};

Status op_layernorm_grad(Graph *g, const ValueId in[4], float eps, bool bias, ValueId out[3])
{
    GradAttr attr = {eps, bias};
    return graph_add(g, &op_def_layernorm_grad, &attr, in, value_ok(in[3]) ? 4 : 3, out);
}
