#include "ops/elementwise.h"
#include "ops/ops.h"

/* at[0] = at[n - 1] + (... + (at[2] + at[1])): x is at[1], behind it the sums that waited, from
 * level 0 up. */
SIMD void step(int64_t i, int64_t m, const Piece *p, int bf16)
{
    int n = *(const int *)p->user;
    Vf sum = load_part(p->at[1], i, m, bf16);
    for (int k = 2; k < n; k++) sum = load_part(p->at[k], i, m, 0) + sum;
    store_part(p->at[0], i, m, sum, 0);
}

static void piece_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, 0); }
static void piece_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, 1); }

/* The state of a level; the uppermost is operand 0. */
static const Tensor *level_of(const KernelArgs *args, int levels, int level)
{
    return &args->in[level < levels - 1 ? ACCUMULATE_FIRST_PART + level : 0];
}

static Status run(KernelArgs *args)
{
    int levels = args->n_in - ACCUMULATE_FIRST_PART + 1, level = 0, n = 2;
    uint32_t micro = (uint32_t) * (const int32_t *)args->in[2].data;
    Walk w = {.tensor = {NULL, &args->in[1]}, .user = &n};
    for (; level < levels && micro >> level & 1; level++)
        w.tensor[n++] = level_of(args, levels, level);
    w.tensor[0] = level_of(args, levels, level < levels ? level : levels - 1);
    w.n = n;
    walk(&w, args->threads, args->in[1].dtype == DTYPE_BF16 ? piece_bf16 : piece_f32);
    return OK;
}

const Kernel CPU(accumulate_leaf) = {.run = run};
