#include "ops/elementwise.h"
#include "ops/ops.h"

enum { W, M, V, GRAD, COPY, N_WALKED };

typedef struct Factors {
    float factor, beta1, beta2, step, inverse_bias2, eps, keep; /* keep = 1 - lr * decay */
    bool zero_grad, grad_bf16, copy_bf16;
} Factors;

SIMD Vf vf_sqrt(Vf x)
{
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(x);
#else
    for (int i = 0; i < VL; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* The copy is not read again soon: it goes past the caches, which saves reading what is
 * overwritten. */
SIMD void store_copy(void *p, int64_t i, int64_t m, Vf v, int bf16)
{
#if defined(__AVX512BF16__)
    uint16_t *at = (uint16_t *)p + i;
    if (bf16 && m >= VL && (uintptr_t)at % 32 == 0) {
        __m256bh h = _mm512_cvtneps_pbh(v);
        __m256i bits;
        memcpy(&bits, &h, sizeof bits);
        _mm256_stream_si256((__m256i *)(void *)at, bits);
        return;
    }
#endif
    store_part(p, i, m, v, bf16);
}

SIMD void step(int64_t i, int64_t n, const Piece *p, const Factors *f, int grad_bf16, int copy_bf16)
{
    Vf g = load_part(p->at[GRAD], i, n, grad_bf16) * vf_set(f->factor);
    Vf m = load_part(p->at[M], i, n, 0), v = load_part(p->at[V], i, n, 0),
       w = load_part(p->at[W], i, n, 0);
    m = vf_fma(vf_set(f->beta1), m - g, g);
    v = vf_fma(vf_set(f->beta2), v - g * g, g * g);
    Vf root = vf_sqrt(v * vf_set(f->inverse_bias2)) + vf_set(f->eps);
    w = vf_fma(w, vf_set(f->keep), -vf_set(f->step) * m / root);
    store_part(p->at[M], i, n, m, 0);
    store_part(p->at[V], i, n, v, 0);
    store_part(p->at[W], i, n, w, 0);
    if (p->at[COPY]) store_copy(p->at[COPY], i, n, w, copy_bf16);
    if (f->zero_grad) store_part(p->at[GRAD], i, n, vf_zero(), grad_bf16);
}

static void piece_update(const Piece *p)
{
    const Factors *f = p->user;
    if (f->grad_bf16 && f->copy_bf16)
        EACH_VECTOR(p->n, step, p, f, 1, 1);
    else if (f->grad_bf16)
        EACH_VECTOR(p->n, step, p, f, 1, 0);
    else if (f->copy_bf16)
        EACH_VECTOR(p->n, step, p, f, 0, 1);
    else
        EACH_VECTOR(p->n, step, p, f, 0, 0);
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

static void piece_zero(const Piece *p)
{
    memset(p->at[0], 0, (size_t)p->n * (*(const bool *)p->user ? 2 : 4));
}

static Status run(KernelArgs *args)
{
    const AdamWAttr *attr = args->attr;
    const float *hyper = args->in[6].data;
    Factors f = {.factor = *(const float *)args->in[5].data};
    f.beta1 = hyper[HYPER_BETA1];
    f.beta2 = hyper[HYPER_BETA2];
    f.step = hyper[HYPER_LR] / hyper[HYPER_BIAS1];
    f.inverse_bias2 = 1 / hyper[HYPER_BIAS2];
    f.eps = hyper[HYPER_EPS];
    f.keep = attr->decay ? 1 - hyper[HYPER_LR] * hyper[HYPER_DECAY] : 1;
    f.zero_grad = attr->zero_grad;
    f.grad_bf16 = args->in[GRAD].dtype == DTYPE_BF16;
    f.copy_bf16 = args->in[COPY].data && args->in[COPY].dtype == DTYPE_BF16;
    if (isfinite(f.factor)) {
        Walk w = {.n = N_WALKED, .user = &f};
        for (int k = 0; k < N_WALKED; k++) w.tensor[k] = &args->in[k];
        walk(&w, args->threads, piece_update);
    } else if (f.zero_grad) {
        Walk w = {.tensor = {&args->in[GRAD]}, .n = 1, .user = &f.grad_bf16};
        walk(&w, args->threads, piece_zero);
    }
    return OK;
}

const Kernel CPU(adamw) = {.run = run};
