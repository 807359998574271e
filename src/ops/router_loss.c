/* router_loss: keeps the router healthy. Over the n tokens whose weight is not zero:
 *
 *   aux * E * sum_e f_e P_e  +  z * mean(lse^2)
 * f_e the share of (token, slot) pairs that chose e, P_e = mean of p_e, p = s / sum s with sigmoid
 * scores, softmax otherwise, lse = log sum exp(logits). f is a constant for the gradient: with g_e
 * = aux E f_e / n,
 *   softmax:  dl_e = p_e (g_e - sum p g);   sigmoid:  dl_e = s_e (1 - s_e) (g_e - sum p g) / sum s
 *   and both: + 2 z lse softmax_e / n. */
#include "ops/kernel.h"
#include "ops/router.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(router_loss);
CPU_DECLARE(router_loss_grad);
CUDA_DECLARE(router_loss);
CUDA_DECLARE(router_loss_grad);

static Status check_operands(InferCtx *ctx)
{
    const Value *logits = ctx->in[0], *choice = ctx->in[1], *weights = ctx->in[2];
    TRY(need_dtype(logits, DTYPE_F32, "logits"));
    TRY(need_dtype(choice, DTYPE_I32, "choice"));
    TRY(need_dtype(weights, DTYPE_F32, "weights"));
    if (logits->shape.rank < 1 || last_dim(logits) < 1 || last_dim(logits) > ROUTER_MAX_EXPERTS)
        return fail(ERR_UNSUPPORTED, "%lld experts, 1 to %d are possible",
                    (long long)last_dim(logits), ROUTER_MAX_EXPERTS);
    Shape like = logits->shape;
    like.dim[like.rank - 1] = last_dim(choice);
    TRY(need_shape(choice, &like, "choice"));
    like.rank--;
    return need_shape(weights, &like, "weights");
}

static Status infer(InferCtx *ctx)
{
    TRY(check_operands(ctx));
    ctx->out[0] = infer_out(DTYPE_F32, shape_make(0, NULL, NULL));
    return OK;
}

static Status grad(GradCtx *ctx)
{
    if (!ctx->need[0]) return OK;
    const Node *node = graph_node(ctx->graph, ctx->node);
    RouterLossAttr attr = *(const RouterLossAttr *)node->attr;
    return op_router_loss_grad(ctx->graph, node->in[0], node->in[1], node->in[2], ctx->dout[0],
                               attr.aux, attr.z, attr.kind, &ctx->din[0]);
}

static Cost cost(const Graph *g, const Node *node) { return cost_streaming(g, node, 32); }

/* A mean over all tokens needs them all, unless each part of the batch has a loss of its own, whose
 * sum is meant. */
static Status cut_by(CutCtx *ctx, const char *text)
{
    if (ctx->graph->canonical && mesh_axis_is_data(ctx->axis) && ctx->axis != MESH_CP)
        graph_cut_text(ctx, text);
    else
        for (int i = 0; i < ctx->n_in; i++) ctx->want[i] = (Place){PLACE_SAME, 0};
    return OK;
}
static Status cut_loss(CutCtx *ctx) { return cut_by(ctx, "*e! *k! * -> -"); }
static Status cut_grad(CutCtx *ctx) { return cut_by(ctx, "*e! *k! * - -> *e!"); }

static void attr_text(const void *attribute, Str *out)
{
    const RouterLossAttr *attr = attribute;
    str_printf(out, "aux %g, z %g, %s", (double)attr->aux, (double)attr->z,
               attr->kind == ROUTER_SIGMOID ? "sigmoid" : "softmax");
}

/* Sums of each block of tokens. */
static size_t gpu_workspace(const Graph *g, const Node *node)
{
    const Value *logits = graph_value(g, node->in[0]);
    int64_t experts = last_dim(logits), tokens = shape_count(&logits->shape) / experts;
    return (size_t)(router_blocks(tokens) * (2 * experts + 2)) * sizeof(double);
}

const OpDef op_def_router_loss = {
    .name = "router_loss",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .attr_bytes = sizeof(RouterLossAttr),
    .infer = infer,
    .cut_rule = cut_loss,
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(router_loss),
    .cuda = &cuda_router_loss,
    .gpu_workspace = gpu_workspace,
};

Status op_router_loss(Graph *g, ValueId logits, ValueId choice, ValueId weights, float aux, float z,
                      RouterScore kind, ValueId *loss)
{
    RouterLossAttr attr = {aux, z, kind};
    return graph_add(g, &op_def_router_loss, &attr, (ValueId[]){logits, choice, weights}, 3, loss);
}

/* ---- router_loss_grad(logits, choice, weights, dloss) -> dlogits ------------------------ */

static Status infer_grad(InferCtx *ctx)
{
    TRY(check_operands(ctx));
    TRY(need_scalar(ctx->in[3], "dloss"));
    ctx->out[0] = infer_like(ctx->in[0]);
    return OK;
}

static Cost cost_grad(const Graph *g, const Node *node) { return cost_streaming(g, node, 40); }

/* How often each expert was chosen, and how many tokens count. */
static size_t gpu_workspace_grad(const Graph *g, const Node *node)
{
    return (size_t)(last_dim(graph_value(g, node->in[0])) + 1) * sizeof(int);
}

const OpDef op_def_router_loss_grad = {
    .name = "router_loss_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .attr_bytes = sizeof(RouterLossAttr),
    .flags = OP_SOURCE,
    .inplace = 1,
    .infer = infer_grad,
    .cut_rule = cut_grad,
    .cost = cost_grad,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(router_loss_grad),
    .cuda = &cuda_router_loss_grad,
    .gpu_workspace = gpu_workspace_grad,
};

Status op_router_loss_grad(Graph *g, ValueId logits, ValueId choice, ValueId weights, ValueId dloss,
                           float aux, float z, RouterScore kind, ValueId *dlogits)
{
    RouterLossAttr attr = {aux, z, kind};
    return graph_add(g, &op_def_router_loss_grad, &attr,
                     (ValueId[]){logits, choice, weights, dloss}, 4, dlogits);
}
