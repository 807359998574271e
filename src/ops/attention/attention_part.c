/* Attention with the keys in parts, one after the other, and its gradient: what a rank of ring
 * attention does with the block of keys that it holds (pass/ring.c; Liu, Zaharia and Abbeel 2023).
 *
 *   attention_part       q k v pos o? lse?              -> o lse       o, lse: of the parts before
 *                        this one, none at the first
 *   attention_grad_part  q k v pos o lse do dq?         -> dq dk dv    dq: likewise; dk and dv are
 *                                                       of this part's keys
 *
 * A softmax over keys that come in parts: with o_a, l_a the output and log-sum-exp over some keys
 * and o_b, l_b over others,
 *   l = log(e^l_a + e^l_b),   o = e^(l_a - l) o_a + e^(l_b - l) o_b
 * (Milakov and Gimelshein 2018; Dao 2022). The kernel does not form o_b: its rows begin with
 * maximum l_a, sum 1 and output o_a. The gradient needs no such care, since l of all keys is known
 * by then: dq is a sum over the parts, dk and dv concern this part alone. Until the last part o and
 * dq are f32 and no rank's part of a value but GROWING ones, so that the verifier misses a part
 * that was left out or taken twice. */
#include "ops/attention/attention_gpu.h"
#include "ops/kernel.h"
#include "ops/rules.h"

CPU_DECLARE(attention_part);
CPU_DECLARE(attention_grad_part);
CUDA_DECLARE(attention_part);
CUDA_DECLARE(attention_grad_part);

static bool is_last(const AttentionPart *p) { return p->part + 1 == p->parts; }

/* ---- placements ------------------------------------------------------------------------- */

static Place growing(const AttentionPart *p, int8_t dim)
{
    return is_last(p) ? (Place){PLACE_CUT, dim} : (Place){PLACE_GROWING, (int8_t)(p->part + 1)};
}

static Place of_keys(const AttentionPart *p)
{
    return p->hop ? (Place){PLACE_PASSED, (int8_t)p->hop} : (Place){PLACE_CUT, 1};
}

/* Along the ring: operands are cut along the sequence, but for the keys and values, which are on
 * their way round. */
static void cut_along_ring(CutCtx *c)
{
    for (int i = 0; i < c->n_in; i++) c->want[i] = (Place){PLACE_CUT, 1};
    c->want[ATTENTION_K] = c->want[ATTENTION_V] = of_keys(c->attr);
}

static Status cut_part(CutCtx *c)
{
    const AttentionPart *p = c->attr;
    if (c->axis != p->axis) {
        graph_cut_text(c, "bt!hd! bs!hd! bs!hd! bt! bt!hd! bht! -> bt!hd! bht!");
        return OK;
    }
    cut_along_ring(c);
    c->want[ATTENTION_O] = c->want[ATTENTION_LSE] = (Place){PLACE_GROWING, (int8_t)p->part};
    c->out[0] = growing(p, 1);
    c->out[1] = growing(p, 2);
    return OK;
}

static Status cut_grad_part(CutCtx *c)
{
    const AttentionPart *p = c->attr;
    if (c->axis != p->axis) {
        graph_cut_text(
            c, "bt!hd! bs!hd! bs!hd! bt! bt!hd! bht! bt!hd! bt!hd! -> bt!hd! bs!hd! bs!hd!");
        return OK;
    }
    cut_along_ring(c);
    c->want[ATTENTION_LSE] = (Place){PLACE_CUT, 2};
    c->want[ATTENTION_DQ] = (Place){PLACE_GROWING, (int8_t)p->part};
    c->out[0] = growing(p, 1);
    c->out[1] = c->out[2] = p->sums > 1 ? (Place){PLACE_GROWING, 1} : of_keys(p);
    return OK;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static Shape lse_shape(const Shape *q)
{
    return shape_make(3, (int64_t[]){q->dim[0], q->dim[2], q->dim[1]},
                      (Axis[]){q->axis[0], q->axis[2], q->axis[1]});
}

static Status check(const InferCtx *ctx)
{
    const AttentionPart *p = ctx->attr;
    const Value *q = ctx->in[ATTENTION_Q], *k = ctx->in[ATTENTION_K], *v = ctx->in[ATTENTION_V];
    TRY(attention_check(ctx, false));
    if (q->dtype != k->dtype || q->dtype != v->dtype)
        return fail(ERR_SHAPE, "%s: q is %s, k %s, v %s: dtypes must agree", ctx->op->name,
                    dtype_name(q->dtype), dtype_name(k->dtype), dtype_name(v->dtype));
    if (p->part < 0 || p->part >= p->parts || p->sums < 1 || (p->hop && p->sums > 1))
        return fail(ERR_ARG, "%s: part %d of %d, hop %d, %d summands", ctx->op->name, p->part,
                    p->parts, p->hop, p->sums);
    return OK;
}

/* What comes from the parts before: f32 of this shape, there unless this is the first. */
static Status check_before(const InferCtx *ctx, int i, const Shape *shape)
{
    const AttentionPart *p = ctx->attr;
    const Value *x = ctx->in[i];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    if (!x != (p->part == 0))
        return fail(ERR_ARG, "%s: part %d of %d %s a sum so far", ctx->op->name, p->part, p->parts,
                    x ? "has" : "lacks");
    if (!x || (x->dtype == DTYPE_F32 && shape_equal(&x->shape, shape))) return OK;
    return fail(ERR_SHAPE, "%s: operand %d is %s [%s]; wanted f32 [%s]", ctx->op->name, i,
                dtype_name(x->dtype), shape_text(&x->shape, a), shape_text(shape, b));
}

static Status infer_part(InferCtx *ctx)
{
    const AttentionPart *p = ctx->attr;
    const Value *q = ctx->in[ATTENTION_Q];
    Shape lse = lse_shape(&q->shape);
    TRY(check(ctx));
    TRY(check_before(ctx, ATTENTION_O, &q->shape));
    TRY(check_before(ctx, ATTENTION_LSE, &lse));
    ctx->out[0].dtype = is_last(p) ? q->dtype : DTYPE_F32;
    ctx->out[0].shape = q->shape;
    ctx->out[1].dtype = DTYPE_F32;
    ctx->out[1].shape = lse;
    return OK;
}

static Status infer_grad_part(InferCtx *ctx)
{
    const AttentionPart *p = ctx->attr;
    const Value *q = ctx->in[ATTENTION_Q], *k = ctx->in[ATTENTION_K];
    Shape wanted = lse_shape(&q->shape);
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    TRY(check(ctx));
    TRY(check_before(ctx, ATTENTION_DQ, &q->shape));
    for (int i = ATTENTION_O; i <= ATTENTION_DO; i++) {
        const Value *x = ctx->in[i];
        bool is_lse = i == ATTENTION_LSE;
        if (x->dtype == (is_lse ? DTYPE_F32 : q->dtype) &&
            shape_equal(&x->shape, is_lse ? &wanted : &q->shape))
            continue;
        return fail(ERR_SHAPE, "attention_grad_part: q is %s [%s] but operand %d is %s [%s]",
                    dtype_name(q->dtype), shape_text(&q->shape, a), i, dtype_name(x->dtype),
                    shape_text(&x->shape, b));
    }
    ctx->out[0].dtype = is_last(p) ? q->dtype : DTYPE_F32;
    ctx->out[0].shape = q->shape;
    for (int i = 1; i < 3; i++) {
        ctx->out[i].dtype = p->sums > 1 ? DTYPE_F32 : k->dtype;
        ctx->out[i].shape = k->shape;
    }
    return OK;
}

/* ---- costs ------------------------------------------------------------------------------ */

/* (query, key) pairs with the key at or before the query. */
static double causal_pairs(KeyRange q, KeyRange k)
{
    int64_t first = max_i64(q.first, k.first), whole = max_i64(first, min_i64(q.end, k.end));
    if (first >= q.end || k.first >= k.end) return 0;
    double low = (double)(first - k.first), high = (double)(whole - k.first);
    return (high * (high + 1) - low * (low + 1)) / 2 +
           (double)(q.end - whole) * (double)(k.end - k.first);
}

static KeyRange inside(KeyRange a, int64_t first, int64_t end)
{
    return (KeyRange){max_i64(a.first, first), min_i64(a.end, end)};
}

static double run_pairs(KeyRange q, KeyRange k, int64_t chunk)
{
    double pairs = 0;
    if (chunk <= 0) return causal_pairs(q, k);
    for (int64_t c = q.first / chunk * chunk; c < min_i64(q.end, k.end); c += chunk) {
        KeyRange x = inside(q, c, c + chunk), y = inside(k, c, c + chunk);
        if (x.first < x.end && y.first < y.end) pairs += causal_pairs(x, y);
    }
    return pairs;
}

/* The rows of n tokens that stand like this: one run or two. */
static void runs_of(const AttentionSlice *slice, int64_t n, KeyRange run[2])
{
    int64_t split = min_i64(slice->split, n);
    run[0] = (KeyRange){slice->first, slice->first + split};
    run[1] = (KeyRange){split + slice->second, n + slice->second};
}

double attention_part_pairs(const AttentionPart *p, int64_t tokens, int64_t keys)
{
    KeyRange q[2], k[2];
    double pairs = 0;
    runs_of(&p->of.slice, tokens, q);
    runs_of(&p->keys, keys, k);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) pairs += run_pairs(q[i], k[j], p->of.chunk);
    return pairs;
}

/* So many products over d for each visible pair; what is read and written, each once. */
static Cost cost_of(const Graph *g, const Node *node, double products)
{
    const Value *q = graph_value(g, node->in[ATTENTION_Q]),
                *k = graph_value(g, node->in[ATTENTION_K]);
    const int64_t *dim = q->shape.dim;
    double pairs = attention_part_pairs(node->attr, dim[1], k->shape.dim[1]);
    Cost cost = {.kind = products > 2 ? COST_ATTENTION_GRAD : COST_ATTENTION,
                 .m = (double)dim[1],
                 .n = pairs / (double)dim[1],
                 .k = (double)dim[3],
                 .count = (double)(dim[0] * dim[2]),
                 .dtype = q->dtype};
    cost.flop = 2 * products * cost.k * cost.count * pairs;
    for (int i = 0; i < node->n_in; i++) cost.read_bytes += value_bytes(g, node->in[i]);
    for (int i = 0; i < node->n_out; i++) cost.write_bytes += value_bytes(g, node->out[i]);
    return cost;
}

static Cost cost_part(const Graph *g, const Node *node) { return cost_of(g, node, 2); }
static Cost cost_grad_part(const Graph *g, const Node *node) { return cost_of(g, node, 5); }

static void attr_text(const void *attribute, Str *out)
{
    const AttentionPart *p = attribute;
    attention_attr_text(&p->of, out);
    str_printf(out, " part %d of %d, hop %d", p->part, p->parts, p->hop);
}

/* ---- the ops ---------------------------------------------------------------------------- */

const OpDef op_def_attention_part = {
    .name = "attention_part",
    .min_in = 6,
    .max_in = 6,
    .n_out = 2,
    .attr_bytes = sizeof(AttentionPart),
    .flags = OP_SOURCE,
    .inplace = 1 << ATTENTION_O,
    .strided_in = 1 << ATTENTION_Q | 1 << ATTENTION_K | 1 << ATTENTION_V | 1 << ATTENTION_O,
    .strided_out = 1,
    .optional_in = 1 << ATTENTION_O | 1 << ATTENTION_LSE,
    .infer = infer_part,
    .cut_rule = cut_part,
    .cut_attr = attention_cut_attr,
    .cost = cost_part,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(attention_part),
    .cuda = &cuda_attention_part,
};

/* What is told of queries before their gradients are made. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    return attention_grad_space(&graph_value(graph, node->in[ATTENTION_Q])->shape).bytes;
}

const OpDef op_def_attention_grad_part = {
    .name = "attention_grad_part",
    .min_in = 8,
    .max_in = 8,
    .n_out = 3,
    .attr_bytes = sizeof(AttentionPart),
    .flags = OP_SOURCE,
    .inplace = 1 << ATTENTION_DQ,
    .strided_in = 1 << ATTENTION_Q | 1 << ATTENTION_K | 1 << ATTENTION_V | 1 << ATTENTION_O |
                  1 << ATTENTION_DO | 1 << ATTENTION_DQ,
    .strided_out = 7,
    .optional_in = 1 << ATTENTION_DQ,
    .infer = infer_grad_part,
    .cut_rule = cut_grad_part,
    .cut_attr = attention_cut_attr,
    .cost = cost_grad_part,
    .attr_text = attr_text,
    .cpu = CPU_KERNELS(attention_grad_part),
    .cuda = &cuda_attention_grad_part,
    .gpu_workspace = gpu_workspace,
};

Status op_attention_part(Graph *g, const ValueId in[6], const AttentionPart *part, ValueId out[2])
{
    return graph_add(g, &op_def_attention_part, part, in, 6, out);
}

Status op_attention_grad_part(Graph *g, const ValueId in[8], const AttentionPart *part,
                              ValueId out[3])
{
    return graph_add(g, &op_def_attention_grad_part, part, in, 8, out);
}
