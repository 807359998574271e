/* Reductions in the one order that comm.h promises.
 *
 * A block of elements at a time, so that the partial results of the tree stay in the nearest cache
 * and each input is read once; results are written when all inputs of the block have been read,
 * which makes working in place safe. Compiled once for each instruction set (ISA); as there is
 * nothing but additions and comparisons, and their order is written down, all give the same bits.
 */
#include "comm/comm_internal.h"

#include <string.h>

enum { BLOCK = 512, LEVELS = 32 }; /* elements; a tree over int ranks is no higher */

static int below(int n) /* the largest power of two below n, n > 1 */
{
    int p = 1;
    while (2 * p < n) p *= 2;
    return p;
}

#define LOAD_SAME(x)   (x)
#define ADD(a, b)      ((a) + (b))
#define ADD_WRAP(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
/* a NaN wins, from either side */
#define MAX_OF(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define MIN_OF(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))

/* out[m] = the subtree over in[0..n) at elements at..at+m; scratch holds a block for each level
 * below. */
#define DEFINE_TREE(name, In, Acc, LOAD, JOIN)                                                     \
    static void name(const void *const *in, int n, int64_t at, int m, Acc *restrict out,           \
                     Acc *restrict scratch)                                                        \
    {                                                                                              \
        const In *a = (const In *)in[0] + at, *b = n > 1 ? (const In *)in[1] + at : a;             \
        if (n == 1) {                                                                              \
            for (int i = 0; i < m; i++) out[i] = LOAD(a[i]);                                       \
        } else if (n == 2) {                                                                       \
            for (int i = 0; i < m; i++) out[i] = JOIN(LOAD(a[i]), LOAD(b[i]));                     \
        } else {                                                                                   \
            int mid = below(n);                                                                    \
            name(in, mid, at, m, out, scratch);                                                    \
            name(in + mid, n - mid, at, m, scratch, scratch + BLOCK);                              \
            for (int i = 0; i < m; i++) out[i] = JOIN(out[i], scratch[i]);                         \
        }                                                                                          \
    }

DEFINE_TREE(sum_f32, float, float, LOAD_SAME, ADD)
DEFINE_TREE(max_f32, float, float, LOAD_SAME, MAX_OF)
DEFINE_TREE(min_f32, float, float, LOAD_SAME, MIN_OF)
DEFINE_TREE(sum_bf16, uint16_t, float, bf16_to_f32, ADD)
DEFINE_TREE(max_bf16, uint16_t, float, bf16_to_f32, MAX_OF)
DEFINE_TREE(min_bf16, uint16_t, float, bf16_to_f32, MIN_OF)
DEFINE_TREE(sum_i32, int32_t, int32_t, LOAD_SAME, ADD_WRAP)
DEFINE_TREE(max_i32, int32_t, int32_t, LOAD_SAME, MAX_OF)
DEFINE_TREE(min_i32, int32_t, int32_t, LOAD_SAME, MIN_OF)

typedef void FloatTree(const void *const *in, int n, int64_t at, int m, float *restrict out,
                       float *restrict scratch);
typedef void IntTree(const void *const *in, int n, int64_t at, int m, int32_t *restrict out,
                     int32_t *restrict scratch);

static void reduce_floats(const CommTree *t, int64_t count)
{
    static FloatTree *const of[2][3] = {{sum_f32, max_f32, min_f32},
                                        {sum_bf16, max_bf16, min_bf16}};
    FloatTree *tree = of[t->dtype == DTYPE_BF16][t->reduce];
    float result[BLOCK], scratch[LEVELS * BLOCK];
    uint16_t narrow[BLOCK];
    for (int64_t at = 0; at < count; at += BLOCK) {
        int m = (int)min_i64(BLOCK, count - at);
        tree(t->in, t->n, at, m, result, scratch);
        if (t->dtype == DTYPE_BF16)
            for (int i = 0; i < m; i++) narrow[i] = bf16_from_f32(result[i]);
        for (int o = 0; o < t->n_out; o++) {
            if (t->dtype == DTYPE_BF16)
                memcpy((uint16_t *)t->out[o] + at, narrow, (size_t)m * 2);
            else
                memcpy((float *)t->out[o] + at, result, (size_t)m * 4);
        }
    }
}

static void reduce_ints(const CommTree *t, int64_t count)
{
    static IntTree *const of[3] = {sum_i32, max_i32, min_i32};
    int32_t result[BLOCK], scratch[LEVELS * BLOCK];
    for (int64_t at = 0; at < count; at += BLOCK) {
        int m = (int)min_i64(BLOCK, count - at);
        of[t->reduce](t->in, t->n, at, m, result, scratch);
        for (int o = 0; o < t->n_out; o++) memcpy((int32_t *)t->out[o] + at, result, (size_t)m * 4);
    }
}

#define PASTE_TWO(a, b) a##b
#define PASTE(a, b)     PASTE_TWO(a, b)
void PASTE(comm_tree_reduce_, ISA)(const CommTree *tree, int64_t count); /* taken in tree.c */
void PASTE(comm_tree_reduce_, ISA)(const CommTree *tree, int64_t count)
{
    if (tree->dtype == DTYPE_I32)
        reduce_ints(tree, count);
    else
        reduce_floats(tree, count);
}
