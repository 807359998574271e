/* embed: rows of a table by token id. Its gradient is a table of sums, made without atomics: tokens
 * are sorted by id (counting sort, stable), then each row of the table is written once, by one
 * thread. */
#include "ops/embed.h"
#include "ops/id_sort.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(embed);
CPU_DECLARE(embed_grad);
CUDA_DECLARE(embed);
CUDA_DECLARE(embed_grad);

/* ---- embed(ids, w) ---------------------------------------------------------------------- */

static Status infer(InferCtx *ctx)
{
    const Value *ids = ctx->in[0], *w = ctx->in[1];
    DType dtype = ((const EmbedAttr *)ctx->attr)->dtype;
    TRY(need_dtype(ids, DTYPE_I32, "ids"));
    TRY(need_activation(w, "w"));
    if (!dtype_is_activation(dtype))
        return fail(ERR_ARG, "y cannot be %s, only f32 or bf16", dtype_name(dtype));
    if (w->shape.rank != 2 || w->shape.dim[0] < 1)
        return fail(ERR_SHAPE, "w must be [vocab embed], at least one row");
    if (ids->shape.rank >= MAX_RANK) return fail(ERR_SHAPE, "ids have too many axes");
    Shape shape = ids->shape;
    shape.dim[shape.rank] = w->shape.dim[1];
    shape.axis[shape.rank++] = w->shape.axis[1];
    ctx->out[0] = infer_out(dtype, shape);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    ValueId ids = node->in[0], w = node->in[1];
    return op_embed_grad(ctx->graph, ids, ctx->dout[0], graph_value(ctx->graph, w)->shape,
                         &ctx->din[1]);
}

/* A rank with a part of the rows gives zeros for the others': a partial sum. */
static Status cut_rows(const CutCtx *ctx, void *attribute)
{
    EmbedAttr *attr = attribute;
    if (!place_is_cut(ctx->want[1]) || ctx->want[1].dim != 0) return OK;
    attr->cut_axes |= 1u << ctx->axis;
    attr->first += ctx->rank * ctx->in[1]->shape.dim[0];
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    double rows = value_count(g, node->out[0]) *
                  (double)dtype_bytes(graph_value(g, node->in[1])->dtype);
    return (Cost){.read_bytes = rows + value_bytes(g, node->in[0]),
                  .write_bytes = value_bytes(g, node->out[0])};
}

const OpDef op_def_embed = {
    .name = "embed",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(EmbedAttr),
    .strided_out = 1,
    .infer = infer,
    .cut = "* vd -> *d",
    .cut_attr = cut_rows,
    .grad = grad,
    .cost = cost,
    .cpu = CPU_KERNELS(embed),
    .cuda = &cuda_embed,
};

Status op_embed(Graph *g, ValueId ids, ValueId w, DType dtype, ValueId *y)
{
    EmbedAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.dtype = dtype;
    return graph_add(g, &op_def_embed, &attr, (ValueId[]){ids, w}, 2, y);
}

/* ---- embed_grad(ids, dy) ---------------------------------------------------------------- */

static Status infer_grad(InferCtx *ctx)
{
    const Value *ids = ctx->in[0], *dy = ctx->in[1];
    const EmbedGradAttr *attr = ctx->attr;
    TRY(need_dtype(ids, DTYPE_I32, "ids"));
    TRY(need_activation(dy, "dy"));
    Shape shape = ids->shape;
    shape.dim[shape.rank++] = attr->table.dim[1];
    TRY(need_shape(dy, &shape, "dy"));
    if (shape_count(&ids->shape) > INT32_MAX || attr->table.dim[0] > INT32_MAX)
        return fail(ERR_SHAPE, "more tokens or rows than i32 can count");
    ctx->out[0] = infer_out(DTYPE_F32, attr->table);
    return OK;
}

/* Rows of the table are cut only when that is how the gradient is wanted: no operand says so. */
static Status cut_grad(CutCtx *ctx)
{
    const EmbedGradAttr *attr = ctx->attr;
    bool cut = ctx->localized ? attr->cut_axes >> ctx->axis & 1
                              : ctx->hint && place_is_cut(ctx->hint[0]) && ctx->hint[0].dim == 0;
    graph_cut_text(ctx, "* *d -> vd");
    if (!cut) return OK;
    ctx->want[0] = ctx->want[1] = (Place){PLACE_SAME, 0};
    ctx->out[0] = (Place){PLACE_CUT, 0};
    return OK;
}

static Status cut_table(const CutCtx *ctx, void *attribute)
{
    EmbedGradAttr *attr = attribute;
    if (!place_is_cut(ctx->out[0])) return OK;
    attr->table.dim[ctx->out[0].dim] /= ctx->n;
    if (ctx->out[0].dim != 0) return OK;
    attr->cut_axes |= 1u << ctx->axis;
    attr->first += ctx->rank * attr->table.dim[0];
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

static size_t gpu_workspace_grad(const Graph *g, const Node *node)
{
    return sort_workspace(shape_count(&graph_value(g, node->in[0])->shape));
}

const OpDef op_def_embed_grad = {
    .name = "embed_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(EmbedGradAttr),
    .flags = OP_SOURCE,
    .strided_in = 2,
    .infer = infer_grad,
    .cut_rule = cut_grad,
    .cut_attr = cut_table,
    .cost = cost_grad,
    .cpu = CPU_KERNELS(embed_grad),
    .cuda = &cuda_embed_grad,
    .gpu_workspace = gpu_workspace_grad,
};

Status op_embed_grad(Graph *g, ValueId ids, ValueId dy, Shape table, ValueId *dw)
{
    EmbedGradAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.table = table;
    return graph_add(g, &op_def_embed_grad, &attr, (ValueId[]){ids, dy}, 2, dw);
}
