/* attention_grad: from q k v, the output o, its log-sum-exp and the output's gradient do:
 *   p = exp(z - lse), z = scale q k^T (capped, or with ALiBi's slopes);  dv = p^T do;  dp = do v^T;
 *   dz = p (dp - sum(do o)) scale (1 - (z / softcap)^2);  dq = dz k;  dk = dz^T q
 * (Dao 2022). The scores are made again block by block. */
#include "ops/attention/attention_gpu.h"
#include "ops/kernel.h"

CPU_DECLARE(attention_grad);
CUDA_DECLARE(attention_grad);

static Status infer(InferCtx *ctx)
{
    TRY(attention_check(ctx, false));
    const Value *q = ctx->in[ATTENTION_Q], *lse = ctx->in[ATTENTION_LSE];
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    for (int i = ATTENTION_O; i <= ATTENTION_DO; i++) {
        const Value *x = ctx->in[i];
        if (i != ATTENTION_LSE && (x->dtype != q->dtype || !shape_equal(&x->shape, &q->shape)))
            return fail(ERR_SHAPE, "attention_grad: q is %s [%s] but operand %d is %s [%s]",
                        dtype_name(q->dtype), shape_text(&q->shape, a), i, dtype_name(x->dtype),
                        shape_text(&x->shape, b));
    }
    if (lse->dtype != DTYPE_F32 ||
        shape_count(&lse->shape) * q->shape.dim[3] != shape_count(&q->shape))
        return fail(ERR_SHAPE, "attention_grad: the log-sum-exp is %s [%s] for q [%s]",
                    dtype_name(lse->dtype), shape_text(&lse->shape, a), shape_text(&q->shape, b));
    for (int i = 0; i < 3; i++) {
        ctx->out[i].dtype = ctx->in[i]->dtype;
        ctx->out[i].shape = ctx->in[i]->shape;
    }
    return OK;
}

/* Five products over d for each visible pair; the two-pass kernel for few heads on many threads
 * makes two of them twice, which is not counted: the graph does not know the threads. */
static Cost cost(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[0]), *k = graph_value(graph, node->in[1]);
    const int64_t *dim = q->shape.dim;
    double size = (double)dtype_bytes(q->dtype);
    double n_q = (double)shape_count(&q->shape), n_k = (double)shape_count(&k->shape);
    double heads = (double)(dim[0] * dim[2]);
    return (Cost){.flop = 10 * (double)dim[3] * heads * attention_node_pairs(graph, node),
                  .read_bytes = size * (3 * n_q + 2 * n_k) + 4 * heads * (double)dim[1],
                  .write_bytes = size * (n_q + 2 * n_k),
                  .kind = COST_ATTENTION_GRAD,
                  .m = (double)dim[1],
                  .n = attention_node_pairs(graph, node) / (double)dim[1],
                  .k = (double)dim[3],
                  .count = heads,
                  .dtype = q->dtype};
}

/* What is told of queries before their gradients are made; or what the library keeps. */
static size_t gpu_workspace(const Graph *graph, const Node *node)
{
    const Value *q = graph_value(graph, node->in[ATTENTION_Q]);
    AttentionShapes shapes = {q->dtype, &q->shape,
                              &graph_value(graph, node->in[ATTENTION_K])->shape};
    AttentionLibrary library = op_attention_library(graph, node);
    size_t own = attention_grad_space(&q->shape).bytes;
    if (!library.asked || library.refusal) return own;
    size_t theirs = attention_library_bytes(&shapes, true);
    return theirs > own ? theirs : own;
}

const OpDef op_def_attention_grad = {
    .name = "attention_grad",
    .min_in = 7,
    .max_in = 7,
    .n_out = 3,
    .attr_bytes = sizeof(AttentionAttr),
    .flags = OP_SOURCE,
    .strided_in = 1 << ATTENTION_Q | 1 << ATTENTION_K | 1 << ATTENTION_V | 1 << ATTENTION_O |
                  1 << ATTENTION_DO,
    .strided_out = 7,
    .infer = infer,
    .cut = "bthd! bs!hd! bs!hd! bt bthd! bht bthd! -> bthd! bs!hd! bs!hd!",
    .cut_attr = attention_cut_attr,
    .cost = cost,
    .attr_text = attention_attr_text,
    .cpu = CPU_KERNELS(attention_grad),
    .cuda = &cuda_attention_grad,
    .gpu_workspace = gpu_workspace,
};
