/* chunked_linear and chunked_linear_dx on the cuda device: a product for each chunk and segment,
 * and the tree. A chunk's product has the same sizes on every rank, so it is computed in the same
 * way.
 */
#include "ops/chunks.cuh"
#include "ops/product.cuh"

#include <stdlib.h>

/* Rows are taken in equal pieces but for the last. */
enum { PIECES = 2 };

typedef struct Plans {
    GpuProductPlan *product[PIECES][CHUNK_SEGMENTS];
} Plans;

typedef struct Job {
    KernelArgs *args;
    const Chunks *chunks;
    Rows x, w; /* x, or dy */
    bool dx;
    int64_t first, n; /* the rows at hand */
    int piece;        /* of PIECES, which they are */
} Job;

static int64_t width_of(const Job *job) { return job->dx ? job->w.width : job->w.n; }

static char *element_at(const Rows *rows, int64_t row, int64_t column)
{
    return rows->data + (row * rows->pitch + column) * (int64_t)dtype_bytes(rows->dtype);
}

/* Chunk `chunk` of segment `segment`, for the rows at hand, into `out`. */
static RowsProduct product_of(const Job *job, int chunk, int segment, float *out)
{
    ChunkPart part = chunk_part(job->chunks, chunk, segment);
    RowsProduct p = {job->x, job->w};
    p.b_transposed = !job->dx;
    p.accumulate = segment > 0;
    p.a.data = element_at(&job->x, job->first, part.first);
    p.a.n = job->n;
    p.a.width = part.n;
    p.b.data = element_at(&job->w, job->dx ? part.first : 0, job->dx ? 0 : part.first);
    if (job->dx)
        p.b.n = part.n;
    else
        p.b.width = part.n;
    p.c.data = (char *)out;
    p.c.dtype = DTYPE_F32;
    p.c.n = job->n;
    p.c.width = p.c.pitch = width_of(job);
    return p;
}

static Job job_of(KernelArgs *args, bool dx)
{
    Job job = {args, (const Chunks *)args->attr, tensor_as_rows(&args->in[0], 1),
               tensor_as_rows(&args->in[1], 1), dx};
    return job;
}

/* All chunks lie alike, but for how their addresses are aligned: that of the first two says it. */
static Status plan_piece(Job *job, Plans *plans)
{
    for (int s = 0; s < job->chunks->n_segments; s++) {
        RowsProduct p = product_of(job, 0, s, (float *)job->args->out[0].data);
        if (job->chunks->n > 1) {
            RowsProduct other = product_of(job, 1, s, (float *)job->args->out[0].data);
            if (rows_alignment(&other.a) < rows_alignment(&p.a)) p.a.data = other.a.data;
            if (rows_alignment(&other.b) < rows_alignment(&p.b)) p.b.data = other.b.data;
        }
        TRY(product_plan(job->args->stream, &p, job->args->workspace,
                         &plans->product[job->piece][s]));
    }
    return OK;
}

static void release(KernelArgs *args)
{
    Plans *plans = (Plans *)args->state;
    for (int i = 0; plans && i < (int)PIECES * CHUNK_SEGMENTS; i++)
        gpu_product_plan_destroy(plans->product[i / CHUNK_SEGMENTS][i % CHUNK_SEGMENTS]);
    free(plans);
    args->state = NULL;
}

template <bool dx> static Status prepare(KernelArgs *args)
{
    Plans *plans = (Plans *)xcalloc(1, sizeof *plans);
    args->state = plans;
    Job job = job_of(args, dx);
    int64_t each = gpu_chunk_rows(job.x.n), rest = each ? job.x.n % each : 0;
    job.n = each;
    Status status = plan_piece(&job, plans);
    job.n = rest;
    job.piece = 1;
    if (status == OK && rest) status = plan_piece(&job, plans);
    if (status != OK) release(args);
    return status;
}

static Status make_chunk(void *context, int chunk, float *out)
{
    const Job *job = (const Job *)context;
    const Plans *plans = (const Plans *)job->args->state;
    for (int s = 0; s < job->chunks->n_segments; s++) {
        RowsProduct p = product_of(job, chunk, s, out);
        TRY(gpu_product_run(plans->product[job->piece][s], p.a.data, p.b.data, out,
                            job->args->workspace));
    }
    return OK;
}

template <bool dx> static Status run(KernelArgs *args)
{
    Job job = job_of(args, dx);
    int64_t each = gpu_chunk_rows(job.x.n), width = width_of(&job);
    float *levels = (float *)(void *)((char *)args->workspace + GPU_PRODUCT_WORKSPACE_BYTES),
          *y = (float *)args->out[0].data;
    for (job.first = 0; job.first < job.x.n; job.first += each) {
        job.n = min_i64(each, job.x.n - job.first);
        job.piece = job.n == each ? 0 : 1;
        Summands summands = {job.n * width};
        TRY(gpu_tree_of_leaves(args->stream, make_chunk, &job, 0, job.chunks->n,
                               y + job.first * width, levels, &summands));
    }
    return OK;
}

CUDA_KERNEL(chunked_linear) = {.run = run<false>, .prepare = prepare<false>, .release = release};
CUDA_KERNEL(chunked_linear_dx) = {.run = run<true>, .prepare = prepare<true>, .release = release};
