/* Kernels of chunked_linear and chunked_linear_dx: a product (gemm.h) for each chunk and segment,
 * and the tree. */
#include "ops/chunks.h"
#include "ops/gemm.h"

/* Most rows that are summed at a time, so that the tree's buffers stay small. An element's sum does
 * not depend on where rows are cut, as long as no piece is so small that it is summed in another
 * order (gemm_cpu.c): pieces are equal. */
enum { ROWS_AT_ONCE = 512 };

static int64_t rows_at_once(int64_t rows)
{
    int64_t pieces = max_i64(1, (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE);
    return (rows + pieces - 1) / pieces;
}

typedef struct Job {
    const Chunks *chunks;
    Rows x, w; /* x, or dy */
    bool dx;
    int64_t first, n; /* the rows at hand */
    int threads;
    void *scratch; /* of the products */
} Job;

static int64_t width_of(const Job *job) { return job->dx ? job->w.width : job->w.n; }

/* Chunk `chunk` of segment `segment`, for the rows at hand; data NULL: only its size is asked for.
 */
static GemmBlock product(const Job *job, int chunk, int segment, float *c)
{
    ChunkPart part = chunk_part(job->chunks, chunk, segment);
    int64_t size = (int64_t)dtype_bytes(job->x.dtype);
    GemmBlock block = {
        .m = job->n,
        .n = width_of(job),
        .k = part.n,
        .a = {NULL, job->x.dtype, job->x.pitch, 1},
        .b = {NULL, job->w.dtype, job->dx ? 1 : job->w.pitch, job->dx ? job->w.pitch : 1},
        .c = c,
        .c_dtype = DTYPE_F32,
        .c_pitch = width_of(job),
        .add = segment > 0,
        .scratch = job->scratch};
    if (!c) return block;
    block.a.data = job->x.data + (job->first * job->x.pitch + part.first) * size;
    block.b.data = job->w.data + part.first * block.b.k_stride * size;
    return block;
}

static void make_chunk(void *context, int chunk, float *out)
{
    const Job *job = context;
    for (int s = 0; s < job->chunks->n_segments; s++) {
        GemmBlock block = product(job, chunk, s, out);
        CPU(gemm).multiply(&block, job->threads);
    }
}

static Job job_of(Rows x, Rows w, const void *attr, bool dx, int threads)
{
    return (Job){
        .chunks = attr, .x = x, .w = w, .dx = dx, .n = rows_at_once(x.n), .threads = threads};
}

/* Sums of the tree's levels; behind them the products' scratch. */
static size_t level_bytes(const Job *job)
{
    return ((size_t)(tree_levels(job->chunks->n) * job->n * width_of(job)) * sizeof(float) + 63) /
           64 * 64;
}

static Status run(KernelArgs *args, bool dx)
{
    Job job = job_of(tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1), args->attr,
                     dx, args->threads);
    float *levels = args->workspace, *y = args->out[0].data;
    int64_t each = job.n;
    job.scratch = (char *)args->workspace + level_bytes(&job);
    for (job.first = 0; job.first < job.x.n; job.first += each) {
        job.n = min_i64(each, job.x.n - job.first);
        tree_of_leaves(make_chunk, &job, 0, job.chunks->n, y + job.first * width_of(&job), levels,
                       job.n * width_of(&job));
    }
    return OK;
}

static size_t workspace_of(const Graph *graph, const Node *node, const Target *target, bool dx)
{
    Job job = job_of(value_as_rows(graph_value(graph, node->in[0]), 1),
                     value_as_rows(graph_value(graph, node->in[1]), 1), node->attr, dx,
                     target->threads);
    size_t most = 0;
    for (int s = 0; s < job.chunks->n_segments; s++) {
        GemmBlock block = product(&job, 0, s, NULL);
        size_t bytes = CPU(gemm).scratch(&block, target->threads);
        most = bytes > most ? bytes : most;
    }
    return level_bytes(&job) + most;
}

static Status run_y(KernelArgs *args) { return run(args, false); }
static Status run_dx(KernelArgs *args) { return run(args, true); }
static size_t workspace_y(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_of(graph, node, target, false);
}
static size_t workspace_dx(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_of(graph, node, target, true);
}

const Kernel CPU(chunked_linear) = {.run = run_y, .workspace = workspace_y};
const Kernel CPU(chunked_linear_dx) = {.run = run_dx, .workspace = workspace_dx};
