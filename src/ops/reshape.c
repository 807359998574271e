/* reshape: the same elements under another shape, a view. */
#include "ops/rules.h"

#include <string.h>

/* Strides that show the elements of v, in row-major order, as `shape`; false when no strides do.
 * Axes of both shapes are taken in groups of equal count; a group of old axes must be one run. */
static bool restride(const Value *v, const Shape *shape, int64_t *stride)
{
    int i = 0, j = 0;
    while (i < v->shape.rank && j < shape->rank) {
        int first_i = i, first_j = j;
        int64_t old = v->shape.dim[i++], fresh = shape->dim[j++];
        while (old != fresh) {
            if (old < fresh)
                old *= v->shape.dim[i++];
            else
                fresh *= shape->dim[j++];
        }
        for (int k = first_i; k + 1 < i; k++)
            if (v->shape.dim[k] != 1 && v->stride[k] != v->stride[k + 1] * v->shape.dim[k + 1]) return false;
        int64_t step = v->stride[i - 1];
        for (int k = j - 1; k >= first_j; k--) {
            stride[k] = step;
            step *= shape->dim[k];
        }
    }
    for (; j < shape->rank; j++) stride[j] = 1; /* axes of length one at the end */
    return true;
}

static Status infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0];
    Shape shape;
    memcpy(&shape, ctx->attr, sizeof shape);
    char text[SHAPE_TEXT];
    int64_t count = shape_count(&x->shape);
    if (shape_count(&shape) != count)
        return fail(ERR_SHAPE, "[%s] has %lld elements, not %lld", shape_text(&shape, text),
                    (long long)shape_count(&shape), (long long)count);
    InferOut *y = &ctx->out[0];
    *y = (InferOut){.dtype = x->dtype, .shape = shape, .wanted = true, .alias = 0};
    if (stride_is_contiguous(&x->shape, x->stride)) return OK;
    y->strided = true;
    if (!restride(x, &shape, y->stride))
        return fail(ERR_SHAPE, "[%s] would join rows that do not lie one behind the other; concat copies them",
                    shape_text(&shape, text));
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Shape shape = graph_value(ctx->graph, graph_node(ctx->graph, ctx->node)->in[0])->shape;
    return op_reshape(ctx->graph, ctx->dout[0], shape, &ctx->din[0]);
}

const OpDef op_def_reshape = {
    .name = "reshape",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(Shape),
    .flags = OP_VIEW,
    .strided_in = 1,
    .infer = infer,
    .grad = grad,
};

Status op_reshape(Graph *g, ValueId x, Shape shape, ValueId *y)
{
    return graph_add(g, &op_def_reshape, &shape, &x, 1, y);
}
