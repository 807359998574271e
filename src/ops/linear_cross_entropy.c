/* linear_cross_entropy: logits = x w^T, nll = log sum exp(logits) - logits[target], loss = sum
 * weights * nll + z_loss * weights * (log sum exp)^2, never holding all logits. x [..., D], w [V
 * D], targets [...] i32 (negative: no loss there), weights [...] f32; loss scalar, nll [...], both
 * f32.
 *
 * linear_cross_entropy_grad: loss and nll again, and dx in x's dtype, dw [V D] f32 for a gradient
 * dloss of the loss:  dlogits = weights dloss ((1 + 2 z_loss lse) softmax - one_hot(target)). Both
 * walk the tokens in blocks (linear_cross_entropy_cpu.c).
 */
#include "ops/linear_cross_entropy.h"
#include "ops/kernel.h"
#include "ops/ops.h"
#include "ops/rules.h"

#include <math.h>

static Status check(const InferCtx *ctx)
{
    const Value *x = ctx->in[0], *w = ctx->in[1], *targets = ctx->in[2];
    TRY(need_activation(x, "x"));
    TRY(need_dtype(w, x->dtype, "w"));
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    if (x->shape.rank < 2 || w->shape.rank != 2 || w->shape.dim[1] != last_dim(x))
        return fail(ERR_SHAPE, "%s: rows of [%s] do not fit the weight [%s]", ctx->op->name,
                    shape_text(&x->shape, a), shape_text(&w->shape, b));
    Shape tokens = x->shape;
    tokens.rank--;
    TRY(need_dtype(targets, DTYPE_I32, "targets"));
    TRY(need_shape(targets, &tokens, "targets"));
    TRY(need_dtype(ctx->in[3], DTYPE_F32, "weights"));
    return need_shape(ctx->in[3], &tokens, "weights");
}

static Status infer(InferCtx *ctx)
{
    TRY(check(ctx));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    ctx->out[1] = infer_out(DTYPE_F32, ctx->in[2]->shape);
    return OK;
}

static Status infer_grad(InferCtx *ctx)
{
    TRY(infer(ctx));
    TRY(need_scalar(ctx->in[4], "dloss"));
    ctx->out[2] = infer_like(ctx->in[0]);
    ctx->out[3] = infer_out(DTYPE_F32, ctx->in[1]->shape);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    const Node *node = graph_node(g, ctx->node);
    ValueId x = node->in[0], w = node->in[1], targets = node->in[2], weights = node->in[3];
    float z_loss = *(const float *)node->attr;
    if (value_ok(ctx->dout[1]))
        return fail(ERR_UNSUPPORTED,
                    "linear_cross_entropy: no gradient flows through nll, only through loss");
    if (!ctx->need[0] && !ctx->need[1]) return OK;
    ValueId loss, nll, dx, dw;
    TRY(op_linear_cross_entropy_grad(g, x, w, targets, weights, ctx->dout[0], z_loss, &loss, &nll,
                                     &dx, &dw));
    if (ctx->need[0]) ctx->din[0] = dx;
    if (ctx->need[1]) ctx->din[1] = dw;
    return OK;
}

/* w is read once for a block of tokens; the logits stay in the caches. */
static Cost product_cost(const Graph *g, const Node *node, int products)
{
    double tokens = value_count(g, node->in[2]), w_bytes = value_bytes(g, node->in[1]);
    double blocks = ceil(tokens /
                         (double)cross_entropy_rows(graph_value(g, node->in[1])->shape.dim[0]));
    Cost cost = cost_streaming(g, node, 0);
    cost.flop = 2 * products * tokens * value_count(g, node->in[1]);
    cost.read_bytes += (blocks - 1) * w_bytes;
    cost_product(&cost, graph_value(g, node->in[1]), tokens, products);
    return cost;
}

static Cost cost(const Graph *g, const Node *node) { return product_cost(g, node, 1); }

/* and once more for dx, while dw is added up block by block */
static Cost cost_grad(const Graph *g, const Node *node)
{
    Cost cost = product_cost(g, node, 3);
    double tokens = value_count(g, node->in[2]);
    double blocks = ceil(tokens /
                         (double)cross_entropy_rows(graph_value(g, node->in[1])->shape.dim[0]));
    cost.read_bytes += blocks * value_bytes(g, node->in[1]) +
                       (blocks - 1) * value_bytes(g, node->out[3]);
    cost.write_bytes += (blocks - 1) * value_bytes(g, node->out[3]);
    cost.unwritten = cost.m * cost.n;
    return cost;
}

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "z_loss=%g", (double)*(const float *)attr);
}

CPU_DECLARE(linear_cross_entropy);
CPU_DECLARE(linear_cross_entropy_grad);
CUDA_DECLARE(linear_cross_entropy);
CUDA_DECLARE(linear_cross_entropy_grad);

static size_t gpu_workspace(const Graph *g, const Node *node)
{
    return gpu_logits_space((int64_t)value_count(g, node->in[2]),
                            graph_value(g, node->in[1])->shape.dim[0], 0)
        .bytes;
}

const OpDef op_def_linear_cross_entropy = {.name = "linear_cross_entropy",
                                           .min_in = 4,
                                           .max_in = 4,
                                           .n_out = 2,
                                           .attr_bytes = sizeof(float),
                                           .strided_in = 1,
                                           .infer = infer,
                                           .cut = "*d! v!d! * * -> - *",
                                           .grad = grad,
                                           .cost = cost,
                                           .attr_text = attr_text,
                                           .cpu = CPU_KERNELS(linear_cross_entropy),
                                           .cuda = &cuda_linear_cross_entropy,
                                           .gpu_workspace = gpu_workspace};

const OpDef op_def_linear_cross_entropy_grad = {.name = "linear_cross_entropy_grad",
                                                .min_in = 5,
                                                .max_in = 5,
                                                .n_out = 4,
                                                .attr_bytes = sizeof(float),
                                                .flags = OP_SOURCE,
                                                .strided_in = 1,
                                                .strided_out = 1 << 2,
                                                .infer = infer_grad,
                                                .cut = "*d! v!d! * * - -> - * *d! v!d!",
                                                .cost = cost_grad,
                                                .attr_text = attr_text,
                                                .cpu = CPU_KERNELS(linear_cross_entropy_grad),
                                                .cuda = &cuda_linear_cross_entropy_grad,
                                                .gpu_workspace = gpu_workspace};

Status op_linear_cross_entropy(Graph *g, ValueId x, ValueId w, ValueId targets, ValueId weights,
                               float z_loss, ValueId *loss, ValueId *nll)
{
    ValueId in[] = {x, w, targets, weights}, out[2];
    TRY(graph_add(g, &op_def_linear_cross_entropy, &z_loss, in, 4, out));
    *loss = out[0];
    *nll = out[1];
    return OK;
}

/* NOLINTNEXTLINE(readability-function-size): one more than other builders have */
Status op_linear_cross_entropy_grad(Graph *g, ValueId x, ValueId w, ValueId targets,
                                    ValueId weights, ValueId dloss, float z_loss, ValueId *loss,
                                    ValueId *nll, ValueId *dx, ValueId *dw)
{
    ValueId in[] = {x, w, targets, weights, dloss}, out[4];
    TRY(graph_add(g, &op_def_linear_cross_entropy_grad, &z_loss, in, 5, out));
    *loss = out[0];
    *nll = out[1];
    *dx = out[2];
    *dw = out[3];
    return OK;
}

float op_cross_entropy_z_loss(const Node *node) { return *(const float *)node->attr; }
