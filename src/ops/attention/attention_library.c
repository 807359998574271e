/* Which attention the library computes on GPUs, where it is asked for (AttentionAttr.library). All
 * masks over whole sequences are its: documents and chunks say where the keys of a token begin. */
#include "ops/attention/attention_gpu.h"

#include "gpu/attention.h"

#include <string.h>

/* As plans count: without statistics, which takes the most. */
static GpuAttention description(const AttentionShapes *s, bool gradient)
{
    const int64_t *q = s->q->dim;
    return (GpuAttention){.batch = q[0],
                          .tokens = q[1],
                          .heads = q[2],
                          .kv_heads = s->k->dim[2],
                          .d = q[3],
                          .gradient = gradient};
}

const char *attention_library_refusal(const AttentionAttr *attr, const AttentionShapes *s,
                                      bool gradient)
{
    static const AttentionSlice whole;
    const int64_t *q = s->q->dim;
    if (s->dtype != DTYPE_BF16) return "it computes in bf16";
    if (q[3] != 64 && q[3] != 128) return "its heads have 64 or 128 elements";
    if (attr->softcap > 0) return "it has no soft cap of scores";
    if (attr->alibi > 0) return "ALiBi's slopes are not put to it";
    if (q[1] != s->k->dim[1] || memcmp(&attr->slice, &whole, sizeof whole) != 0)
        return "it wants whole sequences, and ranks have parts of them";
    if (q[0] < 1 || q[1] < 2) return "there is nothing to attend to";
    if (gradient && attention_library_bytes(s, true) > ATTENTION_LIBRARY_BYTES)
        return "in one order it would need more than 1 GiB of workspace";
    return NULL;
}

size_t attention_library_first_bytes(const Shape *q)
{
    return round_up((size_t)(q->dim[0] * q->dim[1]) * sizeof(int32_t), 256);
}

size_t attention_library_bytes(const AttentionShapes *s, bool gradient)
{
    GpuAttention a = description(s, gradient);
    size_t sum;
    return size_add(attention_library_first_bytes(s->q), gpu_attention_bytes(&a), &sum) ? sum
                                                                                        : SIZE_MAX;
}

/* Ring attention's parts have what the whole would have had. */
static bool is_part(const OpDef *op)
{
    return op == &op_def_attention_part || op == &op_def_attention_grad_part;
}

AttentionLibrary op_attention_library(const Graph *g, const Node *node)
{
    const OpDef *op = node->op;
    bool gradient = op == &op_def_attention_grad || op == &op_def_attention_grad_part;
    if (op != &op_def_attention && !gradient && !is_part(op)) return (AttentionLibrary){0};
    const AttentionAttr *attr = node->attr; /* a part's begins with it */
    const Value *q = graph_value(g, node->in[ATTENTION_Q]);
    AttentionShapes shapes = {q->dtype, &q->shape, &graph_value(g, node->in[ATTENTION_K])->shape};
    AttentionLibrary l = {.asked = attr->library, .gradient = gradient};
    if (is_part(op))
        l.refusal = "it wants all keys at once, and they come in parts";
    else
        l.refusal = attention_library_refusal(attr, &shapes, gradient);
    return l;
}
