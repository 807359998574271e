/* attention_cached: attention of new tokens over the keys and values of earlier ones, in pages. The
 * kernel is that of attention (attention_cpu.c) with other ranges of keys, which are read through
 * the table. Keys are cut into blocks by their positions, so that the size of pages changes no bit.
 */
#include "ops/attention/attention_gpu.h"
#include "ops/kernel.h"

CPU_DECLARE(attention_cached);
CUDA_DECLARE(attention_cached);

Status attention_check_pages(const InferCtx *ctx, const Value *pool, const Value *table,
                             int64_t batch)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    const int64_t *dim = pool->shape.dim;
    if (pool->shape.rank != 4 || dim[1] < ATTENTION_PAGE_LEAST || (dim[1] & (dim[1] - 1)) ||
        dim[0] > INT32_MAX / dim[1])
        return fail(ERR_SHAPE,
                    "%s: the pages are [%s]; wanted [P S K d], S positions to a page, a power of "
                    "two from %d on, and fewer than 2^31 in all",
                    ctx->op->name, shape_text(&pool->shape, a), ATTENTION_PAGE_LEAST);
    if (table->dtype != DTYPE_I32 || table->shape.rank != 2 || table->shape.dim[0] != batch ||
        table->shape.dim[1] < 1 || table->shape.dim[1] > INT32_MAX / dim[1])
        return fail(ERR_SHAPE,
                    "%s: the table is %s [%s] for %lld sequences and pages [%s]; wanted i32 [B W], "
                    "W pages to a sequence",
                    ctx->op->name, dtype_name(table->dtype), shape_text(&table->shape, a),
                    (long long)batch, shape_text(&pool->shape, b));
    return OK;
}

static Status infer(InferCtx *ctx)
{
    const AttentionAttr *attr = ctx->attr;
    TRY(attention_check(ctx, true));
    TRY(attention_check_pages(ctx, ctx->in[ATTENTION_K], ctx->in[ATTENTION_TABLE],
                              ctx->in[ATTENTION_Q]->shape.dim[0]));
    if (attr->context < 0)
        return fail(ERR_ARG, "attention_cached: a context of %lld; wanted >= 0",
                    (long long)attr->context);
    ctx->out[0].dtype = ctx->in[0]->dtype;
    ctx->out[0].shape = ctx->in[0]->shape;
    return OK;
}

/* Positions that a sequence can have. */
static int64_t context_of(const Graph *graph, const Node *node)
{
    int64_t pages = graph_value(graph, node->in[ATTENTION_TABLE])->shape.dim[1];
    return attention_positions(node->attr, pages,
                               graph_value(graph, node->in[ATTENTION_K])->shape.dim[1]);
}

/* As if every sequence were as long as it can be, or every chunk: how long they are is known when
 * the step runs. */
static Cost cost(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[0]), *k = graph_value(graph, node->in[1]);
    const AttentionAttr *attr = node->attr;
    int64_t rows = context_of(graph, node);
    if (attr->chunk > 0) rows = min_i64(rows, attr->chunk);
    double n_q = (double)shape_count(&q->shape), size = (double)dtype_bytes(q->dtype);
    double n_k = (double)(q->shape.dim[0] * rows * k->shape.dim[2] * k->shape.dim[3]);
    return (Cost){.flop = 4 * n_q * (double)rows,
                  .read_bytes = size * n_q + 2 * (double)dtype_bytes(k->dtype) * n_k,
                  .write_bytes = size * n_q,
                  .kind = COST_ATTENTION,
                  .m = (double)q->shape.dim[1],
                  .n = (double)rows,
                  .k = (double)q->shape.dim[3],
                  .count = (double)(q->shape.dim[0] * q->shape.dim[2]),
                  .dtype = q->dtype};
}

static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    return attention_split_bytes(&graph_value(graph, node->in[ATTENTION_Q])->shape,
                                 &graph_value(graph, node->in[ATTENTION_K])->shape,
                                 context_of(graph, node));
}

const OpDef op_def_attention_cached = {
    .name = "attention_cached",
    .min_in = 5,
    .max_in = 5,
    .n_out = 1,
    .attr_bytes = sizeof(AttentionAttr),
    .flags = OP_SOURCE,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "bn!hd! bs!hd! bs!hd! bn! bw! -> bn!hd!", /* pages are dealt out as sequences are */
    .cut_attr = attention_cut_attr,
    .cost = cost,
    .attr_text = attention_attr_text,
    .cpu = CPU_KERNELS(attention_cached),
    .cuda = &cuda_attention_cached,
    .gpu_workspace = gpu_workspace,
};

Status op_attention_cached(Graph *g, ValueId q, ValueId k_pool, ValueId v_pool, ValueId pos,
                           ValueId table, AttentionAttr attr, ValueId *o)
{
    ValueId in[5] = {q, k_pool, v_pool, pos, table};
    return graph_add(g, &op_def_attention_cached, &attr, in, 5, o);
}
