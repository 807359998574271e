#include "ops/norm_rows.h"

SIMD void step(int64_t i, int64_t m, void *y, const void *x, const float *b, int bf16)
{
    store_part(y, i, m, load_part(x, i, m, bf16) + load_part(b, i, m, 0), bf16);
}

static Status run(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), y = tensor_as_rows(&args->out[0], 1);
    const float *b = args->in[1].data;
    bool bf16 = x.dtype == DTYPE_BF16, many = x.n * x.width >= WALK_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t i = 0; i < x.n; i++) {
        if (bf16)
            EACH_VECTOR(x.width, step, row_bf16(&y, i), row_bf16(&x, i), b, 1);
        else
            EACH_VECTOR(x.width, step, row_f32(&y, i), row_f32(&x, i), b, 0);
    }
    return OK;
}

const Kernel CPU(add_bias) = {.run = run};

/* ---- bias_grad -------------------------------------------------------------------------- */

/* sum += `count` rows, which go to memory together */
SIMD void step_sum(int64_t i, int64_t m, const void *const *row, int count, float *sum, int bf16)
{
    Vf s = load_part(sum, i, m, 0);
    for (int k = 0; k < count; k++) s += load_part(row[k], i, m, bf16);
    store_part(sum, i, m, s, 0);
}

SIMD void add_rows(const Rows *dy, int64_t first, int count, float *sum, int bf16)
{
    const void *row[NORM_TOGETHER];
    for (int k = 0; k < count; k++) row[k] = row_at(dy, first + k, bf16);
    if (count == NORM_TOGETHER)
        EACH_VECTOR(dy->width, step_sum, row, NORM_TOGETHER, sum, bf16);
    else
        EACH_VECTOR(dy->width, step_sum, row, count, sum, bf16);
}

static void sum_block(const Rows *dy, int64_t block, float *sum)
{
    int64_t each = row_block_rows(dy->n), end = min_i64((block + 1) * each, dy->n);
    memset(sum, 0, sizeof *sum * (size_t)dy->width);
    for (int64_t i = block * each; i < end; i += NORM_TOGETHER) {
        int count = (int)min_i64(NORM_TOGETHER, end - i);
        if (dy->dtype == DTYPE_BF16)
            add_rows(dy, i, count, sum, 1);
        else
            add_rows(dy, i, count, sum, 0);
    }
}

static Status run_grad(KernelArgs *args)
{
    Rows dy = tensor_as_rows(&args->in[0], 1);
    int64_t blocks = row_blocks(dy.n);
    float *partial = args->workspace;
    bool many = dy.n * dy.width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t b = 0; b < blocks; b++) sum_block(&dy, b, partial + b * dy.width);
    sum_blocks(partial, blocks, dy.width, dy.width, args->out[0].data);
    return OK;
}

static size_t grad_workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const Shape *shape = &graph_value(graph, node->in[0])->shape;
    int64_t width = shape->dim[shape->rank - 1], rows = width ? shape_count(shape) / width : 0;
    return (size_t)(row_blocks(rows) * width) * sizeof(float);
}

const Kernel CPU(bias_grad) = {.run = run_grad, .workspace = grad_workspace};
