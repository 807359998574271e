#include "ops/elementwise.h"
#include "ops/fill.h"

SIMD void step(int64_t i, int64_t m, const Piece *p, Vf value, int bf16)
{
    store_part(p->at[0], i, m, value, bf16);
}

static void piece_32(const Piece *p)
{
    EACH_VECTOR(p->n, step, p, vf_set(*(const float *)p->user), 0);
}
static void piece_bf16(const Piece *p)
{
    EACH_VECTOR(p->n, step, p, vf_set(*(const float *)p->user), 1);
}

static Status run(KernelArgs *args)
{
    const FillAttr *attr = args->attr;
    union {
        int32_t whole;
        float bits;
    } value = {.bits = attr->value};
    if (attr->dtype == DTYPE_I32)
        value.whole = (int32_t)attr->value; /* stored as the bits they are */
    Walk w = {.tensor = {&args->out[0]}, .n = 1, .user = &value.bits};
    walk(&w, args->threads, attr->dtype == DTYPE_BF16 ? piece_bf16 : piece_32);
    return OK;
}

const Kernel CPU(fill) = {.run = run};
