#include "ops/elementwise.h"
#include "ops/gelu.h"
#include "ops/ops.h"

/* P(x) = erfc(-x / sqrt 2) / 2 and, where asked, x e^(-x^2/2). With z = |x| / sqrt 2
 * the smaller tail is e^(-z^2) t q(t) / 2, t = 1 / (1 + z / 2): q is a polynomial fitted to erfc(z)
 * e^(z^2) / t by tools/fit/erfc.py, which says how far off it is. Beyond 14 the tail is nothing in
 * f32, and powers stay finite (a NaN passes: it is the second operand). */
SIMD Vf normal_share(Vf x, Vf *slope)
{
    const Vf one = vf_set(1.0f);
    Vf near = vf_min(vf_set(14.0f), vf_max(vf_set(-14.0f), x));
    Vf size = vf_max(near, -near), bell = vf_exp(near * near * vf_set(-0.5f));
    Vf t = one / vf_fma(size, vf_set(0.35355339059f), one);
    Vf q = vf_set(-0.0590379089f);
    q = vf_fma(q, t, vf_set(0.284423023f));
    q = vf_fma(q, t, vf_set(-0.486884266f));
    q = vf_fma(q, t, vf_set(0.277704716f));
    q = vf_fma(q, t, vf_set(-0.0263749585f));
    q = vf_fma(q, t, vf_set(0.202580288f));
    q = vf_fma(q, t, vf_set(0.243130848f));
    q = vf_fma(q, t, vf_set(0.282371551f));
    q = vf_fma(q, t, vf_set(0.282086641f));
    Vf twice = bell * t * q;
    Vi below = near < vf_zero();
    if (slope) *slope = near * bell;
    return vf_bits((vi_bits(twice * vf_set(0.5f)) & below) |
                   (vi_bits(vf_fma(twice, vf_set(-0.5f), one)) & ~below));
}

/* y = f(x) of the activation `kind` (activation.c) */
SIMD Vf value(Vf x, int kind)
{
    Vf above = vf_max(vf_zero(), x); /* a NaN passes */
    if (kind == ACTIVATION_RELU2) return above * above;
    return x * (kind == ACTIVATION_GELU ? normal_share(x, NULL) : gelu_logistic(x, NULL));
}

/* f'(x). Each sum is said to be one multiply-add: whole vectors and the rest of a row must not be
 * compiled differently. */
SIMD Vf derivative(Vf x, int kind)
{
    Vf slope;
    if (kind == ACTIVATION_RELU2) return vf_set(2.0f) * vf_max(vf_zero(), x);
    if (kind == ACTIVATION_GELU) {
        Vf share = normal_share(x, &slope);
        return vf_fma(slope, vf_set(0.398942280401f), share); /* 1 / sqrt(2 pi) */
    }
    Vf s = gelu_logistic(x, &slope);
    return vf_fma(x * s * (vf_set(1.0f) - s), slope, s);
}

SIMD void step(int64_t i, int64_t m, const Piece *p, int kind, int bf16)
{
    store_part(p->at[0], i, m, value(load_part(p->at[1], i, m, bf16), kind), bf16);
}

/* at: dx, x, dy; either of the last two may lie where dx does */
SIMD void step_grad(int64_t i, int64_t m, const Piece *p, int kind, int bf16)
{
    Vf x = load_part(p->at[1], i, m, bf16), dy = load_part(p->at[2], i, m, bf16);
    store_part(p->at[0], i, m, dy * derivative(x, kind), bf16);
}

/* by kind and type, so that loops hold no choice */
#define EACH(name, kind)                                                                           \
    static void name##_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, kind, 0); }                \
    static void name##_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, kind, 1); }               \
    static void name##_grad_f32(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, kind, 0); }      \
    static void name##_grad_bf16(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, kind, 1); }
EACH(gelu, ACTIVATION_GELU)
EACH(gelu_tanh, ACTIVATION_GELU_TANH)
EACH(relu2, ACTIVATION_RELU2)

static const struct {
    WalkPiece run[2], grad[2]; /* f32, bf16 */
} kinds[] = {
    [ACTIVATION_GELU] = {{gelu_f32, gelu_bf16}, {gelu_grad_f32, gelu_grad_bf16}},
    [ACTIVATION_GELU_TANH] = {{gelu_tanh_f32, gelu_tanh_bf16},
                              {gelu_tanh_grad_f32, gelu_tanh_grad_bf16}},
    [ACTIVATION_RELU2] = {{relu2_f32, relu2_bf16}, {relu2_grad_f32, relu2_grad_bf16}},
};

static Status run(KernelArgs *args)
{
    Walk w = {.tensor = {&args->out[0], &args->in[0]}, .n = 2};
    walk(&w, args->threads,
         kinds[*(const int32_t *)args->attr].run[args->out[0].dtype == DTYPE_BF16]);
    return OK;
}

static Status run_grad(KernelArgs *args)
{
    Walk w = {.tensor = {&args->out[0], &args->in[0], &args->in[1]}, .n = 3};
    walk(&w, args->threads,
         kinds[*(const int32_t *)args->attr].grad[args->out[0].dtype == DTYPE_BF16]);
    return OK;
}

const Kernel CPU(activation) = {.run = run};
const Kernel CPU(activation_grad) = {.run = run_grad};
