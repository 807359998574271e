/* Byte-pair merging of one piece: again and again the neighbours with the merge of lowest priority,
 * the leftmost among equals, until no neighbours have one.
 *
 * Short pieces, nearly all of them: the pairs in an array, the lowest found by looking at all. Long
 * ones: a binary heap of pairs over a linked list of symbols, O(n log n). A pair whose symbols have
 * changed since it went into the heap is dropped when it comes out.
 */
#include "text/text_internal.h"

#include <stdlib.h>

/* A piece of few symbols: priority and result at i are of the merge of symbols i and i + 1; the
 * last symbol has none. */
typedef struct FewSymbols {
    int32_t *id, result[MERGE_SHORT_BYTES];
    uint32_t priority[MERGE_SHORT_BYTES];
} FewSymbols;

static inline void set_pair(FewSymbols *few, int i, const MergeRule *rule)
{
    few->priority[i] = rule ? rule->priority : PRIORITY_NONE;
    few->result[i] = rule ? rule->result : -1;
}

/* How many symbols are left of n. */
static inline int merge_few(const Tokenizer *t, FewSymbols *few, int n)
{
    int32_t *id = few->id, *result = few->result;
    uint32_t *priority = few->priority;
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
            set_pair(few, i, merge_find(t, id[i], id[i + 1]));
        }
    }
    return n;
}

void merge_short(const Tokenizer *t, Bytes piece, IdVec *ids)
{
    int32_t id[MERGE_SHORT_BYTES];
    FewSymbols few = {.id = id};
    int n = (int)piece.n;
    for (int i = 0; i < n; i++) id[i] = t->byte_id[piece.at[i]];
    for (int i = 0; i + 1 < n; i++)
        set_pair(&few, i, &t->byte_pairs[piece.at[i] << 8 | piece.at[i + 1]]);
    n = merge_few(t, &few, n);
    for (int i = 0; i < n; i++) VEC_PUSH(ids, id[i]);
}

size_t merge_few_symbols(const Tokenizer *t, int32_t *id, size_t n)
{
    FewSymbols few = {.id = id};
    for (int i = 0; i + 1 < (int)n; i++) set_pair(&few, i, merge_find(t, id[i], id[i + 1]));
    return (size_t)merge_few(t, &few, (int)n);
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

/* A merge takes at least one item out of the heap and puts at most two in, so that 2n are enough.
 */
void merge_reserve(MergeScratch *s, size_t n)
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

size_t merge_many_symbols(const Tokenizer *t, MergeScratch *s, size_t n_symbols)
{
    uint32_t n = (uint32_t)n_symbols;
    size_t n_heap = 0, n_left = 0;
    for (uint32_t i = 0; i < n; i++) {
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
    for (uint32_t i = 0; i < n; i = s->after[i]) s->id[n_left++] = s->id[i];
    return n_left;
}

void merge_release(MergeScratch *s)
{
    if (s->cap > MAX_PIECE_BYTES / 16)
        merge_scratch_deinit(s); /* such a piece is rare: do not keep 10 MB */
}

void merge_long(const Tokenizer *t, MergeScratch *s, Bytes piece, IdVec *ids)
{
    merge_reserve(s, piece.n);
    for (size_t i = 0; i < piece.n; i++) s->id[i] = t->byte_id[piece.at[i]];
    size_t n = merge_many_symbols(t, s, piece.n);
    for (size_t i = 0; i < n; i++) VEC_PUSH(ids, s->id[i]);
    merge_release(s);
}

void merge_piece(const Tokenizer *t, MergeScratch *scratch, Bytes piece, IdVec *ids)
{
    if (piece.n <= MERGE_SHORT_BYTES)
        merge_short(t, piece, ids);
    else
        merge_long(t, scratch, piece, ids);
}
