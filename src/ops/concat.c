/* concat: operands side by side along the last axis. */
#include "ops/kernel.h"
#include "ops/rules.h"

#include <stdlib.h>

CPU_DECLARE(concat);
CUDA_DECLARE(concat);

static Status infer(InferCtx *ctx)
{
    const Value *first = ctx->in[0];
    if (first->shape.rank < 1) return fail(ERR_SHAPE, "scalars have no axis to join");
    int last = first->shape.rank - 1;
    Shape shape = first->shape;
    shape.dim[last] = 0;
    for (int i = 0; i < ctx->n_in; i++) {
        TRY(need_dtype(ctx->in[i], first->dtype, "every part"));
        Shape like = first->shape;
        like.dim[last] = last_dim(ctx->in[i]);
        TRY(need_shape(ctx->in[i], &like, "a part"));
        if (__builtin_add_overflow(shape.dim[last], like.dim[last], &shape.dim[last]))
            return fail(ERR_SHAPE, "the parts are too wide together");
    }
    ctx->out[0] = infer_out(first->dtype, shape);
    return OK;
}

/* Views of dy; a split has at most NODE_MAX_OUT parts, so that its last may have to be split again.
 */
static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    int n = graph_node(g, ctx->node)->n_in;
    ValueId rest = ctx->dout[0];
    for (int i = 0; i < n;) {
        int64_t width[NODE_MAX_OUT];
        Axis axis[NODE_MAX_OUT];
        ValueId part[NODE_MAX_OUT];
        int left = n - i, take = left <= NODE_MAX_OUT ? left : NODE_MAX_OUT - 1;
        int64_t behind = last_dim(graph_value(g, rest));
        for (int k = 0; k < take; k++) {
            const Value *x = graph_value(g, graph_node(g, ctx->node)->in[i + k]);
            width[k] = last_dim(x);
            axis[k] = x->shape.axis[x->shape.rank - 1];
            behind -= width[k];
        }
        if (take < left) {
            width[take] = behind;
            axis[take] = AXIS_ANY;
        }
        TRY(op_split(g, rest, take + (take < left), width, axis, part));
        for (int k = 0; k < take; k++) ctx->din[i + k] = part[k];
        if (take < left) rest = part[take];
        i += take;
    }
    return OK;
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 0); }

const OpDef op_def_concat = {
    .name = "concat",
    .min_in = 1,
    .max_in = -1,
    .n_out = 1,
    .flags = OP_JOINS,
    .strided_in = ~0u,
    .infer = infer,
    .cut = "*k~ -> *k",
    .grad = grad,
    .cost = cost,
    .cpu = CPU_KERNELS(concat),
    .cuda = &cuda_concat,
};

Status op_concat(Graph *g, int n, const ValueId *x, ValueId *y)
{
    return graph_add(g, &op_def_concat, NULL, x, n, y);
}
