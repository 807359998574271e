#include "ops/collective.h"
#include "ops/kernel.h"
#include "ops/ring_sum.h"
#include "ops/simd.h"

/* y = sum + x of n elements; x NULL: y = sum */
SIMD void sum_row(const float *sum, const char *x, char *y, int64_t n, int x_bf16, int y_bf16)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        Vf v = vf_load(sum + i);
        if (x) v += vf_load_as(x, i, x_bf16);
        vf_store_as(y, i, v, y_bf16);
    }
    if (i == n) return;
    Vf v = vf_load_as_n(sum, i, n - i, 0);
    if (x) v += vf_load_as_n(x, i, n - i, x_bf16);
    vf_store_as_n(y, i, v, n - i, y_bf16);
}

/* sum, y [B T K d] with any pitch of tokens, x [B T or T/2 K d] */
static Status run(KernelArgs *args)
{
    const RingSumAttr *attr = args->attr;
    Rows sum = tensor_as_rows(&args->in[0], 2), x = tensor_as_rows(&args->in[1], 2),
         y = tensor_as_rows(&args->out[0], 2);
    int64_t tokens = args->in[0].shape.dim[1], half = tokens / 2,
            x_tokens = args->in[1].shape.dim[1];
    int64_t first = attr->halves == HALF_SECOND ? half : 0;
    int x_bf16 = x.dtype == DTYPE_BF16, y_bf16 = y.dtype == DTYPE_BF16;
#pragma omp parallel for num_threads(args->threads)
    for (int64_t i = 0; i < sum.n; i++) {
        int64_t b = i / tokens, t = i % tokens - first;
        const char *from = NULL;
        if (t >= 0 && t < x_tokens) from = x.data + (b * x_tokens + t) * x.pitch * (x_bf16 ? 2 : 4);
        if (!from && !y_bf16 && y.data == sum.data) continue; /* in place */
        sum_row(row_f32(&sum, i), from, y.data + i * y.pitch * (y_bf16 ? 2 : 4), sum.width, x_bf16,
                y_bf16);
    }
    return OK;
}

const Kernel CPU(ring_sum) = {.run = run};
