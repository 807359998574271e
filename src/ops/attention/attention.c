/* attention: o = softmax(scale q k^T + mask) v without ever holding the scores, and the log-sum-exp
 * of each query for the gradient (Dao 2022; Rabe and Staats 2021). The mask is AttentionAttr's. */
#include "ops/attention/attention_gpu.h"
#include "ops/kernel.h"

CPU_DECLARE(attention);
CUDA_DECLARE(attention);

/* What q [B T H d], k and v [B S K d] must be to each other; `op` names the op in the sentence. */
Status attention_check(const InferCtx *ctx, bool paged)
{
    const Value *q = ctx->in[0], *k = ctx->in[1], *v = ctx->in[2], *pos = ctx->in[3];
    const AttentionAttr *attr = ctx->attr;
    const char *op = ctx->op->name;
    char a[SHAPE_TEXT], b[SHAPE_TEXT], c[SHAPE_TEXT];
    for (int i = 0; i < 3; i++)
        if (ctx->in[i]->dtype != DTYPE_F32 && ctx->in[i]->dtype != DTYPE_BF16)
            return fail(ERR_SHAPE, "%s: q, k and v must be f32 or bf16, not %s", op,
                        dtype_name(ctx->in[i]->dtype));
    if (q->shape.rank != 4 || k->shape.rank != 4 || !shape_equal(&k->shape, &v->shape) ||
        (!paged && q->shape.dim[0] != k->shape.dim[0]) || q->shape.dim[3] != k->shape.dim[3])
        return fail(ERR_SHAPE,
                    "%s: q is [%s], k [%s], v [%s]; wanted [B T H d] and twice [B S K d]", op,
                    shape_text(&q->shape, a), shape_text(&k->shape, b), shape_text(&v->shape, c));
    if (k->shape.dim[2] < 1 || q->shape.dim[2] % k->shape.dim[2] != 0)
        return fail(ERR_SHAPE, "%s: %lld query heads are no multiple of %lld key heads", op,
                    (long long)q->shape.dim[2], (long long)k->shape.dim[2]);
    if (pos->dtype != DTYPE_I32 || pos->shape.rank != 2 || pos->shape.dim[0] != q->shape.dim[0] ||
        pos->shape.dim[1] != q->shape.dim[1])
        return fail(ERR_SHAPE, "%s: positions are %s [%s] for q [%s]; wanted i32 [B T]", op,
                    dtype_name(pos->dtype), shape_text(&pos->shape, a), shape_text(&q->shape, b));
    if (!(attr->scale > 0) || !(attr->softcap >= 0) || attr->chunk < 0)
        return fail(ERR_ARG, "%s: scale %g, softcap %g, chunk %lld; wanted > 0, >= 0, >= 0", op,
                    (double)attr->scale, (double)attr->softcap, (long long)attr->chunk);
    if (!(attr->alibi >= 0) || (attr->alibi > 0 && attr->softcap > 0) || attr->alibi_first < 0 ||
        attr->alibi_heads < 0 ||
        (attr->alibi_heads && attr->alibi_first + q->shape.dim[2] > attr->alibi_heads))
        return fail(ERR_ARG,
                    "%s: alibi %g, softcap %g, heads %lld to %lld of %d; wanted >= 0, not both, "
                    "some of all heads",
                    op, (double)attr->alibi, (double)attr->softcap, (long long)attr->alibi_first,
                    (long long)(attr->alibi_first + q->shape.dim[2] - 1), (int)attr->alibi_heads);
    return OK;
}

static Status infer(InferCtx *ctx)
{
    TRY(attention_check(ctx, false));
    const Value *q = ctx->in[0], *k = ctx->in[1];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    const AttentionSlice *slice = &((const AttentionAttr *)ctx->attr)->slice;
    bool sliced = slice->split || slice->first || slice->second;
    if (!sliced && q->shape.dim[1] != k->shape.dim[1])
        return fail(ERR_SHAPE, "attention: q is [%s], k [%s]: lengths must agree",
                    shape_text(&q->shape, a), shape_text(&k->shape, b));
    if (q->dtype != k->dtype || q->dtype != ctx->in[2]->dtype)
        return fail(ERR_SHAPE, "attention: q is %s [%s], k %s [%s]: dtypes must agree",
                    dtype_name(q->dtype), shape_text(&q->shape, a), dtype_name(k->dtype),
                    shape_text(&k->shape, b));
    ctx->out[0].dtype = q->dtype;
    ctx->out[0].shape = q->shape;
    int64_t dim[3] = {q->shape.dim[0], q->shape.dim[2], q->shape.dim[1]};
    Axis axis[3] = {q->shape.axis[0], q->shape.axis[2], q->shape.axis[1]};
    ctx->out[1].dtype = DTYPE_F32;
    ctx->out[1].shape = shape_make(3, dim, axis);
    return OK;
}

static Status grad(GradCtx *ctx)
{
    const Node *node = graph_node(ctx->graph, ctx->node);
    if (value_ok(ctx->dout[1]))
        return fail(ERR_UNSUPPORTED, "attention: the log-sum-exp has no gradient");
    if (!ctx->need[0] && !ctx->need[1] && !ctx->need[2]) return OK;
    ValueId in[7] = {node->in[0],  node->in[1],  node->in[2], node->in[3],
                     node->out[0], node->out[1], ctx->dout[0]};
    ValueId out[3];
    TRY(graph_add(ctx->graph, &op_def_attention_grad, node->attr, in, 7, out));
    for (int i = 0; i < 3; i++)
        if (ctx->need[i]) ctx->din[i] = out[i];
    return OK;
}

static void cut_heads(const CutCtx *ctx, AttentionAttr *attr)
{
    int64_t heads = ctx->in[0]->shape.dim[2]; /* this rank's */
    if (!attr->alibi_heads) attr->alibi_heads = (int32_t)(heads * ctx->n);
    attr->alibi_first += ctx->rank * heads;
}

/* Two blocks of the sequence, one from its beginning and one from its end (pass/context): as many
 * keys are seen by every rank. */
Status attention_cut_attr(const CutCtx *ctx, void *attribute)
{
    AttentionAttr *attr = attribute;
    if (attr->alibi > 0 && place_is_cut(ctx->want[0]) && ctx->want[0].dim == 2)
        cut_heads(ctx, attr);
    if (ctx->axis != MESH_CP || !place_is_cut(ctx->want[0]) || ctx->want[0].dim != 1) return OK;
    int64_t tokens = ctx->in[0]->shape.dim[1], half = tokens / 2;
    if (attr->slice.split)
        return fail(ERR_UNSUPPORTED, "a sequence cannot be cut along two mesh axes");
    attr->slice = (AttentionSlice){.split = half,
                                   .first = ctx->rank * half,
                                   .second = (2 * (int64_t)ctx->n - 1 - ctx->rank) * half - half};
    return OK;
}

double attention_node_pairs(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[0]), *k = graph_value(graph, node->in[1]);
    double share = (double)q->shape.dim[1] /
                   (double)k->shape.dim[1]; /* slices are cut to see equally much */
    return share *
           attention_visible_pairs(k->shape.dim[1], ((const AttentionAttr *)node->attr)->chunk);
}

double attention_visible_pairs(int64_t tokens, int64_t chunk)
{
    double n = (double)tokens, c = (double)chunk;
    if (chunk <= 0 || chunk >= tokens) return n * (n + 1) / 2;
    double whole = (double)(tokens / chunk), rest = (double)(tokens % chunk);
    return whole * c * (c + 1) / 2 + rest * (rest + 1) / 2;
}

/* Two products over d for each visible pair of query and key. */
static Cost cost(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[0]), *k = graph_value(graph, node->in[1]);
    const int64_t *dim = q->shape.dim;
    double size = (double)dtype_bytes(q->dtype);
    double n_q = (double)shape_count(&q->shape), n_k = (double)shape_count(&k->shape);
    double heads = (double)(dim[0] * dim[2]);
    return (Cost){.flop = 4 * (double)dim[3] * heads * attention_node_pairs(graph, node),
                  .read_bytes = size * (n_q + 2 * n_k),
                  .write_bytes = size * n_q + 4 * heads * (double)dim[1],
                  .kind = COST_ATTENTION,
                  .m = (double)dim[1],
                  .n = attention_node_pairs(graph, node) / (double)dim[1],
                  .k = (double)dim[3],
                  .count = heads,
                  .dtype = q->dtype};
}

void attention_attr_text(const void *attr, Str *out)
{
    const AttentionAttr *a = attr;
    str_printf(out, "scale=%g", (double)a->scale);
    if (a->softcap > 0) str_printf(out, " softcap=%g", (double)a->softcap);
    if (a->alibi > 0) str_printf(out, " alibi=%g", (double)a->alibi);
    if (a->alibi_heads)
        str_printf(out, " from head %lld of %d", (long long)a->alibi_first, (int)a->alibi_heads);
    if (a->chunk > 0) str_printf(out, " chunk=%lld", (long long)a->chunk);
    if (a->library) str_printf(out, " library");
}

/* Our own kernel needs none. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[ATTENTION_Q]);
    AttentionShapes shapes = {q->dtype, &q->shape,
                              &graph_value(graph, node->in[ATTENTION_K])->shape};
    AttentionLibrary library = op_attention_library(graph, node);
    return library.asked && !library.refusal ? attention_library_bytes(&shapes, false) : 0;
}

const OpDef op_def_attention = {
    .name = "attention",
    .min_in = 4,
    .max_in = 4,
    .n_out = 2,
    .attr_bytes = sizeof(AttentionAttr),
    .strided_in = 7,
    .strided_out = 1,
    .infer = infer,
    .cut = "bthd! bs!hd! bs!hd! bt -> bthd! bht",
    .cut_attr = attention_cut_attr,
    .grad = grad,
    .cost = cost,
    .attr_text = attention_attr_text,
    .cpu = CPU_KERNELS(attention),
    .cuda = &cuda_attention,
    .gpu_workspace = gpu_workspace,
};

Status op_attention(Graph *g, ValueId q, ValueId k, ValueId v, ValueId pos, AttentionAttr attr,
                    ValueId *o)
{
    ValueId in[4] = {q, k, v, pos}, out[2];
    TRY(graph_add(g, &op_def_attention, &attr, in, 4, out));
    *o = out[0];
    return OK;
}
