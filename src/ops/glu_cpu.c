#include "ops/elementwise.h"
#include "ops/gelu.h"

enum { SILU, GELU };

/* f(gate) = gate s: s and, where asked, the slope of its argument (glu.c). */
SIMD Vf logistic(Vf gate, int kind, Vf *slope)
{
    return kind == SILU ? vf_sigmoid(gate) : gelu_logistic(gate, slope);
}

SIMD void step(int64_t i, int64_t m, const Piece *p, int kind, int bf16)
{
    Vf gate = load_part(p->at[1], i, m, bf16), up = load_part(p->at[2], i, m, bf16);
    store_part(p->at[0], i, m, gate * logistic(gate, kind, NULL) * up, bf16);
}

/* at: gate, up, dy, dgate, dup; any of the first three may lie where dgate does */
SIMD void step_grad(int64_t i, int64_t m, const Piece *p, int kind, int bf16)
{
    Vf gate = load_part(p->at[0], i, m, bf16), up = load_part(p->at[1], i, m, bf16);
    Vf dy = load_part(p->at[2], i, m, bf16), slope = vf_set(1.0f);
    Vf s = logistic(gate, kind, &slope), f = gate * s, rest = vf_set(1.0f) - s;
    if (p->at[4]) store_part(p->at[4], i, m, dy * f, bf16);
    /* each sum is said to be one multiply-add: whole vectors and the rest of a row must not be
     * compiled differently */
    if (p->at[3])
        store_part(p->at[3], i, m,
                   dy * up * (kind == SILU ? vf_fma(f, rest, s) : vf_fma(f * rest, slope, s)),
                   bf16);
}

/* by kind and type, so that loops hold no choice */
static void silu_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, SILU, 0); }
static void silu_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, SILU, 1); }
static void gelu_f32(const Piece *p) { EACH_VECTOR(p->n, step, p, GELU, 0); }
static void gelu_bf16(const Piece *p) { EACH_VECTOR(p->n, step, p, GELU, 1); }
static void silu_grad_f32(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, SILU, 0); }
static void silu_grad_bf16(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, SILU, 1); }
static void gelu_grad_f32(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, GELU, 0); }
static void gelu_grad_bf16(const Piece *p) { EACH_VECTOR(p->n, step_grad, p, GELU, 1); }

typedef void (*OnPiece)(const Piece *p);

/* The same with as many rows as the offsets say, if there are any. */
static Tensor with_rows(const Tensor *t, const KernelArgs *args, int offsets)
{
    Tensor some = *t;
    if (args->n_in > offsets) {
        const int32_t *offset = args->in[offsets].data;
        some.shape.dim[0] = offset[tensor_count(&args->in[offsets]) - 1];
    }
    return some;
}

static Status forward(KernelArgs *args, OnPiece f32, OnPiece bf16)
{
    Tensor y = with_rows(&args->out[0], args, 2);
    Walk w = {.tensor = {&y, &args->in[0], &args->in[1]}, .n = 3};
    walk(&w, args->threads, args->out[0].dtype == DTYPE_BF16 ? bf16 : f32);
    return OK;
}

static Status backward(KernelArgs *args, OnPiece f32, OnPiece bf16)
{
    Tensor gate = with_rows(&args->in[0], args, 3);
    Walk w = {.tensor = {&gate, &args->in[1], &args->in[2], &args->out[0], &args->out[1]}, .n = 5};
    walk(&w, args->threads, args->in[0].dtype == DTYPE_BF16 ? bf16 : f32);
    return OK;
}

static Status run_swiglu(KernelArgs *args) { return forward(args, silu_f32, silu_bf16); }
static Status run_geglu(KernelArgs *args) { return forward(args, gelu_f32, gelu_bf16); }
static Status run_swiglu_grad(KernelArgs *args)
{
    return backward(args, silu_grad_f32, silu_grad_bf16);
}
static Status run_geglu_grad(KernelArgs *args)
{
    return backward(args, gelu_grad_f32, gelu_grad_bf16);
}

const Kernel CPU(swiglu) = {.run = run_swiglu};
const Kernel CPU(geglu) = {.run = run_geglu};
const Kernel CPU(swiglu_grad) = {.run = run_swiglu_grad};
const Kernel CPU(geglu_grad) = {.run = run_geglu_grad};
