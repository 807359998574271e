/* grouped_linear: y[r, o] = sum_i x[r, i] W_e[i, o] for the rows r of expert e, which are
 * offsets[e]..offsets[e+1]-1. x [R I], offsets [E+1] i32, y [R O]; rows past offsets[E] are left as
 * they are. The weight w holds W_e as [E I O], or with EXPERTS_OUT_IN its transpose as [E O I].
 * Gradients:
 *   grouped_linear_dx   dx[r, i] = sum_o dy[r, o] W_e[i, o]; rows past offsets[E] left as they are
 *   grouped_linear_dw   dW_e[i, o] = sum over r of x[r, i] dy[r, o], f32, laid out as w is; zero
 *                       for an
 *                       expert without rows
 * dw sums over the padding rows inside a segment too: x is zero there and dy must be finite. With
 * expert parallelism in canonical mode an expert's rows are one segment for each rank that sent
 * some, offsets [E n + 1], and dw is the sum over them as a balanced binary tree.
 */
#include "ops/grouped_linear.h"
#include "ops/chunks.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <math.h>
#include <string.h>

Status grouped_check(const InferCtx *ctx, const Value *rows, const Shape *w, int axis,
                     const Value *offsets)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    TRY(need_activation(rows, "rows"));
    if (rows->shape.rank != 2 || w->rank != 3 || rows->shape.dim[1] != w->dim[axis])
        return fail(ERR_SHAPE,
                    "%s: rows [%s] do not fit the experts' weight [%s], whose axis %d they meet",
                    ctx->op->name, shape_text(&rows->shape, a), shape_text(w, b), axis);
    TRY(need_dtype(offsets, DTYPE_I32, "offsets"));
    if (offsets->shape.rank == 1 && offsets->shape.dim[0] > 1 &&
        (offsets->shape.dim[0] - 1) % w->dim[0] == 0)
        return OK;
    return fail(ERR_SHAPE,
                "offsets are [%s] and must have one element more than %lld experts have segments",
                shape_text(&offsets->shape, a), (long long)w->dim[0]);
}

static Status infer_rows(InferCtx *ctx, int from)
{
    const Value *x = ctx->in[0], *w = ctx->in[1];
    int to = 3 - from;
    TRY(grouped_check(ctx, x, &w->shape, from, ctx->in[2]));
    TRY(need_dtype(w, x->dtype, "w"));
    ctx->out[0] = infer_like(x);
    ctx->out[0].shape.dim[1] = w->shape.dim[to];
    ctx->out[0].shape.axis[1] = w->shape.axis[to];
    return OK;
}

static Status infer(InferCtx *ctx) { return infer_rows(ctx, grouped_in_axis(ctx->attr)); }
static Status infer_dx(InferCtx *ctx) { return infer_rows(ctx, 3 - grouped_in_axis(ctx->attr)); }

static Status infer_dw(InferCtx *ctx)
{
    const Value *dy = ctx->in[0], *x = ctx->in[1];
    const GroupedAttr *attr = ctx->attr;
    const Shape *w = &attr->weight;
    int in = grouped_in_axis(attr);
    TRY(grouped_check(ctx, dy, w, 3 - in, ctx->in[2]));
    TRY(grouped_check(ctx, x, w, in, ctx->in[2]));
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
    ExpertLayout layout = ((const GroupedAttr *)node->attr)->layout;
    ExpertWeight like = {graph_value(g, w)->shape, layout};
    if (ctx->need[0]) TRY(op_grouped_linear_dx(g, ctx->dout[0], w, offsets, layout, &ctx->din[0]));
    if (ctx->need[1]) TRY(op_grouped_linear_dw(g, ctx->dout[0], x, offsets, like, &ctx->din[1]));
    return OK;
}

/* Of the buffer's R rows about half an alignment for each expert is padding inside its segment, and
 * as much is past the end. Where experts are owned by ranks the buffer has room for the rows of all
 * of them, and on average as many come as one rank has; each rank's part of an expert's rows is
 * padded. */
Cost grouped_cost(const Graph *g, const Node *node)
{
    const Value *rows = graph_value(g, node->in[0]), *offsets = graph_value(g, node->in[2]);
    const Value *other = graph_value(g, node->in[1]), *out = graph_value(g, node->out[0]);
    bool forward = other->shape.rank == 3;
    double owners = expert_room(g, rows),
           senders = rows->place[MESH_EP].kind == PLACE_OWNED ? mesh_size(&g->mesh, MESH_EP) : 1;
    double experts = (double)(offsets->shape.dim[0] - 1);
    double used = fmax(0, (double)rows->shape.dim[0] / owners -
                              experts * senders * EXPERT_ROW_ALIGN / 2);
    double wide = forward ? (double)last_dim(out) : (double)last_dim(other),
           unused = 1 - 1 / owners;
    Cost cost = cost_streaming(g, node, 0);
    cost.read_bytes -= unused *
                       (value_bytes(g, node->in[0]) + (forward ? 0 : value_bytes(g, node->in[1])));
    cost.write_bytes -= unused * (forward ? value_bytes(g, node->out[0]) : 0);
    cost.flop = 2 * used * (double)last_dim(rows) * wide;
    cost.kind = COST_MATMUL;
    cost.m = forward ? used / experts : (double)last_dim(rows);
    cost.n = wide;
    cost.k = forward ? (double)last_dim(rows) : used / experts;
    cost.count = experts;
    cost.dtype = rows->dtype;
    return cost;
}

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "%s",
               ((const GroupedAttr *)attr)->layout == EXPERTS_OUT_IN ? "[E O I]" : "[E I O]");
}

CPU_DECLARE(grouped_linear);
CPU_DECLARE(grouped_linear_dx);
CPU_DECLARE(grouped_linear_dw);
CUDA_DECLARE(grouped_linear);
CUDA_DECLARE(grouped_linear_dx);
CUDA_DECLARE(grouped_linear_dw);

/* Nothing beside the operands, unlike the processor's. */
static size_t gpu_workspace(const Graph *g, const Node *node)
{
    (void)g;
    (void)node;
    return 0;
}

/* A tree over the ranks that sent rows. */
static size_t gpu_workspace_dw(const Graph *g, const Node *node)
{
    const Value *dw = graph_value(g, node->out[0]), *offsets = graph_value(g, node->in[2]);
    int64_t sources = (offsets->shape.dim[0] - 1) / dw->shape.dim[0];
    return (size_t)(tree_levels((int)sources) * shape_count(&dw->shape)) * sizeof(float);
}

static Status cut_by(CutCtx *ctx, const char *in_out, const char *out_in)
{
    graph_cut_text(ctx,
                   ((const GroupedAttr *)ctx->attr)->layout == EXPERTS_OUT_IN ? out_in : in_out);
    return OK;
}
static Status cut(CutCtx *ctx) { return cut_by(ctx, "Ri Eio R -> Ro", "Ri Eoi R -> Ro"); }
static Status cut_dx(CutCtx *ctx) { return cut_by(ctx, "Ro Eio R -> Ri", "Ro Eoi R -> Ri"); }
static Status cut_dw(CutCtx *ctx) { return cut_by(ctx, "Ro Ri R -> Eio", "Ro Ri R -> Eoi"); }

static Status cut_shape(const CutCtx *ctx, void *attribute)
{
    GroupedAttr *attr = attribute;
    if (place_is_cut(ctx->out[0])) attr->weight.dim[ctx->out[0].dim] /= ctx->n;
    return OK;
}

const OpDef op_def_grouped_linear = {.name = "grouped_linear",
                                     .min_in = 3,
                                     .max_in = 3,
                                     .n_out = 1,
                                     .attr_bytes = sizeof(GroupedAttr),
                                     .strided_in = 1,
                                     .strided_out = 1,
                                     .infer = infer,
                                     .cut_rule = cut,
                                     .grad = grad,
                                     .cost = grouped_cost,
                                     .attr_text = attr_text,
                                     .cpu = CPU_KERNELS(grouped_linear),
                                     .cuda = &cuda_grouped_linear,
                                     .gpu_workspace = gpu_workspace};

const OpDef op_def_grouped_linear_dx = {.name = "grouped_linear_dx",
                                        .min_in = 3,
                                        .max_in = 3,
                                        .n_out = 1,
                                        .attr_bytes = sizeof(GroupedAttr),
                                        .flags = OP_SOURCE,
                                        .strided_in = 1,
                                        .strided_out = 1,
                                        .infer = infer_dx,
                                        .cut_rule = cut_dx,
                                        .cost = grouped_cost,
                                        .attr_text = attr_text,
                                        .cpu = CPU_KERNELS(grouped_linear_dx),
                                        .cuda = &cuda_grouped_linear_dx,
                                        .gpu_workspace = gpu_workspace};

const OpDef op_def_grouped_linear_dw = {.name = "grouped_linear_dw",
                                        .min_in = 3,
                                        .max_in = 3,
                                        .n_out = 1,
                                        .attr_bytes = sizeof(GroupedAttr),
                                        .flags = OP_SOURCE,
                                        .strided_in = 3,
                                        .infer = infer_dw,
                                        .cut_rule = cut_dw,
                                        .cut_attr = cut_shape,
                                        .cost = grouped_cost,
                                        .attr_text = attr_text,
                                        .cpu = CPU_KERNELS(grouped_linear_dw),
                                        .cuda = &cuda_grouped_linear_dw,
                                        .gpu_workspace = gpu_workspace_dw};

/* Attributes are compared by their bytes: padding is zero too. */
static GroupedAttr make_attr(ExpertLayout layout, const Shape *weight)
{
    GroupedAttr attr;
    memset(&attr, 0, sizeof attr);
    attr.layout = layout;
    if (weight) memcpy(&attr.weight, weight, sizeof attr.weight);
    return attr;
}

Status op_grouped_linear(Graph *g, ValueId x, ValueId w, ValueId offsets, ExpertLayout layout,
                         ValueId *y)
{
    GroupedAttr attr = make_attr(layout, NULL);
    return graph_add(g, &op_def_grouped_linear, &attr, (ValueId[]){x, w, offsets}, 3, y);
}

int op_grouped_contraction(const Node *node)
{
    if (node->op == &op_def_grouped_linear) return grouped_in_axis(node->attr);
    return node->op == &op_def_grouped_linear_dx ? 3 - grouped_in_axis(node->attr) : 0;
}

Status op_grouped_linear_dx(Graph *g, ValueId dy, ValueId w, ValueId offsets, ExpertLayout layout,
                            ValueId *dx)
{
    GroupedAttr attr = make_attr(layout, NULL);
    return graph_add(g, &op_def_grouped_linear_dx, &attr, (ValueId[]){dy, w, offsets}, 3, dx);
}

Status op_grouped_linear_dw(Graph *g, ValueId dy, ValueId x, ValueId offsets, ExpertWeight like,
                            ValueId *dw)
{
    GroupedAttr attr = make_attr(like.layout, &like.shape);
    return graph_add(g, &op_def_grouped_linear_dw, &attr, (ValueId[]){dy, x, offsets}, 3, dw);
}
