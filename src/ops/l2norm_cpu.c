/* l2norm and its gradient over the heads of each token: x [tokens, H d], each d elements one row.
 *   r = 1 / sqrt(mean(x^2) + eps);  y = x r;  dx = r dy - x r^3 sum(dy x) / d
 * Sums have VL lanes, in order of the elements. */
#include "ops/kernel.h"
#include "ops/ops.h"
#include "ops/simd.h"

SIMD Vf load(const char *p, int64_t i, int64_t n, int bf16)
{
    return n - i >= VL ? vf_load_as(p, i, bf16) : vf_load_as_n(p, i, n - i, bf16);
}
SIMD void store(char *p, int64_t i, int64_t n, Vf v, int bf16)
{
    if (n - i >= VL)
        vf_store_as(p, i, v, bf16);
    else
        vf_store_as_n(p, i, v, n - i, bf16);
}

SIMD float dot(const char *a, const char *b, int64_t d, int bf16)
{
    Vf sum = vf_zero();
    for (int64_t i = 0; i < d; i += VL) sum = vf_fma(load(a, i, d, bf16), load(b, i, d, bf16), sum);
    return vf_sum(sum);
}

SIMD float root(const char *x, int64_t d, float eps, int bf16)
{
    return 1 / sqrtf(dot(x, x, d, bf16) / (float)d + eps);
}

SIMD void norm_row(const char *x, char *y, int64_t d, float eps, int bf16)
{
    Vf r = vf_set(root(x, d, eps, bf16));
    for (int64_t i = 0; i < d; i += VL) store(y, i, d, load(x, i, d, bf16) * r, bf16);
}

SIMD void grad_row(const char *x, const char *dy, char *dx, int64_t d, float eps, int bf16)
{
    float r = root(x, d, eps, bf16), k = r * r * r * dot(x, dy, d, bf16) / (float)d;
    Vf vr = vf_set(r), vk = vf_set(-k);
    for (int64_t i = 0; i < d; i += VL)
        store(dx, i, d, vf_fma(vr, load(dy, i, d, bf16), vk * load(x, i, d, bf16)), bf16);
}

static Status run(KernelArgs *args)
{
    float eps = *(const float *)args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), y = tensor_as_rows(&args->out[0], 2);
    int64_t d = args->in[0].shape.dim[args->in[0].shape.rank - 1], heads = x.width / d;
    int threads = x.n * x.width < 16384 ? 1 : args->threads, bf16 = x.dtype == DTYPE_BF16;
    int64_t element = bf16 ? 2 : 4;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < x.n * heads; i++) {
        int64_t head = i % heads * d;
        const char *from = x.data + (i / heads * x.pitch + head) * element;
        char *to = y.data + (i / heads * y.pitch + head) * element;
        if (bf16)
            norm_row(from, to, d, eps, 1);
        else
            norm_row(from, to, d, eps, 0);
    }
    return OK;
}

static Status run_grad(KernelArgs *args)
{
    float eps = *(const float *)args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), dy = tensor_as_rows(&args->in[1], 2);
    Rows dx = tensor_as_rows(&args->out[0], 2);
    int64_t d = args->in[0].shape.dim[args->in[0].shape.rank - 1], heads = x.width / d;
    int threads = x.n * x.width < 16384 ? 1 : args->threads, bf16 = x.dtype == DTYPE_BF16;
    int64_t element = bf16 ? 2 : 4;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < x.n * heads; i++) {
        int64_t token = i / heads, head = i % heads * d;
        const char *from = x.data + (token * x.pitch + head) * element;
        const char *slope = dy.data + (token * dy.pitch + head) * element;
        char *to = dx.data + (token * dx.pitch + head) * element;
        if (bf16)
            grad_row(from, slope, to, d, eps, 1);
        else
            grad_row(from, slope, to, d, eps, 0);
    }
    return OK;
}

const Kernel CPU(l2norm) = {.run = run};
const Kernel CPU(l2norm_grad) = {.run = run_grad};
