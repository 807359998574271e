/* What is to be done with the buffers of a local operation, piece by piece, straight from the
 * peers' memory. */
#include "comm/local.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of all ranks that one piece touches: small enough to share the work evenly, large enough
 * that taking a piece costs nothing beside it. */
enum { PIECE_BYTES = 1 << 20, PIECE_MIN = 1024 };

/* A stretch of elements: `first` counts within the part. */
typedef struct Stretch {
    int part;
    int64_t first, count;
} Stretch;

/* In these kinds each part is another rank's; elsewhere the whole is one part, and in all_to_all a
 * piece is what goes to one rank. */
static bool has_parts(CommKind kind)
{
    return kind == COMM_REDUCE_SCATTER || kind == COMM_ALL_GATHER;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void local_op_plan(LocalOp *op)
{
    const CommRequest *r = op->post[0];
    int64_t unit = (int64_t)dtype_bytes(r->op.dtype), pieces = 0;
    op->chunk = max_i64(PIECE_MIN, PIECE_BYTES / (unit * op->need));
    if (has_parts(r->op.kind))
        for (int i = 0; i < op->need; i++) pieces += ceil_div(r->parts.count[i], op->chunk);
    else if (r->op.kind == COMM_ALL_TO_ALL)
        pieces = op->need;
    else if (r->op.kind != COMM_BARRIER)
        pieces = ceil_div(r->op.count, op->chunk);
    op->pieces = pieces;
}

int64_t local_op_bytes(const LocalOp *op)
{
    const CommRequest *r = op->post[0];
    int64_t n = op->need, unit = (int64_t)dtype_bytes(r->op.dtype), total = 0;
    switch (r->op.kind) {
    case COMM_REDUCE_SCATTER:
    case COMM_ALL_GATHER: return r->head.count * (n + 1) * unit;
    case COMM_ALL_TO_ALL:
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) total += op->post[i]->parts.count[j];
        return 2 * total * unit;
    case COMM_ALL_REDUCE: return 2 * r->op.count * n * unit;
    case COMM_BROADCAST: return r->op.count * n * unit;
    case COMM_SEND:
    case COMM_RECV: return 2 * r->op.count * unit;
    case COMM_BARRIER:
    case COMM_KINDS: break;
    }
    return 0;
}

static Stretch stretch_of(const LocalOp *op, int64_t piece)
{
    const CommRequest *r = op->post[0];
    if (!has_parts(r->op.kind)) {
        int64_t first = piece * op->chunk;
        return (Stretch){0, first, min_i64(op->chunk, r->op.count - first)};
    }
    int part = 0;
    for (int64_t chunks = 0;; part++, piece -= chunks) {
        chunks = ceil_div(r->parts.count[part], op->chunk);
        if (piece < chunks) break;
    }
    int64_t first = piece * op->chunk;
    return (Stretch){part, first, min_i64(op->chunk, r->parts.count[part] - first)};
}

static const char *sent(const CommRequest *r, int64_t at)
{
    return (const char *)r->op.send + (size_t)at * dtype_bytes(r->op.dtype);
}
static char *received(const CommRequest *r, int64_t at)
{
    return (char *)r->op.recv + (size_t)at * dtype_bytes(r->op.dtype);
}

/* A gather in place, or a broadcast at its root, has nothing to move. */
static void copy(char *to, const char *from, size_t bytes)
{
    if (to != from && bytes) memcpy(to, from, bytes);
}

static void reduce(const LocalOp *op, Stretch s)
{
    const CommRequest *r = op->post[0];
    bool scatter = r->op.kind == COMM_REDUCE_SCATTER;
    const void **in = xmalloc((size_t)op->need * sizeof *in);
    void **out = xmalloc((size_t)op->need * sizeof *out);
    int64_t from = scatter ? r->parts.at[s.part] + s.first : s.first;
    for (int i = 0; i < op->need; i++) {
        in[i] = sent(op->post[i], from);
        if (!scatter) out[i] = received(op->post[i], s.first);
    }
    if (scatter) out[0] = received(op->post[s.part], s.first);
    CommTree tree = {r->op.dtype, r->op.reduce, in, out, op->need, scatter ? 1 : op->need};
    comm_tree_reduce(&tree, s.count);
    free(in);
    free(out);
}

static void spread(const LocalOp *op, Stretch s)
{
    const CommRequest *r = op->post[0];
    bool gather = r->op.kind == COMM_ALL_GATHER;
    const char *from = sent(op->post[gather ? s.part : r->op.peer], s.first);
    int64_t at = gather ? r->parts.at[s.part] + s.first : s.first;
    for (int i = 0; i < op->need; i++)
        copy(received(op->post[i], at), from, (size_t)s.count * dtype_bytes(r->op.dtype));
}

static void collect(const LocalOp *op, int to)
{
    const CommRequest *r = op->post[to];
    for (int i = 0; i < op->need; i++)
        copy(received(r, r->parts.recv_at[i]), sent(op->post[i], op->post[i]->parts.at[to]),
             (size_t)r->parts.recv_count[i] * dtype_bytes(r->op.dtype));
}

void local_op_work(const LocalOp *op, int64_t piece)
{
    const CommRequest *r = op->post[0];
    Stretch s;
    switch (r->op.kind) {
    case COMM_ALL_REDUCE:
    case COMM_REDUCE_SCATTER: reduce(op, stretch_of(op, piece)); break;
    case COMM_ALL_GATHER:
    case COMM_BROADCAST: spread(op, stretch_of(op, piece)); break;
    case COMM_ALL_TO_ALL: collect(op, (int)piece); break;
    case COMM_SEND:
        s = stretch_of(op, piece);
        copy(received(op->post[1], s.first), sent(r, s.first),
             (size_t)s.count * dtype_bytes(r->op.dtype));
        break;
    case COMM_RECV:
    case COMM_BARRIER:
    case COMM_KINDS: break;
    }
}
