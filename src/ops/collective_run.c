/* Collectives on the processor: packing for an axis that is not the first, and the communicator. */
#include "ops/collective.h"
#include "ops/kernel.h"

#include <stdlib.h>
#include <string.h>

/* What prepare makes: the group, and how many elements each rank's part has. */
typedef struct Prepared {
    Comm *comm;
    int64_t *counts;
} Prepared;

static Status prepare(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    Prepared *p = xcalloc(1, sizeof *p);
    args->state = p;
    if (!args->ranks) return fail(ERR_ARG, "a program for several ranks, but this device has no peers");
    TRY(args->ranks->group(args->ranks, 1u << attr->axis, &p->comm));
    p->counts = xcalloc((size_t)attr->n, sizeof *p->counts);
    for (int r = 0; r < attr->n; r++) p->counts[r] = collective_part_count(attr, r);
    return OK;
}

static void release(KernelArgs *args)
{
    Prepared *p = args->state;
    if (p) free(p->counts);
    free(p);
    args->state = NULL;
}

/* ---- parts of an axis ------------------------------------------------------------------------------ */

/* The whole as [outer][dim][inner], in bytes of one (outer, dim) row: inner. */
typedef struct Strips {
    int64_t outer, dim;
    size_t inner_bytes;
} Strips;

static Strips strips_of(const CollectiveAttr *attr, DType dtype)
{
    Strips s = {.outer = 1, .dim = attr->whole.dim[attr->dim], .inner_bytes = dtype_bytes(dtype)};
    for (int i = 0; i < attr->dim; i++) s.outer *= attr->whole.dim[i];
    for (int i = attr->dim + 1; i < attr->whole.rank; i++) s.inner_bytes *= (size_t)attr->whole.dim[i];
    return s;
}

static bool parts_lie_apart(const CollectiveAttr *attr)
{
    if (attr->dim == PLACE_FLAT) return true;
    int64_t outer = 1;
    for (int i = 0; i < attr->dim; i++) outer *= attr->whole.dim[i];
    return outer == 1 && !attr->zigzag;
}

/* Copies rank r's part between its own layout [outer][dim / n][inner] and its places in the whole. */
static void copy_part(const CollectiveAttr *attr, DType dtype, int r, char *whole, char *part, bool into_whole)
{
    Strips s = strips_of(attr, dtype);
    int n_blocks = attr->zigzag ? 2 : 1;
    int64_t length = s.dim / attr->n / n_blocks, first[2] = {r * length, (2 * (int64_t)attr->n - 1 - r) * length};
    size_t run = (size_t)length * s.inner_bytes;
    for (int64_t o = 0; o < s.outer; o++) {
        for (int b = 0; b < n_blocks; b++, part += run) {
            char *place = whole + (size_t)(o * s.dim + first[b]) * s.inner_bytes;
            if (into_whole)
                memcpy(place, part, run);
            else
                memcpy(part, place, run);
        }
    }
}

static void copy_all_parts(const CollectiveAttr *attr, DType dtype, char *whole, char *parts, bool into_whole)
{
    size_t bytes = (size_t)(shape_count(&attr->whole) / attr->n) * dtype_bytes(dtype);
    for (int r = 0; r < attr->n; r++) copy_part(attr, dtype, r, whole, parts + (size_t)r * bytes, into_whole);
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const CollectiveAttr *attr = node->attr;
    if (parts_lie_apart(attr)) return 0;
    return (size_t)shape_count(&attr->whole) * dtype_bytes(graph_value(graph, node->in[0])->dtype);
}

/* ---- the four --------------------------------------------------------------------------------------- */

static Status run_all_reduce(KernelArgs *args)
{
    const Prepared *p = args->state;
    return comm_run(p->comm, &(CommOp){.kind = COMM_ALL_REDUCE, .dtype = args->in[0].dtype, .send = args->in[0].data,
                                       .recv = args->out[0].data, .count = tensor_count(&args->in[0]), .node = args->node});
}

static Status run_all_gather(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    const Prepared *p = args->state;
    bool apart = parts_lie_apart(attr);
    CommOp op = {.kind = COMM_ALL_GATHER, .dtype = args->in[0].dtype, .send = args->in[0].data,
                 .recv = apart ? args->out[0].data : args->workspace, .counts = p->counts, .node = args->node};
    TRY(comm_run(p->comm, &op));
    if (!apart) copy_all_parts(attr, args->in[0].dtype, args->out[0].data, args->workspace, true);
    return OK;
}

static void clear_padding(const KernelArgs *args, int64_t from)
{
    const Tensor *y = &args->out[0];
    size_t size = dtype_bytes(y->dtype);
    memset((char *)y->data + (size_t)from * size, 0, (size_t)(tensor_count(y) - from) * size);
}

static Status run_reduce_scatter(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    const Prepared *p = args->state;
    bool apart = parts_lie_apart(attr);
    if (!apart) copy_all_parts(attr, args->in[0].dtype, args->in[0].data, args->workspace, false);
    CommOp op = {.kind = COMM_REDUCE_SCATTER, .dtype = args->in[0].dtype, .recv = args->out[0].data,
                 .send = apart ? args->in[0].data : args->workspace, .counts = p->counts, .node = args->node};
    TRY(comm_run(p->comm, &op));
    clear_padding(args, p->counts[attr->rank]);
    return OK;
}

static Status run_cut(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    char *from = args->in[0].data, *to = args->out[0].data;
    size_t size = dtype_bytes(args->in[0].dtype);
    if (attr->dim != PLACE_FLAT) {
        copy_part(attr, args->in[0].dtype, attr->rank, from, to, false);
        return OK;
    }
    int64_t count = shape_count(&attr->whole), mine = collective_flat_count(count, attr->n, attr->rank);
    if (mine) memcpy(to, from + (size_t)(collective_flat_part(count, attr->n) * attr->rank) * size, (size_t)mine * size);
    clear_padding(args, mine);
    return OK;
}

const CpuKernel collective_all_reduce_kernel = {.run = run_all_reduce, .prepare = prepare, .release = release};
const CpuKernel collective_all_gather_kernel = {
    .run = run_all_gather, .prepare = prepare, .release = release, .workspace = workspace};
const CpuKernel collective_reduce_scatter_kernel = {
    .run = run_reduce_scatter, .prepare = prepare, .release = release, .workspace = workspace};
const CpuKernel collective_cut_kernel = {.run = run_cut};
