#include "ops/elementwise.h"

SIMD void step(int64_t i, int64_t m, const Piece *p, Vf factor, int bf16)
{
    store_part(p->at[0], i, m, load_part(p->at[1], i, m, bf16) * factor, bf16);
}

static void piece_f32(const Piece *p)
{
    EACH_VECTOR(p->n, step, p, vf_set(*(const float *)p->user), 0);
}
static void piece_bf16(const Piece *p)
{
    EACH_VECTOR(p->n, step, p, vf_set(*(const float *)p->user), 1);
}

static Status run(KernelArgs *args)
{
    Walk w = {.tensor = {&args->out[0], &args->in[0]}, .n = 2, .user = args->attr};
    walk(&w, args->threads, args->out[0].dtype == DTYPE_BF16 ? piece_bf16 : piece_f32);
    return OK;
}

const Kernel CPU(scale) = {.run = run};
