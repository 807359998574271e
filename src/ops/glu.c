/* Gated linear units (Shazeer 2020): y = f(gate) * up, f one of two.
 *
 * swiglu: f(x) = silu(x) = x s(x), s the logistic function.
 *   With s = s(gate):  dup = dy gate s;  dgate = dy up s (1 + gate (1 - s)).
 * geglu: f(x) = gelu(x), the tanh form (Hendrycks and Gimpel 2016):
 *   gelu(x) = x/2 (1 + tanh u) = x s(v),  u = sqrt(2/pi) (x + 0.044715 x^3),  v = 2 u.
 *   With s = s(v) at the gate:  dup = dy gate s;  dgate = dy up (s + gate s (1 - s) v'),
 *   v' = 2 sqrt(2/pi) (1 + 3 * 0.044715 gate^2).
 *
 * Of rows of experts [R F] an operand more, offsets [E+1], says how many there are: the buffer has
 * room for those of all ranks, and rows past offsets[E] are left as they are. */
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(swiglu);
CPU_DECLARE(swiglu_grad);
CPU_DECLARE(geglu);
CPU_DECLARE(geglu_grad);
CUDA_DECLARE(swiglu);
CUDA_DECLARE(swiglu_grad);
CUDA_DECLARE(geglu);
CUDA_DECLARE(geglu_grad);

enum { GLU_OFFSETS = 2, GLU_GRAD_OFFSETS = 3 };

static Status check_offsets(const InferCtx *ctx, int k)
{
    if (ctx->n_in <= k) return OK;
    TRY(need_dtype(ctx->in[k], DTYPE_I32, "offsets"));
    if (ctx->in[0]->shape.rank == 2 && ctx->in[k]->shape.rank == 1) return OK;
    return fail(ERR_SHAPE, "with offsets, gate must be [rows width]");
}

static Status infer(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "gate"));
    TRY(need_like(ctx->in[1], ctx->in[0], "up"));
    TRY(check_offsets(ctx, GLU_OFFSETS));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Status infer_grad(InferCtx *ctx)
{
    TRY(need_activation(ctx->in[0], "gate"));
    TRY(need_like(ctx->in[1], ctx->in[0], "up"));
    TRY(need_like(ctx->in[2], ctx->in[0], "dy"));
    TRY(check_offsets(ctx, GLU_GRAD_OFFSETS));
    ctx->out[0] = infer_like(ctx->in[0]);
    ctx->out[1] = infer_like(ctx->in[1]);
    return OK;
}

static Status add_grad(Graph *g, const OpDef *def, ValueId gate, ValueId up, ValueId dy,
                       ValueId *dgate, ValueId *dup)
{
    ValueId out[2];
    TRY(graph_add(g, def, NULL, (ValueId[]){gate, up, dy}, 3, out));
    *dgate = out[0];
    *dup = out[1];
    return OK;
}

static Status grad_by(GradCtx *ctx, const OpDef *def)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    bool rows = node->n_in > GLU_OFFSETS;
    ValueId out[2],
        in[] = {node->in[0], node->in[1], ctx->dout[0], rows ? node->in[GLU_OFFSETS] : NO_VALUE};
    TRY(graph_add(ctx->graph, def, NULL, in, rows ? GLU_GRAD_OFFSETS + 1 : GLU_GRAD_OFFSETS, out));
    ctx->din[0] = out[0];
    ctx->din[1] = out[1];
    return OK;
}

static Status swiglu_grad(GradCtx *ctx) { return grad_by(ctx, op_find("swiglu_grad")); }
static Status geglu_grad(GradCtx *ctx) { return grad_by(ctx, op_find("geglu_grad")); }

static Status cut(CutCtx *ctx)
{
    graph_cut_text(ctx, ctx->n_in > GLU_OFFSETS ? "Rf Rf R -> Rf" : "* * -> *");
    return OK;
}

static Status cut_grad(CutCtx *ctx)
{
    graph_cut_text(ctx, ctx->n_in > GLU_GRAD_OFFSETS ? "Rf Rf Rf R -> Rf Rf" : "* * * -> * *");
    return OK;
}

/* Where experts are owned by ranks, as many rows come on average as one rank has. */
static Cost cost_of(const Graph *g, const Node *node, double flop_per_element)
{
    Cost cost = cost_streaming(g, node, flop_per_element);
    double owners = expert_room(g, graph_value(g, node->in[0]));
    cost.flop /= owners;
    cost.read_bytes /= owners;
    cost.write_bytes /= owners;
    return cost;
}

/* exp counts as 12 */
static Cost swiglu_cost(const Graph *g, const Node *node) { return cost_of(g, node, 17); }
static Cost swiglu_grad_cost(const Graph *g, const Node *node) { return cost_of(g, node, 23); }
static Cost geglu_cost(const Graph *g, const Node *node) { return cost_of(g, node, 23); }
static Cost geglu_grad_cost(const Graph *g, const Node *node) { return cost_of(g, node, 32); }

const OpDef op_def_swiglu = {
    .name = "swiglu",
    .min_in = 2,
    .max_in = 3,
    .n_out = 1,
    .flags = OP_CHEAP,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer,
    .cut_rule = cut,
    .grad = swiglu_grad,
    .cost = swiglu_cost,
    .cpu = CPU_KERNELS(swiglu),
    .cuda = &cuda_swiglu,
};

const OpDef op_def_swiglu_grad = {
    .name = "swiglu_grad",
    .min_in = 3,
    .max_in = 4,
    .n_out = 2,
    .flags = OP_SOURCE,
    .inplace = 7,
    .strided_in = 7,
    .strided_out = 3,
    .infer = infer_grad,
    .cut_rule = cut_grad,
    .cost = swiglu_grad_cost,
    .cpu = CPU_KERNELS(swiglu_grad),
    .cuda = &cuda_swiglu_grad,
};

const OpDef op_def_geglu = {
    .name = "geglu",
    .min_in = 2,
    .max_in = 3,
    .n_out = 1,
    .flags = OP_CHEAP,
    .inplace = 3,
    .strided_in = 3,
    .strided_out = 1,
    .infer = infer,
    .cut_rule = cut,
    .grad = geglu_grad,
    .cost = geglu_cost,
    .cpu = CPU_KERNELS(geglu),
    .cuda = &cuda_geglu,
};

const OpDef op_def_geglu_grad = {
    .name = "geglu_grad",
    .min_in = 3,
    .max_in = 4,
    .n_out = 2,
    .flags = OP_SOURCE,
    .inplace = 7,
    .strided_in = 7,
    .strided_out = 3,
    .infer = infer_grad,
    .cut_rule = cut_grad,
    .cost = geglu_grad_cost,
    .cpu = CPU_KERNELS(geglu_grad),
    .cuda = &cuda_geglu_grad,
};

Status op_swiglu(Graph *g, ValueId gate, ValueId up, ValueId *y)
{
    return graph_add(g, &op_def_swiglu, NULL, (ValueId[]){gate, up}, 2, y);
}

Status op_swiglu_rows(Graph *g, ValueId gate, ValueId up, ValueId offsets, ValueId *y)
{
    return graph_add(g, &op_def_swiglu, NULL, (ValueId[]){gate, up, offsets}, 3, y);
}

Status op_swiglu_grad(Graph *g, ValueId gate, ValueId up, ValueId dy, ValueId *dgate, ValueId *dup)
{
    return add_grad(g, &op_def_swiglu_grad, gate, up, dy, dgate, dup);
}

Status op_geglu(Graph *g, ValueId gate, ValueId up, ValueId *y)
{
    return graph_add(g, &op_def_geglu, NULL, (ValueId[]){gate, up}, 2, y);
}

Status op_geglu_rows(Graph *g, ValueId gate, ValueId up, ValueId offsets, ValueId *y)
{
    return graph_add(g, &op_def_geglu, NULL, (ValueId[]){gate, up, offsets}, 3, y);
}

Status op_geglu_grad(Graph *g, ValueId gate, ValueId up, ValueId dy, ValueId *dgate, ValueId *dup)
{
    return add_grad(g, &op_def_geglu_grad, gate, up, dy, dgate, dup);
}
