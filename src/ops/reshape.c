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
            if (v->shape.dim[k] != 1 && v->stride[k] != v->stride[k + 1] * v->shape.dim[k + 1])
                return false;
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
        return fail(ERR_SHAPE,
                    "[%s] would join rows that do not lie one behind the other; concat copies them",
                    shape_text(&shape, text));
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Shape shape = graph_value(ctx->graph, graph_node(ctx->graph, ctx->node)->in[0])->shape;
    return op_reshape(ctx->graph, ctx->dout[0], shape, &ctx->din[0]);
}

/* Where axis `dim` of x goes: a cut axis must come first in its group of axes of equal count,
 * before and after. -1: it does not. `factor` makes x's axis whole again while the new shape is
 * still that of the uncut graph. */
static int axis_after(const Shape *x, int dim, int64_t factor, const Shape *y)
{
    int i = 0, j = 0;
    while (i < x->rank && j < y->rank) {
        int first_i = i, first_j = j;
        int64_t old = x->dim[i] * (i == dim ? factor : 1), fresh = y->dim[j++];
        i++;
        while (old != fresh) {
            if (old < fresh && i < x->rank) {
                old *= x->dim[i] * (i == dim ? factor : 1);
                i++;
            } else if (old > fresh && j < y->rank) {
                fresh *= y->dim[j++];
            } else {
                return -1;
            }
        }
        if (dim >= first_i && dim < i) {
            for (int k = first_i; k < dim; k++)
                if (x->dim[k] != 1) return -1;
            return first_j;
        }
    }
    return -1;
}

static Status cut_rule(CutCtx *ctx)
{
    Shape shape;
    memcpy(&shape, ctx->attr, sizeof shape);
    ctx->out[0] = ctx->place[0];
    if (!place_is_cut(ctx->place[0])) return OK;
    int to = ctx->place[0].dim == PLACE_FLAT ? -1
                                             : axis_after(&ctx->in[0]->shape, ctx->place[0].dim,
                                                          ctx->localized ? 1 : ctx->n, &shape);
    if (to < 0)
        ctx->want[0] = ctx->out[0] = (Place){PLACE_SAME, 0};
    else
        ctx->out[0].dim = (int8_t)to;
    return OK;
}

static Status cut_attr(const CutCtx *ctx, void *attribute)
{
    Shape shape;
    memcpy(&shape, attribute, sizeof shape);
    if (!place_is_cut(ctx->out[0])) return OK;
    int64_t *dim = &shape.dim[ctx->out[0].dim];
    if (*dim % ctx->n)
        return fail(ERR_REFUSED, "%lld %s cannot be cut into %d equal parts for parallel.%s",
                    (long long)*dim, axis_name(shape.axis[ctx->out[0].dim]), ctx->n,
                    mesh_axis_name(ctx->axis));
    *dim /= ctx->n;
    memcpy(attribute, &shape, sizeof shape);
    return OK;
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
    .cut_rule = cut_rule,
    .cut_attr = cut_attr,
};

Status op_reshape(Graph *g, ValueId x, Shape shape, ValueId *y)
{
    return graph_add(g, &op_def_reshape, &shape, &x, 1, y);
}
