#include "ops/elementwise.h"

SIMD void step(int64_t i, int64_t m, const Piece *p, int from_bf16, int to_bf16)
{
    store_part(p->at[0], i, m, load_part(p->at[1], i, m, from_bf16), to_bf16);
}

static void piece_f32_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, 0, 0); }
static void piece_f32_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, 0, 1); }
static void piece_bf16_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, 1, 0); }
static void piece_bf16_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, 1, 1); }

static Status run(KernelArgs *args)
{
    Walk w = {.tensor = {&args->out[0], &args->in[0]}, .n = 2};
    bool to_bf16 = args->out[0].dtype == DTYPE_BF16;
    if (args->in[0].dtype == DTYPE_BF16)
        walk(&w, args->threads, to_bf16 ? piece_bf16_bf16 : piece_bf16_f32);
    else
        walk(&w, args->threads, to_bf16 ? piece_f32_bf16 : piece_f32_f32);
    return OK;
}

const Kernel CPU(cast) = {.run = run};
