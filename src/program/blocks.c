/* The memory planner: lifetimes in, offsets out.
 *
 * Blocks are placed one after another, each in the lowest gap that it fits among those already
 * placed whose lives overlap its own. The order decides how good that is, and no order is always
 * best: three are tried (largest first, largest bytes x life first, in order of birth) and the
 * tightest plan is kept. Ties go by birth, then by index: the plan is a pure function of its input.
 */
#include "program/program_internal.h"

#include <stdlib.h>

typedef struct Order {
    const Block *block;
    double weight; /* heavier first */
    int index;
} Order;

static int heavier_first(const void *a, const void *b)
{
    const Order *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    if (x->block->birth != y->block->birth) return x->block->birth < y->block->birth ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

/* placed holds the indices of placed blocks by rising offset. */
static size_t lowest_gap(const Block *block, const int *placed, int n_placed, const Block *b)
{
    size_t offset = 0;
    for (int i = 0; i < n_placed; i++) {
        const Block *p = &block[placed[i]];
        if (p->death < b->birth || b->death < p->birth) continue;
        if (p->offset >= offset + b->bytes) break; /* the gap before p is wide enough */
        if (p->offset + p->bytes > offset) offset = p->offset + p->bytes;
    }
    return offset;
}

typedef enum Rule { BY_BYTES, BY_BYTES_AND_LIFE, BY_BIRTH, N_RULES } Rule;

static double weigh(const Block *b, Rule rule)
{
    switch (rule) {
    case BY_BYTES: return (double)b->bytes;
    case BY_BYTES_AND_LIFE: return (double)b->bytes * (double)(b->death - b->birth + 1);
    default: return -(double)b->birth;
    }
}

static size_t place_all(Block *block, int n, Rule rule, Order *order, int *placed)
{
    size_t total = 0;
    for (int i = 0; i < n; i++) order[i] = (Order){&block[i], weigh(&block[i], rule), i};
    qsort(order, (size_t)n, sizeof *order, heavier_first);
    for (int i = 0; i < n; i++) {
        Block *b = &block[order[i].index];
        b->offset = lowest_gap(block, placed, i, b);
        int at = i;
        while (at > 0 && block[placed[at - 1]].offset > b->offset) {
            placed[at] = placed[at - 1];
            at--;
        }
        placed[at] = order[i].index;
        if (b->offset + b->bytes > total) total = b->offset + b->bytes;
    }
    return total;
}

size_t plan_blocks(Block *block, int n)
{
    Order *order = xcalloc((size_t)n + 1, sizeof *order);
    int *placed = xcalloc((size_t)n + 1, sizeof *placed);
    size_t *best_offset = xcalloc((size_t)n + 1, sizeof *best_offset), best = SIZE_MAX;
    for (int i = 0; i < n; i++) block[i].bytes = round_up(block[i].bytes, TENSOR_ALIGN);
    for (Rule rule = 0; rule < N_RULES; rule++) {
        size_t total = place_all(block, n, rule, order, placed);
        if (total >= best) continue;
        best = total;
        for (int i = 0; i < n; i++) best_offset[i] = block[i].offset;
    }
    for (int i = 0; i < n; i++) block[i].offset = best_offset[i];
    free(order);
    free(placed);
    free(best_offset);
    return best;
}
