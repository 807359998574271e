/* repeat_heads: x [B S K d] -> [B S K copies d], each head so often behind itself: what grouped
 * queries (Ainslie 2023) do with their key heads anyway, written out, so that more ranks than there
 * are key heads can share the heads. Two ops: repeat_heads and its gradient, the sum over copies.
 *
 * Along tp every rank has x whole and makes its own copies only; the gradient of its copies is its
 * summand of x's. The sum over copies is a balanced binary tree, of which a rank that has a power
 * of two of them has a branch, and the sum over ranks is the rest (comm/comm.h): in canonical mode,
 * where it is f32, it is the same however many ranks there are. */
#include "ops/repeat_heads.h"
#include "ops/kernel.h"
#include "ops/rules.h"

#include <string.h>

CPU_DECLARE(repeat_heads);
CPU_DECLARE(repeat_heads_grad);
CUDA_DECLARE(repeat_heads);
CUDA_DECLARE(repeat_heads_grad);
extern const OpDef op_def_repeat_heads, op_def_repeat_heads_grad;

enum { HEADS_DIM = 2 };

/* x or its gradient, and how many heads it has. */
static Status check(const Value *x, const char *what, int64_t heads)
{
    char text[SHAPE_TEXT];
    TRY(need_activation(x, what));
    if (x->shape.rank == 4 && x->shape.dim[HEADS_DIM] == heads) return OK;
    return fail(ERR_SHAPE, "%s is [%s]; wanted [B S %lld d]", what, shape_text(&x->shape, text),
                (long long)heads);
}

static Status infer(InferCtx *ctx)
{
    const RepeatHeadsAttr *attr = ctx->attr;
    const Value *x = ctx->in[0];
    TRY(check(x, "x", attr->heads));
    ctx->out[0] = infer_like(x);
    ctx->out[0].shape.dim[HEADS_DIM] = attr->made;
    ctx->out[0].shape.axis[HEADS_DIM] = AXIS_KV_HEADS;
    return OK;
}

static Status infer_grad(InferCtx *ctx)
{
    const RepeatHeadsAttr *attr = ctx->attr;
    const Value *dy = ctx->in[0];
    TRY(check(dy, "the gradient", attr->made));
    ctx->out[0] = infer_like(dy);
    ctx->out[0].shape.dim[HEADS_DIM] = attr->heads;
    ctx->out[0].shape.axis[HEADS_DIM] = AXIS_ANY;
    if (attr->f32) ctx->out[0].dtype = DTYPE_F32;
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Graph *g = ctx->graph;
    RepeatHeadsAttr attr;
    if (!ctx->need[0]) return OK;
    memcpy(&attr, graph_node(g, ctx->node)->attr, sizeof attr);
    attr.f32 = g->canonical;
    TRY(graph_add(g, &op_def_repeat_heads_grad, &attr, &ctx->dout[0], 1, &ctx->din[0]));
    DType dtype = graph_value(g, ctx->dout[0])->dtype;
    if (graph_value(g, ctx->din[0])->dtype == dtype) return OK;
    return op_cast(g, ctx->din[0], dtype, &ctx->din[0]);
}

/* ---- cutting ---------------------------------------------------------------------------- */

static const Place whole = {PLACE_SAME, 0}, by_heads = {PLACE_CUT, HEADS_DIM},
                   summand = {PLACE_PARTIAL, 0};

static Status cut_rule(CutCtx *c)
{
    if (c->axis != MESH_TP || c->n < 2) {
        graph_cut_text(c, "*h!d!~ -> *h!d!");
        return OK;
    }
    c->want[0] = whole;
    c->out[0] = by_heads;
    return OK;
}

static Status cut_rule_grad(CutCtx *c)
{
    if (c->axis != MESH_TP || c->n < 2) {
        graph_cut_text(c, "*h!d!~ -> *h!d!");
        return OK;
    }
    c->want[0] = by_heads;
    c->out[0] = summand;
    return OK;
}

static Status cut_attr(const CutCtx *c, void *attribute)
{
    RepeatHeadsAttr *attr = attribute;
    if (c->axis != MESH_TP) return OK;
    if (attr->made % c->n)
        return fail(ERR_REFUSED, "%lld heads cannot be shared out over %d ranks",
                    (long long)attr->made, c->n);
    attr->made /= c->n;
    attr->first += c->rank * attr->made;
    return OK;
}

/* ---- the ops ---------------------------------------------------------------------------- */

static Cost cost(const Graph *g, const Node *node)
{
    return cost_streaming(g, node, node->op == &op_def_repeat_heads_grad ? 1 : 0);
}

static void attr_text(const void *attr, Str *out)
{
    const RepeatHeadsAttr *a = attr;
    str_printf(out, "copies=%lld", (long long)a->copies);
    if (a->made < a->heads * a->copies)
        str_printf(out, " from %lld, %lld of them", (long long)a->first, (long long)a->made);
}

const OpDef op_def_repeat_heads = {
    .name = "repeat_heads",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(RepeatHeadsAttr),
    .flags = OP_CHEAP,
    .strided_in = 1,
    .infer = infer,
    .cut_rule = cut_rule,
    .cut_attr = cut_attr,
    .grad = grad,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(repeat_heads),
    .cuda = &cuda_repeat_heads,
};

const OpDef op_def_repeat_heads_grad = {
    .name = "repeat_heads_grad",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(RepeatHeadsAttr),
    .strided_in = 1,
    .infer = infer_grad,
    .cut_rule = cut_rule_grad,
    .cut_attr = cut_attr,
    .cost = cost,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(repeat_heads_grad),
    .cuda = &cuda_repeat_heads_grad,
};

Status op_repeat_heads(Graph *g, ValueId x, int64_t copies, ValueId *y)
{
    const Shape *s = &graph_value(g, x)->shape;
    if (copies < 1 || copies >> REPEAT_LEVELS || s->rank != 4)
        return fail(ERR_SHAPE, "repeat_heads: %lld copies of a value with %d axes",
                    (long long)copies, s->rank);
    int64_t heads = s->dim[HEADS_DIM];
    RepeatHeadsAttr attr = {.heads = heads, .copies = copies, .made = heads * copies};
    return graph_add(g, &op_def_repeat_heads, &attr, &x, 1, y);
}
