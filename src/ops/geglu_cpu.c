#include "ops/elementwise.h"

/* s(v) and, where asked, v' of glu.c. Outside +-64 s is 0 or 1 to the last bit; the clamp keeps powers finite
 * (a NaN passes: it is the second operand). */
SIMD Vf logistic(Vf gate, Vf *slope)
{
    const float twice = 1.5957691216057308f; /* 2 sqrt(2/pi) */
    Vf x = vf_min(vf_set(64.0f), vf_max(vf_set(-64.0f), gate)), square = x * x;
    if (slope) *slope = vf_fma(square, vf_set(twice * 3 * 0.044715f), vf_set(twice));
    return vf_sigmoid(x * vf_fma(square, vf_set(twice * 0.044715f), vf_set(twice)));
}

SIMD void step(int64_t i, int64_t m, const Piece *p, int bf16)
{
    Vf gate = load_part(p->at[1], i, m, bf16), up = load_part(p->at[2], i, m, bf16);
    store_part(p->at[0], i, m, gate * logistic(gate, NULL) * up, bf16);
}

static void piece_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, 0); }
static void piece_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, 1); }

static Status run(KernelArgs *args)
{
    Walk w = {.tensor = {&args->out[0], &args->in[0], &args->in[1]}, .n = 3};
    walk(&w, args->threads, args->out[0].dtype == DTYPE_BF16 ? piece_bf16 : piece_f32);
    return OK;
}

const CpuKernel CPU(geglu) = {.run = run};

/* at: gate, up, dy, dgate, dup; any of the first three may lie where dgate does */
SIMD void step_grad(int64_t i, int64_t m, const Piece *p, int bf16)
{
    Vf gate = load_part(p->at[0], i, m, bf16), up = load_part(p->at[1], i, m, bf16);
    Vf dy = load_part(p->at[2], i, m, bf16), slope;
    Vf s = logistic(gate, &slope), gelu = gate * s;
    if (p->at[4]) store_part(p->at[4], i, m, dy * gelu, bf16);
    if (p->at[3]) store_part(p->at[3], i, m, dy * up * vf_fma(gelu * (vf_set(1.0f) - s), slope, s), bf16);
}

static void piece_grad_f32(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, 0); }
static void piece_grad_bf16(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, 1); }

static Status run_grad(KernelArgs *args)
{
    Walk w = {.tensor = {&args->in[0], &args->in[1], &args->in[2], &args->out[0], &args->out[1]}, .n = 5};
    walk(&w, args->threads, args->in[0].dtype == DTYPE_BF16 ? piece_grad_bf16 : piece_grad_f32);
    return OK;
}

const CpuKernel CPU(geglu_grad) = {.run = run_grad};
