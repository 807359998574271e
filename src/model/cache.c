/* Key/value caches of the programs that decode: pages, and the tables that name those of each
 * sequence. Layers that see equally far back share a table, and have pools with as many pages. */
#include "model/model_internal.h"

int model_cache_chunks(const ModelConfig *config, int64_t chunk[MODEL_MAX_POOLS])
{
    int n = 0;
    for (int i = 0; i < config->n_layers; i++) {
        int k = 0;
        while (k < n && chunk[k] != config->layer[i].chunk) k++;
        if (k < n) continue;
        CHECK(n < MODEL_MAX_POOLS);
        chunk[n++] = config->layer[i].chunk;
    }
    return n;
}

const char *model_cache_input(Arena *arena, const char *which, int64_t chunk)
{
    return chunk > 0 ? arena_printf(arena, "%s.%lld", which, (long long)chunk) : which;
}

static int64_t page_tokens(const ModelBuilder *b)
{
    return b->o.page_tokens > 0 ? b->o.page_tokens : MODEL_PAGE_TOKENS;
}

void model_cache_inputs(ModelBuilder *b)
{
    int64_t chunk[MODEL_MAX_POOLS], width = (b->o.cache + page_tokens(b) - 1) / page_tokens(b);
    Arena *arena = &b->g->arena;
    Shape table = shape_make(2, (int64_t[]){b->o.batch, width}, (Axis[]){AXIS_BATCH, AXIS_ANY});
    Shape copy = shape_make(1, &b->o.batch, (Axis[]){AXIS_BATCH});
    int n = model_cache_chunks(b->config, chunk);
    for (int i = 0; i < n; i++) {
        b->pool[i] = (CachePool){chunk[i], b->o.pool_pages[i]};
        if (b->pool[i].pages <= 0) b->pool[i].pages = b->o.batch * width;
        b->pages[i].table = graph_input(b->g, model_cache_input(arena, "pages", chunk[i]),
                                        DTYPE_I32, table);
        b->pages[i].copy = graph_input(b->g, model_cache_input(arena, "copy", chunk[i]), DTYPE_I32,
                                       copy);
    }
}

/* k [B n K d], its heads repeated where ranks are to have one each */
static ValueId cache_state(ModelBuilder *b, const char *which, int64_t pages, ValueId k)
{
    const char *name = arena_printf(&b->g->arena, "cache.%d.%s", b->layer, which);
    const int64_t *dim = graph_value(b->g, k)->shape.dim;
    Shape shape = shape_make(4, (int64_t[]){pages, page_tokens(b), dim[2], dim[3]},
                             (Axis[]){AXIS_BATCH, AXIS_CACHE, AXIS_KV_HEADS, AXIS_HEAD_DIM});
    return graph_state(b->g, name, b->o.dtype, shape, STATE_CACHE);
}

Status model_attend_cached(ModelBuilder *b, const ValueId qkv[3], AttentionAttr attr, ValueId *o)
{
    int i = 0;
    while (b->pool[i].chunk != attr.chunk) i++;
    CachePages pages = b->pages[i];
    pages.k = cache_state(b, "k", b->pool[i].pages, qkv[1]);
    pages.v = cache_state(b, "v", b->pool[i].pages, qkv[2]);
    attr.context = b->o.cache;
    TRY(op_cache_append(b->g, qkv[1], qkv[2], b->pos, pages, &pages.k, &pages.v));
    return op_attention_cached(b->g, qkv[0], pages.k, pages.v, b->pos, pages.table, attr, o);
}
