/* split: parts of the last axis as views. */
#include "ops/rules.h"

#include <string.h>

typedef struct SplitAttr {
    int n;
    int64_t width[NODE_MAX_OUT];
    Axis axis[NODE_MAX_OUT];
} SplitAttr;

static Status infer(InferCtx *ctx)
{
    const Value *x = ctx->in[0];
    const SplitAttr *attr = ctx->attr;
    if (x->shape.rank < 1) return fail(ERR_SHAPE, "a scalar has no axis to split");
    int last = x->shape.rank - 1;
    int64_t sum = 0;
    for (int i = 0; i < NODE_MAX_OUT; i++) ctx->out[i].wanted = i < attr->n;
    for (int i = 0; i < attr->n; i++) {
        if (attr->width[i] < 0 || attr->width[i] > x->shape.dim[last] - sum)
            return fail(ERR_SHAPE,
                        "part %d of width %lld does not fit behind the first %lld of %lld elements",
                        i, (long long)attr->width[i], (long long)sum,
                        (long long)x->shape.dim[last]);
        InferOut *y = &ctx->out[i];
        *y = (InferOut){
            .dtype = x->dtype, .shape = x->shape, .wanted = true, .alias = 0, .strided = true};
        y->shape.dim[last] = attr->width[i];
        y->shape.axis[last] = attr->axis[i];
        memcpy(y->stride, x->stride, sizeof y->stride);
        y->offset_bytes = (size_t)sum * dtype_bytes(x->dtype);
        sum += attr->width[i];
    }
    if (sum != x->shape.dim[last])
        return fail(ERR_SHAPE, "the parts have %lld elements together, not %lld", (long long)sum,
                    (long long)x->shape.dim[last]);
    return OK;
}

/* The gradients of the parts side by side; a part without one gets zeros. */
static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    const SplitAttr *attr = graph_node(g, ctx->node)->attr;
    ValueId part[NODE_MAX_OUT], x = graph_node(g, ctx->node)->in[0];
    for (int i = 0; i < attr->n; i++) {
        Value whole = *graph_value(g, x);
        whole.shape.dim[whole.shape.rank - 1] = attr->width[i];
        whole.shape.axis[whole.shape.rank - 1] = attr->axis[i];
        part[i] = ctx->dout[i];
        if (!value_ok(part[i])) TRY(op_fill(g, whole.dtype, whole.shape, 0, &part[i]));
    }
    return op_concat(g, attr->n, part, &ctx->din[0]);
}

/* Every part is cut by itself. */
static Status cut_widths(const CutCtx *ctx, void *attribute)
{
    SplitAttr *attr = attribute;
    if (!place_is_cut(ctx->want[0]) || ctx->want[0].dim != ctx->in[0]->shape.rank - 1) return OK;
    for (int i = 0; i < attr->n; i++) {
        if (attr->width[i] % ctx->n)
            return fail(ERR_REFUSED, "%lld %s cannot be cut into %d equal parts for parallel.%s",
                        (long long)attr->width[i], axis_name(attr->axis[i]), ctx->n,
                        mesh_axis_name(ctx->axis));
        attr->width[i] /= ctx->n;
    }
    return OK;
}

static void attr_text(const void *attribute, Str *out)
{
    const SplitAttr *attr = attribute;
    for (int i = 0; i < attr->n; i++)
        str_printf(out, "%s%lld", i ? " " : "widths ", (long long)attr->width[i]);
}

const OpDef op_def_split = {
    .name = "split",
    .min_in = 1,
    .max_in = 1,
    .n_out = NODE_MAX_OUT,
    .attr_bytes = sizeof(SplitAttr),
    .flags = OP_VIEW,
    .strided_in = 1,
    .infer = infer,
    .cut = "*k~ -> *k *k *k *k *k",
    .cut_attr = cut_widths,
    .grad = grad,
    .attr_text = attr_text,
};

Status op_split(Graph *g, ValueId x, int n, const int64_t *width, const Axis *axis_names,
                ValueId *y)
{
    SplitAttr attr;
    ValueId part[NODE_MAX_OUT];
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    if (n < 1 || n > NODE_MAX_OUT)
        return fail(ERR_ARG, "split: %d parts, 1 to %d are possible", n, NODE_MAX_OUT);
    attr.n = n;
    for (int i = 0; i < n; i++) {
        attr.width[i] = width[i];
        attr.axis[i] = axis_names ? axis_names[i] : AXIS_ANY;
    }
    TRY(graph_add(g, &op_def_split, &attr, &x, 1, part));
    memcpy(y, part, sizeof *y * (size_t)n);
    return OK;
}
