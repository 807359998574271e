/* cache_append: writes the keys and values of new tokens into the pages of their positions, in
 * place. A sequence that shares its last page with others has been given a page of its own for what
 * it writes; the rows that it has in the shared one are copied first. All copies come before all
 * writes: what one sequence copies, another may write in the same step. */
#include "ops/attention/cache_append.h"
#include "ops/kernel.h"

#include <string.h>

CUDA_DECLARE(cache_append);

static Status check_tokens(const InferCtx *ctx)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    for (int i = 0; i < 2; i++) {
        const Value *x = ctx->in[APPEND_K + i], *pool = ctx->in[APPEND_K_POOL + i];
        const int64_t *n = x->shape.dim, *s = pool->shape.dim;
        if (x->shape.rank != 4 || pool->shape.rank != 4 || n[2] != s[2] || n[3] != s[3] ||
            x->dtype != pool->dtype)
            return fail(ERR_SHAPE, "cache_append: %s [%s] does not go into pages of %s [%s]",
                        dtype_name(x->dtype), shape_text(&x->shape, a), dtype_name(pool->dtype),
                        shape_text(&pool->shape, b));
    }
    return OK;
}

static Status infer(InferCtx *ctx)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    const Value *pos = ctx->in[APPEND_POS], *x = ctx->in[APPEND_K], *copy = ctx->in[APPEND_COPY];
    TRY(check_tokens(ctx));
    TRY(attention_check_pages(ctx, ctx->in[APPEND_K_POOL], ctx->in[APPEND_TABLE], x->shape.dim[0]));
    if (!shape_equal(&x->shape, &ctx->in[APPEND_V]->shape) ||
        !shape_equal(&ctx->in[APPEND_K_POOL]->shape, &ctx->in[APPEND_V_POOL]->shape))
        return fail(ERR_SHAPE, "cache_append: keys [%s] and values [%s] differ",
                    shape_text(&x->shape, a), shape_text(&ctx->in[APPEND_V]->shape, b));
    if (pos->dtype != DTYPE_I32 || pos->shape.rank != 2 || pos->shape.dim[0] != x->shape.dim[0] ||
        pos->shape.dim[1] != x->shape.dim[1])
        return fail(ERR_SHAPE,
                    "cache_append: positions are %s [%s] for keys [%s]; wanted i32 [B n]",
                    dtype_name(pos->dtype), shape_text(&pos->shape, a), shape_text(&x->shape, b));
    if (copy->dtype != DTYPE_I32 || copy->shape.rank != 1 || copy->shape.dim[0] != x->shape.dim[0])
        return fail(ERR_SHAPE,
                    "cache_append: pages to copy are %s [%s] for keys [%s]; wanted i32 [B]",
                    dtype_name(copy->dtype), shape_text(&copy->shape, a), shape_text(&x->shape, b));
    for (int i = 0; i < 2; i++) {
        const Value *pool = ctx->in[APPEND_K_POOL + i];
        ctx->out[i].dtype = pool->dtype;
        ctx->out[i].shape = pool->shape;
        ctx->out[i].alias = APPEND_K_POOL + i;
    }
    return OK;
}

static Cost cost(const Graph *graph, const Node *node)
{
    double bytes = 0;
    for (int i = 0; i < 2; i++) {
        const Value *x = graph_value(graph, node->in[APPEND_K + i]);
        bytes += (double)(shape_count(&x->shape) * (int64_t)dtype_bytes(x->dtype));
    }
    return (Cost){.read_bytes = bytes, .write_bytes = bytes};
}

typedef struct Append {
    const int32_t *pos, *table, *copy; /* [B n], [B W], [B] */
    int64_t batch, n, pages, width;    /* pages: of a pool */
    int shift;
} Append;

static int64_t page_row(const Append *a, int64_t b, int64_t pos)
{
    const int32_t *table = a->table + b * a->width;
    CHECK(pos >> a->shift < a->width && table[pos >> a->shift] >= 0 &&
          table[pos >> a->shift] < a->pages);
    return attention_page_row(table, a->shift, (int)pos);
}

static void copy_rows(const Append *a, const Rows *pool)
{
    size_t pitch = (size_t)pool->pitch * dtype_bytes(pool->dtype);
    for (int64_t b = 0; b < a->batch; b++) {
        int64_t pos = cache_first_position(a->pos + b * a->n, a->n), page = a->copy[b];
        if (page < 0 || pos < 0) continue;
        CHECK(page < a->pages);
        int64_t rows = pos & ((1 << a->shift) - 1);
        char *to = pool->data + (size_t)(page_row(a, b, pos) - rows) * pitch;
        memcpy(to, pool->data + (size_t)(page << a->shift) * pitch, (size_t)rows * pitch);
    }
}

static void write_rows(const Append *a, const Rows *x, const Rows *pool)
{
    size_t element = dtype_bytes(x->dtype);
    for (int64_t t = 0; t < a->batch * a->n; t++) {
        if (a->pos[t] < 0) continue;
        memcpy(pool->data + (size_t)(page_row(a, t / a->n, a->pos[t]) * pool->pitch) * element,
               x->data + (size_t)(t * x->pitch) * element, (size_t)x->width * element);
    }
}

static Status run(KernelArgs *args)
{
    const Shape *pool = &args->in[APPEND_K_POOL].shape;
    Append a = {.pos = args->in[APPEND_POS].data,
                .table = args->in[APPEND_TABLE].data,
                .copy = args->in[APPEND_COPY].data,
                .batch = args->in[APPEND_K].shape.dim[0],
                .n = args->in[APPEND_K].shape.dim[1],
                .pages = pool->dim[0],
                .width = args->in[APPEND_TABLE].shape.dim[1],
                .shift = attention_page_shift(pool)};
    for (int i = 0; i < 2; i++) {
        Rows to = tensor_as_rows(&args->in[APPEND_K_POOL + i], 2);
        Rows from = tensor_as_rows(&args->in[APPEND_K + i], 2);
        copy_rows(&a, &to);
        write_rows(&a, &from, &to);
    }
    return OK;
}

static const Kernel kernel = {.run = run};

const OpDef op_def_cache_append = {
    .name = "cache_append",
    .min_in = 7,
    .max_in = 7,
    .n_out = 2,
    .flags = OP_SOURCE | OP_EFFECT,
    .strided_in = 3,
    .infer = infer,
    .cut = "bn!hd! bn!hd! bn! bw! b bs!hd! bs!hd! -> bs!hd! bs!hd!",
    .cost = cost,
    .cpu = CPU_KERNEL_ANY(&kernel),
    .cuda = &cuda_cache_append,
};

Status op_cache_append(Graph *g, ValueId k, ValueId v, ValueId pos, CachePages pages,
                       ValueId *k_new, ValueId *v_new)
{
    ValueId in[7] = {k, v, pos, pages.table, pages.copy, pages.k, pages.v}, out[2];
    TRY(graph_add(g, &op_def_cache_append, NULL, in, 7, out));
    *k_new = out[0];
    *v_new = out[1];
    return OK;
}
