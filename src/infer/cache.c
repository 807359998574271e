/* Keys and values of the slots, in pages. Layers that see equally far back share a pool and tables
 * (model_cache_chunks): where attention stays within chunks, the pages of chunks that no later
 * token sees are given back as a sequence grows, so that its cache is bounded by the chunk and not
 * by the context. Slots lie with the data ranks, each of which has pools of its own; every rank
 * keeps the books of all, so that all refuse alike. */
#include "infer/infer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- how many pages --------------------------------------------------------------------- */

static Status check_page_tokens(int64_t n)
{
    if (n >= 16 && n <= 1 << 20 && (n & (n - 1)) == 0) return OK;
    return fail(ERR_ARG, "pages of %lld positions; wanted a power of two, 16 or more",
                (long long)n);
}

/* Pages that a slot of this length can hold at a time of layers with this chunk: from the page that
 * the chunk of its last token begins in to the end of a piece of a prompt, or all. */
static int64_t slot_pages(const Infer *infer, int64_t chunk, int64_t length)
{
    const InferOptions *o = &infer->options;
    int64_t all = (length + o->page_tokens - 1) / o->page_tokens;
    if (chunk <= 0) return all;
    int64_t positions = chunk - 1 + infer->prefill_rows * o->prefill;
    int64_t begins_within = chunk % o->page_tokens ? o->page_tokens - 1 : 0;
    return min_i64(all, (positions + begins_within + o->page_tokens - 1) / o->page_tokens);
}

Status infer_cache_setup(Infer *infer)
{
    InferOptions *o = &infer->options;
    int64_t chunk[MODEL_MAX_POOLS];
    if (o->page_tokens <= 0) o->page_tokens = MODEL_PAGE_TOKENS;
    TRY(check_page_tokens(o->page_tokens));
    int64_t share = (o->cache_tokens + infer->data_ranks - 1) / infer->data_ranks;
    int64_t most = (share + o->page_tokens - 1) / o->page_tokens; /* 0: no bound */
    bool all_in_chunks = true;
    infer->n_kinds = model_cache_chunks(&infer->model->config, chunk);
    for (int i = 0; i < infer->n_kinds; i++) all_in_chunks &= chunk[i] > 0;
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        kind->chunk = chunk[i];
        kind->pages = infer->slots * slot_pages(infer, chunk[i], o->context);
        if (most > 0 && !all_in_chunks) kind->pages = min_i64(kind->pages, most);
    }
    return OK;
}

int64_t infer_cache_need(const Infer *infer, int kind, int64_t positions)
{
    return slot_pages(infer, infer->kind[kind].chunk, positions);
}

void infer_cache_start(Infer *infer)
{
    const InferOptions *o = &infer->options;
    int64_t width = (o->context + o->page_tokens - 1) / o->page_tokens;
    int64_t rows = infer->data_ranks * max_i64(infer->slots, infer->prefill_rows);
    if (o->batch <= 0) return;
    infer->row = xcalloc((size_t)rows, sizeof *infer->row);
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        kind->table_name = model_cache_input(&infer->names, "pages", kind->chunk);
        kind->copy_name = model_cache_input(&infer->names, "copy", kind->chunk);
        kind->pool = xcalloc((size_t)infer->data_ranks, sizeof *kind->pool);
        kind->table = xcalloc((size_t)o->batch, sizeof *kind->table);
        kind->copy = xcalloc((size_t)rows, sizeof *kind->copy);
        for (int r = 0; r < infer->data_ranks; r++)
            kind->pool[r] = page_pool_create(kind->pages, o->page_tokens);
        for (int64_t s = 0; s < o->batch; s++) kind->table[s] = page_table_make(width);
    }
}

void infer_cache_end(Infer *infer)
{
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        for (int r = 0; kind->pool && r < infer->data_ranks; r++) page_pool_destroy(kind->pool[r]);
        for (int64_t s = 0; kind->table && s < infer->options.batch; s++)
            page_table_deinit(&kind->table[s]);
        free(kind->pool);
        free(kind->table);
        free(kind->copy);
    }
    free(infer->row);
    arena_deinit(&infer->names);
}

/* ---- growing ---------------------------------------------------------------------------- */

static PagePool *pool_of(const Infer *infer, const CacheKind *kind, int slot)
{
    return kind->pool[slot / infer->slots];
}

/* Pages that a slot wants for its next n tokens. What of its last page it shares with slots before
 * it in the feed is no longer shared with them by then. */
static int64_t wanted(const Infer *infer, const CacheKind *kind, const SlotTokens *feed, int i)
{
    int slot = feed[i].slot;
    int64_t from = infer->length[slot], at = from / infer->options.page_tokens;
    const PagePool *pool = pool_of(infer, kind, slot);
    const PageTable *table = &kind->table[slot];
    int users = page_table_users(pool, table, from);
    for (int k = 0; k < i && users > 1; k++) {
        const PageTable *other = &kind->table[feed[k].slot];
        int64_t there = infer->length[feed[k].slot] / infer->options.page_tokens;
        users -= there == at && pool_of(infer, kind, feed[k].slot) == pool &&
                 page_table_users(pool, other, from) && other->page[at] == table->page[at];
    }
    return page_table_wants(pool, table, from, from + feed[i].n) + (users > 1);
}

/* Layers with chunks cannot run out before others do: what a slot has of theirs it has of all, and
 * where there are no others their pools have room for all slots. */
Status infer_cache_check(const Infer *infer, const SlotTokens *feed, int n)
{
    for (int i = 0; i < infer->n_kinds; i++) {
        const CacheKind *kind = &infer->kind[i];
        if (kind->chunk > 0) continue;
        for (int r = 0; r < infer->data_ranks; r++) {
            int64_t all = 0, there = page_pool_free(kind->pool[r]);
            for (int k = 0; k < n; k++)
                if (feed[k].slot / infer->slots == r) all += wanted(infer, kind, feed, k);
            if (all > there)
                return fail(ERR_REFUSED,
                            "%lld more pages of %lld positions are wanted for keys and values, "
                            "but %lld are free; fewer sequences at a time or more cache tokens",
                            (long long)all, (long long)infer->options.page_tokens,
                            (long long)there);
        }
    }
    return OK;
}

void infer_cache_drop(Infer *infer, int slot)
{
    int64_t at = infer->length[slot];
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        if (kind->chunk > 0)
            page_table_drop(pool_of(infer, kind, slot), &kind->table[slot], at - at % kind->chunk);
    }
}

Status infer_cache_extend(Infer *infer, int slot, int64_t n, int64_t row)
{
    int64_t from = infer->length[slot];
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        TRY(page_table_extend(pool_of(infer, kind, slot), &kind->table[slot], from, from + n,
                              &kind->copy[row]));
    }
    return OK;
}

/* A stage of a pipeline has no layers of some kinds, and then no such inputs. Tables of rows that
 * take nothing are not read. */
void infer_cache_inputs(Infer *infer, int program, int64_t rows)
{
    int64_t first = infer->data_rank * rows;
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        size_t width = (size_t)kind->table[0].width;
        int32_t *pages = session_input(infer->session, program, kind->table_name);
        int32_t *copy = session_input(infer->session, program, kind->copy_name);
        if (!pages || !copy) continue;
        for (int64_t r = 0; r < rows; r++) {
            const SlotTokens *row = &infer->row[first + r];
            copy[r] = row->n > 0 ? kind->copy[first + r] : -1;
            if (row->n > 0)
                memcpy(pages + (size_t)r * width, kind->table[row->slot].page,
                       width * sizeof *pages);
        }
    }
}

/* ---- shrinking -------------------------------------------------------------------------- */

/* The greatest length up to `length` from which the slot can go on: back at the beginning of a
 * chunk whose pages are gone, none of them is read any more. */
static int64_t reachable(const Infer *infer, int slot, int64_t length)
{
    for (bool again = true; again;) {
        again = false;
        for (int i = 0; i < infer->n_kinds; i++) {
            const CacheKind *kind = &infer->kind[i];
            const PageTable *table = &kind->table[slot];
            if (kind->chunk <= 0 || length % kind->chunk == 0) continue;
            int64_t begin = length - length % kind->chunk;
            if (begin / infer->options.page_tokens >= table->first) continue;
            length = begin;
            again = true;
        }
    }
    return length;
}

void infer_cache_cut(Infer *infer, int slot, int64_t length)
{
    length = reachable(infer, slot, length);
    for (int i = 0; i < infer->n_kinds; i++)
        page_table_cut(pool_of(infer, &infer->kind[i], slot), &infer->kind[i].table[slot], length);
    infer->length[slot] = length;
}

int64_t infer_share(Infer *infer, int to, int from, int64_t length)
{
    length = reachable(infer, from, min_i64(length, infer->length[from]));
    infer_truncate(infer, to, 0);
    if (to == from || to / infer->slots != from / infer->slots) return 0;
    for (int i = 0; i < infer->n_kinds; i++) {
        CacheKind *kind = &infer->kind[i];
        page_table_share(pool_of(infer, kind, to), &kind->table[to], &kind->table[from], length);
    }
    infer->length[to] = length;
    return length;
}
