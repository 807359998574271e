/* linear_cross_entropy, vocab_stats and their gradients on the cuda device.
 *
 * For GPU_LOGITS_ROWS tokens at a time: the logits by a product, f32 in the workspace; a block of
 * threads for each token walks its row once for maximum and sum. For the gradient it walks the row
 * once more and leaves dlogits in its place, in the operands' type, for the products that give dx
 * and add to dw.
 */
#include "ops/chunks.cuh"
#include "ops/product.cuh"
#include "ops/vocab_loss.cuh"

extern "C" {
#include "ops/linear_cross_entropy.h"
}

#include <stdlib.h>

/* ---- a row of logits ---------------------------------------------------------------------- */

enum { ROW_THREADS = 256, ROW_STEP = 4, ROW_STRIDE = ROW_THREADS * ROW_STEP };

/* Some tokens' logits of the words from `first_word` on. Rows begin at multiples of 32 bytes. */
typedef struct LogitRows {
    float *logits;
    int64_t pitch, first_word;
    int words;
    const int32_t *targets;
} LogitRows;

/* ROW_STEP of them; those behind the last are -infinity. */
__device__ static Neighbours<float, ROW_STEP> load_logits(const float *row, int at, int words)
{
    if (at + ROW_STEP <= words) return load_neighbours<ROW_STEP>(row + at);
    Neighbours<float, ROW_STEP> v;
    for (int k = 0; k < ROW_STEP; k++) v.at[k] = at + k < words ? row[at + k] : -INFINITY;
    return v;
}

/* The token's word among those that are here, or -1. */
__device__ static int own_target(const LogitRows &l, int64_t token)
{
    int64_t word = l.targets[token] - l.first_word;
    return word >= 0 && word < l.words ? (int)word : -1;
}

/* stats [tokens 3]: the maximum, the sum of exp(logit - maximum) and the target's logit, or zero.
 */
__global__ static void __launch_bounds__(ROW_THREADS) row_stats_kernel(LogitRows l, float *stats)
{
    __shared__ float scratch[2 * WARP];
    const float *row = l.logits + blockIdx.x * l.pitch;
    float most = -INFINITY, sum = 0;
    for (int at = (int)threadIdx.x * ROW_STEP; at < l.words; at += ROW_STRIDE) {
        auto v = load_logits(row, at, l.words);
        float highest = fmaxf(fmaxf(v.at[0], v.at[1]), fmaxf(v.at[2], v.at[3]));
        if (highest > most) {
            sum *= expf(most - highest);
            most = highest;
        }
        float shift = most == -INFINITY ? 0 : most; /* all are -infinity so far: they add nothing */
        for (int k = 0; k < ROW_STEP; k++) sum += expf(v.at[k] - shift);
    }
    float all = block_max(most, scratch);
    sum = block_sum(sum * expf(most - all), scratch + WARP);
    if (threadIdx.x) return;
    int target = own_target(l, blockIdx.x);
    float *to = stats + (int64_t)blockIdx.x * VOCAB_STATS;
    to[VOCAB_MAX] = all;
    to[VOCAB_SUM] = sum;
    to[VOCAB_TARGET] = target < 0 ? 0 : row[target];
}

/* dlogits = scale exp(logit - lse) - hit one_hot(target), as T from each row's begin on. A narrower
 * T is written over logits that all threads have read by then: those in front. */
template <class T>
__global__ static void __launch_bounds__(ROW_THREADS)
    row_gradient_kernel(LogitRows l, const float *factors)
{
    float *row = l.logits + blockIdx.x * l.pitch;
    T *to = (T *)(void *)row;
    const float *factor = factors + (int64_t)blockIdx.x * VOCAB_STATS;
    float lse = factor[VOCAB_LSE], scale = factor[VOCAB_SCALE], hit = factor[VOCAB_HIT];
    int target = own_target(l, blockIdx.x);
    for (int first = 0; first < l.words; first += ROW_STRIDE) {
        int at = first + (int)threadIdx.x * ROW_STEP;
        auto v = load_logits(row, at, l.words);
        Neighbours<T, ROW_STEP> d;
        for (int k = 0; k < ROW_STEP; k++)
            d.at[k] = from_f32<T>(scale * expf(v.at[k] - lse) - (at + k == target ? hit : 0));
        if (sizeof(T) < sizeof(float)) __syncthreads();
        if (at + ROW_STEP <= l.words)
            store_neighbours(to + at, d);
        else
            for (int k = 0; k < ROW_STEP; k++)
                if (at + k < l.words) to[at + k] = d.at[k];
    }
}

/* ---- blocks of tokens --------------------------------------------------------------------- */

/* Products of one number of tokens. */
typedef struct Plans {
    GpuProductPlan *logits, *dx, *dw, *dw_more; /* dw_more adds to dw */
} Plans;

typedef struct Prepared {
    Plans full, rest; /* of gpu_logits_rows tokens, and of the last few */
} Prepared;

typedef struct Job {
    KernelArgs *args;
    Rows x, w, dx; /* dx.data, dw NULL: not wanted */
    float *dw;
    const int32_t *targets;
    int64_t first_word;
    bool grad;
    int64_t first, n; /* the tokens at hand */
    float *logits, *factors;
} Job;

static char *row_begin(const Rows *rows, int64_t row)
{
    return rows->data + row * rows->pitch * (int64_t)dtype_bytes(rows->dtype);
}

static Rows some_rows(const Job *job, Rows rows)
{
    rows.data = rows.data ? row_begin(&rows, job->first) : NULL;
    rows.n = job->n;
    return rows;
}

static Rows logits_of(const Job *job)
{
    Rows r = {(char *)job->logits, DTYPE_F32, job->n, job->w.n, gpu_logits_pitch(job->w.n)};
    return r;
}

/* In the first part of each row of logits. */
static Rows dlogits_of(const Job *job)
{
    Rows r = logits_of(job);
    r.pitch *= (int64_t)(sizeof(float) / dtype_bytes(job->x.dtype));
    r.dtype = job->x.dtype;
    return r;
}

static RowsProduct product_logits(const Job *job)
{
    RowsProduct p = {some_rows(job, job->x), job->w, logits_of(job)};
    p.b_transposed = true;
    return p;
}

static RowsProduct product_dx(const Job *job)
{
    RowsProduct p = {dlogits_of(job), job->w, some_rows(job, job->dx)};
    return p;
}

static RowsProduct product_dw(const Job *job, bool add)
{
    Rows dw = {(char *)job->dw, DTYPE_F32, job->w.n, job->w.width, job->w.width};
    RowsProduct p = {dlogits_of(job), some_rows(job, job->x), dw};
    p.a_transposed = true;
    p.accumulate = add;
    return p;
}

static Status plan_tokens(const Job *job, Plans *plans)
{
    RowsProduct logits = product_logits(job), dx = product_dx(job), dw = product_dw(job, false),
                more = product_dw(job, true);
    GpuStream *stream = job->args->stream;
    void *workspace = job->args->workspace;
    TRY(product_plan(stream, &logits, workspace, &plans->logits));
    if (job->dx.data) TRY(product_plan(stream, &dx, workspace, &plans->dx));
    if (job->dw) TRY(product_plan(stream, &dw, workspace, &plans->dw));
    if (job->dw) TRY(product_plan(stream, &more, workspace, &plans->dw_more));
    return OK;
}

static void release_plans(Plans *plans)
{
    gpu_product_plan_destroy(plans->logits);
    gpu_product_plan_destroy(plans->dx);
    gpu_product_plan_destroy(plans->dw);
    gpu_product_plan_destroy(plans->dw_more);
}

static void release(KernelArgs *args)
{
    Prepared *p = (Prepared *)args->state;
    if (p) release_plans(&p->full);
    if (p) release_plans(&p->rest);
    free(p);
    args->state = NULL;
}

static Status prepare_job(Job *job)
{
    Prepared *p = (Prepared *)xcalloc(1, sizeof *p);
    job->args->state = p;
    int64_t rows = gpu_logits_rows(job->x.n);
    job->n = rows;
    Status status = plan_tokens(job, &p->full);
    job->n = rows ? job->x.n % rows : 0;
    if (status == OK && job->n) status = plan_tokens(job, &p->rest);
    if (status != OK) release(job->args);
    return status;
}

static const Plans *plans_of(const Job *job)
{
    const Prepared *p = (const Prepared *)job->args->state;
    return job->n == gpu_logits_rows(job->x.n) ? &p->full : &p->rest;
}

static LogitRows rows_of(const Job *job)
{
    LogitRows l = {job->logits, gpu_logits_pitch(job->w.n), job->first_word, (int)job->w.n,
                   job->targets + job->first};
    return l;
}

/* The block's logits. */
static Status make_logits(const Job *job)
{
    RowsProduct p = product_logits(job);
    return gpu_product_run(plans_of(job)->logits, p.a.data, p.b.data, p.c.data,
                           job->args->workspace);
}

static Status make_stats(const Job *job, float *stats)
{
    return GPU_LAUNCH(job->args->stream, (unsigned)job->n, ROW_THREADS, 0, row_stats_kernel,
                      rows_of(job), stats);
}

/* From logits and factors of the block. */
static Status make_gradient(const Job *job, const float *factors)
{
    const Plans *plans = plans_of(job);
    void *workspace = job->args->workspace;
    BY_ACTIVATION(job->x.dtype, T,
                  TRY(GPU_LAUNCH(job->args->stream, (unsigned)job->n, ROW_THREADS, 0,
                                 (row_gradient_kernel<T>), rows_of(job), factors)));
    if (job->dw) {
        RowsProduct p = product_dw(job, job->first > 0);
        TRY(gpu_product_run(job->first ? plans->dw_more : plans->dw, p.a.data, p.b.data, p.c.data,
                            workspace));
    }
    if (!job->dx.data) return OK;
    RowsProduct p = product_dx(job);
    return gpu_product_run(plans->dx, p.a.data, p.b.data, p.c.data, workspace);
}

/* The next block of tokens, the first one after job->n = 0. */
static bool next_tokens(Job *job)
{
    job->first += job->n;
    job->n = min_i64(gpu_logits_rows(job->x.n), job->x.n - job->first);
    return job->n > 0;
}

static char *place_in(const KernelArgs *args, size_t offset)
{
    return (char *)args->workspace + offset;
}

/* ---- linear_cross_entropy ----------------------------------------------------------------- */

static Job job_of(KernelArgs *args, bool grad)
{
    Job job = {args, tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1)};
    LogitsSpace space = gpu_logits_space(job.x.n, job.w.n, 0);
    job.targets = (const int32_t *)args->in[2].data;
    job.grad = grad;
    if (grad && args->out[2].data) job.dx = tensor_as_rows(&args->out[2], 1);
    if (grad) job.dw = (float *)args->out[3].data;
    job.logits = (float *)(void *)place_in(args, space.logits);
    job.factors = (float *)(void *)place_in(args, space.factors);
    return job;
}

static Status prepare(KernelArgs *args)
{
    Job job = job_of(args, false);
    return prepare_job(&job);
}

static Status prepare_grad(KernelArgs *args)
{
    Job job = job_of(args, true);
    return prepare_job(&job);
}

static LossTokens tokens_of(const Job *job, float *stats)
{
    const KernelArgs *args = job->args;
    LossTokens l = {};
    l.stats = stats;
    l.parts = 1;
    l.tokens = job->x.n;
    l.targets = job->targets;
    l.words = job->w.n;
    l.weights = (const float *)args->in[3].data;
    l.z_loss = *(const float *)args->attr;
    return l;
}

static Status block_gradient(const Job *job, const LossTokens *all)
{
    LossTokens l = *all;
    l.tokens = job->n;
    l.stats += job->first * VOCAB_STATS;
    l.targets += job->first;
    l.weights += job->first;
    TRY(gpu_loss_factors(job->args->stream, &l, (const float *)job->args->in[4].data,
                         job->factors));
    return make_gradient(job, job->factors);
}

static Status run_job(Job *job)
{
    KernelArgs *args = job->args;
    LogitsSpace space = gpu_logits_space(job->x.n, job->w.n, 0);
    float *stats = (float *)(void *)place_in(args, space.stats);
    LossTokens l = tokens_of(job, stats);
    while (next_tokens(job)) {
        TRY(make_logits(job));
        TRY(make_stats(job, stats + job->first * VOCAB_STATS));
        if (job->grad) TRY(block_gradient(job, &l));
    }
    return gpu_loss(args->stream, &l, (double *)(void *)place_in(args, space.terms),
                    (float *)args->out[0].data, (float *)args->out[1].data);
}

static Status run(KernelArgs *args)
{
    Job job = job_of(args, false);
    return run_job(&job);
}

static Status run_grad(KernelArgs *args)
{
    Job job = job_of(args, true);
    return run_job(&job);
}

/* ---- vocab_stats: a part of the vocabulary (vocab_loss.h) --------------------------------- */

static int parts_of(const KernelArgs *args)
{
    return (int)max_i64(1, ((const VocabAttr *)args->attr)->parts);
}

/* The words of part `part`, of those that are here. */
static Job job_of_part(KernelArgs *args, int part, bool grad)
{
    Job job = {args, tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1)};
    job.w.n /= parts_of(args);
    job.w.data = row_begin(&job.w, part * job.w.n);
    job.targets = (const int32_t *)args->in[2].data;
    job.first_word = ((const VocabAttr *)args->attr)->first + part * job.w.n;
    job.grad = grad;
    job.logits = (float *)(void *)place_in(args, gpu_logits_space(job.x.n, job.w.n, 0).logits);
    return job;
}

static Status prepare_stats(KernelArgs *args)
{
    Job job = job_of_part(args, 0, false);
    return prepare_job(&job);
}

static Status run_stats(KernelArgs *args)
{
    for (int part = 0; part < parts_of(args); part++) {
        Job job = job_of_part(args, part, false);
        float *stats = (float *)args->out[0].data + part * job.x.n * VOCAB_STATS;
        while (next_tokens(&job)) {
            TRY(make_logits(&job));
            TRY(make_stats(&job, stats + job.first * VOCAB_STATS));
        }
    }
    return OK;
}

/* dw of a part, and its summand of dx at `dx`. */
static Job job_of_gradient(KernelArgs *args, int part, float *dx)
{
    Job job = job_of_part(args, part, true);
    float *dw = (float *)args->out[1].data;
    if (dw) job.dw = dw + part * job.w.n * job.w.width;
    Rows rows = {(char *)dx, DTYPE_F32, job.x.n, job.x.width, job.x.width};
    job.dx = rows;
    return job;
}

static Job job_of_whole(KernelArgs *args)
{
    Job job = job_of_gradient(args, 0, NULL);
    if (args->out[0].data) job.dx = tensor_as_rows(&args->out[0], 1);
    return job;
}

static float *sums_of(const Job *job)
{
    return (float *)(void *)place_in(job->args, gpu_logits_space(job->x.n, job->w.n, 0).sums);
}

static Status prepare_stats_grad(KernelArgs *args)
{
    Job job = job_of_whole(args);
    if (((const VocabAttr *)args->attr)->parts && job.dx.data)
        job = job_of_gradient(args, 0, sums_of(&job));
    return prepare_job(&job);
}

static Status part_gradient(Job *job)
{
    const float *factors = (const float *)job->args->in[3].data;
    while (next_tokens(job)) {
        TRY(make_logits(job));
        TRY(make_gradient(job, factors + job->first * VOCAB_STATS));
    }
    return OK;
}

static Status make_part(void *context, int part, float *dx)
{
    Job job = job_of_gradient((KernelArgs *)context, part, dx);
    return part_gradient(&job);
}

__global__ static void __launch_bounds__(ROW_THREADS) copy_rows_kernel(Rows to, const float *from)
{
    for (int64_t i = threadIdx.x; i < to.width; i += ROW_THREADS)
        row_at<float>(to, blockIdx.x)[i] = from[blockIdx.x * to.width + i];
}

static Status run_stats_grad(KernelArgs *args)
{
    int parts = parts_of(args);
    Job job = job_of_whole(args);
    if (!((const VocabAttr *)args->attr)->parts) return part_gradient(&job);
    if (!job.dx.data) { /* nothing to sum */
        for (int part = 0; part < parts; part++) TRY(make_part(args, part, NULL));
        return OK;
    }
    Summands summands = {job.x.n * job.x.width};
    float *sum = sums_of(&job);
    TRY(gpu_tree_of_leaves(args->stream, make_part, args, 0, parts, sum, sum + summands.count,
                           &summands));
    if (!job.x.n) return OK;
    return GPU_LAUNCH(args->stream, (unsigned)job.x.n, ROW_THREADS, 0, copy_rows_kernel, job.dx,
                      (const float *)sum);
}

CUDA_KERNEL(linear_cross_entropy) = {.run = run, .prepare = prepare, .release = release};
CUDA_KERNEL(linear_cross_entropy_grad) = {
    .run = run_grad, .prepare = prepare_grad, .release = release};
CUDA_KERNEL(vocab_stats) = {.run = run_stats, .prepare = prepare_stats, .release = release};
CUDA_KERNEL(vocab_stats_grad) = {
    .run = run_stats_grad, .prepare = prepare_stats_grad, .release = release};
