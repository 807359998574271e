/* The memory planner: lifetimes in, offsets out.
 *
 * Largest first; each block goes to the lowest gap that it fits among those already placed whose lives
 * overlap its own. Ties by birth, then by index: the plan is a pure function of its input. */
#include "program/program_internal.h"

#include <stdlib.h>

typedef struct Order {
    const Block *block;
    int index;
} Order;

static int larger_first(const void *a, const void *b)
{
    const Order *x = a, *y = b;
    if (x->block->bytes != y->block->bytes) return x->block->bytes < y->block->bytes ? 1 : -1;
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

size_t plan_blocks(Block *block, int n)
{
    Order *order = xcalloc((size_t)n + 1, sizeof *order);
    int *placed = xcalloc((size_t)n + 1, sizeof *placed);
    size_t total = 0;
    for (int i = 0; i < n; i++) {
        block[i].bytes = round_up(block[i].bytes, TENSOR_ALIGN);
        order[i] = (Order){&block[i], i};
    }
    qsort(order, (size_t)n, sizeof *order, larger_first);
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
    free(order);
    free(placed);
    return total;
}
