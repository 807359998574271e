/* Feed-forward activations without a gate: y = f(x), element by element.
 *
 * gelu:       f(x) = x P(x), P the normal distribution function (Hendrycks and Gimpel 2016), exact:
 *             P(x) = erfc(-x / sqrt 2) / 2.   f'(x) = P(x) + x e^(-x^2/2) / sqrt(2 pi)
 * gelu_tanh:  the same paper's approximation, GPT-2's: f(x) = x s(v), v = 2 sqrt(2/pi) (x +
 * 0.044715
 *             x^3), s the logistic function (see glu.c).   f'(x) = s + x s (1 - s) v'
 * relu2:      f(x) = max(x, 0)^2 (So 2021; Nemotron).   f'(x) = 2 max(x, 0) */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(activation);
CPU_DECLARE(activation_grad);
CUDA_DECLARE(activation);
CUDA_DECLARE(activation_grad);

/* exp counts as 12, as in glu.c */
static const struct {
    const char *name;
    double flop, grad_flop;
} kinds[] = {[ACTIVATION_GELU] = {"gelu", 34, 40},
             [ACTIVATION_GELU_TANH] = {"gelu_tanh", 22, 31},
             [ACTIVATION_RELU2] = {"relu2", 2, 3}};

static ActivationKind kind_of(const void *attr) { return (ActivationKind) * (const int32_t *)attr; }

static void attr_text(const void *attr, Str *out) { str_add(out, kinds[kind_of(attr)].name); }

static Status infer(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "x"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status infer_grad(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "x"));
    TRY(need_like(ctx->in[1], ctx->in[0], "dy"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    return op_activation_grad(ctx->graph, node->in[0], ctx->dout[0], kind_of(node->attr),
                              &ctx->din[0]);
}

static Cost cost(const Graph *g, const Node *node)
{
    return cost_streaming(g, node, kinds[kind_of(node->attr)].flop);
}

static Cost cost_grad(const Graph *g, const Node *node)
{
    return cost_streaming(g, node, kinds[kind_of(node->attr)].grad_flop);
}

const OpDef op_def_activation = {
    .name = "activation",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(int32_t),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "* -> *",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(activation),
    .cuda = &cuda_activation,
};

const OpDef op_def_activation_grad = {
    .name = "activation_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(int32_t),
    .flags = OP_SOURCE,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer_grad,
    .cut = "* * -> *",
    .cost = cost_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(activation_grad),
    .cuda = &cuda_activation_grad,
};

static Status add(Graph *g, const OpDef *def, ActivationKind kind, const ValueId *in, ValueId *out)
{
    int32_t attr = (int32_t)kind;
    if (attr < 0 || attr >= COUNT_OF(kinds))
        return fail(ERR_ARG, "%s: there is no kind %d", def->name, attr);
    return graph_add(g, def, &attr, in, def->min_in, out);
}

Status op_activation(Graph *g, ValueId x, ActivationKind kind, ValueId *y)
{
    return add(g, &op_def_activation, kind, &x, y);
}

Status op_activation_grad(Graph *g, ValueId x, ValueId dy, ActivationKind kind, ValueId *dx)
{
    return add(g, &op_def_activation_grad, kind, (ValueId[]){x, dy}, dx);
}
