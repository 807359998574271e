/* An operation over MPI, as a machine that is moved on whenever somebody looks.
 *
 * First every rank sends its head to every peer: who has not arrived is known, and that all mean
 * the same, before a byte of data could go wrong. Then the parts go to their owners (each rank owns
 * one: it reduces it, or passes it on), and from the owners to all: of an all_reduce of S bytes
 * each rank sends 2 (n-1)/n S, as a ring does, in two steps instead of 2 (n-1). Long parts go in
 * segments, on two lanes, so that one segment is reduced while the other travels. */
#include "comm/mpi_transport.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of a segment: of a reduction, all peers' stretches of it should stay in the cache until
 * they are summed; elsewhere only below what MPI counts in an int. Figures in docs/benchmarks.md.
 */
enum { REDUCE_BYTES = 512 << 10, REDUCE_MIN_BYTES = 16 << 10, MOVE_BYTES = 256 << 20 };

bool mpi_good(Comm *comm, int code, const char *what)
{
    if (code == MPI_SUCCESS) return true;
    char text[MPI_MAX_ERROR_STRING + 1] = "", sentence[COMM_SENTENCE_BYTES];
    int length = 0;
    MPI_Error_string(code, text, &length);
    snprintf(sentence, sizeof sentence, "%s: rank %d: %s: MPI says '%.400s'", comm->name,
             comm->self, what, text);
    (void)comm_fail_world(comm, sentence);
    return false;
}

/* ---- shapes ----------------------------------------------------------------------------- */

static bool reduces(CommKind kind)
{
    return kind == COMM_ALL_REDUCE || kind == COMM_REDUCE_SCATTER;
}

/* A stretch of a buffer; count 0 where nothing goes. */
typedef struct Stretch {
    char *at;
    int64_t count;
} Stretch;

static Stretch stretch(const MpiOp *op, const void *base, int64_t at, int64_t count,
                       int64_t segment)
{
    int64_t first = segment * op->segment;
    Stretch s = {NULL, max_i64(0, min_i64(op->segment, count - first))};
    if (s.count)
        s.at = (char *)(uintptr_t)base + (size_t)(at + first) * dtype_bytes(op->request->op.dtype);
    return s;
}

/* What this rank sends to and receives from `peer` in a stage of a segment. */
static Stretch sends(const MpiOp *op, int stage, int peer, int64_t segment)
{
    const CommRequest *r = op->request;
    const CommOp *o = &r->op;
    const CommParts *p = &r->parts;
    int me = r->comm->rank;
    if (comm_kind_is_message(o->kind))
        return stretch(op, o->send, 0, o->kind == COMM_SEND && stage == 1 ? o->count : 0, segment);
    if (stage == 1) {
        bool any = reduces(o->kind) || o->kind == COMM_ALL_TO_ALL ||
                   (o->kind == COMM_BROADCAST && me == o->peer);
        return stretch(op, o->send, p->at[peer], any ? p->count[peer] : 0, segment);
    }
    bool any = o->kind == COMM_ALL_REDUCE || o->kind == COMM_ALL_GATHER ||
               (o->kind == COMM_BROADCAST && peer != o->peer);
    return stretch(op, o->recv, p->at[me], any ? p->count[me] : 0, segment);
}

static Stretch receives(const MpiOp *op, int stage, int peer, int64_t segment, const MpiLane *lane)
{
    const CommRequest *r = op->request;
    const CommOp *o = &r->op;
    const CommParts *p = &r->parts;
    int me = r->comm->rank;
    if (comm_kind_is_message(o->kind))
        return stretch(op, o->recv, 0, o->kind == COMM_RECV && stage == 1 ? o->count : 0, segment);
    if (stage == 1 && reduces(o->kind)) {
        Stretch s = stretch(op, lane->scratch, 0, p->count[me], segment);
        s.at = lane->scratch + (size_t)peer * (size_t)op->segment * dtype_bytes(o->dtype);
        return s;
    }
    if (stage == 1 && o->kind == COMM_ALL_TO_ALL)
        return stretch(op, o->recv, p->recv_at[peer], p->recv_count[peer], segment);
    if (stage == 1)
        return stretch(op, o->recv, p->at[me],
                       o->kind == COMM_BROADCAST && peer == o->peer ? p->count[me] : 0, segment);
    bool any = o->kind == COMM_ALL_REDUCE || o->kind == COMM_ALL_GATHER ||
               (o->kind == COMM_BROADCAST && me != o->peer);
    return stretch(op, o->recv, p->at[peer], any ? p->count[peer] : 0, segment);
}

/* ---- create ----------------------------------------------------------------------------- */

static int64_t longest_part(const CommRequest *r)
{
    int64_t longest = comm_kind_is_message(r->op.kind) ? r->op.count : 0;
    for (int i = 0; r->parts.count && i < r->comm->n; i++) {
        longest = max_i64(longest, r->parts.count[i]);
        if (r->parts.recv_count) longest = max_i64(longest, r->parts.recv_count[i]);
    }
    return longest;
}

static void size_segments(MpiOp *op)
{
    const CommRequest *r = op->request;
    int64_t unit = (int64_t)dtype_bytes(r->op.dtype), bytes = MOVE_BYTES, longest = longest_part(r);
    if (reduces(r->op.kind))
        bytes = max_i64(REDUCE_MIN_BYTES, REDUCE_BYTES / max_i64(1, r->comm->n - 1));
    op->segment = max_i64(1, min_i64(bytes / unit, longest));
    op->n_segments = (longest + op->segment - 1) / op->segment;
}

MpiOp *mpi_op_create(CommRequest *r)
{
    size_t n = (size_t)r->comm->n;
    MpiOp *op = xcalloc(1, sizeof *op);
    op->request = r;
    op->head = xcalloc(2 * n, sizeof *op->head);
    size_segments(op);
    op->lanes = comm_kind_is_message(r->op.kind) ? 1 : LANES;
    for (int k = 0; k < LANES; k++) {
        MpiLane *lane = &op->lane[k];
        lane->segment = k < op->lanes && k < op->n_segments ? k : -1;
        if (k && lane->segment < 0) continue;
        lane->request = xmalloc(2 * n * sizeof *lane->request);
        lane->done = xmalloc(2 * n * sizeof *lane->done);
        for (size_t i = 0; i < 2 * n; i++) lane->request[i] = MPI_REQUEST_NULL;
        if (!reduces(r->op.kind) || lane->segment < 0) continue;
        lane->scratch = fault_hit("tensor_alloc")
                            ? NULL
                            : malloc(n * (size_t)op->segment * dtype_bytes(r->op.dtype));
        if (lane->scratch) continue;
        mpi_op_free(op);
        return NULL;
    }
    return op;
}

void mpi_op_free(MpiOp *op)
{
    for (int k = 0; k < LANES; k++) {
        free(op->lane[k].request);
        free(op->lane[k].done);
        free(op->lane[k].scratch);
    }
    free(op->head);
    free(op);
}

/* ---- posting ---------------------------------------------------------------------------- */

static const MpiGroup *group_of(const MpiOp *op) { return op->request->comm->state; }
static MpiWorld *world_of(const MpiOp *op) { return op->request->comm->world->state; }

static int tag_at(const MpiOp *op, int index, int lane)
{
    return comm_kind_is_message(op->request->op.kind)
               ? TAG_MESSAGES + index * COMM_TAG_LIMIT + op->request->op.tag
               : index * LANES + lane;
}

/* Slots below n of a lane's requests receive, the others send. */
static bool post(MpiOp *op, int lane, int slot, void *at, size_t bytes)
{
    Comm *c = op->request->comm;
    MPI_Request *request = &op->lane[lane].request[slot];
    int n = c->n, peer = slot % n, code;
    if (slot < n)
        code = MPI_Irecv(at, (int)bytes, MPI_BYTE, c->ranks[peer],
                         tag_at(op, group_of(op)->index, lane), world_of(op)->all, request);
    else
        code = MPI_Isend(at, (int)bytes, MPI_BYTE, c->ranks[peer],
                         tag_at(op, group_of(op)->peer_index[peer], lane), world_of(op)->all,
                         request);
    return mpi_good(c, code, slot < n ? "receiving" : "sending");
}

/* The peers of a message are one, which the receiver hears first; of a collective all, in turns
 * that start behind this rank, so that not all send to rank 0 first. */
static bool is_peer(const CommRequest *r, int i)
{
    return comm_kind_is_message(r->op.kind) ? i == r->op.peer : i != r->comm->rank;
}

static void post_heads(MpiOp *op)
{
    CommRequest *r = op->request;
    int n = r->comm->n;
    for (int i = 0; i < n; i++)
        if (is_peer(r, i) && r->op.kind != COMM_SEND &&
            !post(op, 0, i, &op->head[i], sizeof(CommHead)))
            return;
    for (int k = 1; k <= n; k++) {
        int i = (r->comm->rank + k) % n;
        if (!is_peer(r, i) || r->op.kind == COMM_RECV) continue;
        op->head[n + i] = comm_head_to(r, i);
        if (!post(op, 0, n + i, &op->head[n + i], sizeof(CommHead))) return;
        r->check_bytes += (int64_t)sizeof(CommHead);
    }
}

static void post_stage(MpiOp *op, int k, int stage)
{
    CommRequest *r = op->request;
    MpiLane *lane = &op->lane[k];
    size_t unit = dtype_bytes(r->op.dtype);
    int n = r->comm->n;
    lane->stage = stage;
    for (int i = 0; i < n; i++) {
        Stretch s = is_peer(r, i) ? receives(op, stage, i, lane->segment, lane) : (Stretch){0};
        if (s.count && !post(op, k, i, s.at, (size_t)s.count * unit)) return;
    }
    for (int d = 1; d <= n; d++) {
        int i = (r->comm->rank + d) % n;
        Stretch s = is_peer(r, i) ? sends(op, stage, i, lane->segment) : (Stretch){0};
        if (s.count && !post(op, k, n + i, s.at, (size_t)s.count * unit)) return;
        r->sent_bytes += s.count * (int64_t)unit; /* counted where it leaves */
    }
}

/* ---- moving ----------------------------------------------------------------------------- */

/* What stays on this rank is copied. */
static void copy_own(const MpiOp *op)
{
    const CommRequest *r = op->request;
    const CommOp *o = &r->op;
    const CommParts *p = &r->parts;
    int me = r->comm->rank;
    size_t unit = dtype_bytes(o->dtype), bytes = 0;
    const char *from = o->send;
    char *to = o->recv;
    if (o->kind == COMM_ALL_GATHER || o->kind == COMM_ALL_TO_ALL)
        bytes = (size_t)p->count[me] * unit;
    if (o->kind == COMM_BROADCAST && o->peer == me) bytes = (size_t)o->count * unit;
    if (!bytes) return;
    if (o->kind == COMM_ALL_GATHER) to += (size_t)p->at[me] * unit;
    if (o->kind == COMM_ALL_TO_ALL) {
        from += (size_t)p->at[me] * unit;
        to += (size_t)p->recv_at[me] * unit;
    }
    if (from != to) memcpy(to, from, bytes);
}

static void reduce_segment(const MpiOp *op, const MpiLane *lane)
{
    const CommRequest *r = op->request;
    int n = r->comm->n, me = r->comm->rank;
    bool whole = r->op.kind == COMM_ALL_REDUCE;
    Stretch own = stretch(op, r->op.send, r->parts.at[me], r->parts.count[me], lane->segment);
    Stretch out = stretch(op, r->op.recv, whole ? r->parts.at[me] : 0, r->parts.count[me],
                          lane->segment);
    if (!own.count) return;
    const void **in = xmalloc((size_t)n * sizeof *in);
    for (int i = 0; i < n; i++)
        in[i] = i == me
                    ? own.at
                    : lane->scratch + (size_t)i * (size_t)op->segment * dtype_bytes(r->op.dtype);
    void *to[1] = {out.at};
    comm_tree_reduce(&(CommTree){r->op.dtype, r->op.reduce, in, to, n, 1}, own.count);
    free(in);
}

/* Tests a lane's requests. True when none is left; *moved when one has ended. Heads are looked at
 * as they come. */
static bool test_lane(MpiOp *op, MpiLane *lane, bool *moved)
{
    CommRequest *r = op->request;
    int count = 0, n = r->comm->n;
    if (!mpi_good(r->comm,
                  MPI_Testsome(2 * n, lane->request, &count, lane->done, MPI_STATUSES_IGNORE),
                  "waiting"))
        return false;
    if (count == MPI_UNDEFINED) return true;
    *moved |= count > 0;
    for (int i = 0; op->phase == MPI_PHASE_HEADS && i < count; i++) {
        int peer = lane->done[i];
        if (peer >= n) continue;
        CommHead mine = comm_head_expected(r, peer);
        if (comm_heads_agree(&mine, &op->head[peer])) continue;
        (void)comm_fail_mismatch(r, peer, &op->head[peer]);
        return false;
    }
    for (int i = 0; i < 2 * n; i++)
        if (lane->request[i] != MPI_REQUEST_NULL) return false;
    return true;
}

/* One step of a lane whose requests have all ended. */
static void advance(MpiOp *op, int k)
{
    MpiLane *lane = &op->lane[k];
    if (lane->stage == 1 && reduces(op->request->op.kind)) reduce_segment(op, lane);
    if (lane->stage == 2) {
        lane->segment += op->lanes;
        if (lane->segment >= op->n_segments) lane->segment = -1;
        lane->stage = 0;
    }
    if (lane->segment >= 0) post_stage(op, k, lane->stage + 1);
}

static bool move_data(MpiOp *op)
{
    bool moved = false, left = false;
    for (int k = 0; k < LANES; k++) {
        MpiLane *lane = &op->lane[k];
        while (lane->segment >= 0 && !comm_board_failed(op->request->comm->world->board) &&
               test_lane(op, lane, &moved)) {
            advance(op, k);
            moved = true;
        }
        left |= lane->segment >= 0;
    }
    if (left) return moved;
    op->phase = MPI_PHASE_DONE;
    op->request->end_s = clock_s();
    return true;
}

static bool greeted(const MpiOp *op)
{
    const CommRequest *r = op->request;
    for (int i = 0; i < r->comm->n; i++)
        if (is_peer(r, i) && group_of(op)->peer_index[i] < 0) return false;
    return true;
}

bool mpi_op_move(MpiOp *op)
{
    bool moved = false;
    if (op->phase == MPI_PHASE_GREET) {
        if (!greeted(op)) return false;
        op->phase = MPI_PHASE_HEADS;
        op->request->sent_bytes = 0;
        post_heads(op);
        moved = true;
    }
    if (op->phase == MPI_PHASE_HEADS) {
        if (!test_lane(op, &op->lane[0], &moved)) return moved;
        op->request->arrived_s = clock_s();
        op->phase = MPI_PHASE_DATA;
        copy_own(op);
    }
    return move_data(op) || moved;
}

void mpi_op_missing(const MpiOp *op, bool *missing)
{
    const CommRequest *r = op->request;
    int n = r->comm->n;
    for (int i = 0; i < n; i++) {
        missing[i] = false;
        if (!is_peer(r, i)) continue;
        if (op->phase == MPI_PHASE_GREET) missing[i] = group_of(op)->peer_index[i] < 0;
        for (int k = 0; op->phase != MPI_PHASE_GREET && k < LANES; k++) {
            const MPI_Request *request = op->lane[k].request;
            if (request)
                missing[i] |= request[i] != MPI_REQUEST_NULL || request[n + i] != MPI_REQUEST_NULL;
        }
    }
}
