#include "ops/norm_rows.h"

/* ---- rmsnorm ---------------------------------------------------------------------------- */

SIMD float row_squares(const void *x, int64_t n, int bf16)
{
    Sum s = {0};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++) {
            Vf v = vf_load_as(x, i + k * VL, bf16);
            s.part[k] = vf_fma(v, v, s.part[k]);
        }
    for (; i < n; i += VL) {
        Vf v = load_part(x, i, n - i, bf16);
        s.part[0] = vf_fma(v, v, s.part[0]);
    }
    return sum_total(&s);
}

SIMD void step_norm(int64_t i, int64_t m, void *y, const void *x, const float *w, Vf r, int bf16)
{
    store_part(y, i, m, load_part(x, i, m, bf16) * r * load_part(w, i, m, 0), bf16);
}

SIMD void norm_row(void *y, const void *x, const float *w, int64_t n, float eps, int bf16)
{
    Vf r = vf_set(inverse_root(row_squares(x, n, bf16), n, eps));
    EACH_VECTOR(n, step_norm, y, x, w, r, bf16);
}

static Status run(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), y = tensor_as_rows(&args->out[0], 1);
    const float *w = args->in[1].data, eps = *(const float *)args->attr;
    bool bf16 = x.dtype == DTYPE_BF16, many = x.n * x.width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t i = 0; i < x.n; i++) {
        if (bf16)
            norm_row(row_bf16(&y, i), row_bf16(&x, i), w, x.width, eps, 1);
        else
            norm_row(row_f32(&y, i), row_f32(&x, i), w, x.width, eps, 0);
    }
    return OK;
}

const Kernel CPU(rmsnorm) = {.run = run};

/* ---- add_rmsnorm ------------------------------------------------------------------------ */

static Status run_add(KernelArgs *args)
{
    Rows a = tensor_as_rows(&args->in[0], 1), b = tensor_as_rows(&args->in[1], 1);
    Rows h = tensor_as_rows(&args->out[0], 1), y = tensor_as_rows(&args->out[1], 1);
    const float *w = args->in[2].data, eps = *(const float *)args->attr;
    bool bf16 = a.dtype == DTYPE_BF16, many = a.n * a.width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t i = 0; i < a.n; i++) {
        if (bf16) {
            EACH_VECTOR(a.width, step_add, row_bf16(&h, i), row_bf16(&a, i), row_bf16(&b, i), 1);
            norm_row(row_bf16(&y, i), row_bf16(&h, i), w, a.width, eps, 1);
        } else {
            EACH_VECTOR(a.width, step_add, row_f32(&h, i), row_f32(&a, i), row_f32(&b, i), 0);
            norm_row(row_f32(&y, i), row_f32(&h, i), w, a.width, eps, 0);
        }
    }
    return OK;
}

const Kernel CPU(add_rmsnorm) = {.run = run_add};

/* ---- rmsnorm_grad ----------------------------------------------------------------------- */

/* One row: where its operands are, and the two factors of dx = scale dy w - shift x. */
typedef struct GradRow {
    const void *dy, *x, *residual;
    void *dx;
    float r, scale, shift;
} GradRow;

SIMD void row_factors(GradRow *row, const float *w, int64_t n, float eps, int bf16)
{
    Sum squares = {0}, products = {0};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++) {
            Vf x = vf_load_as(row->x, i + k * VL, bf16), dy = vf_load_as(row->dy, i + k * VL, bf16);
            squares.part[k] = vf_fma(x, x, squares.part[k]);
            products.part[k] = vf_fma(dy * x, vf_load(w + i + k * VL), products.part[k]);
        }
    for (; i < n; i += VL) {
        Vf x = load_part(row->x, i, n - i, bf16), dy = load_part(row->dy, i, n - i, bf16);
        squares.part[0] = vf_fma(x, x, squares.part[0]);
        products.part[0] = vf_fma(dy * x, load_part(w, i, n - i, 0), products.part[0]);
    }
    float r = inverse_root(sum_total(&squares), n, eps);
    row->r = row->scale = r;
    row->shift = r * r * r * (sum_total(&products) / (float)n);
}

/* dw (part of a block) += dy x r of `count` rows, dx of each. */
SIMD void step_grad(int64_t i, int64_t m, const GradRow *row, int count, const float *w, float *dw,
                    int bf16)
{
    Vf weight = load_part(w, i, m, 0), sum = load_part(dw, i, m, 0);
    for (int k = 0; k < count; k++) {
        Vf x = load_part(row[k].x, i, m, bf16), dy = load_part(row[k].dy, i, m, bf16);
        sum = vf_fma(dy * x, vf_set(row[k].r), sum);
        if (!row[k].dx) continue;
        Vf dx = vf_fma(dy * weight, vf_set(row[k].scale), -x * vf_set(row[k].shift));
        if (row[k].residual) dx += load_part(row[k].residual, i, m, bf16);
        store_part(row[k].dx, i, m, dx, bf16);
    }
    store_part(dw, i, m, sum, 0);
}

typedef struct GradJob {
    Rows dy, x, residual, dx;
    const float *w;
    float eps;
} GradJob;

SIMD void grad_rows(const GradJob *job, int64_t first, int count, float *dw, int bf16)
{
    GradRow row[NORM_TOGETHER];
    int64_t n = job->x.width;
    for (int k = 0; k < count; k++) {
        row[k] = (GradRow){.dy = row_at(&job->dy, first + k, bf16),
                           .x = row_at(&job->x, first + k, bf16)};
        row[k].residual = row_at(&job->residual, first + k, bf16);
        row[k].dx = row_at(&job->dx, first + k, bf16);
        row_factors(&row[k], job->w, n, job->eps, bf16);
    }
    if (count == NORM_TOGETHER)
        EACH_VECTOR(n, step_grad, row, NORM_TOGETHER, job->w, dw, bf16);
    else
        EACH_VECTOR(n, step_grad, row, count, job->w, dw, bf16);
}

static void grad_block(const GradJob *job, int64_t block, float *dw)
{
    int64_t each = row_block_rows(job->x.n), end = min_i64((block + 1) * each, job->x.n);
    memset(dw, 0, sizeof *dw * (size_t)job->x.width);
    for (int64_t i = block * each; i < end; i += NORM_TOGETHER) {
        int count = (int)min_i64(NORM_TOGETHER, end - i);
        if (job->x.dtype == DTYPE_BF16)
            grad_rows(job, i, count, dw, 1);
        else
            grad_rows(job, i, count, dw, 0);
    }
}

static Status run_grad(KernelArgs *args)
{
    GradJob job = {.dy = tensor_as_rows(&args->in[0], 1), .x = tensor_as_rows(&args->in[1], 1)};
    if (args->n_in > 3 && args->in[3].data) job.residual = tensor_as_rows(&args->in[3], 1);
    if (args->out[0].data) job.dx = tensor_as_rows(&args->out[0], 1);
    job.w = args->in[2].data;
    job.eps = *(const float *)args->attr;
    int64_t width = job.x.width, blocks = row_blocks(job.x.n);
    float *partial = args->workspace, *dw = args->out[1].data;
    bool many = job.x.n * width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t b = 0; b < blocks; b++) grad_block(&job, b, partial + b * width);
    if (dw) sum_blocks(partial, blocks, width, width, dw);
    return OK;
}

static size_t grad_workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const Shape *shape = &graph_value(graph, node->in[1])->shape;
    int64_t width = shape->dim[shape->rank - 1];
    return (size_t)(row_blocks(shape_count(shape) / width) * width) * sizeof(float);
}

const Kernel CPU(rmsnorm_grad) = {.run = run_grad, .workspace = grad_workspace};
