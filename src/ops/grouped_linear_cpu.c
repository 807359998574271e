/* Kernels of grouped_linear and its gradients.
 *
 * How many rows an expert has is known only now: the work is a list of items, each a block of one
 * expert's product for one thread (share.h), so that uneven experts leave nobody idle. An item
 * packs its part of the weight once for up to ITEM_ROWS rows. An element of the result is summed
 * the same way whatever the item it falls into.
 *
 * An expert's rows may come in several segments, of the ranks that sent them (expert_exchange.c):
 * then dw is the sum of theirs as a tree. chunked_grouped_linear sums over the contraction as a
 * tree (chunks.h). Both are made item by item.
 */
#include "ops/chunks.h"
#include "ops/gemm.h"
#include "ops/grouped_linear.h"
#include "ops/share.h"
#include "ops/simd.h"

enum {
    ITEM_ROWS = 512,
    ITEM_LINES = 384,     /* most columns of an item, and rows of one of dw */
    L2_WORDS = 96 * 1024, /* of packed weight */
    BLOCK_WORDS = 512,    /* of k that meet at a time: see gemm_cpu.c */
    ITEMS_PER_THREAD = 6,
};

/* The product of an expert is m x n from k; an item is at most cut_m x cut_n of it. */
typedef struct Job {
    Rows first, second,
        out; /* x or dy; in dw what gives w's axis 1, then what gives axis 2; y or dx */
    const int32_t *offsets;
    int64_t n_experts, rows;
    int sources;          /* segments of an expert's rows */
    const Chunks *chunks; /* NULL: the contraction is one sum */
    int64_t w_1, w_2;     /* axes 1 and 2 of w: I and O, or O and I */
    int64_t m, n; /* of an expert's product; m is 0 where it is the expert's number of rows */
    int64_t cut_m, cut_n;
    GemmBlock block;    /* what all items share */
    const char *packed; /* all experts' weights, or NULL; so many bytes each */
    size_t packed_bytes;
    size_t scratch_bytes;
    size_t gemm_bytes; /* of them; behind those lie the sums of a tree */
} Job;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t part(int64_t length, int64_t parts, int64_t unit)
{
    return ceil_div(ceil_div(length, parts), unit) * unit;
}

/* of segment s, which is of expert s / sources */
static int64_t segment_start(const Job *job, int64_t s)
{
    return max_i64(0, min_i64(job->offsets[s], job->rows));
}

static int64_t segment_rows(const Job *job, int64_t s)
{
    return max_i64(0, segment_start(job, s + 1) - segment_start(job, s));
}

static int sources_of(const Shape *offsets, const Shape *w)
{
    return (int)((offsets->dim[0] - 1) / w->dim[0]);
}

/* A tree of n leaves: its result and its levels, each a whole item. */
static void add_tree_scratch(Job *job, int n)
{
    size_t sums = (size_t)((1 + tree_levels(n)) * job->cut_m * job->cut_n) * sizeof(float);
    job->scratch_bytes = job->gemm_bytes + (sums + 63) / 64 * 64;
}

/* Columns of an item: packed weight fits L2, and there are items enough for the team. */
static void cut_rows(Job *job, int threads)
{
    int64_t words = min_i64(BLOCK_WORDS,
                            ceil_div(job->block.k * (int64_t)dtype_bytes(job->first.dtype), 4));
    int64_t widest = max_i64(64, min_i64(ITEM_LINES, L2_WORDS / words));
    int64_t chunks = max_i64(1, job->rows / ITEM_ROWS);
    int64_t parts = max_i64(ceil_div(job->n, widest), ceil_div(ITEMS_PER_THREAD * threads, chunks));
    parts = min_i64(parts, ceil_div(job->n, 64));
    job->cut_m = ITEM_ROWS;
    job->cut_n = part(job->n, parts, CPU(gemm).columns);
}

/* rows [R k] times w[e] [w_1 w_2], of which they meet axis `axis`: 1: lines are along axis 2; 2:
 * along axis 1. */
static Job job_rows(Rows first, Rows out, const Shape *w, DType w_dtype, int axis, int threads)
{
    Job job = {.first = first, .out = out, .rows = first.n};
    job.n_experts = w->dim[0], job.w_1 = w->dim[1], job.w_2 = w->dim[2];
    job.n = w->dim[3 - axis];
    job.block = (GemmBlock){.m = ITEM_ROWS,
                            .k = w->dim[axis],
                            .a = {NULL, first.dtype, first.pitch, 1},
                            .b = {NULL, w_dtype, axis == 2 ? job.w_2 : 1, axis == 2 ? 1 : job.w_2},
                            .c_dtype = out.dtype,
                            .c_pitch = out.pitch};
    cut_rows(&job, threads);
    job.block.n = job.cut_n;
    job.scratch_bytes = job.gemm_bytes = CPU(gemm).block_scratch(&job.block);
    return job;
}

/* dw[e] [w_1 w_2] from first [R w_1] and second [R w_2] */
static Job job_dw(Rows first, Rows second, const Shape *w, int sources, int threads)
{
    Job job = {.first = first, .second = second, .rows = first.n, .sources = sources};
    job.n_experts = w->dim[0], job.m = job.w_1 = w->dim[1], job.n = job.w_2 = w->dim[2];
    job.block = (GemmBlock){.k = first.n,
                            .a = {NULL, first.dtype, 1, first.pitch},
                            .b = {NULL, second.dtype, 1, second.pitch},
                            .c_dtype = DTYPE_F32,
                            .c_pitch = job.w_2};
    int64_t n_parts = ceil_div(job.n, ITEM_LINES);
    int64_t m_parts = max_i64(ceil_div(job.m, ITEM_LINES), ceil_div(2 * threads, n_parts));
    job.cut_m = part(job.m, m_parts, CPU(gemm).rows);
    job.cut_n = part(job.n, n_parts, CPU(gemm).columns);
    job.block.n = job.cut_n;
    job.scratch_bytes = job.gemm_bytes = CPU(gemm).block_scratch(&job.block);
    if (sources > 1) add_tree_scratch(&job, sources);
    return job;
}

/* ---- items ------------------------------------------------------------------------------ */

typedef struct Item {
    int64_t of, i,
        j; /* the expert of dw, else the segment of rows; where in its product it begins */
} Item;

static int64_t n_products(const Job *job)
{
    return job->m ? job->n_experts : job->n_experts * job->sources;
}
static int64_t product_m(const Job *job, int64_t of)
{
    return job->m ? job->m : segment_rows(job, of);
}

static int64_t product_items(const Job *job, int64_t of)
{
    return ceil_div(product_m(job, of), job->cut_m) * ceil_div(job->n, job->cut_n);
}

static int64_t count_items(const Job *job)
{
    int64_t items = 0;
    for (int64_t p = 0; p < n_products(job); p++) items += product_items(job, p);
    return items;
}

static Item item_at(const Job *job, int64_t index)
{
    Item item = {0};
    while (index >= product_items(job, item.of)) index -= product_items(job, item.of++);
    int64_t parts = ceil_div(job->n, job->cut_n);
    item.i = index / parts * job->cut_m;
    item.j = index % parts * job->cut_n;
    return item;
}

static GemmBlock block_of(const Job *job, Item item, char *scratch)
{
    GemmBlock block = job->block;
    block.m = min_i64(job->cut_m, product_m(job, item.of) - item.i);
    block.n = min_i64(job->cut_n, job->n - item.j);
    block.scratch = scratch + (size_t)thread_index() * job->scratch_bytes;
    return block;
}

static const char *at(const void *data, int64_t elements, DType dtype)
{
    return (const char *)data + elements * (int64_t)dtype_bytes(dtype);
}

/* What a tree over an item's product sums. */
typedef struct Leaves {
    const Job *job;
    const Item *item;
    GemmBlock block;
    int64_t place; /* in the weight, of the item's lines */
    const void *w;
} Leaves;

/* The rows of one source. */
static void make_source(void *context, int source, float *out)
{
    const Leaves *l = context;
    const Job *job = l->job;
    GemmBlock block = l->block;
    int64_t segment = l->item->of * job->sources + source, row = segment_start(job, segment);
    block.k = segment_rows(job, segment);
    if (block.k == 0) {
        for (int64_t i = 0; i < block.m; i++)
            memset(out + i * block.c_pitch, 0, (size_t)block.n * sizeof *out);
        return;
    }
    block.a.data = at(job->first.data, row * job->first.pitch + l->item->i, job->first.dtype);
    block.b.data = at(job->second.data, row * job->second.pitch + l->item->j, job->second.dtype);
    block.c = out;
    CPU(gemm).run(&block);
}

/* One chunk of the contraction. */
static void make_chunk(void *context, int chunk, float *out)
{
    const Leaves *l = context;
    const Job *job = l->job;
    int64_t row = segment_start(job, l->item->of) + l->item->i;
    for (int s = 0; s < job->chunks->n_segments; s++) {
        ChunkPart part = chunk_part(job->chunks, chunk, s);
        GemmBlock block = l->block;
        block.k = part.n;
        block.add = s > 0;
        block.a.data = at(job->first.data, row * job->first.pitch + part.first, job->first.dtype);
        block.b.data = at(l->w, l->place + part.first * block.b.k_stride, block.b.dtype);
        block.c = out;
        CPU(gemm).run(&block);
    }
}

/* The item's sum over n leaves, made aside and then put at `to`. */
static void run_tree(Leaves *l, LeafFn *leaf, int n, float *to, int64_t pitch)
{
    const Job *job = l->job;
    int64_t width = l->block.n, count = l->block.m * width;
    float *sum = (float *)(void *)((char *)l->block.scratch + job->gemm_bytes);
    l->block.c_pitch = width;
    tree_of_leaves(leaf, l, 0, n, sum, sum + count, count);
    for (int64_t i = 0; i < l->block.m; i++)
        memcpy(to + i * pitch, sum + i * width, (size_t)width * sizeof *to);
}

/* The packed weight of the item's expert, from its first column on. */
static const uint32_t *packed_item(const Job *job, const GemmBlock *block, Item item)
{
    const char *expert = job->packed + (size_t)(item.of / job->sources) * job->packed_bytes;
    return CPU(gemm).packed_line(block, (const uint32_t *)(const void *)expert, item.j);
}

static void run_rows_item(const Job *job, const void *w, Item item, char *scratch)
{
    GemmBlock block = block_of(job, item, scratch);
    int64_t row = segment_start(job, item.of) + item.i;
    int64_t weight = item.of / job->sources * job->w_1 * job->w_2 + item.j * block.b.line_stride;
    char *y = job->out.data +
              (row * job->out.pitch + item.j) * (int64_t)dtype_bytes(job->out.dtype);
    if (job->chunks) {
        Leaves leaves = {job, &item, block, weight, w};
        run_tree(&leaves, make_chunk, job->chunks->n, (float *)(void *)y, job->out.pitch);
        return;
    }
    block.a.data = at(job->first.data, row * job->first.pitch, job->first.dtype);
    block.b.data = at(w, weight, block.b.dtype);
    if (job->packed) block.packed = packed_item(job, &block, item);
    block.c = y;
    CPU(gemm).run(&block);
}

static void run_dw_item(const Job *job, float *dw, Item item, char *scratch)
{
    Leaves leaves = {job, &item, block_of(job, item, scratch), 0, NULL};
    float *to = dw + (item.of * job->w_1 + item.i) * job->w_2 + item.j;
    if (job->sources > 1)
        run_tree(&leaves, make_source, job->sources, to, job->w_2);
    else
        make_source(&leaves, 0, to);
}

/* ---- kernels ---------------------------------------------------------------------------- */

/* The product of one expert, of which only what packing asks for is set. */
static GemmBlock packed_product(const Shape *w, DType dtype, int axis)
{
    const int64_t w_2 = w->dim[2];
    return (GemmBlock){.n = w->dim[3 - axis],
                       .k = w->dim[axis],
                       .b = {NULL, dtype, axis == 2 ? w_2 : 1, axis == 2 ? 1 : w_2}};
}

static size_t packed_expert(const Shape *w, DType dtype, int axis)
{
    GemmBlock product = packed_product(w, dtype, axis);
    return CPU(gemm).packed_bytes(&product);
}

static void pack_experts(const KernelArgs *args, void *packed, int axis)
{
    const Tensor *w = &args->in[1];
    GemmBlock product = packed_product(&w->shape, w->dtype, axis);
    const size_t bytes = CPU(gemm).packed_bytes(&product);
    for (int64_t e = 0; e < w->shape.dim[0]; e++) {
        product.b.data = at(w->data, e * w->shape.dim[1] * w->shape.dim[2], w->dtype);
        CPU(gemm).pack(&product, (uint32_t *)(void *)((char *)packed + (size_t)e * bytes),
                       args->threads);
    }
}

static Status run_rows(KernelArgs *args, int axis, const Chunks *chunks)
{
    const Tensor *w = &args->in[1];
    Job job = job_rows(tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->out[0], 1), &w->shape,
                       w->dtype, axis, args->threads);
    job.offsets = args->in[2].data;
    job.sources = sources_of(&args->in[2].shape, &w->shape);
    job.chunks = chunks;
    job.packed = args->packed;
    job.packed_bytes = packed_expert(&w->shape, w->dtype, axis);
    if (chunks) add_tree_scratch(&job, chunks->n);
    int64_t items = count_items(&job);
    Shares shares;
    shares_deal(&shares, args->threads, items);
#pragma omp parallel num_threads(args->threads) if (items > 1)
    for (int64_t i; (i = shares_take(&shares)) >= 0;)
        run_rows_item(&job, w->data, item_at(&job, i), args->workspace);
    return OK;
}

static size_t workspace_rows(const Graph *graph, const Node *node, const Target *target, int axis,
                             const Chunks *chunks)
{
    const Value *w = graph_value(graph, node->in[1]);
    Job job = job_rows(value_as_rows(graph_value(graph, node->in[0]), 1),
                       value_as_rows(graph_value(graph, node->out[0]), 1), &w->shape, w->dtype,
                       axis, target->threads);
    if (chunks) add_tree_scratch(&job, chunks->n);
    return job.scratch_bytes * (size_t)target->threads;
}

static Status run(KernelArgs *args) { return run_rows(args, grouped_in_axis(args->attr), NULL); }
static Status run_dx(KernelArgs *args)
{
    return run_rows(args, 3 - grouped_in_axis(args->attr), NULL);
}
static Status run_chunked(KernelArgs *args)
{
    const ChunkedGroupedAttr *attr = args->attr;
    return run_rows(args, (int)attr->axis, &attr->chunks);
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_rows(graph, node, target, grouped_in_axis(node->attr), NULL);
}

static size_t workspace_dx(const Graph *graph, const Node *node, const Target *target)
{
    return workspace_rows(graph, node, target, 3 - grouped_in_axis(node->attr), NULL);
}

static size_t workspace_chunked(const Graph *graph, const Node *node, const Target *target)
{
    const ChunkedGroupedAttr *attr = node->attr;
    return workspace_rows(graph, node, target, (int)attr->axis, &attr->chunks);
}

/* Operands are dy and x; which of them gives axis 1 of dw is the layout's. */
static Job job_dw_of(Rows dy, Rows x, const Shape *w, const Shape *offsets, const GroupedAttr *attr,
                     int threads)
{
    bool out_first = attr->layout == EXPERTS_OUT_IN;
    return job_dw(out_first ? dy : x, out_first ? x : dy, w, sources_of(offsets, w), threads);
}

static Status run_dw(KernelArgs *args)
{
    Job job = job_dw_of(tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1),
                        &args->out[0].shape, &args->in[2].shape, args->attr, args->threads);
    job.offsets = args->in[2].data;
    int64_t items = count_items(&job);
    Shares shares;
    shares_deal(&shares, args->threads, items);
#pragma omp parallel num_threads(args->threads) if (items > 1)
    for (int64_t i; (i = shares_take(&shares)) >= 0;)
        run_dw_item(&job, args->out[0].data, item_at(&job, i), args->workspace);
    return OK;
}

static size_t workspace_dw(const Graph *graph, const Node *node, const Target *target)
{
    Job job = job_dw_of(value_as_rows(graph_value(graph, node->in[0]), 1),
                        value_as_rows(graph_value(graph, node->in[1]), 1),
                        &graph_value(graph, node->out[0])->shape,
                        &graph_value(graph, node->in[2])->shape, node->attr, target->threads);
    return job.scratch_bytes * (size_t)target->threads;
}

/* ---- weights that stay packed ------------------------------------------------------------ */

static size_t packed_along(const Graph *graph, const Node *node, int axis)
{
    const Value *w = graph_value(graph, node->in[1]);
    return (size_t)w->shape.dim[0] * packed_expert(&w->shape, w->dtype, axis);
}

static size_t packed_y(const Graph *graph, const Node *node)
{
    return packed_along(graph, node, grouped_in_axis(node->attr));
}

static size_t packed_dx(const Graph *graph, const Node *node)
{
    return packed_along(graph, node, 3 - grouped_in_axis(node->attr));
}

static void pack_y(const KernelArgs *args, void *packed)
{
    pack_experts(args, packed, grouped_in_axis(args->attr));
}

static void pack_dx(const KernelArgs *args, void *packed)
{
    pack_experts(args, packed, 3 - grouped_in_axis(args->attr));
}

static const Packing packing_y = {.operand = 1, packed_y, pack_y};
static const Packing packing_dx = {.operand = 1, packed_dx, pack_dx};

const Kernel CPU(grouped_linear) = {.run = run, .workspace = workspace, .packing = &packing_y};
const Kernel CPU(grouped_linear_dx) = {
    .run = run_dx, .workspace = workspace_dx, .packing = &packing_dx};
const Kernel CPU(grouped_linear_dw) = {.run = run_dw, .workspace = workspace_dw};
const Kernel CPU(chunked_grouped_linear) = {.run = run_chunked, .workspace = workspace_chunked};
