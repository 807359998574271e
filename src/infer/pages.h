/* pages: which pages of a key/value cache hold what, and who shares them.
 *
 * A pool has pages of a power of two of positions. A sequence's table names its pages in order; a
 * page may be in several tables: sequences that begin alike share what they have in common. Who
 * writes to a page has it alone: before a shared one is written to, the sequence gets a page of its
 * own, and is told what to copy. Books only: keys and values lie with the programs.
 *
 *     PagePool *pool = page_pool_create(1000, 16);
 *     PageTable table = page_table_make(64);               (up to 64 pages, 1024 positions)
 *     TRY(page_table_extend(pool, &table, 0, 100, &copy));   (positions 0..99 may be written now)
 *     page_table_drop(pool, &table, 48);                   (none before 48 will be read again)
 *     page_table_cut(pool, &table, 0);                     (and now it is empty)
 */
#ifndef INFER_PAGES_H
#define INFER_PAGES_H

#include "base/base.h"

typedef struct PagePool PagePool;
PagePool *page_pool_create(int64_t pages, int64_t page_tokens);
void page_pool_destroy(PagePool *pool); /* also with pages out */
int64_t page_pool_free(const PagePool *pool);
int64_t page_pool_most(const PagePool *pool); /* that were out at a time, so far */

/* Pages first..end-1 of a sequence; other entries are -1. */
typedef struct PageTable {
    int32_t *page; /* [width], owned */
    int64_t width, first, end;
} PageTable;
PageTable page_table_make(int64_t width);
void page_table_deinit(PageTable *table); /* pages must be given back before */

/* How many tables name the page of the position; 0: the table has none there. */
int page_table_users(const PagePool *pool, const PageTable *table, int64_t position);
/* How many pages positions from..to-1 want beside those that the table has, of which that of `from`
 * is copied or not. */
int64_t page_table_wants(const PagePool *pool, const PageTable *table, int64_t from, int64_t to);
/* Makes positions from..to-1 ready to be written, where `from` is the number of positions there
 * are. *copy: the page whose rows before `from` must be copied into the page of `from` before it is
 * written; -1: none. ERR_REFUSED, with nothing changed, when there are too few pages. */
Status page_table_extend(PagePool *pool, PageTable *table, int64_t from, int64_t to, int32_t *copy);
/* Gives back the pages that lie wholly before the position, which is never read again. */
void page_table_drop(PagePool *pool, PageTable *table, int64_t position);
/* Gives back the pages that lie wholly at or after the position. */
void page_table_cut(PagePool *pool, PageTable *table, int64_t position);
/* The empty table `to` shares the pages of positions before `position` that `from` has. */
void page_table_share(PagePool *pool, PageTable *to, const PageTable *from, int64_t position);

#endif
