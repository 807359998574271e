/* query_temperature: each token of x [B T H d] times a factor of its position. */
#include "ops/kernel.h"
#include "ops/rope_internal.h"
#include "ops/simd.h"

SIMD void scale_row(const char *x, char *y, int64_t n, float factor, int bf16)
{
    Vf f = vf_set(factor);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store_as(y, i, vf_load_as(x, i, bf16) * f, bf16);
    if (i < n) vf_store_as_n(y, i, vf_load_as_n(x, i, n - i, bf16) * f, n - i, bf16);
}

static Status run(KernelArgs *args)
{
    QueryTemperatureAttr attr = *(const QueryTemperatureAttr *)args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), y = tensor_as_rows(&args->out[0], 2);
    const int32_t *pos = args->in[1].data;
    int threads = x.n * x.width < 16384 ? 1 : args->threads, bf16 = x.dtype == DTYPE_BF16;
    int64_t element = bf16 ? 2 : 4;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < x.n; i++) {
        double steps = floor(((double)pos[i] + 1) / (double)attr.floor_scale);
        float factor = (float)(1 + (double)attr.scale * log1p(fmax(steps, 0)));
        const char *from = x.data + i * x.pitch * element;
        char *to = y.data + i * y.pitch * element;
        if (bf16)
            scale_row(from, to, x.width, factor, 1);
        else
            scale_row(from, to, x.width, factor, 0);
    }
    return OK;
}

const Kernel CPU(query_temperature) = {.run = run};
