#include "ops/norm_rows.h"

/* ---- layernorm -------------------------------------------------------------------------- */

/* A row is walked twice for its statistics: the mean first, so that the squares are of differences
 * and lose nothing where the mean is large. */
typedef struct Moments {
    float mean, r; /* r = 1 / sqrt(var + eps) */
} Moments;

SIMD float row_mean(const void *x, int64_t n, int bf16)
{
    Sum s = {0};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++) s.part[k] += vf_load_as(x, i + k * VL, bf16);
    for (; i < n; i += VL) s.part[0] += load_part(x, i, n - i, bf16);
    return sum_total(&s) / (float)n;
}

/* x - mean, zero past the end of the row */
SIMD Vf off_mean(const void *x, int64_t i, int64_t left, Vf mean, int bf16)
{
    Vf d = load_part(x, i, left, bf16) - mean;
    if (left >= VL) return d;
    float lane[VL] = {0}, kept[VL];
    vf_store(kept, d);
    for (int64_t k = 0; k < left; k++) lane[k] = kept[k];
    return vf_load(lane);
}

SIMD Moments row_moments(const void *x, int64_t n, float eps, int bf16)
{
    Moments m = {.mean = row_mean(x, n, bf16)};
    Vf mean = vf_set(m.mean);
    Sum s = {0};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++) {
            Vf d = vf_load_as(x, i + k * VL, bf16) - mean;
            s.part[k] = vf_fma(d, d, s.part[k]);
        }
    for (; i < n; i += VL) {
        Vf d = off_mean(x, i, n - i, mean, bf16);
        s.part[0] = vf_fma(d, d, s.part[0]);
    }
    m.r = inverse_root(sum_total(&s), n, eps);
    return m;
}

/* w and b of a norm; b NULL: none */
typedef struct Affine {
    const float *w, *b;
} Affine;

SIMD void step_norm(int64_t i, int64_t m, void *y, const void *x, const Affine *affine, Vf mean,
                    Vf r, int bf16)
{
    Vf normal = (load_part(x, i, m, bf16) - mean) * r, w = load_part(affine->w, i, m, 0);
    Vf b = affine->b ? load_part(affine->b, i, m, 0) : vf_zero();
    store_part(y, i, m, vf_fma(normal, w, b), bf16);
}

SIMD void norm_row(void *y, const void *x, const Affine *affine, int64_t n, float eps, int bf16)
{
    Moments moments = row_moments(x, n, eps, bf16);
    Vf mean = vf_set(moments.mean), r = vf_set(moments.r);
    EACH_VECTOR(n, step_norm, y, x, affine, mean, r, bf16);
}

static Affine affine_of(const KernelArgs *args, int w)
{
    return (Affine){args->in[w].data, args->n_in > w + 1 ? args->in[w + 1].data : NULL};
}

static Status run(KernelArgs *args)
{
    Rows x = tensor_as_rows(&args->in[0], 1), y = tensor_as_rows(&args->out[0], 1);
    Affine affine = affine_of(args, 1);
    float eps = *(const float *)args->attr;
    bool bf16 = x.dtype == DTYPE_BF16, many = x.n * x.width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t i = 0; i < x.n; i++) {
        if (bf16)
            norm_row(row_bf16(&y, i), row_bf16(&x, i), &affine, x.width, eps, 1);
        else
            norm_row(row_f32(&y, i), row_f32(&x, i), &affine, x.width, eps, 0);
    }
    return OK;
}

const Kernel CPU(layernorm) = {.run = run};

/* ---- add_layernorm ---------------------------------------------------------------------- */

static Status run_add(KernelArgs *args)
{
    Rows a = tensor_as_rows(&args->in[0], 1), b = tensor_as_rows(&args->in[1], 1);
    Rows h = tensor_as_rows(&args->out[0], 1), y = tensor_as_rows(&args->out[1], 1);
    Affine affine = affine_of(args, 2);
    float eps = *(const float *)args->attr;
    bool bf16 = a.dtype == DTYPE_BF16, many = a.n * a.width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t i = 0; i < a.n; i++) {
        if (bf16) {
            EACH_VECTOR(a.width, step_add, row_bf16(&h, i), row_bf16(&a, i), row_bf16(&b, i), 1);
            norm_row(row_bf16(&y, i), row_bf16(&h, i), &affine, a.width, eps, 1);
        } else {
            EACH_VECTOR(a.width, step_add, row_f32(&h, i), row_f32(&a, i), row_f32(&b, i), 0);
            norm_row(row_f32(&y, i), row_f32(&h, i), &affine, a.width, eps, 0);
        }
    }
    return OK;
}

const Kernel CPU(add_layernorm) = {.run = run_add};

/* ---- layernorm_grad --------------------------------------------------------------------- */

/* One row: where its operands are, and the factors of
 * dx = r dy w - slope (x - mean) - shift,  slope = r^2 mean(g n),  shift = r mean(g). */
typedef struct GradRow {
    const void *dy, *x, *residual;
    void *dx;
    float mean, r, slope, shift;
} GradRow;

SIMD void row_factors(GradRow *row, const float *w, int64_t n, float eps, int bf16)
{
    Moments m = row_moments(row->x, n, eps, bf16);
    Sum gradients = {0}, products = {0};
    Vf mean = vf_set(m.mean);
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int k = 0; k < 4; k++) {
            Vf x = vf_load_as(row->x, i + k * VL, bf16) - mean;
            Vf g = vf_load_as(row->dy, i + k * VL, bf16) * vf_load(w + i + k * VL);
            gradients.part[k] += g;
            products.part[k] = vf_fma(g, x, products.part[k]);
        }
    for (; i < n; i += VL) { /* past the end g is zero */
        Vf x = load_part(row->x, i, n - i, bf16) - mean;
        Vf g = load_part(row->dy, i, n - i, bf16) * load_part(w, i, n - i, 0);
        gradients.part[0] += g;
        products.part[0] = vf_fma(g, x, products.part[0]);
    }
    row->mean = m.mean;
    row->r = m.r;
    row->slope = m.r * m.r * m.r * (sum_total(&products) / (float)n);
    row->shift = m.r * (sum_total(&gradients) / (float)n);
}

/* dw and db (parts of a block; db NULL: not wanted) += dy n and dy of `count` rows, dx of each. */
SIMD void step_grad(int64_t i, int64_t m, const GradRow *row, int count, const float *w, float *dw,
                    float *db, int bf16)
{
    Vf weight = load_part(w, i, m, 0), sum = load_part(dw, i, m, 0), plain = vf_zero();
    for (int k = 0; k < count; k++) {
        Vf x = load_part(row[k].x, i, m, bf16) - vf_set(row[k].mean);
        Vf dy = load_part(row[k].dy, i, m, bf16);
        sum = vf_fma(dy * x, vf_set(row[k].r), sum);
        plain += dy;
        if (!row[k].dx) continue;
        Vf dx = vf_fma(dy * weight, vf_set(row[k].r), -vf_set(row[k].shift));
        dx = vf_fma(-x, vf_set(row[k].slope), dx);
        if (row[k].residual) dx += load_part(row[k].residual, i, m, bf16);
        store_part(row[k].dx, i, m, dx, bf16);
    }
    store_part(dw, i, m, sum, 0);
    if (db) store_part(db, i, m, load_part(db, i, m, 0) + plain, 0);
}

typedef struct GradJob {
    Rows dy, x, residual, dx;
    const float *w;
    float eps;
    bool bias;
} GradJob;

SIMD void grad_rows(const GradJob *job, int64_t first, int count, float *dw, int bf16)
{
    GradRow row[NORM_TOGETHER];
    int64_t n = job->x.width;
    float *db = job->bias ? dw + n : NULL;
    for (int k = 0; k < count; k++) {
        row[k] = (GradRow){.dy = row_at(&job->dy, first + k, bf16),
                           .x = row_at(&job->x, first + k, bf16)};
        row[k].residual = row_at(&job->residual, first + k, bf16);
        row[k].dx = row_at(&job->dx, first + k, bf16);
        row_factors(&row[k], job->w, n, job->eps, bf16);
    }
    if (count == NORM_TOGETHER)
        EACH_VECTOR(n, step_grad, row, NORM_TOGETHER, job->w, dw, db, bf16);
    else
        EACH_VECTOR(n, step_grad, row, count, job->w, dw, db, bf16);
}

/* A block's sums: dw, and db behind it. */
static int64_t block_width(int64_t width, bool bias) { return bias ? 2 * width : width; }

static void grad_block(const GradJob *job, int64_t block, float *dw)
{
    int64_t each = row_block_rows(job->x.n), end = min_i64((block + 1) * each, job->x.n);
    memset(dw, 0, sizeof *dw * (size_t)block_width(job->x.width, job->bias));
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
    job.bias = args->out[2].data != NULL;
    int64_t width = job.x.width, blocks = row_blocks(job.x.n);
    int64_t pitch = block_width(width, job.bias);
    float *partial = args->workspace;
    bool many = job.x.n * width >= NORM_PARALLEL;
#pragma omp parallel for num_threads(args->threads) if (many) schedule(static)
    for (int64_t b = 0; b < blocks; b++) grad_block(&job, b, partial + b * pitch);
    if (args->out[1].data) sum_blocks(partial, blocks, pitch, width, args->out[1].data);
    if (job.bias) sum_blocks(partial + width, blocks, pitch, width, args->out[2].data);
    return OK;
}

static size_t grad_workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const Shape *shape = &graph_value(graph, node->in[1])->shape;
    int64_t width = shape->dim[shape->rank - 1], rows = shape_count(shape) / width;
    bool bias = node->out[2].id != 0;
    return (size_t)(row_blocks(rows) * block_width(width, bias)) * sizeof(float);
}

const Kernel CPU(layernorm_grad) = {.run = run_grad, .workspace = grad_workspace};
