/* Byte-pair merging of one piece: again and again the neighbours with the merge of lowest priority,
 * the leftmost among equals, until no neighbours have one.
 *
 * Short pieces, nearly all of them: the pairs in an array, the lowest found by looking at all. Long
 * ones: a binary heap of pairs over a linked list of symbols, O(n log n). A pair whose symbols have
 * changed since it went into the heap is dropped when it comes out.
 */
#include "text/text_internal.h"

#include <stdlib.h>

void merge_short(const Tokenizer *t, Bytes piece, IdVec *ids)
{
    /* pair[i] is the merge of symbols i and i + 1; the last symbol has none. */
    int32_t id[MERGE_SHORT_BYTES], result[MERGE_SHORT_BYTES];
    uint32_t priority[MERGE_SHORT_BYTES];
    int n = (int)piece.n;
    for (int i = 0; i < n; i++) id[i] = t->byte_id[piece.at[i]];
    for (int i = 0; i + 1 < n; i++) {
        const MergeRule *rule = &t->byte_pairs[piece.at[i] << 8 | piece.at[i + 1]];
        priority[i] = rule->priority;
        result[i] = rule->result;
    }
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (priority[i] < priority[best]) best = i;
        if (priority[best] == PRIORITY_NONE) break;
        id[best] = result[best];
        for (int i = best + 1; i + 1 < n; i++) { /* symbol best + 1 and its pair are gone */
            id[i] = id[i + 1];
            priority[i] = priority[i + 1];
            result[i] = result[i + 1];
        }
        n--;
        for (int i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const MergeRule *rule = merge_find(t, id[i], id[i + 1]);
            priority[i] = rule ? rule->priority : PRIORITY_NONE;
            result[i] = rule ? rule->result : -1;
        }
    }
    for (int i = 0; i < n; i++) VEC_PUSH(ids, id[i]);
}

static inline bool item_before(const HeapItem *a, const HeapItem *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->pos < b->pos;
}

static void heap_push(HeapItem *heap, size_t *n, HeapItem item)
{
    size_t i = (*n)++;
    while (i > 0 && item_before(&item, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = item;
}

static HeapItem heap_pop(HeapItem *heap, size_t *n)
{
    HeapItem top = heap[0], last = heap[--*n];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < *n) {
        if (child + 1 < *n && item_before(&heap[child + 1], &heap[child])) child++;
        if (!item_before(&heap[child], &last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* A merge takes at least one item out of the heap and puts at most two in, so that 2n are enough. */
static void scratch_reserve(MergeScratch *s, size_t n)
{
    if (n <= s->cap) return;
    merge_scratch_deinit(s);
    s->heap = xmalloc(2 * n * sizeof *s->heap);
    s->id = xmalloc(n * sizeof *s->id);
    s->before = xmalloc(n * sizeof *s->before);
    s->after = xmalloc(n * sizeof *s->after);
    s->cap = n;
}

void merge_scratch_deinit(MergeScratch *s)
{
    free(s->heap);
    free(s->id);
    free(s->before);
    free(s->after);
    *s = (MergeScratch){0};
}

static inline void push_pair(const Tokenizer *t, MergeScratch *s, size_t *n_heap, uint32_t left,
                             uint32_t right)
{
    const MergeRule *rule = merge_find(t, s->id[left], s->id[right]);
    if (rule) heap_push(s->heap, n_heap, (HeapItem){rule->priority, left, rule->left, rule->right});
}

void merge_long(const Tokenizer *t, MergeScratch *s, Bytes piece, IdVec *ids)
{
    uint32_t n = (uint32_t)piece.n;
    size_t n_heap = 0;
    scratch_reserve(s, n);
    for (uint32_t i = 0; i < n; i++) {
        s->id[i] = t->byte_id[piece.at[i]];
        s->before[i] = i - 1; /* wraps at the first: never used there */
        s->after[i] = i + 1;
    }
    for (uint32_t i = 0; i + 1 < n; i++) push_pair(t, s, &n_heap, i, i + 1);
    while (n_heap > 0) {
        HeapItem item = heap_pop(s->heap, &n_heap);
        uint32_t left = item.pos, right = s->after[left];
        if (s->id[left] != item.left || right >= n || s->id[right] != item.right) continue;
        s->id[left] = merge_find(t, item.left, item.right)->result;
        s->id[right] = -1; /* gone: no item has this id */
        s->after[left] = s->after[right];
        if (s->after[left] < n) {
            s->before[s->after[left]] = left;
            push_pair(t, s, &n_heap, left, s->after[left]);
        }
        if (left > 0) push_pair(t, s, &n_heap, s->before[left], left);
    }
    for (uint32_t i = 0; i < n; i = s->after[i]) VEC_PUSH(ids, s->id[i]);
    if (s->cap > MAX_PIECE_BYTES / 16)
        merge_scratch_deinit(s); /* such a piece is rare: do not keep 10 MB */
}

void merge_piece(const Tokenizer *t, MergeScratch *scratch, Bytes piece, IdVec *ids)
{
    if (piece.n <= MERGE_SHORT_BYTES)
        merge_short(t, piece, ids);
    else
        merge_long(t, scratch, piece, ids);
}
