#include "ops/elementwise.h"

static void *row_at(const Rows *rows, int64_t i, int bf16)
{
    return !rows->data ? NULL : bf16 ? (void *)row_bf16(rows, i) : (void *)row_f32(rows, i);
}

/* ---- gather: x [tokens D] -> rows [R D] ------------------------------------------------- */

SIMD void step_scaled(int64_t i, int64_t m, void *to, const void *from, Vf factor, int bf16)
{
    store_part(to, i, m, load_part(from, i, m, bf16) * factor, bf16);
}

static Status run_gather(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), rows = tensor_as_rows(&args->out[0], 1);
    const float *score = args->in[1].data;
    const int32_t *source = args->in[2].data;
    int64_t k = args->in[3].shape.dim[args->in[3].shape.rank - 1], n = x.width;
    bool bf16 = x.dtype == DTYPE_BF16;
#pragma omp parallel for num_threads(args->threads) if (rows.n * n >= WALK_PARALLEL)               \
    schedule(static)
    for (int64_t r = 0; r < rows.n; r++) {
        void *to = row_at(&rows, r, bf16);
        size_t bytes = (size_t)n * (bf16 ? 2 : 4);
        if (source[r] < 0) {
            memset(to, 0, bytes);
            continue;
        }
        const void *from = row_at(&x, source[r] / k, bf16);
        Vf factor = vf_set(score ? score[source[r]] : 1);
        if (!score)
            memcpy(to, from, bytes);
        else if (bf16)
            EACH_VECTOR(n, step_scaled, to, from, factor, 1);
        else
            EACH_VECTOR(n, step_scaled, to, from, factor, 0);
    }
    return OK;
}

const Kernel CPU(expert_gather) = {.run = run_gather};

/* ---- combine: rows [R D] -> y [tokens D] ------------------------------------------------ */

enum { MAX_TOGETHER = 8 }; /* slots whose rows are walked side by side */

/* One token: its rows with their factors, in slot order, added to base (NULL: zero). */
typedef struct Token {
    const void *row[MAX_TOGETHER];
    float factor[MAX_TOGETHER];
    int n;
    const void *base;
    void *y;
} Token;

SIMD void step_sum(int64_t i, int64_t m, const Token *t, int n, int bf16)
{
    Vf sum = t->base ? load_part(t->base, i, m, bf16) : vf_zero();
    for (int j = 0; j < n; j++)
        sum = vf_fma(load_part(t->row[j], i, m, bf16), vf_set(t->factor[j]), sum);
    store_part(t->y, i, m, sum, bf16);
}

SIMD void sum_rows(const Token *t, int64_t width, int bf16)
{
    if (t->n == 1)
        EACH_VECTOR(width, step_sum, t, 1, bf16);
    else
        EACH_VECTOR(width, step_sum, t, t->n, bf16);
}

/* y = base + sum of factor row; more slots than MAX_TOGETHER go on from the sum so far. */
static void combine_token(const Rows *rows, const int32_t *place, const float *factor, int64_t k,
                          Token *t)
{
    bool bf16 = rows->dtype == DTYPE_BF16;
    for (int64_t first = 0; first < k; first += MAX_TOGETHER, t->base = t->y) {
        t->n = (int)min_i64(MAX_TOGETHER, k - first);
        for (int j = 0; j < t->n; j++) {
            t->row[j] = row_at(rows, place[first + j], bf16);
            t->factor[j] = factor ? factor[first + j] : 1;
        }
        if (bf16)
            sum_rows(t, rows->width, 1);
        else
            sum_rows(t, rows->width, 0);
    }
}

static Status run_combine(KernelArgs *args)
{
    Rows rows = tensor_as_rows(&args->in[0], 1), y = tensor_as_rows(&args->out[0], 1), base = {0};
    const int32_t *place = args->in[2].data;
    const float *weight = args->in[3].data;
    int64_t k = args->in[2].shape.dim[args->in[2].shape.rank - 1];
    bool bf16 = rows.dtype == DTYPE_BF16;
    if (args->in[4].data) base = tensor_as_rows(&args->in[4], 1);
#pragma omp parallel for num_threads(args->threads) if (y.n * y.width >= WALK_PARALLEL)            \
    schedule(static)
    for (int64_t t = 0; t < y.n; t++) {
        Token token = {.base = row_at(&base, t, bf16), .y = row_at(&y, t, bf16)};
        combine_token(&rows, place + t * k, weight ? weight + t * k : NULL, k, &token);
    }
    return OK;
}

const Kernel CPU(expert_combine) = {.run = run_combine};

/* ---- gradient of gather: drows [R D] -> dx [tokens D], dscore [tokens k] ---------------- */

SIMD float row_dot(const void *a, const void *b, int64_t n, int bf16)
{
    Vf sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++)
            sum[k] = vf_fma(vf_load_as(a, i + k * VL, bf16), vf_load_as(b, i + k * VL, bf16),
                            sum[k]);
    for (; i < n; i += VL)
        sum[0] = vf_fma(load_part(a, i, n - i, bf16), load_part(b, i, n - i, bf16), sum[0]);
    return vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static Status run_gather_grad(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), drows = tensor_as_rows(&args->in[3], 1), dx = {0};
    const float *score = args->in[1].data;
    const int32_t *place = args->in[2].data;
    float *dscore = args->out[1].data;
    int64_t k = args->in[2].shape.dim[args->in[2].shape.rank - 1], n = x.width;
    bool bf16 = x.dtype == DTYPE_BF16;
    if (args->out[0].data) dx = tensor_as_rows(&args->out[0], 1);
#pragma omp parallel for num_threads(args->threads) if (x.n * n >= WALK_PARALLEL) schedule(static)
    for (int64_t t = 0; t < x.n; t++) {
        const void *token = row_at(&x, t, bf16);
        for (int64_t j = t * k; j < (t + 1) * k && dscore; j++) {
            const void *drow = row_at(&drows, place[j], bf16);
            dscore[j] = bf16 ? row_dot(token, drow, n, 1) : row_dot(token, drow, n, 0);
        }
        if (!dx.data) continue; /* dx last: it may lie where x does */
        Token sum = {.y = row_at(&dx, t, bf16)};
        combine_token(&drows, place + t * k, score ? score + t * k : NULL, k, &sum);
    }
    return OK;
}

const Kernel CPU(expert_gather_grad) = {.run = run_gather_grad};
