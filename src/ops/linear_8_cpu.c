/* Kernels of linear_8 and linear_8_accumulate: both operands become f32, scales and all, for one
 * product (gemm.h). Products of two numbers of 8 bits are exact in f32, so that what a GPU computes
 * otherwise is the order of its sums, and where it applies the scales. */
#include "ops/gemm.h"
#include "ops/quantise.h"
#include "ops/simd.h"
#include "tensor/small_float.h"

/* Rows of 8 bits [n width] with their scales. */
typedef struct Operand {
    const uint8_t *q;
    const float *scale;
    int64_t n, width;
    DType dtype;
    ScalingUnit scaling;
} Operand;

static float scale_at(const Operand *x, int64_t row, int64_t block)
{
    switch (x->scaling) {
    case SCALING_ROW: return x->scale[row];
    case SCALING_BLOCK: return x->scale[block * x->n + row];
    default: return x->scale[row / SCALING_WIDTH * scaling_square_pitch(x->width) + block];
    }
}

#define WIDEN(name, format)                                                                        \
    static void name(const uint8_t *q, float scale, int64_t n, float *to)                          \
    {                                                                                              \
        for (int64_t i = 0; i < n; i++) to[i] = f8_to_f32(format, q[i]) * scale;                   \
    }
WIDEN(widen_e4m3, e4m3_format)
WIDEN(widen_e5m2, e5m2_format)

static void widen(const Operand *x, float *to, int threads)
{
    const int64_t blocks = scaling_blocks(x->width);
#pragma omp parallel for num_threads(threads) if (x->n * x->width >= 32768) schedule(static)
    for (int64_t row = 0; row < x->n; row++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t at = row * x->width + b * SCALING_WIDTH,
                    n = min_i64(SCALING_WIDTH, x->width - b * SCALING_WIDTH);
            (x->dtype == DTYPE_F8_E5M2 ? widen_e5m2 : widen_e4m3)(x->q + at, scale_at(x, row, b), n,
                                                                  to + at);
        }
}

static size_t floats_of(const Rows *x) { return round_up(4 * (size_t)(x->n * x->width), 64); }

static GemmBlock product(const Rows *a, const Rows *b, const Rows *y)
{
    return (GemmBlock){.m = a->n,
                       .n = b->n,
                       .k = a->width,
                       .a = {NULL, DTYPE_F32, a->width, 1},
                       .b = {NULL, DTYPE_F32, b->width, 1},
                       .c = y->data,
                       .c_dtype = y->dtype,
                       .c_pitch = y->pitch};
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    Rows a = value_as_rows(graph_value(graph, node->in[0]), 1),
         b = value_as_rows(graph_value(graph, node->in[2]), 1),
         y = value_as_rows(graph_value(graph, node->out[0]), 1);
    GemmBlock block = product(&a, &b, &y);
    return floats_of(&a) + floats_of(&b) + CPU(gemm).scratch(&block, target->threads);
}

static Status run_of(KernelArgs *args, bool add)
{
    const Linear8Attr *attr = args->attr;
    Rows a = tensor_as_rows(&args->in[0], 1), b = tensor_as_rows(&args->in[2], 1),
         y = tensor_as_rows(&args->out[0], 1);
    char *wide_a = args->workspace, *wide_b = wide_a + floats_of(&a);
    widen(&(Operand){(const uint8_t *)a.data, args->in[1].data, a.n, a.width, a.dtype, attr->a},
          (float *)(void *)wide_a, args->threads);
    widen(&(Operand){(const uint8_t *)b.data, args->in[3].data, b.n, b.width, b.dtype, attr->b},
          (float *)(void *)wide_b, args->threads);
    GemmBlock block = product(&a, &b, &y);
    block.a.data = wide_a;
    block.b.data = wide_b;
    block.add = add;
    block.scratch = wide_b + floats_of(&b);
    CPU(gemm).multiply(&block, args->threads);
    return OK;
}

static Status run(KernelArgs *args) { return run_of(args, false); }
static Status run_accumulate(KernelArgs *args) { return run_of(args, true); }

const Kernel CPU(linear_8) = {.run = run, .workspace = workspace};
const Kernel CPU(linear_8_accumulate) = {.run = run_accumulate, .workspace = workspace};
