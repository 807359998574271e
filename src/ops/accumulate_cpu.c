#include "ops/elementwise.h"

SIMD void step(int64_t i, int64_t m, const Piece *p, int bf16)
{
    store_part(p->at[0], i, m, load_part(p->at[0], i, m, 0) + load_part(p->at[1], i, m, bf16), 0);
}

static void piece_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, 0); }
static void piece_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, 1); }

static Status run(KernelArgs *args)
{
    Walk w = {.tensor = {&args->in[0], &args->in[1]}, .n = 2};
    walk(&w, args->threads, args->in[1].dtype == DTYPE_BF16 ? piece_bf16 : piece_f32);
    return OK;
}

const Kernel CPU(accumulate) = {.run = run};

SIMD void step_assign(int64_t i, int64_t m, const Piece *p, int to_bf16, int from_bf16)
{
    store_part(p->at[0], i, m, load_part(p->at[1], i, m, from_bf16), to_bf16);
}

static void piece_copy(const Piece *p) { memcpy(p->at[0], p->at[1], (size_t)p->n * 4); }
static void piece_copy_16(const Piece *p) { memcpy(p->at[0], p->at[1], (size_t)p->n * 2); }
static void piece_narrow(const Piece *p) { EACH_VECTOR(p->n, step_assign, p, 1, 0); }
static void piece_widen(const Piece *p) { EACH_VECTOR(p->n, step_assign, p, 0, 1); }

static Status run_assign(KernelArgs *args)
{
    const Tensor *to = &args->in[0], *x = &args->in[1];
    Walk w = {.tensor = {to, x}, .n = 2};
    if (to->dtype == x->dtype)
        walk(&w, args->threads, to->dtype == DTYPE_BF16 ? piece_copy_16 : piece_copy);
    else
        walk(&w, args->threads, to->dtype == DTYPE_BF16 ? piece_narrow : piece_widen);
    return OK;
}

const Kernel CPU(assign) = {.run = run_assign};
