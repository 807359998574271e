/* grouped_linear: y[r, o] = sum_i x[r, i] w[e, i, o] for the rows r of expert e, which are
 * offsets[e]..offsets[e+1]-1. x [R I], w [E I O], offsets [E+1] i32, y [R O]; rows past offsets[E] are
 * left as they are. Its gradients:
 *   grouped_linear_dx   dx[r, i] = sum_o dy[r, o] w[e, i, o]; rows past offsets[E] left as they are
 *   grouped_linear_dw   dw[e, i, o] = sum over r of x[r, i] dy[r, o], f32; zero for an expert without rows
 * dw sums over the padding rows inside a segment too: x is zero there and dy must be finite.
 */
#include "ops/kernel.h"
#include "ops/ops.h"
#include "ops/rules.h"

/* what the shape of dw is; its operands do not tell */
typedef struct WeightAttr {
    Shape shape;
} WeightAttr;

/* rows [R n] against axis `axis` of the weight [E I O], and offsets [E+1] */
static Status check(const InferCtx *ctx, const Value *rows, const Shape *w, int axis, const Value *offsets)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    TRY(need_activation(rows, "rows"));
    if (rows->shape.rank != 2 || w->rank != 3 || rows->shape.dim[1] != w->dim[axis])
        return fail(ERR_SHAPE, "%s: rows [%s] do not fit the experts' weight [%s]", ctx->op->name,
                    shape_text(&rows->shape, a), shape_text(w, b));
    return need_vector(offsets, w->dim[0] + 1, DTYPE_I32, "offsets");
}

static Status infer_rows(InferCtx *ctx, int from, int to)
{
    const Value *x = ctx->in[0], *w = ctx->in[1];
    TRY(check(ctx, x, &w->shape, from, ctx->in[2]));
    TRY(need_dtype(w, x->dtype, "w"));
    ctx->out[0] = infer_like(x);
    ctx->out[0].shape.dim[1] = w->shape.dim[to];
    ctx->out[0].shape.axis[1] = w->shape.axis[to];
    return OK;
}

static Status infer(InferCtx *ctx) { return infer_rows(ctx, 1, 2); }
static Status infer_dx(InferCtx *ctx) { return infer_rows(ctx, 2, 1); }

static Status infer_dw(InferCtx *ctx)
{
    const Value *dy = ctx->in[0], *x = ctx->in[1];
    const Shape *w = &((const WeightAttr *)ctx->attr)->shape;
    TRY(check(ctx, dy, w, 2, ctx->in[2]));
    TRY(check(ctx, x, w, 1, ctx->in[2]));
    TRY(need_dtype(dy, x->dtype, "dy"));
    if (dy->shape.dim[0] != x->shape.dim[0])
        return fail(ERR_SHAPE, "grouped_linear_dw: %lld rows of dy and %lld of x",
                    (long long)dy->shape.dim[0], (long long)x->shape.dim[0]);
    ctx->out[0] = infer_out(DTYPE_F32, *w);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    const Node *node = graph_node(g, ctx->node);
    ValueId x = node->in[0], w = node->in[1], offsets = node->in[2];
    if (ctx->need[0]) TRY(op_grouped_linear_dx(g, ctx->dout[0], w, offsets, &ctx->din[0]));
    if (ctx->need[1]) TRY(op_grouped_linear_dw(g, ctx->dout[0], x, offsets, w, &ctx->din[1]));
    return OK;
}

/* Of the buffer's R rows about half an alignment for each expert is padding inside its segment, and as
 * much is past the end. */
static Cost cost(const Graph *g, const Node *node)
{
    const Value *rows = graph_value(g, node->in[0]), *offsets = graph_value(g, node->in[2]);
    double used = (double)rows->shape.dim[0] - (double)(offsets->shape.dim[0] - 1) * EXPERT_ROW_ALIGN / 2;
    const Value *other = graph_value(g, node->in[1]), *out = graph_value(g, node->out[0]);
    double wide = other->shape.rank == 3 ? (double)last_dim(out) : (double)last_dim(other);
    Cost cost = cost_streaming(g, node, 0);
    cost.flop = 2 * (used > 0 ? used : 0) * (double)last_dim(rows) * wide;
    cost.matmul = true;
    return cost;
}

CPU_DECLARE(grouped_linear);
CPU_DECLARE(grouped_linear_dx);
CPU_DECLARE(grouped_linear_dw);

static Status cut_shape(const CutCtx *ctx, void *attribute)
{
    WeightAttr *attr = attribute;
    if (place_is_cut(ctx->out[0])) attr->shape.dim[ctx->out[0].dim] /= ctx->n;
    return OK;
}

const OpDef op_def_grouped_linear = {.name = "grouped_linear",
                                     .min_in = 3,
                                     .max_in = 3,
                                     .n_out = 1,
                                     .strided_in = 1,
                                     .strided_out = 1,
                                     .infer = infer,
                                     .cut = "Ri Eio R -> Ro",
                                     .grad = grad,
                                     .cost = cost,
                                     .cpu = CPU_KERNELS(grouped_linear)};

const OpDef op_def_grouped_linear_dx = {.name = "grouped_linear_dx",
                                        .min_in = 3,
                                        .max_in = 3,
                                        .n_out = 1,
                                        .flags = OP_SOURCE,
                                        .strided_in = 1,
                                        .strided_out = 1,
                                        .infer = infer_dx,
                                        .cut = "Ro Eio R -> Ri",
                                        .cost = cost,
                                        .cpu = CPU_KERNELS(grouped_linear_dx)};

const OpDef op_def_grouped_linear_dw = {.name = "grouped_linear_dw",
                                        .min_in = 3,
                                        .max_in = 3,
                                        .n_out = 1,
                                        .attr_bytes = sizeof(WeightAttr),
                                        .flags = OP_SOURCE,
                                        .strided_in = 3,
                                        .infer = infer_dw,
                                        .cut = "Ro Ri R -> Eio",
                                        .cut_attr = cut_shape,
                                        .cost = cost,
                                        .cpu = CPU_KERNELS(grouped_linear_dw)};

Status op_grouped_linear(Graph *g, ValueId x, ValueId w, ValueId offsets, ValueId *y)
{
    return graph_add(g, &op_def_grouped_linear, NULL, (ValueId[]){x, w, offsets}, 3, y);
}

Status op_grouped_linear_dx(Graph *g, ValueId dy, ValueId w, ValueId offsets, ValueId *dx)
{
    return graph_add(g, &op_def_grouped_linear_dx, NULL, (ValueId[]){dy, w, offsets}, 3, dx);
}

Status op_grouped_linear_dw(Graph *g, ValueId dy, ValueId x, ValueId offsets, ValueId w_like, ValueId *dw)
{
    WeightAttr attr = {graph_value(g, w_like)->shape};
    return graph_add(g, &op_def_grouped_linear_dw, &attr, (ValueId[]){dy, x, offsets}, 3, dw);
}
