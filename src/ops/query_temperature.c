/* query_temperature: y = x * (1 + scale * ln(1 + floor((p + 1) / floor_scale))), Llama 4's
 * sharpening of queries far from the start on layers without rope (models.md 2.2). Linear in x, so
 * that its gradient is itself. */
#include "ops/kernel.h"
#include "ops/rope_internal.h"

CPU_DECLARE(query_temperature);
CUDA_DECLARE(query_temperature);

static Status infer(InferCtx *ctx)
{
    const QueryTemperatureAttr *attr = ctx->attr;
    const Value *x = ctx->in[0], *pos = ctx->in[1];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    if ((x->dtype != DTYPE_F32 && x->dtype != DTYPE_BF16) || pos->dtype != DTYPE_I32)
        return fail(ERR_SHAPE,
                    "query_temperature: x must be f32 or bf16 and positions i32, not %s and %s",
                    dtype_name(x->dtype), dtype_name(pos->dtype));
    if (x->shape.rank != 4 || pos->shape.rank != 2 || x->shape.dim[0] != pos->shape.dim[0] ||
        x->shape.dim[1] != pos->shape.dim[1])
        return fail(ERR_SHAPE,
                    "query_temperature: x is [%s], positions [%s]; wanted [B T H d] and [B T]",
                    shape_text(&x->shape, a), shape_text(&pos->shape, b));
    if (!(attr->floor_scale > 0))
        return fail(ERR_ARG, "query_temperature: floor_scale must be positive, not %g",
                    (double)attr->floor_scale);
    ctx->out[0].dtype = x->dtype;
    ctx->out[0].shape = x->shape;
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    if (!ctx->need[0]) return OK;
    ValueId in[2] = {ctx->dout[0], node->in[1]};
    return graph_add(ctx->graph, node->op, node->attr, in, 2, &ctx->din[0]);
}

static Cost cost(const Graph *graph, const Node *node)
{
    const Value *x = graph_value(graph, node->in[0]);
    double n = (double)shape_count(&x->shape), bytes = n * (double)dtype_bytes(x->dtype);
    double tokens = (double)shape_count(&graph_value(graph, node->in[1])->shape);
    return (Cost){.flop = n, .read_bytes = bytes + 4 * tokens, .write_bytes = bytes};
}

static void attr_text(const void *attr, Str *out)
{
    const QueryTemperatureAttr *a = attr;
    str_printf(out, "scale=%g floor_scale=%g", (double)a->scale, (double)a->floor_scale);
}

const OpDef op_def_query_temperature = {
    .name = "query_temperature",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_bytes = sizeof(QueryTemperatureAttr),
    .flags = OP_CHEAP,
    .inplace = 1,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "*hd * -> *hd",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(query_temperature),
    .cuda = &cuda_query_temperature,
};

Status op_query_temperature(Graph *g, ValueId x, ValueId pos, float scale, float floor_scale,
                            ValueId *y)
{
    QueryTemperatureAttr attr = {.scale = scale, .floor_scale = floor_scale};
    ValueId in[2] = {x, pos};
    return graph_add(g, &op_def_query_temperature, &attr, in, 2, y);
}
