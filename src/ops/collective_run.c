/* Collectives on the processor: packing for an axis that is not the first, and the communicator.
 * Each runs from its beginning to its end (run_), or is started here (start_) and waited for by a
 * node of its own (run_wait). */
#include "ops/collective.h"
#include "ops/kernel.h"

#include <stdlib.h>
#include <string.h>

/* What prepare makes: the group, and how many elements each rank's part has. */
typedef struct Prepared {
    Comm *comm;
    int64_t *counts;
    CommRequest *pending[2]; /* started and not yet waited for; a hop of a ring gives and takes */
} Prepared;

static Status prepare(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    Prepared *p = xcalloc(1, sizeof *p);
    args->state = p;
    if (!args->ranks)
        return fail(ERR_ARG, "a program for several ranks, but this device has no peers");
    TRY(args->ranks->group(args->ranks, 1u << attr->axis, &p->comm));
    p->counts = xcalloc((size_t)attr->n, sizeof *p->counts);
    for (int r = 0; r < attr->n; r++) p->counts[r] = collective_part_count(attr, r);
    return OK;
}

static void release(KernelArgs *args)
{
    Prepared *p = args->state;
    for (int k = 0; p && k < COUNT_OF(p->pending);
         k++) { /* a run ended early: others may still be at our buffers */
        Status ignored = p->pending[k] ? comm_wait(p->pending[k]) : OK;
        (void)ignored;
    }
    if (p) free(p->counts);
    free(p);
    args->state = NULL;
}

/* ---- parts of an axis ------------------------------------------------------------------- */

/* Copies rank r's part between its own layout [outer][dim / n][inner] and its places in the whole.
 */
static void copy_part(const CollectiveAttr *attr, DType dtype, int r, char *whole, char *part,
                      bool into_whole)
{
    CollectiveStrips s = collective_strips(attr, dtype);
    int n_blocks = attr->zigzag ? 2 : 1;
    int64_t length = s.dim / attr->n / n_blocks,
            first[2] = {r * length, (2 * (int64_t)attr->n - 1 - r) * length};
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

static void copy_all_parts(const CollectiveAttr *attr, DType dtype, char *whole, char *parts,
                           bool into_whole)
{
    size_t bytes = (size_t)(shape_count(&attr->whole) / attr->n) * dtype_bytes(dtype);
    for (int r = 0; r < attr->n; r++)
        copy_part(attr, dtype, r, whole, parts + (size_t)r * bytes, into_whole);
}

static size_t workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const CollectiveAttr *attr = node->attr;
    if (collective_parts_lie_apart(attr)) return 0;
    return (size_t)shape_count(&attr->whole) * dtype_bytes(graph_value(graph, node->in[0])->dtype);
}

/* ---- what is said to the communicator --------------------------------------------------- */

static CommOp reduce_op(const KernelArgs *args)
{
    return (CommOp){.kind = COMM_ALL_REDUCE,
                    .dtype = args->in[0].dtype,
                    .send = args->in[0].data,
                    .recv = args->out[0].data,
                    .count = tensor_count(&args->in[0]),
                    .node = args->node};
}

static CommOp gather_op(const KernelArgs *args, const Tensor *part, void *whole)
{
    return (CommOp){.kind = COMM_ALL_GATHER,
                    .dtype = part->dtype,
                    .send = part->data,
                    .recv = whole,
                    .counts = ((const Prepared *)args->state)->counts,
                    .node = args->node};
}

static void clear_padding(const KernelArgs *args, int64_t from)
{
    const Tensor *y = &args->out[0];
    size_t size = dtype_bytes(y->dtype);
    memset((char *)y->data + (size_t)from * size, 0, (size_t)(tensor_count(y) - from) * size);
}

/* Packs into scratch what does not lie in parts, and clears what no rank sends. */
static CommOp scatter_op(const KernelArgs *args, void *scratch)
{
    const CollectiveAttr *attr = args->attr;
    const Prepared *p = args->state;
    bool apart = collective_parts_lie_apart(attr);
    if (!apart) copy_all_parts(attr, args->in[0].dtype, args->in[0].data, scratch, false);
    clear_padding(args, p->counts[attr->rank]);
    return (CommOp){.kind = COMM_REDUCE_SCATTER,
                    .dtype = args->in[0].dtype,
                    .recv = args->out[0].data,
                    .send = apart ? args->in[0].data : scratch,
                    .counts = p->counts,
                    .node = args->node};
}

/* ---- from beginning to end -------------------------------------------------------------- */

static Status run_op(const KernelArgs *args, CommOp op)
{
    return comm_run(((const Prepared *)args->state)->comm, &op);
}

static Status run_all_reduce(KernelArgs *args) { return run_op(args, reduce_op(args)); }

static Status run_all_gather(KernelArgs *args)
{
    const CollectiveAttr *attr = args->attr;
    bool apart = collective_parts_lie_apart(attr);
    TRY(run_op(args, gather_op(args, &args->in[0], apart ? args->out[0].data : args->workspace)));
    if (!apart) copy_all_parts(attr, args->in[0].dtype, args->out[0].data, args->workspace, true);
    return OK;
}

static Status run_reduce_scatter(KernelArgs *args)
{
    return run_op(args, scatter_op(args, args->workspace));
}

static Status run_all_gather_into(KernelArgs *args)
{
    return run_op(args, gather_op(args, &args->in[1], args->in[0].data));
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
    int64_t count = shape_count(&attr->whole),
            mine = collective_flat_count(count, attr->n, attr->rank);
    if (mine)
        memcpy(to, from + (size_t)(collective_flat_part(count, attr->n) * attr->rank) * size,
               (size_t)mine * size);
    clear_padding(args, mine);
    return OK;
}

/* ---- started, and waited for later ------------------------------------------------------ */

/* The token tells wait whose request it is. */
static Status start(KernelArgs *args, CommOp op)
{
    Prepared *p = args->state;
    CHECK(!p->pending[0]);
    memcpy(args->out[START_TOKEN].data, &p, sizeof p);
    return comm_start(p->comm, &op, &p->pending[0]);
}

static Status start_all_reduce(KernelArgs *args) { return start(args, reduce_op(args)); }

static Status start_all_gather(KernelArgs *args)
{
    bool apart = collective_parts_lie_apart(args->attr);
    return start(args,
                 gather_op(args, &args->in[0], args->out[apart ? START_Y : START_SCRATCH].data));
}

static Status start_reduce_scatter(KernelArgs *args)
{
    return start(args, scatter_op(args, args->out[START_SCRATCH].data));
}

static Status start_all_gather_into(KernelArgs *args)
{
    return start(args, gather_op(args, &args->in[1], args->in[0].data));
}

static Status wait_all(Prepared *p)
{
    for (int k = 0; k < COUNT_OF(p->pending); k++) {
        CommRequest *request = p->pending[k];
        p->pending[k] = NULL;
        if (request) TRY(comm_wait(request));
    }
    return OK;
}

static Status run_wait(KernelArgs *args)
{
    const WaitAttr *attr = args->attr;
    Prepared *p;
    memcpy(&p, args->in[START_TOKEN].data, sizeof p);
    TRY(wait_all(p));
    if (attr->unpack)
        copy_all_parts(&attr->of, args->out[0].dtype, args->out[0].data,
                       args->in[START_SCRATCH].data, true);
    return OK;
}

/* ---- a hop of a ring -------------------------------------------------------------------- */

/* The halves of x that are given: where they lie, or packed into scratch. */
static const void *given(const KernelArgs *args, char *scratch)
{
    const CollectiveAttr *attr = args->attr;
    char *x = args->in[0].data;
    if (attr->ring.home || attr->ring.give == HALF_BOTH) return x;
    CollectiveStrips s = collective_strips(attr, args->in[0].dtype);
    size_t half = (size_t)(s.dim / attr->n / 2) * s.inner_bytes,
           from = attr->ring.give == HALF_SECOND ? half : 0;
    if (s.outer == 1) return x + from;
    for (int64_t o = 0; o < s.outer; o++)
        memcpy(scratch + (size_t)o * half, x + (size_t)o * 2 * half + from, half);
    return scratch;
}

static Status start_hop(const KernelArgs *args, Prepared *p, char *scratch)
{
    const CollectiveAttr *attr = args->attr;
    const RingHop *h = &attr->ring;
    Shape give = ring_shape(attr, h->give);
    int to = (attr->rank + h->hop + attr->n) % attr->n,
        from = (attr->rank - h->hop + attr->n) % attr->n;
    CommOp send = {.kind = COMM_SEND,
                   .dtype = args->in[0].dtype,
                   .count = shape_count(&give),
                   .peer = to,
                   .tag = h->tag,
                   .node = args->node};
    CommOp recv = {.kind = COMM_RECV,
                   .dtype = args->in[0].dtype,
                   .recv = args->out[0].data,
                   .count = tensor_count(&args->out[0]),
                   .peer = from,
                   .tag = h->tag,
                   .node = args->node};
    CHECK(!p->pending[0] && !p->pending[1]);
    if (h->give) {
        send.send = given(args, scratch);
        TRY(comm_start(p->comm, &send, &p->pending[0]));
    }
    return h->take ? comm_start(p->comm, &recv, &p->pending[1]) : OK;
}

static Status run_ring_pass(KernelArgs *args)
{
    TRY(start_hop(args, args->state, args->workspace));
    return wait_all(args->state);
}

static Status start_ring_pass(KernelArgs *args)
{
    Prepared *p = args->state;
    memcpy(args->out[START_TOKEN].data, &p, sizeof p);
    return start_hop(args, p, args->out[START_SCRATCH].data);
}

static size_t ring_workspace(const Graph *graph, const Node *node, const Target *target)
{
    (void)target;
    const CollectiveAttr *attr = node->attr;
    Shape give = ring_shape(attr, attr->ring.give);
    return ring_packs(attr)
               ? (size_t)shape_count(&give) * dtype_bytes(graph_value(graph, node->in[0])->dtype)
               : 0;
}

const Kernel collective_all_reduce_kernel = {
    .run = run_all_reduce, .prepare = prepare, .release = release};
const Kernel collective_all_gather_kernel = {
    .run = run_all_gather, .prepare = prepare, .release = release, .workspace = workspace};
const Kernel collective_reduce_scatter_kernel = {
    .run = run_reduce_scatter, .prepare = prepare, .release = release, .workspace = workspace};
const Kernel collective_cut_kernel = {.run = run_cut};
const Kernel collective_all_gather_into_kernel = {
    .run = run_all_gather_into, .prepare = prepare, .release = release};
const Kernel collective_all_reduce_start_kernel = {
    .run = start_all_reduce, .prepare = prepare, .release = release};
const Kernel collective_all_gather_start_kernel = {
    .run = start_all_gather, .prepare = prepare, .release = release};
const Kernel collective_reduce_scatter_start_kernel = {
    .run = start_reduce_scatter, .prepare = prepare, .release = release};
const Kernel collective_all_gather_into_start_kernel = {
    .run = start_all_gather_into, .prepare = prepare, .release = release};
const Kernel collective_wait_kernel = {.run = run_wait};
const Kernel collective_ring_pass_kernel = {
    .run = run_ring_pass, .prepare = prepare, .release = release, .workspace = ring_workspace};
const Kernel collective_ring_pass_start_kernel = {
    .run = start_ring_pass, .prepare = prepare, .release = release};
