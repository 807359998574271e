/* adamw: the update of one parameter (Loshchilov and Hutter 2019), one walk over its memory.
 *
 *   g = grad * factor;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
 *   w = w - lr * (m / bias1 / (sqrt(v / bias2) + eps) + (decay ? decay_rate * w : 0))
 * A factor that is not finite leaves w, m, v and the working copy as they are. */
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(adamw);
CUDA_DECLARE(adamw);

enum { IN_W, IN_M, IN_V, IN_GRAD, IN_COPY, IN_FACTOR, IN_HYPER, N_IN, N_OUT = IN_COPY + 1 };

static Status infer(InferCtx *ctx)
{
    const AdamWAttr *attr = ctx->attr;
    const Value *w = ctx->in[IN_W];
    static const int alias[N_OUT] = {IN_W, IN_M, IN_V, IN_GRAD, IN_COPY};
    TRY(need_dtype(w, DTYPE_F32, "w"));
    TRY(need_like(ctx->in[IN_M], w, "m"));
    TRY(need_like(ctx->in[IN_V], w, "v"));
    TRY(need_activation(ctx->in[IN_GRAD], "grad"));
    TRY(need_shape(ctx->in[IN_GRAD], &w->shape, "grad"));
    if (ctx->in[IN_COPY]) {
        TRY(need_activation(ctx->in[IN_COPY], "copy"));
        TRY(need_shape(ctx->in[IN_COPY], &w->shape, "copy"));
    }
    TRY(need_scalar(ctx->in[IN_FACTOR], "factor"));
    TRY(need_vector(ctx->in[IN_HYPER], HYPER_COUNT, DTYPE_F32, "hyper"));
    for (int i = 0; i < N_OUT; i++) {
        const Value *in = ctx->in[alias[i]];
        if (in) ctx->out[i] = infer_like(in);
        ctx->out[i].alias = alias[i];
        ctx->out[i].wanted = in && (alias[i] != IN_GRAD || attr->zero_grad);
    }
    return OK;
}

/* Everything lies as the moments do, which may be cut where the weight is whole. */
static Status cut_like_moments(CutCtx *ctx)
{
    for (int i = IN_W; i <= IN_COPY; i++) ctx->want[i] = ctx->place[IN_M];
    for (int i = 0; i < N_OUT; i++) ctx->out[i] = ctx->place[IN_M];
    ctx->want[IN_FACTOR] = ctx->want[IN_HYPER] = (Place){PLACE_SAME, 0};
    return OK;
}

static Cost cost(const Graph *g, const Node *node)
{
    const AdamWAttr *attr = node->attr;
    double n = value_count(g, node->in[IN_W]);
    Cost cost = {.flop = 15 * n};
    for (int i = IN_W; i <= IN_GRAD; i++) cost.read_bytes += value_bytes(g, node->in[i]);
    cost.write_bytes = 3 * value_bytes(g, node->in[IN_W]) + value_bytes(g, node->in[IN_COPY]);
    if (attr->zero_grad) cost.write_bytes += value_bytes(g, node->in[IN_GRAD]);
    return cost;
}

static void attr_text(const void *attribute, Str *out)
{
    const AdamWAttr *attr = attribute;
    str_printf(out, "%s%s", attr->decay ? "decay" : "no decay",
               attr->zero_grad ? ", zeroes grad" : "");
}

const OpDef op_def_adamw = {
    .name = "adamw",
    .min_in = N_IN,
    .max_in = N_IN,
    .n_out = N_OUT,
    .attr_bytes = sizeof(AdamWAttr),
    .flags = OP_SOURCE | OP_EFFECT | OP_PARTS,
    .optional_in = 1 << IN_COPY,
    .infer = infer,
    .cut_rule = cut_like_moments,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(adamw),
    .cuda = &cuda_adamw,
};

Status op_adamw(Graph *g, ValueId w, ValueId m, ValueId v, ValueId grad, ValueId copy,
                ValueId factor, ValueId hyper, AdamWAttr attr)
{
    return graph_add(g, &op_def_adamw, &attr, (ValueId[]){w, m, v, grad, copy, factor, hyper}, N_IN,
                     NULL);
}
