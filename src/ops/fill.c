/* fill: a constant tensor. */
#include "ops/fill.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(fill);
CUDA_DECLARE(fill);

static Status infer(InferCtx *ctx)
{
    const FillAttr *attr = ctx->attr;
    if (!dtype_is_activation(attr->dtype) && attr->dtype != DTYPE_I32)
        return fail(ERR_ARG, "a fill is f32, bf16 or i32, not %s", dtype_name(attr->dtype));
    ctx->out[0] = infer_out(attr->dtype, attr->shape);
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

static void attr_text(const void *attr, Str *out)
{
    str_printf(out, "value %.9g", (double)((const FillAttr *)attr)->value);
}

const OpDef op_def_fill = {
    .name = "fill",
    .min_in = 0,
    .max_in = 0,
    .n_out = 1,
    .attr_bytes = sizeof(FillAttr),
    .flags = OP_SOURCE | OP_CHEAP,
    .strided_out = 1,
    .infer = infer,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(fill),
    .cuda = &cuda_fill,
};

Status op_fill(Graph *g, DType dtype, Shape shape, float value, ValueId *y)
{
    FillAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.dtype = dtype;
    attr.value = value;
    attr.shape = shape;
    return graph_add(g, &op_def_fill, &attr, NULL, 0, y);
}
