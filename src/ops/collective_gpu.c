/* Collectives on GPUs: the same as collective_run.c, with operands in the device's memory. What
 * does not lie in parts is packed by copies of rows on the stream. The operation itself goes to the
 * stream beside it, where those that were only started go on while the first one computes. */
#include "comm/device.h"
#include "gpu/gpu.h"
#include "ops/collective.h"
#include "ops/kernel.h"

#include <stdlib.h>
#include <string.h>

typedef struct Prepared {
    Comm *comm;
    int64_t *counts;
} Prepared;

Status collective_gpu_expect(const KernelArgs *args, int lane, Comm *group)
{
    GpuStream *side;
    TRY(gpu_side_begin(args->stream, lane, &side));
    comm_expect(group, side);
    return OK;
}

Status collective_gpu_group(const KernelArgs *args, unsigned axes, Comm **group)
{
    TRY(args->ranks->group(args->ranks, axes, group));
    return collective_gpu_expect(args, 0, *group);
}

Status collective_gpu_pair(Comm *all, int peer, const char *name, Comm **pair)
{
    int mine = comm_rank(all), low = peer < mine ? peer : mine, high = peer < mine ? mine : peer;
    int rank[2] = {comm_world_rank(all, low), comm_world_rank(all, high)};
    return comm_group(all, name, rank, 2, pair);
}

static Status prepare(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    Prepared *p = xcalloc(1, sizeof *p);
    args->state = p;
    if (!args->ranks)
        return fail(ERR_ARG, "a program for several ranks, but this device has no peers");
    TRY(collective_gpu_group(args, 1u << attr->axis, &p->comm));
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

/* Rank r's part between its own layout and its places in the whole. */
static Status copy_part(const KernelArgs *args, const CollectiveAttr *attr, DType dtype, int r,
                        char *whole, char *part, bool into_whole)
{
    CollectiveStrips s = collective_strips(attr, dtype);
    int n_blocks = attr->zigzag ? 2 : 1;
    int64_t length = s.dim / attr->n / n_blocks,
            first[2] = {r * length, (2 * (int64_t)attr->n - 1 - r) * length};
    size_t run = (size_t)length * s.inner_bytes, whole_pitch = (size_t)s.dim * s.inner_bytes,
           part_pitch = (size_t)n_blocks * run;
    for (int b = 0; b < n_blocks; b++, part += run) {
        char *place = whole + (size_t)first[b] * s.inner_bytes;
        GpuRows rows = {part, part_pitch, place, whole_pitch, run, (size_t)s.outer};
        if (into_whole) rows = (GpuRows){place, whole_pitch, part, part_pitch, run, rows.rows};
        TRY(gpu_copy_rows(args->stream, &rows));
    }
    return OK;
}

static Status copy_all_parts(const KernelArgs *args, const CollectiveAttr *attr, DType dtype,
                             char *whole, char *parts, bool into_whole)
{
    size_t bytes = (size_t)(shape_count(&attr->whole) / attr->n) * dtype_bytes(dtype);
    for (int r = 0; r < attr->n; r++)
        TRY(copy_part(args, attr, dtype, r, whole, parts + (size_t)r * bytes, into_whole));
    return OK;
}

size_t collective_gpu_workspace(const Graph *graph, const Node *node)
{
    const CollectiveAttr *attr = node->attr;
    if (collective_parts_lie_apart(attr)) return 0;
    return (size_t)shape_count(&attr->whole) * dtype_bytes(graph_value(graph, node->in[0])->dtype);
}

static Status begin(const KernelArgs *args, Comm *comm, const CommOp *op, int n, const void *key)
{
    GpuStream *side;
    TRY(gpu_side_begin(args->stream, 0, &side));
    TRY(comm_enqueue_all(comm, op, n, side));
    return gpu_side_end(args->stream, 0, key);
}

Status collective_gpu_run(const KernelArgs *args, Comm *comm, const CommOp *op)
{
    TRY(begin(args, comm, op, 1, args));
    return gpu_side_join(args->stream, args);
}

/* From beginning to end where `token` is NULL; else wait will ask for it under the token's place.
 */
static Status put(const KernelArgs *args, const CommOp *op, int n, const Tensor *token)
{
    const void *key = token ? token->data : args;
    TRY(begin(args, ((const Prepared *)args->state)->comm, op, n, key));
    return token ? OK : gpu_side_join(args->stream, key);
}

/* ---- the collectives ---------------------------------------------------------------------- */

static Status reduce(const KernelArgs *args, const Tensor *token)
{
    CommOp op = {.kind = COMM_ALL_REDUCE,
                 .dtype = args->in[0].dtype,
                 .send = args->in[0].data,
                 .recv = args->out[0].data,
                 .count = tensor_count(&args->in[0]),
                 .node = args->node};
    return put(args, &op, 1, token);
}

static Status run_all_reduce(KernelArgs *args) { return reduce(args, NULL); }

static Status gather(const KernelArgs *args, const Tensor *part, void *whole, const Tensor *token)
{
    CommOp op = {.kind = COMM_ALL_GATHER,
                 .dtype = part->dtype,
                 .send = part->data,
                 .recv = whole,
                 .counts = ((const Prepared *)args->state)->counts,
                 .node = args->node};
    return put(args, &op, 1, token);
}

static Status run_all_gather(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    if (collective_parts_lie_apart(attr))
        return gather(args, &args->in[0], args->out[0].data, NULL);
    TRY(gather(args, &args->in[0], args->workspace, NULL));
    return copy_all_parts(args, attr, args->in[0].dtype, args->out[0].data, args->workspace, true);
}

static Status run_all_gather_into(KernelArgs *args)
{
    return gather(args, &args->in[1], args->in[0].data, NULL);
}

static Status clear_padding(const KernelArgs *args, int64_t from)
{
    const Tensor *y = &args->out[0];
    size_t size = dtype_bytes(y->dtype);
    return gpu_fill(args->stream, (char *)y->data + (size_t)from * size, 0,
                    (size_t)(tensor_count(y) - from) * size);
}

static Status scatter(const KernelArgs *args, void *scratch, const Tensor *token)
{
    const CollectiveAttr *attr = args->attr;
    const Prepared *p = args->state;
    bool apart = collective_parts_lie_apart(attr);
    if (!apart)
        TRY(copy_all_parts(args, attr, args->in[0].dtype, args->in[0].data, scratch, false));
    TRY(clear_padding(args, p->counts[attr->rank]));
    CommOp op = {.kind = COMM_REDUCE_SCATTER,
                 .dtype = args->in[0].dtype,
                 .recv = args->out[0].data,
                 .send = apart ? args->in[0].data : scratch,
                 .counts = p->counts,
                 .node = args->node};
    return put(args, &op, 1, token);
}

static Status run_reduce_scatter(KernelArgs *args) { return scatter(args, args->workspace, NULL); }

/* This rank's part; nothing is sent. */
static Status run_cut(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    char *from = args->in[0].data, *to = args->out[0].data;
    DType dtype = args->in[0].dtype;
    if (attr->dim != PLACE_FLAT) return copy_part(args, attr, dtype, attr->rank, from, to, false);
    int64_t count = shape_count(&attr->whole),
            mine = collective_flat_count(count, attr->n, attr->rank),
            first = collective_flat_part(count, attr->n) * attr->rank;
    if (mine)
        TRY(gpu_copy(args->stream, to, from + (size_t)first * dtype_bytes(dtype),
                     (size_t)mine * dtype_bytes(dtype)));
    return clear_padding(args, mine);
}

/* ---- started, and waited for later -------------------------------------------------------- */

static Status start_all_reduce(KernelArgs *args) { return reduce(args, &args->out[START_TOKEN]); }

static Status start_all_gather(KernelArgs *args)
{
    bool apart = collective_parts_lie_apart(args->attr);
    return gather(args, &args->in[0], args->out[apart ? START_Y : START_SCRATCH].data,
                  &args->out[START_TOKEN]);
}

static Status start_all_gather_into(KernelArgs *args)
{
    return gather(args, &args->in[1], args->in[0].data, &args->out[START_TOKEN]);
}

static Status start_reduce_scatter(KernelArgs *args)
{
    return scatter(args, args->out[START_SCRATCH].data, &args->out[START_TOKEN]);
}

static Status run_wait(KernelArgs *args)
{
    const WaitAttr *attr = args->attr;
    TRY(gpu_side_join(args->stream, args->in[START_TOKEN].data));
    if (!attr->unpack) return OK;
    return copy_all_parts(args, &attr->of, args->out[0].dtype, args->out[0].data,
                          args->in[START_SCRATCH].data, true);
}

/* ---- a hop of a ring ---------------------------------------------------------------------- */

/* The halves of x that are given: where they lie, or packed into scratch. */
static Status find_given(const KernelArgs *args, char *scratch, const void **given)
{
    const CollectiveAttr *attr = args->attr;
    char *x = args->in[0].data;
    *given = x;
    if (attr->ring.home || attr->ring.give == HALF_BOTH) return OK;
    CollectiveStrips s = collective_strips(attr, args->in[0].dtype);
    size_t half = (size_t)(s.dim / attr->n / 2) * s.inner_bytes;
    if (attr->ring.give == HALF_SECOND) *given = x += half;
    if (s.outer == 1) return OK;
    *given = scratch;
    return gpu_copy_rows(args->stream,
                         &(GpuRows){scratch, half, x, 2 * half, half, (size_t)s.outer});
}

static Status hop(const KernelArgs *args, char *scratch, const Tensor *token)
{
    const CollectiveAttr *attr = args->attr;
    const RingHop *h = &attr->ring;
    CommOp op[2];
    int n = 0;
    if (h->give) {
        Shape give = ring_shape(attr, h->give);
        op[n] = (CommOp){.kind = COMM_SEND,
                         .dtype = args->in[0].dtype,
                         .count = shape_count(&give),
                         .peer = (attr->rank + h->hop + attr->n) % attr->n,
                         .tag = h->tag,
                         .node = args->node};
        TRY(find_given(args, scratch, &op[n++].send));
    }
    if (h->take)
        op[n++] = (CommOp){.kind = COMM_RECV,
                           .dtype = args->in[0].dtype,
                           .recv = args->out[0].data,
                           .count = tensor_count(&args->out[0]),
                           .peer = (attr->rank - h->hop + attr->n) % attr->n,
                           .tag = h->tag,
                           .node = args->node};
    return n ? put(args, op, n, token) : OK;
}

static Status run_ring_pass(KernelArgs *args) { return hop(args, args->workspace, NULL); }
static Status start_ring_pass(KernelArgs *args)
{
    return hop(args, args->out[START_SCRATCH].data, &args->out[START_TOKEN]);
}

size_t ring_gpu_workspace(const Graph *graph, const Node *node)
{
    const CollectiveAttr *attr = node->attr;
    Shape give = ring_shape(attr, attr->ring.give);
    return ring_packs(attr)
               ? (size_t)shape_count(&give) * dtype_bytes(graph_value(graph, node->in[0])->dtype)
               : 0;
}

const Kernel cuda_ring_pass = {.run = run_ring_pass, .prepare = prepare, .release = release};
const Kernel cuda_ring_pass_start = {
    .run = start_ring_pass, .prepare = prepare, .release = release};
const Kernel cuda_cut = {.run = run_cut};
const Kernel cuda_all_reduce = {.run = run_all_reduce, .prepare = prepare, .release = release};
const Kernel cuda_all_gather = {.run = run_all_gather, .prepare = prepare, .release = release};
const Kernel cuda_reduce_scatter = {
    .run = run_reduce_scatter, .prepare = prepare, .release = release};
const Kernel cuda_all_gather_into = {
    .run = run_all_gather_into, .prepare = prepare, .release = release};
const Kernel cuda_all_reduce_start = {
    .run = start_all_reduce, .prepare = prepare, .release = release};
const Kernel cuda_all_gather_start = {
    .run = start_all_gather, .prepare = prepare, .release = release};
const Kernel cuda_reduce_scatter_start = {
    .run = start_reduce_scatter, .prepare = prepare, .release = release};
const Kernel cuda_all_gather_into_start = {
    .run = start_all_gather_into, .prepare = prepare, .release = release};
const Kernel cuda_wait = {.run = run_wait};
