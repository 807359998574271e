/* chunked_grouped_linear: rows of experts against their matrices, as grouped_linear and
 * grouped_linear_dx, but f32 and with the contraction in chunks (chunks.h, chunked_linear.c). rows
 * [R n], w [E .. ..] of which they meet axis 1 or 2, offsets as grouped_linear's; y [R m]; rows
 * past the last offset are left as they are. */
#include "ops/chunks.h"
#include "ops/grouped_linear.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

static int axis_of(const void *attr) { return (int)((const ChunkedGroupedAttr *)attr)->axis; }

static Status infer(InferCtx *ctx)
{
    const ChunkedGroupedAttr *attr = ctx->attr;
    const Value *rows = ctx->in[0], *w = ctx->in[1];
    int to = 3 - axis_of(attr);
    TRY(grouped_check(ctx, rows, &w->shape, axis_of(attr), ctx->in[2]));
    TRY(need_dtype(w, rows->dtype, "w"));
    TRY(chunks_check(&attr->chunks, w->shape.dim[axis_of(attr)]));
    ctx->out[0] = infer_out(DTYPE_F32, rows->shape);
    ctx->out[0].shape.dim[1] = w->shape.dim[to];
    ctx->out[0].shape.axis[1] = w->shape.axis[to];
    return OK;
}

static Status cut(CutCtx *ctx)
{
    graph_cut_text(ctx, axis_of(ctx->attr) == 1 ? "Rk Eko R -> Ro" : "Rk Eok R -> Ro");
    return OK;
}

static Status cut_attr(const CutCtx *ctx, void *attribute)
{
    ChunkedGroupedAttr *attr = attribute;
    bool contraction = ctx->axis == MESH_TP && ctx->want[0].kind == PLACE_CUT &&
                       ctx->want[0].dim == 1;
    return contraction ? chunks_cut(&attr->chunks, ctx->op->name, ctx->n) : OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    Cost cost = grouped_cost(g, node);
    double extra = (((const ChunkedGroupedAttr *)node->attr)->chunks.n - 1) *
                   value_bytes(g, node->out[0]);
    cost.read_bytes += 2 * extra;
    cost.write_bytes += 2 * extra;
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    const ChunkedGroupedAttr *attr = attribute;
    str_printf(out, "axis %d, %d chunks", axis_of(attr), attr->chunks.n);
}

CPU_DECLARE(chunked_grouped_linear);
CUDA_DECLARE(chunked_grouped_linear);

static size_t gpu_workspace(const Graph *g, const Node *node)
{
    int levels = tree_levels(((const ChunkedGroupedAttr *)node->attr)->chunks.n);
    return (size_t)levels * (size_t)value_bytes(g, node->out[0]);
}

const OpDef op_def_chunked_grouped_linear = {.name = "chunked_grouped_linear",
                                             .min_in = 3,
                                             .max_in = 3,
                                             .n_out = 1,
                                             .attr_bytes = sizeof(ChunkedGroupedAttr),
                                             .flags = OP_SOURCE,
                                             .strided_in = 1,
                                             .infer = infer,
                                             .cut_rule = cut,
                                             .cut_attr = cut_attr,
                                             .cost = cost,
                                             .attr_text = attr_text,
                                             .cpu = CPU_KERNELS(chunked_grouped_linear),
                                             .cuda = &cuda_chunked_grouped_linear,
                                             .gpu_workspace = gpu_workspace};

Status op_chunked_grouped_linear(Graph *g, ValueId rows, ValueId w, ValueId offsets, int axis,
                                 const Chunks *chunks, ValueId *y)
{
    ChunkedGroupedAttr attr = {.axis = axis, .chunks = *chunks};
    return graph_add(g, &op_def_chunked_grouped_linear, &attr, (ValueId[]){rows, w, offsets}, 3, y);
}
