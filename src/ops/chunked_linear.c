/* chunked_linear: y[..., o] = sum_i x[..., i] w[o, i], and chunked_linear_dx: dx[..., i] = sum_o
 * dy[..., o] w[o, i], as linear and linear_dx, but f32 and with the contraction in chunks
 * (chunks.h). x [..., I], dy [..., O], w [O I].
 *
 * The result stays f32 also for bf16 operands: what another rank adds to it must not have been
 * rounded before. They are put in by pass/canonical behind differentiation, so they have no
 * gradient rule. */
#include "ops/chunks.h"
#include "ops/kernel.h"
#include "ops/linear.h"
#include "ops/rules.h"

#include <string.h>

static Status infer_product(InferCtx *ctx, int w_axis)
{
    const Value *x = ctx->in[0], *w = ctx->in[1];
    TRY(linear_check_operands(ctx, x, w, w_axis));
    TRY(chunks_check(ctx->attr, w->shape.dim[w_axis]));
    ctx->out[0] = infer_out(DTYPE_F32, x->shape);
    ctx->out[0].shape.dim[x->shape.rank - 1] = w->shape.dim[1 - w_axis];
    ctx->out[0].shape.axis[x->shape.rank - 1] = w->shape.axis[1 - w_axis];
    return OK;
}

static Status infer_y(InferCtx *ctx) { return infer_product(ctx, 1); }
static Status infer_dx(InferCtx *ctx) { return infer_product(ctx, 0); }

/* A rank with a part of the contraction has as large a part of the chunks. */
static Status cut_attr(const CutCtx *ctx, void *attr)
{
    Place x = ctx->want[0];
    bool cut = ctx->axis == MESH_TP && x.kind == PLACE_CUT && x.dim == ctx->in[0]->shape.rank - 1;
    return cut ? chunks_cut(attr, ctx->op->name, ctx->n) : OK;
}

/* A sum is written and read again for every addition. */
static Cost cost(const Graph *graph, const Node *node)
{
    Cost cost = linear_cost(graph, node->in[0], node->in[1], node->out[0]);
    double extra = (((const Chunks *)node->attr)->n - 1) * value_bytes(graph, node->out[0]);
    cost.read_bytes += 2 * extra;
    cost.write_bytes += 2 * extra;
    return cost;
}

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "%d chunks", ((const Chunks *)attr)->n);
}

/* The tree's buffers, behind what the products need. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    const Value *y = graph_value(graph, node->out[0]);
    int64_t width = last_dim(y), rows = width ? shape_count(&y->shape) / width : 0;
    int levels = tree_levels(((const Chunks *)node->attr)->n);
    return GPU_PRODUCT_WORKSPACE_BYTES +
           (size_t)(levels * gpu_chunk_rows(rows) * width) * sizeof(float);
}

#define CHUNKED(name_, rule, letters)                                                              \
    CPU_DECLARE(name_);                                                                            \
    CUDA_DECLARE(name_);                                                                           \
    const OpDef op_def_##name_ = {.name = #name_,                                                  \
                                  .min_in = 2,                                                     \
                                  .max_in = 2,                                                     \
                                  .n_out = 1,                                                      \
                                  .attr_bytes = sizeof(Chunks),                                    \
                                  .flags = OP_SOURCE,                                              \
                                  .strided_in = 1,                                                 \
                                  .infer = rule,                                                   \
                                  .cut = letters,                                                  \
                                  .cut_attr = cut_attr,                                            \
                                  .cost = cost,                                                    \
                                  .attr_text = attr_text,                                          \
                                  .cpu = CPU_KERNELS(name_),                                       \
                                  .cuda = &cuda_##name_,                                           \
                                  .gpu_workspace = gpu_workspace}

CHUNKED(chunked_linear, infer_y, "*i oi -> *o");
CHUNKED(chunked_linear_dx, infer_dx, "*o oi -> *i");

static Status add(Graph *g, const OpDef *op, ValueId x, ValueId w, const Chunks *chunks, ValueId *y)
{
    return graph_add(g, op, chunks, (ValueId[]){x, w}, 2, y);
}

Status op_chunked_linear(Graph *g, ValueId x, ValueId w, const Chunks *chunks, ValueId *y)
{
    return add(g, &op_def_chunked_linear, x, w, chunks, y);
}

Status op_chunked_linear_dx(Graph *g, ValueId dy, ValueId w, const Chunks *chunks, ValueId *dx)
{
    return add(g, &op_def_chunked_linear_dx, dy, w, chunks, dx);
}
