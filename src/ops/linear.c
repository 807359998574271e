/* linear: y[..., o] = sum_i x[..., i] w[o, i]. x [..., I], w [O I] as published, y [..., O].
 *
 * One matrix product of all rows of x with w transposed (gemm.h, linear_cpu.c). x and y may be
 * strided by row. f32, or bf16 operands with f32 sums and y in bf16 or f32.
 */
#include "ops/linear.h"
#include "ops/ops.h"

typedef struct LinearAttr {
    DType out_dtype;
} LinearAttr;

Status linear_check_operands(const InferCtx *ctx, const Value *x, const Value *w, int64_t w_axis)
{
    const char *name = ctx->op->name;
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    bool fits = w->shape.rank == 2 && x->shape.rank >= 1 &&
                x->shape.dim[x->shape.rank - 1] == w->shape.dim[w_axis];
    if (!fits)
        return fail(ERR_SHAPE, "%s: rows of [%s] do not fit the weight [%s]", name,
                    shape_text(&x->shape, a), shape_text(&w->shape, b));
    if (x->dtype != w->dtype || (x->dtype != DTYPE_F32 && x->dtype != DTYPE_BF16))
        return fail(ERR_ARG, "%s: operands of %s and %s; both are f32 or both are bf16", name,
                    dtype_name(x->dtype), dtype_name(w->dtype));
    return OK;
}

static Status infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0], *w = ctx->in[1];
    const LinearAttr *attr = ctx->attr;
    TRY(linear_check_operands(ctx, x, w, 1));
    if (attr->out_dtype != DTYPE_F32 && attr->out_dtype != x->dtype)
        return fail(ERR_ARG, "linear: output of %s from operands of %s",
                    dtype_name(attr->out_dtype), dtype_name(x->dtype));
    ctx->out[0].dtype = attr->out_dtype;
    ctx->out[0].shape = x->shape;
    ctx->out[0].shape.dim[x->shape.rank - 1] = w->shape.dim[0];
    ctx->out[0].shape.axis[x->shape.rank - 1] = w->shape.axis[0];
    return OK;
}

/* dy arrives in y's dtype; where that is wider than the operands' (linear_as) it is cast first. */
static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    ValueId x = graph_node(g, ctx->node)->in[0], w = graph_node(g, ctx->node)->in[1];
    ValueId dy = ctx->dout[0];
    DType dtype = graph_value(g, x)->dtype;
    if (graph_value(g, dy)->dtype != dtype) TRY(op_cast(g, dy, dtype, &dy));
    if (ctx->need[0]) TRY(op_linear_dx(g, dy, w, &ctx->din[0]));
    if (ctx->need[1]) TRY(op_linear_dw(g, dy, x, &ctx->din[1]));
    return OK;
}

Cost linear_cost(const Graph *graph, ValueId rows, ValueId weight, ValueId out)
{
    const Value *x = graph_value(graph, rows), *w = graph_value(graph, weight);
    const Value *y = graph_value(graph, out);
    double n_x = (double)shape_count(&x->shape), n_w = (double)shape_count(&w->shape);
    double n_y = (double)shape_count(&y->shape);
    double n_rows = n_x / (double)x->shape.dim[x->shape.rank - 1];
    return (Cost){.flop = 2 * n_rows * n_w,
                  .read_bytes = n_x * (double)dtype_bytes(x->dtype) +
                                n_w * (double)dtype_bytes(w->dtype),
                  .write_bytes = n_y * (double)dtype_bytes(y->dtype),
                  .kind = COST_MATMUL,
                  .m = n_rows,
                  .n = n_w / (double)x->shape.dim[x->shape.rank - 1],
                  .k = (double)x->shape.dim[x->shape.rank - 1],
                  .count = 1,
                  .dtype = x->dtype};
}

static Cost cost(const Graph *graph, const Node *node)
{
    return linear_cost(graph, node->in[0], node->in[1], node->out[0]);
}

static void attr_text(const void *attr, Str *out)
{
    str_add(out, dtype_name(((const LinearAttr *)attr)->out_dtype));
}

CPU_DECLARE(linear);
CUDA_DECLARE(linear);
const OpDef op_def_linear = {.name = "linear",
                             .min_in = 2,
                             .max_in = 2,
                             .n_out = 1,
                             .attr_bytes = sizeof(LinearAttr),
                             .strided_in = 1,
                             .strided_out = 1,
                             .infer = infer,
                             .cut = "*i oi -> *o",
                             .grad = grad,
                             .cost = cost,
                             .attr_text = attr_text,
                             .cpu = CPU_KERNELS(linear),
                             .cuda = &cuda_linear,
                             .gpu_workspace = linear_gpu_workspace};

Status op_linear_as(Graph *g, ValueId x, ValueId w, DType out_dtype, ValueId *y)
{
    return graph_add(g, &op_def_linear, &(LinearAttr){out_dtype}, (ValueId[]){x, w}, 2, y);
}

Status op_linear(Graph *g, ValueId x, ValueId w, ValueId *y)
{
    return op_linear_as(g, x, w, graph_value(g, x)->dtype, y);
}
