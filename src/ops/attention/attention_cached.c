/* attention_cached: attention of new tokens over the keys and values of earlier ones. The kernel is
 * that of attention (attention_cpu.c) with other ranges of keys. */
#include "ops/attention/attention_gpu.h"
#include "ops/kernel.h"

CPU_DECLARE(attention_cached);
CUDA_DECLARE(attention_cached);

static Status infer(InferCtx *ctx)
{
    TRY(attention_check(ctx));
    ctx->out[0].dtype = ctx->in[0]->dtype;
    ctx->out[0].shape = ctx->in[0]->shape;
    return OK;
}

/* As if every cache were full, or every chunk: how full they are is known when the step runs. */
static Cost cost(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[0]), *k = graph_value(graph, node->in[1]);
    const AttentionAttr *attr = node->attr;
    int64_t rows = k->shape.dim[1];
    if (attr->chunk > 0) rows = min_i64(rows, attr->chunk);
    double n_q = (double)shape_count(&q->shape), size = (double)dtype_bytes(q->dtype);
    double n_k = (double)(k->shape.dim[0] * rows * k->shape.dim[2] * k->shape.dim[3]);
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
                                 &graph_value(graph, node->in[ATTENTION_K])->shape);
}

const OpDef op_def_attention_cached = {
    .name = "attention_cached",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .attr_bytes = sizeof(AttentionAttr),
    .flags = OP_SOURCE,
    .strided_in = 1,
    .strided_out = 1,
    .infer = infer,
    .cut = "bn!hd! bs!hd! bs!hd! bn! -> bn!hd!",
    .cut_attr = attention_cut_attr,
    .cost = cost,
    .attr_text = attention_attr_text,
    .cpu = CPU_KERNELS(attention_cached),
    .cuda = &cuda_attention_cached,
    .gpu_workspace = gpu_workspace,
};

Status op_attention_cached(Graph *g, ValueId q, ValueId k_cache, ValueId v_cache, ValueId pos,
                           AttentionAttr attr, ValueId *o)
{
    ValueId in[4] = {q, k_cache, v_cache, pos};
    return graph_add(g, &op_def_attention_cached, &attr, in, 4, o);
}
