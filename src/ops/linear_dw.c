/* linear_dw: dw[o, i] = sum over rows r of dy[r, o] x[r, i], the weight gradient of linear, f32.
 * linear_dw_accumulate: the same, added to a state in place (gradients summed over micro-batches).
 * dy [..., O], x [..., I], both may be strided by row; dw [O I]. */
#include "ops/linear.h"
#include "ops/ops.h"

static Status check(const InferCtx *ctx)
{
    const Value *dy = ctx->in[0], *x = ctx->in[1];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    bool fits = dy->shape.rank >= 1 && dy->shape.rank == x->shape.rank;
    for (int i = 0; fits && i + 1 < dy->shape.rank; i++) fits = dy->shape.dim[i] == x->shape.dim[i];
    if (!fits)
        return fail(ERR_SHAPE, "%s: dy [%s] and x [%s] are not the same rows", ctx->op->name,
                    shape_text(&dy->shape, a), shape_text(&x->shape, b));
    if (dy->dtype != x->dtype || (x->dtype != DTYPE_F32 && x->dtype != DTYPE_BF16))
        return fail(ERR_ARG, "%s: operands of %s and %s; both are f32 or both are bf16",
                    ctx->op->name, dtype_name(dy->dtype), dtype_name(x->dtype));
    return OK;
}

static Shape weight_shape(const InferCtx *ctx)
{
    const Shape *dy = &ctx->in[0]->shape, *x = &ctx->in[1]->shape;
    int last = dy->rank - 1;
    return shape_make(2, (int64_t[]){dy->dim[last], x->dim[last]},
                      (Axis[]){dy->axis[last], x->axis[last]});
}

static Status infer(InferCtx *ctx)
{
    TRY(check(ctx));
    ctx->out[0].dtype = DTYPE_F32;
    ctx->out[0].shape = weight_shape(ctx);
    return OK;
}

static Status infer_accumulate(InferCtx *ctx)
{
    TRY(check(ctx));
    const Value *state = ctx->in[2];
    Shape shape = weight_shape(ctx);
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    if (state->dtype != DTYPE_F32 || !shape_equal(&state->shape, &shape))
        return fail(ERR_SHAPE, "linear_dw_accumulate: state is %s [%s], the gradient f32 [%s]",
                    dtype_name(state->dtype), shape_text(&state->shape, a), shape_text(&shape, b));
    ctx->out[0].dtype = DTYPE_F32;
    ctx->out[0].shape = state->shape;
    ctx->out[0].alias = 2;
    return OK;
}

static Cost product_cost(const Graph *graph, const Node *node, bool accumulate)
{
    const Value *dy = graph_value(graph, node->in[0]), *x = graph_value(graph, node->in[1]);
    const Value *dw = graph_value(graph, node->out[0]);
    double n_dy = (double)shape_count(&dy->shape), n_x = (double)shape_count(&x->shape);
    double dw_bytes = 4 * (double)shape_count(&dw->shape);
    return (Cost){.flop = 2 * n_dy * (double)x->shape.dim[x->shape.rank - 1],
                  .read_bytes = (n_dy + n_x) * (double)dtype_bytes(x->dtype) +
                                (accumulate ? dw_bytes : 0),
                  .write_bytes = dw_bytes,
                  .kind = COST_MATMUL,
                  .m = (double)dy->shape.dim[dy->shape.rank - 1],
                  .n = (double)x->shape.dim[x->shape.rank - 1],
                  .k = n_x / (double)x->shape.dim[x->shape.rank - 1],
                  .count = 1,
                  .dtype = x->dtype};
}

static Cost cost(const Graph *graph, const Node *node) { return product_cost(graph, node, false); }

static Cost cost_accumulate(const Graph *graph, const Node *node)
{
    return product_cost(graph, node, true);
}

/* The state must lie as the gradient does. */
static Status cut_accumulate(CutCtx *ctx)
{
    graph_cut_text(ctx, "*o *i -> oi");
    ctx->want[2] = ctx->out[0];
    return OK;
}

CPU_DECLARE(linear_dw);
CPU_DECLARE(linear_dw_accumulate);
CUDA_DECLARE(linear_dw);
CUDA_DECLARE(linear_dw_accumulate);

const OpDef op_def_linear_dw = {.name = "linear_dw",
                                .min_in = 2,
                                .max_in = 2,
                                .n_out = 1,
                                .flags = OP_SOURCE,
                                .strided_in = 3,
                                .infer = infer,
                                .cut = "*o *i -> oi",
                                .cost = cost,
                                .cpu = CPU_KERNELS(linear_dw),
                                .cuda = &cuda_linear_dw,
                                .gpu_workspace = linear_gpu_workspace};

const OpDef op_def_linear_dw_accumulate = {.name = "linear_dw_accumulate",
                                           .min_in = 3,
                                           .max_in = 3,
                                           .n_out = 1,
                                           .flags = OP_SOURCE | OP_EFFECT,
                                           .strided_in = 3,
                                           .infer = infer_accumulate,
                                           .cut_rule = cut_accumulate,
                                           .cost = cost_accumulate,
                                           .cpu = CPU_KERNELS(linear_dw_accumulate),
                                           .cuda = &cuda_linear_dw_accumulate,
                                           .gpu_workspace = linear_gpu_workspace};

Status op_linear_dw(Graph *g, ValueId dy, ValueId x, ValueId *dw)
{
    return graph_add(g, &op_def_linear_dw, NULL, (ValueId[]){dy, x}, 2, dw);
}

Status op_linear_dw_accumulate(Graph *g, ValueId dy, ValueId x, ValueId state, ValueId *sum)
{
    return graph_add(g, &op_def_linear_dw_accumulate, NULL, (ValueId[]){dy, x, state}, 3, sum);
}
