/* Kernels of linear_cross_entropy and its gradient.
 *
 * Tokens are walked in blocks of R. Logits are kept transposed, [V R]: then w is read in place as
 * the left operand, a vector holds the same word's logit of many tokens, and dlogits [V R] is in
 * turn the left operand in place of dw = dlogits x. For each block:
 *   1. for chunks of words, on any thread: logits, their maximum m_c and sum of e = exp(logit -
 *   m_c)
 *      for each token; the gradient keeps e in the logits' place;
 *   2. for each token, chunks joined in order: lse, nll, and the gradient's factors;
 *   3. for chunks of words: dlogits = factor e - one_hot in place (bf16 in the first half of the
 *   f32
 *      row), then dw of these words;
 *   4. dx = dlogits^T w, summed in f32 over all words.
 * One exponential a logit. Chunks depend on shapes only, so results do not depend on the threads.
 */
#include "ops/chunks.h"
#include "ops/gemm.h"
#include "ops/linear_cross_entropy.h"
#include "ops/share.h"
#include "ops/simd.h"
#include "ops/vocab_loss.h"

enum { DW_COLUMNS = 768 }; /* of dw at a time, so that packed x stays in L2 */

typedef struct Job {
    Rows x, w, dx;          /* dx.data NULL without gradient */
    const int32_t *targets; /* of all tokens; so weights, nll */
    const float *weights;
    float *nll, *dw;
    const void *packed; /* w as the product of dx reads it, or NULL */
    float z_loss, dloss;
    int64_t vocab, dim, rows, chunk, n_chunks; /* rows: R */
    int64_t first_word;                        /* w holds the words from this one on */
    int64_t first, n;                          /* the block's tokens */
    int threads;
    bool grad;
    /* in the workspace */
    float *logits;                           /* gradient: [V R]; else a chunk [chunk R] a thread */
    float *chunk_max, *chunk_sum;            /* [n_chunks R] */
    float *target_logit, *lse, *scale, *hit; /* [R]; scale: of softmax, hit: minus one_hot */
    float *dx_sum;                           /* [R D], bf16 only */
    char *scratch;
    size_t scratch_bytes; /* a thread */
} Job;

/* ---- sizes ------------------------------------------------------------------------------ */

static GemmBlock block_logits(const Job *job, int64_t chunk)
{
    int64_t word = chunk * job->chunk;
    return (GemmBlock){.m = min_i64(job->chunk, job->vocab - word),
                       .n = job->n,
                       .k = job->dim,
                       .a = {NULL, job->w.dtype, job->w.pitch, 1},
                       .b = {NULL, job->x.dtype, job->x.pitch, 1},
                       .c_dtype = DTYPE_F32,
                       .c_pitch = job->rows};
}

/* dlogits lie with this pitch in their own dtype */
static int64_t dlogits_pitch(const Job *job)
{
    return job->x.dtype == DTYPE_BF16 ? 2 * job->rows : job->rows;
}

static GemmBlock block_dw(const Job *job, int64_t chunk)
{
    int64_t word = chunk * job->chunk;
    return (GemmBlock){.m = min_i64(job->chunk, job->vocab - word),
                       .n = min_i64(job->dim, DW_COLUMNS),
                       .k = job->n,
                       .a = {NULL, job->x.dtype, dlogits_pitch(job), 1},
                       .b = {NULL, job->x.dtype, 1, job->x.pitch},
                       .c_dtype = DTYPE_F32,
                       .c_pitch = job->dim};
}

static GemmBlock product_dx(const Job *job)
{
    return (GemmBlock){.m = job->n,
                       .n = job->dim,
                       .k = job->vocab,
                       .a = {job->logits, job->x.dtype, 1, dlogits_pitch(job)},
                       .b = {job->w.data, job->w.dtype, 1, job->w.pitch},
                       .c_dtype = DTYPE_F32,
                       .c_pitch = job->dim,
                       .packed = job->packed};
}

static size_t scratch_of_thread(const Job *job)
{
    GemmBlock logits = block_logits(job, 0), dw = block_dw(job, 0), dx = product_dx(job);
    size_t most = CPU(gemm).block_scratch(&logits);
    if (!job->grad) return most;
    size_t of_dw = CPU(gemm).block_scratch(&dw);
    size_t of_dx = CPU(gemm).scratch(&dx, job->threads) / (size_t)job->threads;
    most = most > of_dw ? most : of_dw;
    return most > of_dx ? most : of_dx;
}

static Job job_of(Rows x, Rows w, bool grad, int threads)
{
    Job job = {.x = x, .w = w, .vocab = w.n, .dim = w.width, .threads = threads, .grad = grad};
    job.rows = min_i64(cross_entropy_rows(w.n), (x.n + 31) / 32 * 32);
    job.chunk = cross_entropy_chunk(w.n);
    job.n_chunks = (w.n + job.chunk - 1) / job.chunk;
    job.n = min_i64(job.rows, x.n);
    job.scratch_bytes = scratch_of_thread(&job);
    return job;
}

/* Lays the workspace out from `base` (0: only to learn its size) and returns its bytes. */
static size_t lay_out(Job *job, char *base)
{
    size_t at = 0, row = (size_t)job->rows * 4;
    struct Piece {
        float **place;
        size_t bytes;
    } pieces[] = {
        {&job->logits, row * (size_t)(job->grad ? job->vocab : job->chunk * job->threads)},
        {&job->chunk_max, row * (size_t)job->n_chunks},
        {&job->chunk_sum, row * (size_t)job->n_chunks},
        {&job->target_logit, row},
        {&job->lse, row},
        {&job->scale, row},
        {&job->hit, row},
        {&job->dx_sum, job->grad && job->x.dtype == DTYPE_BF16 ? row * (size_t)job->dim : 0},
    };
    for (int i = 0; i < COUNT_OF(pieces); i++) {
        if (base) *pieces[i].place = (float *)(void *)(base + at);
        at += (pieces[i].bytes + 63) / 64 * 64;
    }
    if (base) job->scratch = base + at;
    return at + job->scratch_bytes * (size_t)job->threads;
}

/* ---- 1: logits and their statistics, a chunk of words ----------------------------------- */

static void chunk_statistics(const Job *job, float *logits, int64_t words, float *maximum,
                             float *sum)
{
    for (int64_t r = 0; r < job->rows; r += VL) {
        vf_store(maximum + r, vf_load(logits + r));
        vf_store(sum + r, vf_zero());
    }
    for (int64_t v = 1; v < words; v++)
        for (int64_t r = 0; r < job->rows; r += VL)
            vf_store(maximum + r,
                     vf_max(vf_load(maximum + r), vf_load(logits + v * job->rows + r)));
    for (int64_t v = 0; v < words; v++) {
        float *row = logits + v * job->rows;
        for (int64_t r = 0; r < job->rows; r += VL) {
            Vf e = vf_exp(vf_load(row + r) - vf_load(maximum + r));
            vf_store(sum + r, vf_load(sum + r) + e);
            if (job->grad) vf_store(row + r, e);
        }
    }
}

static void chunk_forward(const Job *job, int64_t chunk)
{
    GemmBlock block = block_logits(job, chunk);
    int64_t word = chunk * job->chunk;
    float *logits = job->logits + (job->grad ? word : thread_index() * job->chunk) * job->rows;
    block.a.data = job->w.data + word * job->w.pitch * (int64_t)dtype_bytes(job->w.dtype);
    block.b.data = job->x.data + job->first * job->x.pitch * (int64_t)dtype_bytes(job->x.dtype);
    block.c = logits;
    block.scratch = job->scratch + (size_t)thread_index() * job->scratch_bytes;
    CPU(gemm).run(&block);
    for (int64_t r = 0; r < job->n; r++) {
        int64_t at = job->targets[job->first + r] - job->first_word - word;
        if (at >= 0 && at < block.m) job->target_logit[r] = logits[at * job->rows + r];
    }
    chunk_statistics(job, logits, block.m, job->chunk_max + chunk * job->rows,
                     job->chunk_sum + chunk * job->rows);
}

/* ---- 2: a token ------------------------------------------------------------------------- */

static void token_join(const Job *job, int64_t r)
{
    float most = job->chunk_max[r];
    for (int64_t c = 1; c < job->n_chunks; c++)
        most = fmaxf(most, job->chunk_max[c * job->rows + r]);
    double sum = 0;
    for (int64_t c = 0; c < job->n_chunks; c++) {
        int64_t at = c * job->rows + r;
        sum += exp((double)(job->chunk_max[at] - most)) * (double)job->chunk_sum[at];
    }
    double lse = (double)most + log(sum);
    int32_t target = job->targets[job->first + r];
    bool counts = target >= 0 && target < job->vocab;
    float weight = counts ? job->weights[job->first + r] * job->dloss : 0;
    job->lse[r] = (float)lse;
    if (job->nll)
        job->nll[job->first + r] = counts ? (float)(lse - (double)job->target_logit[r]) : 0;
    job->hit[r] = weight;
    job->scale[r] = weight * (1 + 2 * job->z_loss * (float)lse);
}

/* ---- 3: dlogits and dw, a chunk of words ------------------------------------------------ */

/* bf16 row v is written over the first half of f32 row v, which has been read by then */
static void row_dlogits(float *row, const float *factor, int64_t n, const int bf16)
{
    for (int64_t r = 0; r < n; r += VL)
        vf_store_as(row, r, vf_load(row + r) * vf_load(factor + r), bf16);
}

static void chunk_dlogits(const Job *job, int64_t chunk, int64_t words)
{
    float factor[CROSS_ENTROPY_MAX_ROWS], *logits = job->logits + chunk * job->chunk * job->rows;
    const float *m = job->chunk_max + chunk * job->rows;
    const int32_t *targets = job->targets + job->first;
    const bool bf16 = job->x.dtype == DTYPE_BF16;
    for (int64_t r = 0; r < job->rows; r += VL)
        vf_store(factor + r,
                 vf_load(job->scale + r) * vf_exp(vf_load(m + r) - vf_load(job->lse + r)));
    /* the targets' e are kept aside, so that the difference is rounded once */
    for (int64_t r = 0; r < job->n; r++) {
        int64_t v = targets[r] - job->first_word - chunk * job->chunk;
        if (v >= 0 && v < words) job->target_logit[r] = logits[v * job->rows + r];
    }
    for (int64_t v = 0; v < words; v++) {
        if (bf16)
            row_dlogits(logits + v * job->rows, factor, job->rows, 1);
        else
            row_dlogits(logits + v * job->rows, factor, job->rows, 0);
    }
    for (int64_t r = 0; r < job->n; r++) {
        int64_t v = targets[r] - job->first_word - chunk * job->chunk;
        if (v < 0 || v >= words) continue;
        float d = job->target_logit[r] * factor[r] - job->hit[r], *row = logits + v * job->rows;
        if (bf16)
            ((uint16_t *)(void *)row)[r] = bf16_from_f32(d);
        else
            row[r] = d;
    }
}

static void chunk_backward(const Job *job, int64_t chunk)
{
    GemmBlock block = block_dw(job, chunk);
    const int64_t word = chunk * job->chunk, size = (int64_t)dtype_bytes(job->x.dtype);
    chunk_dlogits(job, chunk, block.m);
    if (!job->dw) return;
    block.a.data = job->logits + word * job->rows;
    block.add = job->first > 0;
    block.scratch = job->scratch + (size_t)thread_index() * job->scratch_bytes;
    for (int64_t j = 0; j < job->dim; j += DW_COLUMNS) {
        block.n = min_i64(job->dim - j, DW_COLUMNS);
        block.b.data = job->x.data + (job->first * job->x.pitch + j) * size;
        block.c = job->dw + word * job->dim + j;
        CPU(gemm).run(&block);
    }
}

/* ---- 4: dx ------------------------------------------------------------------------------ */

static void block_dx(const Job *job)
{
    GemmBlock product = product_dx(job);
    char *dx = job->dx.data + job->first * job->dx.pitch * (int64_t)dtype_bytes(job->dx.dtype);
    bool bf16 = job->dx.dtype == DTYPE_BF16;
    product.c = bf16 ? (char *)job->dx_sum : dx;
    product.c_pitch = bf16 ? job->dim : job->dx.pitch;
    product.scratch = job->scratch;
    CPU(gemm).multiply(&product, job->threads);
    if (!bf16) return;
    for (int64_t r = 0; r < job->n; r++) {
        uint16_t *to = (uint16_t *)(void *)dx + r * job->dx.pitch;
        const float *from = job->dx_sum + r * job->dim;
        int64_t i = 0;
        for (; i + VL <= job->dim; i += VL) vf_store_bf16(to + i, vf_load(from + i));
        if (i < job->dim) vf_store_bf16_n(to + i, vf_load_n(from + i, job->dim - i), job->dim - i);
    }
}

/* ---- all blocks ------------------------------------------------------------------------- */

static void block_forward(const Job *job)
{
    Shares shares;
    shares_deal(&shares, job->threads, job->n_chunks);
#pragma omp parallel num_threads(job->threads)
    for (int64_t c; (c = shares_take(&shares)) >= 0;) chunk_forward(job, c);
}

static void block_backward(const Job *job)
{
    Shares shares;
    shares_deal(&shares, job->threads, job->n_chunks);
#pragma omp parallel num_threads(job->threads)
    for (int64_t c; (c = shares_take(&shares)) >= 0;) chunk_backward(job, c);
    if (job->dx.data) block_dx(job);
}

static double run_block(const Job *job)
{
    double loss = 0;
    block_forward(job);
#pragma omp parallel for num_threads(job->threads)
    for (int64_t r = 0; r < job->n; r++) token_join(job, r);
    for (int64_t r = 0; r < job->n; r++) {
        int32_t target = job->targets[job->first + r];
        double lse = (double)job->lse[r], nll = lse - (double)job->target_logit[r];
        if (target >= 0 && target < job->vocab)
            loss += (double)job->weights[job->first + r] * (nll + (double)job->z_loss * lse * lse);
    }
    if (job->grad) block_backward(job);
    return loss;
}

static Status run_job(Job *job, KernelArgs *args)
{
    double loss = 0;
    lay_out(job, args->workspace);
    job->targets = args->in[2].data;
    job->weights = args->in[3].data;
    job->z_loss = *(const float *)args->attr;
    job->nll = args->out[1].data;
    for (job->first = 0; job->first < job->x.n; job->first += job->rows) {
        job->n = min_i64(job->rows, job->x.n - job->first);
        loss += run_block(job);
    }
    if (args->out[0].data) *(float *)args->out[0].data = (float)loss;
    return OK;
}

static Status run(KernelArgs *args)
{
    Job job = job_of(tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1), false,
                     args->threads);
    return run_job(&job, args);
}

static Status run_grad(KernelArgs *args)
{
    Job job = job_of(tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1), true,
                     args->threads);
    job.dloss = *(const float *)args->in[4].data;
    if (args->out[2].data) job.dx = tensor_as_rows(&args->out[2], 1);
    job.dw = args->out[3].data;
    job.packed = args->packed;
    return run_job(&job, args);
}

/* All of w, which dx reads once for every block of tokens. */
static Job job_of_packed(Rows w)
{
    return (Job){.x = {.dtype = w.dtype}, .w = w, .vocab = w.n, .dim = w.width};
}

static size_t packed_bytes(const Graph *graph, const Node *node)
{
    if (!value_ok(node->out[2])) return 0;
    Job job = job_of_packed(value_as_rows(graph_value(graph, node->in[1]), 1));
    GemmBlock dx = product_dx(&job);
    return CPU(gemm).packed_bytes(&dx);
}

static void pack(const KernelArgs *args, void *packed)
{
    Job job = job_of_packed(tensor_as_rows(&args->in[1], 1));
    GemmBlock dx = product_dx(&job);
    CPU(gemm).pack(&dx, packed, args->threads);
}

static const Packing packing = {.operand = 1, packed_bytes, pack};

static size_t workspace_of(const Graph *graph, const Node *node, const Target *target, bool grad)
{
    Rows x = value_as_rows(graph_value(graph, node->in[0]), 1),
         w = value_as_rows(graph_value(graph, node->in[1]), 1);
    Job job = job_of(x, w, grad, target->threads);
    return lay_out(&job, NULL);
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_of(graph, node, target, false);
}

static size_t workspace_grad(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_of(graph, node, target, true);
}

/* ---- a part of the vocabulary (vocab_loss.h) -------------------------------------------- */

static int parts_of(const void *attr) { return (int)max_i64(1, ((const VocabAttr *)attr)->parts); }

/* The words of part `part`, of those that are here. */
static Rows words_of(Rows w, const void *attr, int part)
{
    w.n /= parts_of(attr);
    if (w.data) w.data += part * w.n * w.pitch * (int64_t)dtype_bytes(w.dtype);
    return w;
}

static Job job_of_part(KernelArgs *args, int part, bool grad)
{
    Rows w = words_of(tensor_as_rows(&args->in[1], 1), args->attr, part);
    Job job = job_of(tensor_as_rows(&args->in[0], 1), w, grad, args->threads);
    lay_out(&job, args->workspace);
    job.targets = args->in[2].data;
    job.first_word = ((const VocabAttr *)args->attr)->first + part * w.n;
    return job;
}

/* The maximum, the sum of exp(logit - maximum) and the target's logit, or zero, of the words here.
 */
static void token_statistics(const Job *job, int64_t r, float *stats)
{
    float most = job->chunk_max[r];
    double sum = 0;
    for (int64_t c = 1; c < job->n_chunks; c++)
        most = fmaxf(most, job->chunk_max[c * job->rows + r]);
    for (int64_t c = 0; c < job->n_chunks; c++) {
        int64_t at = c * job->rows + r;
        sum += exp((double)(job->chunk_max[at] - most)) * (double)job->chunk_sum[at];
    }
    stats[VOCAB_MAX] = most;
    stats[VOCAB_SUM] = (float)sum;
    stats[VOCAB_TARGET] = job->target_logit[r];
}

static void part_statistics(Job *job, float *stats)
{
    for (job->first = 0; job->first < job->x.n; job->first += job->rows) {
        job->n = min_i64(job->rows, job->x.n - job->first);
        memset(job->target_logit, 0, (size_t)job->rows * sizeof *job->target_logit);
        block_forward(job);
        for (int64_t r = 0; r < job->n; r++)
            token_statistics(job, r, stats + (job->first + r) * VOCAB_STATS);
    }
}

static Status run_stats(KernelArgs *args)
{
    float *stats = args->out[0].data;
    for (int part = 0; part < parts_of(args->attr); part++) {
        Job job = job_of_part(args, part, false);
        part_statistics(&job, stats + part * job.x.n * VOCAB_STATS);
    }
    return OK;
}

static void part_gradient(Job *job, const float *factors)
{
    for (job->first = 0; job->first < job->x.n; job->first += job->rows) {
        job->n = min_i64(job->rows, job->x.n - job->first);
        block_forward(job);
        memset(job->scale, 0, (size_t)job->rows * sizeof *job->scale);
        memset(job->lse, 0, (size_t)job->rows * sizeof *job->lse);
        for (int64_t r = 0; r < job->n; r++) {
            const float *f = factors + (job->first + r) * VOCAB_STATS;
            job->lse[r] = f[VOCAB_LSE];
            job->scale[r] = f[VOCAB_SCALE];
            job->hit[r] = f[VOCAB_HIT];
        }
        block_backward(job);
    }
}

/* dw of a part, and its summand of dx. */
static void make_part(void *context, int part, float *dx)
{
    KernelArgs *args = context;
    Job job = job_of_part(args, part, true);
    float *dw = args->out[1].data;
    job.dx = (Rows){
        .data = (char *)dx, .dtype = DTYPE_F32, .n = job.x.n, .width = job.dim, .pitch = job.dim};
    job.dw = dw ? dw + part * job.vocab * job.dim : NULL;
    part_gradient(&job, args->in[3].data);
}

static Status run_stats_grad(KernelArgs *args)
{
    int parts = parts_of(args->attr);
    Job job = job_of_part(args, 0, true);
    if (args->out[0].data) job.dx = tensor_as_rows(&args->out[0], 1);
    if (!((const VocabAttr *)args->attr)->parts) {
        job.dw = args->out[1].data;
        part_gradient(&job, args->in[3].data);
        return OK;
    }
    int64_t count = job.x.n * job.dim;
    float *sum = (float *)(void *)((char *)args->workspace + lay_out(&job, NULL));
    tree_of_leaves(make_part, args, 0, parts, sum, sum + count, count);
    for (int64_t r = 0; r < job.x.n && job.dx.data; r++)
        memcpy(row_f32(&job.dx, r), sum + r * job.dim, (size_t)job.dim * sizeof *sum);
    return OK;
}

static size_t workspace_of_part(const Graph *graph, const Node *node, const Target *target,
                                bool grad)
{
    Rows x = value_as_rows(graph_value(graph, node->in[0]), 1);
    Job job = job_of(x, words_of(value_as_rows(graph_value(graph, node->in[1]), 1), node->attr, 0),
                     grad, target->threads);
    size_t bytes = lay_out(&job, NULL);
    if (!grad || !((const VocabAttr *)node->attr)->parts) return bytes;
    return bytes +
           (size_t)((1 + tree_levels(parts_of(node->attr))) * x.n * x.width) * sizeof(float);
}

static size_t workspace_stats(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_of_part(graph, node, target, false);
}

static size_t workspace_stats_grad(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_of_part(graph, node, target, true);
}

const Kernel CPU(vocab_stats) = {.run = run_stats, .workspace = workspace_stats};
const Kernel CPU(vocab_stats_grad) = {.run = run_stats_grad, .workspace = workspace_stats_grad};
const Kernel CPU(linear_cross_entropy) = {.run = run, .workspace = workspace};
const Kernel CPU(linear_cross_entropy_grad) = {
    .run = run_grad, .workspace = workspace_grad, .packing = &packing};
