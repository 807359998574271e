/* route: the experts of a token and their scores. The choice goes by logits + bias, the score by
 * the logits alone: sigmoid(l), or softmax(l) over all experts.
 *
 * Gradient of the scores: sigmoid  dl_c = ds s (1 - s);
 *                         softmax  dl_e = sum over slots j of ds_j s_j ((e == c_j) - p_e). */
#include "ops/kernel.h"
#include "ops/router.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(route);
CPU_DECLARE(route_grad);
CUDA_DECLARE(route);
CUDA_DECLARE(route_grad);

static RouteAttr make_attr(int k, RouterScore kind)
{
    RouteAttr attr;
    memset(&attr, 0, sizeof attr); /* padding too: attributes are compared by their bytes */
    attr.k = k;
    attr.kind = kind;
    return attr;
}

static Status infer(InferCtx *ctx)
{
    const Value *logits = ctx->in[0];
    const RouteAttr *attr = ctx->attr;
    int64_t experts = last_dim(logits);
    TRY(need_dtype(logits, DTYPE_F32, "logits"));
    if (logits->shape.rank < 1) return fail(ERR_SHAPE, "logits have no axis of experts");
    if (ctx->in[1]) TRY(need_vector(ctx->in[1], experts, DTYPE_F32, "bias"));
    if (experts > ROUTER_MAX_EXPERTS)
        return fail(ERR_UNSUPPORTED, "%lld experts, at most %d are possible", (long long)experts,
                    ROUTER_MAX_EXPERTS);
    if (attr->k < 1 || attr->k > experts)
        return fail(ERR_ARG, "%d choices among %lld experts", attr->k, (long long)experts);
    Shape shape = logits->shape;
    shape.dim[shape.rank - 1] = attr->k;
    shape.axis[shape.rank - 1] = AXIS_TOPK;
    ctx->out[0] = infer_out(DTYPE_I32, shape);
    ctx->out[1] = infer_out(DTYPE_F32, shape);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    if (!value_ok(ctx->dout[1]) || !ctx->need[0]) return OK;
    const RouteAttr *attr = node->attr;
    return op_route_grad(ctx->graph, node->in[0], node->out[0], node->out[1], ctx->dout[1],
                         attr->kind, &ctx->din[0]);
}

static Cost cost(const Graph *g, const Node *node)
{
    const RouteAttr *attr = node->attr;
    return cost_streaming(g, node, attr->k + (attr->kind == ROUTER_SOFTMAX ? 15 : 1));
}

static void attr_text(const void *attribute, Str *out)
{
    const RouteAttr *attr = attribute;
    str_printf(out, "k %d, %s", attr->k, attr->kind == ROUTER_SIGMOID ? "sigmoid" : "softmax");
}

const OpDef op_def_route = {
    .name = "route",
    .min_in = 2,
    .max_in = 2,
    .n_out = 2,
    .attr_bytes = sizeof(RouteAttr),
    .optional_in = 2,
    .infer = infer,
    .cut = "*e! e! -> *k! *k!",
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(route),
    .cuda = &cuda_route,
};

Status op_route(Graph *g, ValueId logits, ValueId bias, int k, RouterScore kind, ValueId *choice,
                ValueId *score)
{
    RouteAttr attr = make_attr(k, kind);
    ValueId out[2];
    TRY(graph_add(g, &op_def_route, &attr, (ValueId[]){logits, bias}, 2, out));
    *choice = out[0];
    *score = out[1];
    return OK;
}

/* ---- route_grad(logits, choice, score, dscore) ------------------------------------------ */

static Status infer_grad(InferCtx *ctx)
{
    const Value *logits = ctx->in[0], *choice = ctx->in[1];
    TRY(need_dtype(logits, DTYPE_F32, "logits"));
    TRY(need_dtype(choice, DTYPE_I32, "choice"));
    TRY(need_dtype(ctx->in[2], DTYPE_F32, "score"));
    TRY(need_dtype(ctx->in[3], DTYPE_F32, "dscore"));
    TRY(need_shape(ctx->in[2], &choice->shape, "score"));
    TRY(need_shape(ctx->in[3], &choice->shape, "dscore"));
    Shape like = logits->shape;
    if (like.rank > 0) like.dim[like.rank - 1] = last_dim(choice);
    TRY(need_shape(choice, &like, "choice"));
    ctx->out[0] = infer_like(logits);
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node)
{
    const RouteAttr *attr = node->attr;
    Cost cost = cost_streaming(g, node, attr->kind == ROUTER_SOFTMAX ? 17 : 0);
    if (attr->kind == ROUTER_SIGMOID)
        cost.read_bytes -= value_bytes(g, node->in[0]); /* its shape is enough */
    return cost;
}

const OpDef op_def_route_grad = {
    .name = "route_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .attr_bytes = sizeof(RouteAttr),
    .flags = OP_SOURCE,
    .infer = infer_grad,
    .cut = "*e! *k! *k! *k! -> *e!",
    .cost = cost_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(route_grad),
    .cuda = &cuda_route_grad,
};

Status op_route_grad(Graph *g, ValueId logits, ValueId choice, ValueId score, ValueId dscore,
                     RouterScore kind, ValueId *dlogits)
{
    RouteAttr attr = make_attr((int)last_dim(graph_value(g, choice)), kind);
    return graph_add(g, &op_def_route_grad, &attr, (ValueId[]){logits, choice, score, dscore}, 4,
                     dlogits);
}
