/* Pages of key/value caches: a list of free ones, and how many tables name each. */
#include "infer/pages.h"

#include <stdlib.h>

struct PagePool {
    int64_t pages, page_tokens, n_free, most;
    int32_t *free_page; /* [pages] the last n_free taken first */
    int32_t *users;     /* [pages] */
};

PagePool *page_pool_create(int64_t pages, int64_t page_tokens)
{
    PagePool *pool = xcalloc(1, sizeof *pool);
    *pool = (PagePool){.pages = pages, .page_tokens = page_tokens, .n_free = pages};
    pool->free_page = xcalloc((size_t)pages + 1, sizeof *pool->free_page);
    pool->users = xcalloc((size_t)pages + 1, sizeof *pool->users);
    for (int64_t i = 0; i < pages; i++) pool->free_page[i] = (int32_t)(pages - 1 - i);
    return pool;
}

void page_pool_destroy(PagePool *pool)
{
    if (!pool) return;
    free(pool->free_page);
    free(pool->users);
    free(pool);
}

int64_t page_pool_free(const PagePool *pool) { return pool->n_free; }
int64_t page_pool_most(const PagePool *pool) { return pool->most; }

static int32_t take(PagePool *pool)
{
    CHECK(pool->n_free > 0);
    int32_t page = pool->free_page[--pool->n_free];
    pool->users[page] = 1;
    pool->most = max_i64(pool->most, pool->pages - pool->n_free);
    return page;
}

static void give_back(PagePool *pool, int32_t *entry)
{
    int32_t page = *entry;
    *entry = -1;
    CHECK(page >= 0 && page < pool->pages && pool->users[page] > 0);
    if (--pool->users[page] == 0) pool->free_page[pool->n_free++] = page;
}

/* ---- tables ----------------------------------------------------------------------------- */

PageTable page_table_make(int64_t width)
{
    PageTable table = {.page = xcalloc((size_t)width + 1, sizeof *table.page), .width = width};
    for (int64_t i = 0; i < width; i++) table.page[i] = -1;
    return table;
}

void page_table_deinit(PageTable *table)
{
    free(table->page);
    *table = (PageTable){0};
}

static int64_t pages_of(const PagePool *pool, int64_t positions)
{
    return (positions + pool->page_tokens - 1) / pool->page_tokens;
}

int page_table_users(const PagePool *pool, const PageTable *table, int64_t position)
{
    int64_t at = position / pool->page_tokens;
    return at >= table->first && at < table->end ? pool->users[table->page[at]] : 0;
}

int64_t page_table_wants(const PagePool *pool, const PageTable *table, int64_t from, int64_t to)
{
    int64_t there = page_table_users(pool, table, from) ? table->end : from / pool->page_tokens;
    return max_i64(0, pages_of(pool, to) - there);
}

Status page_table_extend(PagePool *pool, PageTable *table, int64_t from, int64_t to, int32_t *copy)
{
    int64_t at = from / pool->page_tokens, end = pages_of(pool, to);
    bool empty = table->first >= table->end, shared = page_table_users(pool, table, from) > 1;
    int64_t wanted = page_table_wants(pool, table, from, to) + shared;
    CHECK(from < to && end <= table->width);
    CHECK(empty || (at >= table->first && at <= table->end));
    if (wanted > pool->n_free)
        return fail(ERR_REFUSED,
                    "positions %lld to %lld of a sequence want %lld more pages of keys and values, "
                    "but %lld of %lld are free",
                    (long long)from, (long long)to - 1, (long long)wanted, (long long)pool->n_free,
                    (long long)pool->pages);
    *copy = -1;
    if (shared) {
        *copy = table->page[at];
        give_back(pool, &table->page[at]);
        table->page[at] = take(pool);
    }
    if (empty) table->first = table->end = at;
    while (table->end < end) table->page[table->end++] = take(pool);
    return OK;
}

void page_table_drop(PagePool *pool, PageTable *table, int64_t position)
{
    int64_t first = min_i64(position / pool->page_tokens, table->end);
    for (; table->first < first; table->first++) give_back(pool, &table->page[table->first]);
}

void page_table_cut(PagePool *pool, PageTable *table, int64_t position)
{
    int64_t end = pages_of(pool, position);
    while (table->end > end && table->end > table->first)
        give_back(pool, &table->page[--table->end]);
    if (table->first >= table->end) table->first = table->end = 0;
}

void page_table_share(PagePool *pool, PageTable *to, const PageTable *from, int64_t position)
{
    int64_t end = pages_of(pool, position);
    CHECK(to->first >= to->end && to->width == from->width);
    to->first = from->first;
    to->end = max_i64(from->first, min_i64(from->end, end));
    for (int64_t i = to->first; i < to->end; i++) {
        to->page[i] = from->page[i];
        pool->users[to->page[i]]++;
    }
    if (to->first >= to->end) to->first = to->end = 0;
}
