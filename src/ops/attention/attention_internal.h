/* attention: what the ops of this folder and their kernels share.
 *
 *   attention         q k v pos -> o lse                (attention.c, attention_cpu.c)
 *   attention_grad    q k v pos o lse do -> dq dk dv    (attention_grad.c, attention_grad_cpu.c)
 *   attention_part    q k v pos o? lse? -> o lse        (attention_part.c, attention_cpu.c)
 *   attention_grad_part  ... do dq? -> dq dk dv         (attention_part.c, attention_grad_cpu.c)
 *   attention_cached  q k_pool v_pool pos table -> o    (attention_cached.c, attention_cpu.c)
 *   cache_append                                        (cache_append.c)
 *
 * Keys and values of earlier tokens lie in pools of pages [P S K d], S positions to a page.
 * Position j of sequence b lies in row j % S of page table[b][j / S]. Who shares pages, and which
 * are free, the host knows; kernels read the entries of visible positions and no others.
 */
#ifndef OPS_ATTENTION_INTERNAL_H
#define OPS_ATTENTION_INTERNAL_H

#include "ops/device_too.h"
#include "ops/ops.h"

#include <math.h>

extern const OpDef op_def_attention, op_def_attention_grad, op_def_attention_part,
    op_def_attention_grad_part, op_def_attention_cached, op_def_cache_append;

/* operands of attention_grad; the first four are those of attention. attention_part has sums so far
 * for O and LSE, attention_grad_part for DQ. */
enum {
    ATTENTION_Q,
    ATTENTION_K,
    ATTENTION_V,
    ATTENTION_POS,
    ATTENTION_O,
    ATTENTION_LSE,
    ATTENTION_DO,
    ATTENTION_DQ
};
enum { ATTENTION_TABLE = ATTENTION_POS + 1 }; /* of attention_cached */
/* Positions to a page are a power of two from here on: keys go by in steps of 16, and no step
 * reaches from a page that is there into one that may not be. */
enum { ATTENTION_PAGE_LEAST = 16 };

static DEVICE_TOO inline int64_t attention_lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static DEVICE_TOO inline int64_t attention_greater(int64_t a, int64_t b) { return a > b ? a : b; }

/* The slope of head number `head` of all (AttentionAttr.alibi). */
static DEVICE_TOO inline float attention_slope(float alibi, int64_t heads, int64_t head)
{
    int64_t power = 1, half;
    while (power < heads) power *= 2;
    half = power / 2;
    int64_t place = power == heads ? head + 1
                    : head < half  ? 2 * (head + 1)
                                   : 2 * (head - half) + 1;
    return exp2f(-alibi * (float)place / (float)power);
}

/* Keys first..end-1 are seen. */
typedef struct KeyRange {
    int64_t first, end;
} KeyRange;

/* The row of query t among all keys. */
static DEVICE_TOO inline int64_t attention_row(const AttentionSlice *slice, int64_t t)
{
    return t + (t < slice->split ? slice->first : slice->second);
}

/* How many of n keys that stand like this come before row `row`. A run of rows is a run of these
 * keys too: rows of both blocks can only be in it with everything between them. */
static DEVICE_TOO inline int64_t attention_keys_before(const AttentionSlice *keys, int64_t n,
                                                       int64_t row)
{
    int64_t low = attention_greater(0, attention_lesser(row - keys->first, keys->split));
    return low + attention_greater(
                     0, attention_lesser(row - keys->second - keys->split, n - keys->split));
}

/* Of query t, at position pos of its document. A position that points before the row's start, as on
 * a later slice of a sequence, is cut off there. */
static DEVICE_TOO inline KeyRange attention_range(int64_t t, int64_t pos, int64_t chunk)
{
    int64_t back = chunk > 0 ? pos % chunk : pos;
    back = attention_greater(0, attention_lesser(back, t));
    KeyRange range = {t - back, t + 1};
    return range;
}

/* Of a query at position pos over pages for `rows` positions; none for pos < 0. */
static DEVICE_TOO inline KeyRange attention_cached_range(int64_t pos, int64_t chunk, int64_t rows)
{
    KeyRange range = {0, 0};
    if (pos < 0 || pos >= rows) return range;
    range.first = chunk > 0 ? pos - pos % chunk : 0;
    range.end = pos + 1;
    return range;
}

/* Positions that a sequence can have: what says how keys are split among a GPU's threads. */
static inline int64_t attention_positions(const AttentionAttr *attr, int64_t pages,
                                          int64_t page_tokens)
{
    int64_t all = pages * page_tokens;
    return attr->context > 0 ? attention_lesser(attr->context, all) : all;
}

/* The row of position `at` among the rows of all pages. */
static DEVICE_TOO inline int attention_page_row(const int32_t *table, int shift, int at)
{
    return (table[at >> shift] << shift) + (at & ((1 << shift) - 1));
}

/* Shared by the shape rules: operands 0..3 are q, k, v and positions; paged: k and v are pools. */
Status attention_check(const InferCtx *ctx, bool paged);
/* That pool [P S K d] has pages and table [B W] i32 names those of `batch` sequences. */
Status attention_check_pages(const InferCtx *ctx, const Value *pool, const Value *table,
                             int64_t batch);
/* S = 2^shift of a pool */
static inline int attention_page_shift(const Shape *pool)
{
    return __builtin_ctzll((unsigned long long)pool->dim[1]);
}
/* Along the axis that cuts sequences a rank has some queries and all keys; along one that cuts
 * heads, the slopes of its own. */
Status attention_cut_attr(const CutCtx *ctx, void *attr);
void attention_attr_text(const void *attr, Str *out);
/* (query, key) pairs of one head over a sequence that is one document: what costs are counted by.
 * The positions are not known when they are asked for; packed documents cost less than this. */
double attention_visible_pairs(int64_t tokens, int64_t chunk);
double attention_node_pairs(const Graph *graph,
                            const Node *node); /* of attention and its gradient, per head */
/* The same of some of the queries and some of the keys. */
double attention_part_pairs(const AttentionPart *part, int64_t tokens, int64_t keys);

#endif
