/* cache_append: writes the keys and values of new tokens into the rows of their positions, in
 * place. */
#include "ops/attention/attention_internal.h"
#include "ops/kernel.h"

#include <string.h>

CUDA_DECLARE(cache_append);

enum { IN_K, IN_V, IN_POS, IN_K_CACHE, IN_V_CACHE };

static Status infer(InferCtx *ctx)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    const Value *pos = ctx->in[IN_POS];
    for (int i = 0; i < 2; i++) {
        const Value *x = ctx->in[i], *cache = ctx->in[IN_K_CACHE + i];
        const int64_t *n = x->shape.dim, *s = cache->shape.dim;
        if (x->shape.rank != 4 || cache->shape.rank != 4 || n[0] != s[0] || n[2] != s[2] ||
            n[3] != s[3] || s[1] < 1 || x->dtype != cache->dtype)
            return fail(ERR_SHAPE, "cache_append: %s [%s] does not go into a cache of %s [%s]",
                        dtype_name(x->dtype), shape_text(&x->shape, a), dtype_name(cache->dtype),
                        shape_text(&cache->shape, b));
        if (pos->dtype != DTYPE_I32 || pos->shape.rank != 2 || pos->shape.dim[0] != n[0] ||
            pos->shape.dim[1] != n[1])
            return fail(
                ERR_SHAPE, "cache_append: positions are %s [%s] for keys [%s]; wanted i32 [B n]",
                dtype_name(pos->dtype), shape_text(&pos->shape, a), shape_text(&x->shape, b));
        ctx->out[i].dtype = cache->dtype;
        ctx->out[i].shape = cache->shape;
        ctx->out[i].alias = IN_K_CACHE + i;
    }
    return OK;
}

static Cost cost(const Graph *graph, const Node *node)
{
    double bytes = 0;
    for (int i = 0; i < 2; i++) {
        const Value *x = graph_value(graph, node->in[i]);
        bytes += (double)(shape_count(&x->shape) * (int64_t)dtype_bytes(x->dtype));
    }
    return (Cost){.read_bytes = bytes, .write_bytes = bytes};
}

/* in: k v [B n K d] by tokens, pos [B n], the caches [B S K d]; out: the caches. When two tokens
 * fall into one row, the later one stays. */
static Status run(KernelArgs *args)
{
    const int32_t *pos = args->in[IN_POS].data;
    int64_t batch = args->in[IN_K].shape.dim[0], n = args->in[IN_K].shape.dim[1];
    for (int i = 0; i < 2; i++) {
        Rows x = tensor_as_rows(&args->in[i], 2),
             cache = tensor_as_rows(&args->in[IN_K_CACHE + i], 2);
        int64_t rows = args->in[IN_K_CACHE + i].shape.dim[1];
        size_t element = dtype_bytes(x.dtype);
        for (int64_t t = 0; t < batch * n; t++) {
            if (pos[t] < 0) continue;
            int64_t row = t / n * rows + pos[t] % rows;
            memcpy(cache.data + (size_t)(row * cache.pitch) * element,
                   x.data + (size_t)(t * x.pitch) * element, (size_t)x.width * element);
        }
    }
    return OK;
}

static const Kernel kernel = {.run = run};

const OpDef op_def_cache_append = {
    .name = "cache_append",
    .min_in = 5,
    .max_in = 5,
    .n_out = 2,
    .flags = OP_SOURCE | OP_EFFECT,
    .strided_in = 3,
    .infer = infer,
    .cut = "bn!hd! bn!hd! bn! bs!hd! bs!hd! -> bs!hd! bs!hd!",
    .cost = cost,
    .cpu = CPU_KERNEL_ANY(&kernel),
    .cuda = &cuda_cache_append,
};

Status op_cache_append(Graph *g, ValueId k, ValueId v, ValueId pos, ValueId k_cache,
                       ValueId v_cache, ValueId *k_new, ValueId *v_new)
{
    ValueId in[5] = {k, v, pos, k_cache, v_cache}, out[2];
    TRY(graph_add(g, &op_def_cache_append, NULL, in, 5, out));
    *k_new = out[0];
    *v_new = out[1];
    return OK;
}
