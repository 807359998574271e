/* repeat_heads and its gradient, token by token: a head is d elements in a row. Sums over copies
 * are in f32, as a balanced binary tree; heads of which this rank has no copy get zero. */
#include "ops/kernel.h"
#include "ops/repeat_heads.h"
#include "ops/simd.h"

enum { PARALLEL = 32768 }; /* elements below which one thread is faster than waking others */

static Status run(KernelArgs *args)
{
    const RepeatHeadsAttr *attr = args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), y = tensor_as_rows(&args->out[0], 2);
    int64_t d = args->out[0].shape.dim[3];
    size_t element = dtype_bytes(x.dtype), bytes = (size_t)d * element;
    int threads = x.n * y.width < PARALLEL ? 1 : args->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < x.n; i++) {
        const char *from = x.data + (size_t)(i * x.pitch) * element;
        char *to = y.data + (size_t)(i * y.pitch) * element;
        for (int64_t j = 0; j < attr->made; j++)
            memcpy(to + (size_t)j * bytes,
                   from + (size_t)((attr->first + j) / attr->copies) * bytes, bytes);
    }
    return OK;
}

/* Elements i to i + VL of the sum, the way a binary counter counts (accumulate_leaf.c): level l
 * waits for as many copies more as it has. Zero in front makes of a sum that is -0 the +0 that it
 * is when ranks without a copy add theirs. */
SIMD Vf sum_at(const char *from, int64_t n, int64_t i, int64_t d, int bf16)
{
    Vf waiting[REPEAT_LEVELS], sum = vf_zero();
    for (int64_t j = 0; j < n; j++) {
        const char *at = from + j * d * (bf16 ? 2 : 4);
        Vf x = d - i >= VL ? vf_load_as(at, i, bf16) : vf_load_as_n(at, i, d - i, bf16);
        int level = 0;
        for (; j >> level & 1; level++) x = waiting[level] + x;
        waiting[level] = x;
    }
    for (int level = 0; n >> level; level++)
        if (n >> level & 1) sum = waiting[level] + sum;
    return sum;
}

SIMD void sum_copies(const char *from, int64_t n, char *to, int64_t d, int bf16, int bf16_to)
{
    for (int64_t i = 0; i < d; i += VL) {
        Vf sum = sum_at(from, n, i, d, bf16);
        if (d - i >= VL)
            vf_store_as(to, i, sum, bf16_to);
        else
            vf_store_as_n(to, i, sum, d - i, bf16_to);
    }
}

/* Copies first to first + made of this rank that are of head h: *j of its own, and how many. */
static int64_t copies_of(const RepeatHeadsAttr *attr, int64_t h, int64_t *j)
{
    int64_t begin = max_i64(attr->first, h * attr->copies),
            end = min_i64(attr->first + attr->made, (h + 1) * attr->copies);
    *j = begin - attr->first;
    return max_i64(0, end - begin);
}

static Status run_grad(KernelArgs *args)
{
    const RepeatHeadsAttr *attr = args->attr;
    Rows dy = tensor_as_rows(&args->in[0], 2), dx = tensor_as_rows(&args->out[0], 2);
    int64_t d = args->out[0].shape.dim[3];
    int bf16 = dy.dtype == DTYPE_BF16, bf16_to = dx.dtype == DTYPE_BF16;
    int64_t element = bf16 ? 2 : 4, element_to = bf16_to ? 2 : 4;
    int threads = dy.n * dy.width < PARALLEL ? 1 : args->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < dy.n * attr->heads; i++) {
        int64_t token = i / attr->heads, h = i % attr->heads, j, n = copies_of(attr, h, &j);
        const char *from = dy.data + (token * dy.pitch + (n ? j * d : 0)) * element;
        char *to = dx.data + (token * dx.pitch + h * d) * element_to;
        if (bf16 && bf16_to)
            sum_copies(from, n, to, d, 1, 1);
        else if (bf16)
            sum_copies(from, n, to, d, 1, 0);
        else
            sum_copies(from, n, to, d, 0, 0);
    }
    return OK;
}

const Kernel CPU(repeat_heads) = {.run = run};
const Kernel CPU(repeat_heads_grad) = {.run = run_grad};
