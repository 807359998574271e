#include "ops/elementwise.h"

/* tanh to about 2 ulp: near zero the polynomial of Cephes' tanhf, elsewhere 1 - 2 / (e^2|x| + 1)
 * with the sign of x. */
SIMD Vf tanh_of(Vf x)
{
    const Vi sign_bit = vi_bits(vf_set(-0.0f));
    Vi sign = vi_bits(x) & sign_bit;
    Vf size = vf_bits(vi_bits(x) & ~sign_bit), z = x * x, p = vf_set(-5.70498872745e-3f);
    p = vf_fma(p, z, vf_set(2.06390887954e-2f));
    p = vf_fma(p, z, vf_set(-5.37397155531e-2f));
    p = vf_fma(p, z, vf_set(1.33314422036e-1f));
    p = vf_fma(p, z, vf_set(-3.33332819422e-1f));
    Vf near = vf_fma(p * z, x, x);
    Vf far = vf_set(1.0f) - vf_set(2.0f) / (vf_exp(size + size) + vf_set(1.0f));
    Vi is_near = size < vf_set(0.625f);
    return vf_bits((vi_bits(near) & is_near) | ((vi_bits(far) | sign) & ~is_near));
}

SIMD void step(int64_t i, int64_t m, const Piece *p, Vf cap, int bf16)
{
    store_part(p->at[0], i, m, tanh_of(load_part(p->at[1], i, m, bf16) / cap) * cap, bf16);
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

const Kernel CPU(softcap) = {.run = run};

/* at: dx, y, dy */
SIMD void step_grad(int64_t i, int64_t m, const Piece *p, Vf cap, int bf16)
{
    Vf part = load_part(p->at[1], i, m, bf16) / cap, dy = load_part(p->at[2], i, m, bf16);
    store_part(p->at[0], i, m, dy * (vf_set(1.0f) - part * part), bf16);
}

static void piece_grad_f32(const Piece *p)
{
    EACH_VECTOR(p->n, step_grad, p, vf_set(*(const float *)p->user), 0);
}
static void piece_grad_bf16(const Piece *p)
{
    EACH_VECTOR(p->n, step_grad, p, vf_set(*(const float *)p->user), 1);
}

static Status run_grad(KernelArgs *args)
{
    Walk w = {.tensor = {&args->out[0], &args->in[0], &args->in[1]}, .n = 3, .user = args->attr};
    walk(&w, args->threads, args->out[0].dtype == DTYPE_BF16 ? piece_grad_bf16 : piece_grad_f32);
    return OK;
}

const Kernel CPU(softcap_grad) = {.run = run_grad};
