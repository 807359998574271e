/* What an operation means, whatever carries it: checks, parts, bytes, heads, texts. */
#include "comm/comm_internal.h"

#include <stdlib.h>
#include <string.h>

static const char *const kind_names[COMM_KINDS] = {"barrier",    "all_reduce", "reduce_scatter",
                                                   "all_gather", "all_to_all", "broadcast",
                                                   "send",       "recv"};
static const char *const reduce_names[] = {"sum", "max", "min"};
static const int64_t count_limit =
    (int64_t)1 << 48; /* elements; products with bytes and ranks stay far from overflow */

const char *comm_kind_name(CommKind kind)
{
    CHECK((unsigned)kind < COMM_KINDS);
    return kind_names[kind];
}

bool comm_kind_is_message(CommKind kind) { return kind == COMM_SEND || kind == COMM_RECV; }

/* ---- checks ----------------------------------------------------------------------------- */

static Status wrong(const Comm *c, const CommOp *op, const char *what)
{
    return fail(ERR_ARG, "%s: %s (%s): %s", c->name, comm_kind_name(op->kind),
                op->node ? op->node : "no node", what);
}

static Status check_sum(const Comm *c, const CommOp *op, const int64_t *counts, int64_t *total)
{
    *total = 0;
    for (int r = 0; r < c->n; r++) {
        int64_t count = counts ? counts[r] : op->count;
        if (count < 0 || count > count_limit)
            return wrong(c, op, "a count is negative or beyond reason");
        *total += count;
    }
    if (*total > count_limit) return wrong(c, op, "the counts are beyond reason");
    return OK;
}

static Status extent_of_parts(const Comm *c, const CommOp *op, const int64_t *counts,
                              const int64_t *offsets, int64_t *extent)
{
    TRY(check_sum(c, op, counts, extent));
    if (!offsets) return OK;
    *extent = 0;
    for (int r = 0; r < c->n; r++) {
        int64_t count = counts ? counts[r] : op->count;
        if (offsets[r] < 0 || offsets[r] > count_limit)
            return wrong(c, op, "an offset is negative or beyond reason");
        if (count) *extent = max_i64(*extent, offsets[r] + count);
    }
    return OK;
}

Status comm_op_measure(const Comm *c, const CommOp *op, CommExtent *e)
{
    int64_t total = 0, own = op->counts ? op->counts[c->rank] : op->count;
    TRY(check_sum(c, op, op->counts, &total));
    *e = (CommExtent){0, 0};
    switch (op->kind) {
    case COMM_ALL_REDUCE: *e = (CommExtent){op->count, op->count}; break;
    case COMM_REDUCE_SCATTER: *e = (CommExtent){total, own}; break;
    case COMM_ALL_GATHER: *e = (CommExtent){own, total}; break;
    case COMM_ALL_TO_ALL:
        TRY(extent_of_parts(c, op, op->send_counts, op->send_offsets, &e->send));
        return extent_of_parts(c, op, op->recv_counts, op->recv_offsets, &e->recv);
    case COMM_BROADCAST: *e = (CommExtent){op->peer == c->rank ? op->count : 0, op->count}; break;
    case COMM_SEND: e->send = op->count; break;
    case COMM_RECV: e->recv = op->count; break;
    case COMM_BARRIER:
    case COMM_KINDS: break;
    }
    return OK;
}

/* The overlap that is allowed: this rank's own elements, at their place. */
static bool in_place(const Comm *c, const CommOp *op, const char *send, const char *recv)
{
    int64_t before = 0;
    for (int r = 0; r < c->rank; r++) before += op->counts ? op->counts[r] : op->count;
    size_t bytes = (size_t)before * dtype_bytes(op->dtype);
    switch (op->kind) {
    case COMM_ALL_REDUCE:
    case COMM_BROADCAST: return send == recv;
    case COMM_REDUCE_SCATTER: return recv == send + bytes;
    case COMM_ALL_GATHER: return send == recv + bytes;
    case COMM_BARRIER:
    case COMM_ALL_TO_ALL:
    case COMM_SEND:
    case COMM_RECV:
    case COMM_KINDS: break;
    }
    return false;
}

static Status check_buffers(const Comm *c, const CommOp *op, CommExtent e)
{
    size_t unit = dtype_bytes(op->dtype);
    const char *send = op->send, *recv = op->recv;
    size_t send_bytes = (size_t)e.send * unit, recv_bytes = (size_t)e.recv * unit;
    if ((send_bytes && !send) || (recv_bytes && !recv)) return wrong(c, op, "a buffer is missing");
    if ((uintptr_t)send % unit || (uintptr_t)recv % unit)
        return wrong(c, op, "a buffer is not aligned to its elements");
    if (!send_bytes || !recv_bytes || send + send_bytes <= recv || recv + recv_bytes <= send)
        return OK;
    if (!in_place(c, op, send, recv))
        return wrong(c, op, "send and recv overlap in a way that is not in place (comm.h)");
    return OK;
}

Status comm_op_check(const Comm *c, const CommOp *op)
{
    if ((unsigned)op->kind >= COMM_KINDS || (unsigned)op->dtype >= DTYPE_COUNT ||
        (unsigned)op->reduce > COMM_MIN)
        return fail(ERR_ARG,
                    "%s: an operation with kind %d, type %d, reduction %d, which do not exist",
                    c->name, (int)op->kind, (int)op->dtype, (int)op->reduce);
    bool reduces = op->kind == COMM_ALL_REDUCE || op->kind == COMM_REDUCE_SCATTER;
    if (reduces && op->dtype != DTYPE_F32 && op->dtype != DTYPE_BF16 && op->dtype != DTYPE_I32)
        return wrong(c, op, "only f32, bf16 and i32 are reduced");
    if (op->kind == COMM_REDUCE_SCATTER && op->reduce != COMM_SUM)
        return wrong(c, op, "reduce_scatter only sums");
    bool has_peer = op->kind == COMM_BROADCAST || comm_kind_is_message(op->kind);
    if (has_peer && (op->peer < 0 || op->peer >= c->n))
        return wrong(c, op, "the peer is not a rank of the group");
    if (comm_kind_is_message(op->kind)) {
        if (op->tag < 0 || op->tag >= COMM_TAG_LIMIT)
            return wrong(c, op, "the tag is not in 0 to 4095");
        if (op->peer == c->rank) return wrong(c, op, "a rank does not send to itself");
    }
    CommExtent extent;
    TRY(comm_op_measure(c, op, &extent));
    return check_buffers(c, op, extent);
}

/* ---- parts ------------------------------------------------------------------------------ */

/* Cuts `count` into n parts that differ by at most one element. */
static void cut_evenly(int64_t count, int n, int64_t *part)
{
    for (int r = 0; r < n; r++) part[r] = count / n + (r < count % n);
}

static void cut_as_said(int64_t count, const int64_t *counts, int n, int64_t *part)
{
    for (int r = 0; r < n; r++) part[r] = counts ? counts[r] : count;
}

static void place(const int64_t *count, const int64_t *offsets, int n, int64_t *at)
{
    int64_t sum = 0;
    for (int r = 0; r < n; r++) {
        at[r] = offsets ? offsets[r] : sum;
        sum += count[r];
    }
}

void comm_op_cut(const CommOp *op, int n, CommParts *parts)
{
    *parts = (CommParts){0};
    if (op->kind == COMM_BARRIER || comm_kind_is_message(op->kind)) return;
    bool all_to_all = op->kind == COMM_ALL_TO_ALL;
    parts->count = xmalloc((all_to_all ? 4 : 2) * (size_t)n * sizeof(int64_t));
    parts->at = parts->count + n;
    if (op->kind == COMM_ALL_REDUCE || op->kind == COMM_BROADCAST)
        cut_evenly(op->count, n, parts->count);
    else
        cut_as_said(op->count, all_to_all ? op->send_counts : op->counts, n, parts->count);
    place(parts->count, op->send_offsets, n, parts->at);
    if (!all_to_all) return;
    parts->recv_count = parts->at + n;
    parts->recv_at = parts->recv_count + n;
    cut_as_said(op->count, op->recv_counts, n, parts->recv_count);
    place(parts->recv_count, op->recv_offsets, n, parts->recv_at);
}

/* all_reduce: every rank sends each other its part (reduce-scatter), then its own result to all
 * others. broadcast: the root sends each rank its part, then every rank its part to all others; no
 * rank needs the root's, which the root sends itself. */
int64_t comm_sent_bytes(const CommOp *op, int n, int rank)
{
    CommParts parts;
    comm_op_cut(op, n, &parts);
    int64_t total = 0, own = parts.count ? parts.count[rank] : 0, elements = 0;
    for (int r = 0; parts.count && r < n; r++) total += parts.count[r];
    switch (op->kind) {
    case COMM_ALL_REDUCE: elements = total - own + own * (n - 1); break;
    case COMM_REDUCE_SCATTER:
    case COMM_ALL_TO_ALL: elements = total - own; break;
    case COMM_ALL_GATHER: elements = own * (n - 1); break;
    case COMM_BROADCAST:
        elements = rank == op->peer ? total - own + own * (n - 1) : own * (n > 2 ? n - 2 : 0);
        break;
    case COMM_SEND: elements = op->count; break;
    case COMM_RECV:
    case COMM_BARRIER:
    case COMM_KINDS: break;
    }
    free(parts.count);
    return elements * (int64_t)dtype_bytes(op->dtype);
}

/* ---- heads ------------------------------------------------------------------------------ */

CommHead comm_op_head(const CommRequest *r)
{
    const CommOp *op = &r->op;
    CommHead head = {.kind = (int32_t)op->kind,
                     .dtype = (int32_t)op->dtype,
                     .reduce = (int32_t)op->reduce,
                     .root = -1};
    head.number = r->number;
    head.count = op->kind == COMM_BARRIER ? 0 : op->count;
    memcpy(head.node, r->node, sizeof head.node);
    if (op->kind == COMM_BROADCAST) head.root = op->peer;
    if (op->kind == COMM_REDUCE_SCATTER || op->kind == COMM_ALL_GATHER) {
        head.count = 0;
        for (int i = 0; i < r->comm->n; i++) head.count += r->parts.count[i];
        head.parts = hash_bytes(r->parts.count, (size_t)r->comm->n * sizeof(int64_t));
    }
    return head;
}

CommHead comm_head_to(const CommRequest *r, int peer)
{
    CommHead head = r->head;
    if (r->op.kind == COMM_ALL_TO_ALL) head.count = r->parts.count[peer];
    return head;
}

CommHead comm_head_expected(const CommRequest *r, int peer)
{
    CommHead head = r->head;
    if (r->op.kind == COMM_ALL_TO_ALL) head.count = r->parts.recv_count[peer];
    return head;
}

bool comm_heads_agree(const CommHead *a, const CommHead *b)
{
    if (comm_kind_is_message((CommKind)a->kind))
        return comm_kind_is_message((CommKind)b->kind) && a->dtype == b->dtype &&
               a->count == b->count;
    if (a->kind != b->kind || a->number != b->number) return false;
    if (strncmp(a->node, b->node, sizeof a->node))
        return false; /* the same shape elsewhere in the graph: one was left out */
    if (a->kind == COMM_BARRIER) return true;
    return a->dtype == b->dtype && a->reduce == b->reduce && a->root == b->root &&
           a->parts == b->parts && a->count == b->count;
}

/* A head may come from another process: its numbers are checked before they name anything. */
size_t comm_text_op(char *buf, size_t n, const CommHead *h)
{
    bool known = (unsigned)h->kind < COMM_KINDS && (unsigned)h->dtype < DTYPE_COUNT &&
                 (unsigned)h->reduce <= COMM_MIN;
    if (!known) return (size_t)snprintf(buf, n, "an unknown operation");
    int used = snprintf(buf, n, "%s", comm_kind_name((CommKind)h->kind));
    if (h->kind != COMM_BARRIER)
        used += snprintf(buf + used, n - (size_t)used, " of %lld %s", (long long)h->count,
                         dtype_name((DType)h->dtype));
    if (h->kind == COMM_ALL_REDUCE)
        used += snprintf(buf + used, n - (size_t)used, " (%s)", reduce_names[h->reduce]);
    if (h->kind == COMM_BROADCAST)
        used += snprintf(buf + used, n - (size_t)used, " from rank %d", h->root);
    if (h->node[0])
        used += snprintf(buf + used, n - (size_t)used, " in '%.*s'", COMM_NODE_BYTES - 1, h->node);
    return (size_t)used;
}
