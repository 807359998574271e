/* Operations on the buffers of GPUs. With NCCL they are put on the stream, and this rank only notes
 * what is on its way; while the host waits for the stream, it looks which of them are done and
 * which are late. Without NCCL the host carries the data and the world's transport exchanges it. */
#include "comm/device.h"
#include "comm/comm_internal.h"

#include "gpu/gpu.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- carried by the host ------------------------------------------------------------------ */

enum { TOGETHER = 4 }; /* operations at most that are enqueued as one */

typedef struct Carried {
    CommOp op; /* on buffers of the host, in which nothing is in place */
    char *buffer;
    size_t send_bytes, recv_bytes;
    CommRequest *request;
} Carried;

/* What an all_to_all leaves between its parts stays as it was. */
static Status fetch(Comm *c, const CommOp *op, GpuStream *stream, Carried *k)
{
    CommExtent extent;
    TRY(comm_op_measure(c, op, &extent));
    k->op = *op;
    k->send_bytes = (size_t)extent.send * dtype_bytes(op->dtype);
    k->recv_bytes = (size_t)extent.recv * dtype_bytes(op->dtype);
    k->buffer = xmalloc(round_up(k->send_bytes, 16) + k->recv_bytes + 1);
    k->op.send = k->send_bytes ? k->buffer : NULL;
    k->op.recv = k->recv_bytes ? k->buffer + round_up(k->send_bytes, 16) : NULL;
    if (op->kind == COMM_ALL_TO_ALL) TRY(gpu_read(stream, k->op.recv, op->recv, k->recv_bytes));
    return gpu_read(stream, k->buffer, op->send, k->send_bytes);
}

static Status carry(Comm *c, const CommOp *op, int n, GpuStream *stream)
{
    Carried carried[TOGETHER] = {0};
    Status status = OK;
    for (int i = 0; i < n && status == OK; i++) status = fetch(c, &op[i], stream, &carried[i]);
    for (int i = 0; i < n && status == OK; i++)
        status = comm_start(c, &carried[i].op, &carried[i].request);
    for (int i = 0; i < n; i++) {
        Status done = carried[i].request ? comm_wait(carried[i].request) : OK;
        if (status == OK) status = done;
    }
    for (int i = 0; i < n && status == OK; i++)
        status = gpu_write(stream, op[i].recv, carried[i].op.recv, carried[i].recv_bytes);
    if (status == OK) status = gpu_stream_wait(stream);
    for (int i = 0; i < n; i++) free(carried[i].buffer);
    return status;
}

/* ---- what is on its way ------------------------------------------------------------------- */

static void take_first(Comm *all)
{
    CommRequest *r = all->enqueued;
    all->enqueued = r->later;
    if (!r->later) all->enqueued_end = NULL;
    gpu_event_destroy(r->done);
    r->done = NULL;
}

/* missing[n]: ranks of the group whose last word is from before this operation. That word may be of
 * another group, which comes before or behind it: then it is of no use, and they count as missing
 * only when nobody else does. true: some are. */
static bool find_missing(const CommRequest *r, bool *missing)
{
    Comm *c = r->comm;
    CommSeen *seen = xcalloc((size_t)c->n, sizeof *seen);
    bool any = false;
    c->world->transport->look(c->world, c->ranks, c->n, seen);
    for (int i = 0; i < c->n; i++) {
        const CommRow *row = &seen[i].row;
        bool same = seen[i].known && !strncmp(row->group, c->name, sizeof row->group);
        missing[i] = i != c->rank && (!seen[i].known || (same && row->head.number < r->number));
        any |= missing[i];
    }
    for (int i = 0; i < c->n && !any; i++) missing[i] = i != c->rank;
    free(seen);
    return any;
}

/* Half way to the deadline this rank begins to say for whom its GPU waits, so that who is late
 * finds behind whom (waits.c); at the deadline it is late itself. */
static Status say_waits(CommRequest *r, double now_s)
{
    if (now_s <= r->say_s && now_s <= r->until_s) return OK;
    bool *missing = xcalloc((size_t)r->comm->n, sizeof *missing), any = find_missing(r, missing);
    comm_board_say_gpu_waits(r, missing, !any);
    Status status = now_s > r->until_s ? comm_fail_late(r, missing, !any, now_s - r->start_s) : OK;
    free(missing);
    return status;
}

static void begin_to_wait(CommRequest *r)
{
    double now_s = clock_s();
    r->until_s = now_s + r->comm->deadline_s;
    r->say_s = now_s + r->comm->deadline_s / 2;
}

/* Those that are done are counted; the first that is not may be late, or its group broken. */
static Status look(void *context)
{
    Comm *all = context;
    if (comm_board_failed(all->world->board)) return comm_failure(all->world);
    while (all->enqueued) {
        CommRequest *r = all->enqueued;
        bool done, ready;
        TRY(gpu_event_look(r->done, &done));
        double now_s = clock_s();
        if (!done) {
            Status status = gpu_group_look(r->comm->gpu, &ready);
            if (status != OK) return comm_fail_world(r->comm, status_message());
            return say_waits(r, now_s);
        }
        r->arrived_s = r->end_s = now_s;
        take_first(all);
        comm_request_end(r, 0);
    }
    return OK;
}

/* ---- groups ------------------------------------------------------------------------------- */

/* NCCL joins devices, not ranks: where two ranks have the same one (tests, a laptop), the host
 * carries. */
static Status find_sharing(Comm *c, GpuStream *stream)
{
    uint64_t mine = rng_key((uint64_t)gpu_info(gpu_stream_device(stream))->index,
                            comm_host(c, c->rank)),
             *all = xcalloc((size_t)c->n, sizeof *all);
    Status status = comm_run(c, &(CommOp){.kind = COMM_ALL_GATHER,
                                          .dtype = DTYPE_I64,
                                          .send = &mine,
                                          .recv = all,
                                          .count = 1,
                                          .node = "joining GPUs"});
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < i; k++) c->carried |= all[i] == all[k];
    free(all);
    return status;
}

/* NCCL makes a group, and gets GPUs to know each other when they first exchange, in a thread of its
 * own. Until that is done nothing is on the stream yet, and nothing else may be asked of the group.
 * r: what the group is asked for; NULL: to be there. */
static Status await_group(Comm *c, CommRequest *r)
{
    double until_s = clock_s() + c->deadline_s;
    if (r) begin_to_wait(r);
    for (bool ready;;) {
        if (comm_board_failed(c->world->board)) return comm_failure(c->world);
        if (gpu_group_look(c->gpu, &ready) != OK) return comm_fail_world(c, status_message());
        if (ready) return OK;
        double now_s = clock_s();
        if (!r && now_s > until_s)
            return fail(ERR_COMM, "%s: the GPUs of %d ranks were not joined within %.0f s", c->name,
                        c->n, c->deadline_s);
        if (r) TRY(say_waits(r, now_s));
        nanosleep(&(struct timespec){.tv_nsec = r ? 20000 : 1000000}, NULL);
    }
}

/* The id goes the host's way, where a rank that does not come is named; who has come makes the
 * group. */
static Status open_group(Comm *c)
{
    GpuStream *stream = c->gpu_stream;
    uint8_t id[GPU_GROUP_ID_BYTES] = {0};
    TRY(find_sharing(c, stream));
    if (c->carried) return OK;
    if (c->rank == 0) TRY(gpu_group_id(gpu_stream_device(stream), id));
    TRY(comm_run(c, &(CommOp){.kind = COMM_BROADCAST,
                              .dtype = DTYPE_U8,
                              .send = id,
                              .recv = id,
                              .count = GPU_GROUP_ID_BYTES,
                              .node = "joining GPUs"}));
    TRY(gpu_group_create(c->gpu_stream, id, c->n, c->rank, &c->gpu));
    return await_group(c, NULL);
}

/* One order of groups for all ranks. */
static bool comes_before(const Comm *a, const Comm *b)
{
    int order = strncmp(a->name, b->name, sizeof a->name);
    for (int i = 0; !order && i < a->n && i < b->n; i++) order = a->ranks[i] - b->ranks[i];
    return order ? order < 0 : a->n < b->n;
}

static Status open_groups(Comm *c)
{
    for (;;) {
        Comm *first = NULL;
        for (Comm *g = comm_of_all(c); g; g = g->next)
            if (g->gpu_stream && !g->gpu && !g->carried && (!first || comes_before(g, first)))
                first = g;
        if (!first) return OK;
        TRY(open_group(first));
    }
}

void comm_expect(Comm *c, GpuStream *stream) { c->gpu_stream = stream; }

void comm_join_gpu(Comm *member, GpuStream *stream)
{
    gpu_stream_on_wait(stream, look, comm_of_all(member));
}

void comm_leave_gpu(Comm *member)
{
    for (Comm *c = comm_of_all(member); c; c = c->next) comm_device_close(c);
}

void comm_device_close(Comm *c)
{
    while (c->enqueued) take_first(c);
    gpu_group_destroy(c->gpu);
    c->gpu = NULL;
    c->gpu_stream = NULL;
}

/* ---- by NCCL ------------------------------------------------------------------------------ */

static const void *given(const CommOp *op, int64_t at)
{
    return (const char *)op->send + (size_t)at * dtype_bytes(op->dtype);
}
static void *taken(const CommOp *op, int64_t at)
{
    return (char *)op->recv + (size_t)at * dtype_bytes(op->dtype);
}

static bool parts_are_equal(const CommRequest *r)
{
    for (int i = 1; i < r->comm->n; i++)
        if (r->parts.count[i] != r->parts.count[0]) return false;
    return true;
}

/* Parts of other sizes: from everyone to everyone. */
static Status gather_uneven(CommRequest *r)
{
    Comm *c = r->comm;
    const CommOp *op = &r->op;
    TRY(gpu_batch_begin(c->gpu));
    Status status = OK;
    for (int i = 0; i < c->n && status == OK; i++) {
        status = gpu_send(c->gpu, op->send, r->parts.count[c->rank], op->dtype, i);
        if (status == OK)
            status = gpu_recv(c->gpu, taken(op, r->parts.at[i]), r->parts.count[i], op->dtype, i);
    }
    Status ended = gpu_batch_end(c->gpu);
    return status == OK ? ended : status;
}

/* Parts of several sizes (the last ones of a state that was cut flat): a sum for each owner. */
static Status scatter(CommRequest *r)
{
    Comm *c = r->comm;
    const CommOp *op = &r->op;
    if (parts_are_equal(r))
        return gpu_reduce_scatter(c->gpu, op->send, op->recv, r->parts.count[0], op->dtype);
    TRY(gpu_batch_begin(c->gpu));
    Status status = OK;
    for (int i = 0; i < c->n && status == OK; i++)
        if (r->parts.count[i])
            status = gpu_reduce(c->gpu, given(op, r->parts.at[i]), op->recv, r->parts.count[i],
                                op->dtype, i);
    Status ended = gpu_batch_end(c->gpu);
    return status == OK ? ended : status;
}

static Status exchange_all(CommRequest *r)
{
    Comm *c = r->comm;
    const CommOp *op = &r->op;
    TRY(gpu_batch_begin(c->gpu));
    Status status = OK;
    for (int i = 0; i < c->n && status == OK; i++) {
        if (r->parts.count[i])
            status = gpu_send(c->gpu, given(op, r->parts.at[i]), r->parts.count[i], op->dtype, i);
        if (status == OK && r->parts.recv_count[i])
            status = gpu_recv(c->gpu, taken(op, r->parts.recv_at[i]), r->parts.recv_count[i],
                              op->dtype, i);
    }
    Status ended = gpu_batch_end(c->gpu);
    return status == OK ? ended : status;
}

static Status by_nccl(CommRequest *r)
{
    const CommOp *op = &r->op;
    GpuGroup *gpu = r->comm->gpu;
    switch (op->kind) {
    case COMM_ALL_REDUCE:
        return gpu_all_reduce(gpu, op->send, op->recv, op->count, op->dtype,
                              op->reduce == COMM_MAX   ? GPU_MAX
                              : op->reduce == COMM_MIN ? GPU_MIN
                                                       : GPU_SUM);
    case COMM_REDUCE_SCATTER: return scatter(r);
    case COMM_ALL_GATHER:
        return parts_are_equal(r)
                   ? gpu_all_gather(gpu, op->send, op->recv, r->parts.count[0], op->dtype)
                   : gather_uneven(r);
    case COMM_ALL_TO_ALL: return exchange_all(r);
    case COMM_BROADCAST:
        return gpu_broadcast(gpu, op->send, op->recv, op->count, op->dtype, op->peer);
    case COMM_SEND: return gpu_send(gpu, op->send, op->count, op->dtype, op->peer);
    case COMM_RECV: return gpu_recv(gpu, op->recv, op->count, op->dtype, op->peer);
    case COMM_BARRIER:
    case COMM_KINDS: break;
    }
    return fail(ERR_ARG, "%s: %s is none for GPUs", r->comm->name, comm_kind_name(op->kind));
}

static Status note(CommRequest *r, GpuStream *stream)
{
    Comm *all = comm_of_all(r->comm);
    TRY(gpu_event_create(gpu_stream_device(stream), &r->done));
    TRY(gpu_event_record(r->done, stream));
    begin_to_wait(r);
    if (all->enqueued_end)
        all->enqueued_end->later = r;
    else
        all->enqueued = r;
    all->enqueued_end = r;
    return OK;
}

/* What a fault leaves out is NULL. */
static Status put_on_stream(Comm *c, CommRequest **r, int n, GpuStream *stream)
{
    Status status = OK;
    if (n > 1) TRY(gpu_batch_begin(c->gpu));
    for (int i = 0; i < n && status == OK; i++) status = r[i] ? by_nccl(r[i]) : OK;
    Status ended = n > 1 ? gpu_batch_end(c->gpu) : OK;
    if (status == OK) status = ended;
    for (int i = 0; i < n && status == OK; i++) status = r[i] ? await_group(c, r[i]) : OK;
    for (int i = 0; i < n && status == OK; i++) {
        if (r[i]) status = note(r[i], stream);
        if (status == OK) r[i] = NULL; /* look has it now */
    }
    return status;
}

/* Whether the GPUs exchange by themselves. */
static Status find_way(Comm *c, const CommOp *op, GpuStream *stream, bool *can)
{
    *can = gpu_can_exchange(gpu_stream_device(stream)) && op->kind != COMM_BARRIER;
    if (*can && !c->gpu_stream) comm_expect(c, stream);
    if (*can && !c->gpu && !c->carried) TRY(open_groups(c));
    *can = *can && !c->carried;
    if (*can && c->gpu_stream != stream)
        return fail(ERR_ARG, "%s: this group exchanges on another stream", c->name);
    return OK;
}

Status comm_enqueue_all(Comm *c, const CommOp *op, int n, GpuStream *stream)
{
    CommRequest *request[TOGETHER] = {0};
    if (n < 1 || n > TOGETHER) return fail(ERR_ARG, "%d operations at once", n);
    bool can;
    TRY(find_way(c, op, stream, &can));
    if (!can) return carry(c, op, n, stream);
    Status status = OK;
    for (int i = 0; i < n && status == OK; i++) status = comm_request_begin(c, &op[i], &request[i]);
    if (status == OK) status = put_on_stream(c, request, n, stream);
    for (int i = 0; i < n; i++)
        if (request[i]) comm_request_free(request[i]);
    return status;
}

Status comm_enqueue_send(Comm *c, const CommOp *op, GpuStream *stream, CommRequest **request)
{
    bool can;
    *request = NULL;
    TRY(find_way(c, op, stream, &can));
    if (can) return comm_enqueue(c, op, stream);
    Carried carried = {0};
    Status status = fetch(c, op, stream, &carried);
    if (status == OK) status = comm_start(c, &carried.op, request);
    if (status == OK)
        (*request)->carried = carried.buffer;
    else
        free(carried.buffer);
    return status;
}

Status comm_enqueue(Comm *c, const CommOp *op, GpuStream *stream)
{
    return comm_enqueue_all(c, op, 1, stream);
}
