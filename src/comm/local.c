/* The local transport: ranks are threads of this process, which meet at operations of their groups.
 *
 * An operation becomes known when its first rank starts it and is complete when the last has; then
 * whoever waits takes pieces of its work until none is left. A small one is done by the last to
 * arrive, so that the others wake up once. */
#include "comm/local.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SMALL_BYTES = 64 << 10, MAX_RANKS = 4096 };

typedef struct LocalWorld {
    pthread_mutex_t lock;
    LocalGroup *groups; /* owned */
} LocalWorld;

static LocalWorld *local_of(const Comm *c) { return c->world->state; }

/* ---- groups ----------------------------------------------------------------------------- */

static void cond_init_monotonic(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

static bool same_group(const Comm *a, const Comm *b)
{
    return a->key == b->key && a->n == b->n && !strcmp(a->name, b->name) &&
           !memcmp(a->ranks, b->ranks, (size_t)a->n * sizeof(int));
}

static void open_group(Comm *c)
{
    LocalWorld *w = local_of(c);
    pthread_mutex_lock(&w->lock);
    LocalGroup *g = w->groups;
    while (g && !same_group(g->first, c)) g = g->next;
    if (!g) {
        g = xcalloc(1, sizeof *g);
        g->first = c;
        g->next = w->groups;
        cond_init_monotonic(&g->changed);
        w->groups = g;
    }
    g->members++;
    c->state = g;
    pthread_mutex_unlock(&w->lock);
}

static void op_free(LocalOp *op)
{
    free(op->post);
    free(op);
}

/* Only at the end of the world, when no rank runs. */
static void close_group(Comm *c)
{
    LocalWorld *w = local_of(c);
    LocalGroup *g = c->state;
    if (--g->members) return;
    LocalGroup **at = &w->groups;
    while (*at != g) at = &(*at)->next;
    *at = g->next;
    while (g->ops) {
        LocalOp *op = g->ops;
        g->ops = op->next;
        op_free(op);
    }
    pthread_cond_destroy(&g->changed);
    free(g);
}

/* ---- start ------------------------------------------------------------------------------ */

/* Where a request stands among the posts of its operation. */
static int place_of(const CommRequest *r)
{
    return comm_kind_is_message(r->op.kind) ? r->op.kind == COMM_RECV : r->comm->rank;
}

static bool belongs(const LocalOp *op, const CommRequest *r)
{
    bool message = comm_kind_is_message(r->op.kind);
    if (op->message != message) return false;
    if (!message) return op->number == r->number;
    if (op->arrived == 2 || op->bad || op->post[place_of(r)]) return false;
    const CommRequest *other = op->post[!place_of(r)];
    return other && other->op.tag == r->op.tag && other->op.peer == r->comm->rank &&
           other->comm->rank == r->op.peer;
}

/* The operation that this request joins: the oldest that fits, or a new one at the end. */
static LocalOp *find_or_add(LocalGroup *g, const CommRequest *r)
{
    LocalOp **at = &g->ops, *op;
    while ((op = *at) && !belongs(op, r)) at = &op->next;
    if (op) return op;
    op = xcalloc(1, sizeof *op);
    op->message = comm_kind_is_message(r->op.kind);
    op->need = op->message ? 2 : r->comm->n;
    op->number = r->number;
    op->post = xcalloc((size_t)op->need, sizeof(CommRequest *));
    *at = op;
    return op;
}

/* The first rank that disagrees with `r`, or -1. */
static int find_mismatch(const LocalOp *op, const CommRequest *r)
{
    for (int i = 0; i < op->need; i++) {
        const CommRequest *other = op->post[i];
        if (!other || other == r) continue;
        CommHead theirs = comm_head_to(other, r->comm->rank),
                 mine = comm_head_expected(r, other->comm->rank);
        bool agree = comm_heads_agree(&mine, &theirs);
        if (agree && r->op.kind == COMM_ALL_TO_ALL)
            agree = r->parts.count[other->comm->rank] == other->parts.recv_count[r->comm->rank];
        if (!agree) return i;
    }
    return -1;
}

static void finish(LocalOp *op, LocalGroup *g)
{
    op->done = true;
    op->done_s = clock_s();
    pthread_cond_broadcast(&g->changed);
}

/* Under the lock; the last rank has come. */
static void begin_work(LocalWorld *w, LocalGroup *g, LocalOp *op)
{
    op->arrived_s = clock_s();
    local_op_plan(op);
    if (local_op_bytes(op) > SMALL_BYTES) {
        pthread_cond_broadcast(&g->changed);
        return;
    }
    op->taken = op->pieces;
    op->working++;
    pthread_mutex_unlock(&w->lock);
    for (int64_t i = 0; i < op->pieces; i++) local_op_work(op, i);
    pthread_mutex_lock(&w->lock);
    op->working--;
    op->finished = op->pieces;
    finish(op, g);
}

static Status start(CommRequest *r)
{
    LocalWorld *w = local_of(r->comm);
    LocalGroup *g = r->comm->state;
    pthread_mutex_lock(&w->lock);
    if (comm_board_failed(
            r->comm->world->board)) { /* posts of ranks that have left are no longer there */
        pthread_mutex_unlock(&w->lock);
        return comm_failure(r->comm->world);
    }
    LocalOp *op = find_or_add(g, r);
    int other = find_mismatch(op, r);
    if (other >= 0) {
        op->bad = true;
        CommHead theirs = comm_head_to(op->post[other], r->comm->rank);
        int peer = op->post[other]->comm->rank;
        pthread_mutex_unlock(&w->lock);
        return comm_fail_mismatch(r, peer, &theirs);
    }
    op->post[place_of(r)] = r;
    r->state = op;
    if (++op->arrived == op->need && !op->bad) begin_work(w, g, op);
    pthread_mutex_unlock(&w->lock);
    return OK;
}

/* ---- wait ------------------------------------------------------------------------------- */

static void take_piece(LocalWorld *w, LocalGroup *g, LocalOp *op)
{
    int64_t piece = op->taken++;
    op->working++;
    pthread_mutex_unlock(&w->lock);
    local_op_work(op, piece);
    pthread_mutex_lock(&w->lock);
    op->working--;
    if (++op->finished == op->pieces)
        finish(op, g);
    else if (!op->working && comm_board_failed(g->first->world->board))
        pthread_cond_broadcast(&g->changed); /* those who leave a lost world wait for us */
}

/* Under the lock. False when the time has come; below 0 it never does. */
static bool wait_change(LocalWorld *w, LocalGroup *g, double until_s)
{
    if (until_s < 0) return pthread_cond_wait(&g->changed, &w->lock) == 0;
    struct timespec t = {.tv_sec = (time_t)until_s};
    t.tv_nsec = (long)((until_s - floor(until_s)) * 1e9);
    return pthread_cond_timedwait(&g->changed, &w->lock, &t) != ETIMEDOUT;
}

/* Under the lock. From time to time of a long wait: says whom it waits for; and that it has waited
 * long enough. */
static void tell(LocalWorld *w, CommRequest *r, double start_s)
{
    const LocalOp *op = r->state;
    double now_s = clock_s();
    if (now_s <= r->say_s && now_s <= r->until_s) return;
    bool *missing = xcalloc((size_t)r->comm->n, sizeof *missing);
    if (op->message)
        missing[r->op.peer] = true;
    else
        for (int i = 0; i < op->need; i++) missing[i] = !op->post[i];
    comm_board_say_waits(r, missing, false);
    if (now_s > r->until_s) {
        pthread_mutex_unlock(&w->lock);
        (void)comm_fail_late(r, missing, false, now_s - start_s);
        pthread_mutex_lock(&w->lock);
    }
    free(missing);
}

/* Under the lock: the request is done with. */
static void leave(LocalGroup *g, LocalOp *op)
{
    if (++op->left < op->need) return;
    LocalOp **at = &g->ops;
    while (*at != op) at = &(*at)->next;
    *at = op->next;
    op_free(op);
}

static Status wait(CommRequest *r)
{
    LocalWorld *w = local_of(r->comm);
    LocalGroup *g = r->comm->state;
    LocalOp *op = r->state;
    double start_s = clock_s();
    pthread_mutex_lock(&w->lock);
    while (!op->done) {
        if (comm_board_failed(r->comm->world->board)) {
            op->bad =
                true; /* nobody takes another piece; who is at one still touches our buffers */
            while (op->working) pthread_cond_wait(&g->changed, &w->lock);
            pthread_mutex_unlock(&w->lock);
            return comm_failure(r->comm->world);
        }
        bool complete = op->arrived == op->need && !op->bad;
        if (complete && op->taken < op->pieces)
            take_piece(w, g, op);
        else if (!wait_change(w, g, complete ? -1 : fmin(r->say_s, r->until_s)) &&
                 op->arrived < op->need && !comm_board_failed(r->comm->world->board))
            tell(w, r, start_s); /* then around: to leave a lost world in order, or to wait on */
    }
    r->arrived_s = op->arrived_s;
    r->end_s = op->done_s;
    leave(g, op);
    pthread_mutex_unlock(&w->lock);
    return OK;
}

/* ---- failures --------------------------------------------------------------------------- */

static void look(CommWorld *world, const int *ranks, int n, CommSeen *seen)
{
    for (int i = 0; i < n; i++) seen[i] = comm_board_look(world->board, ranks[i], false);
}

static void listen_for(CommWorld *world, double seconds)
{
    double until_s = clock_s() + seconds;
    while (!comm_board_failed(world->board) && clock_s() < until_s)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* All ranks share the board: the first to write is the chair. */
static void report(CommWorld *world, int rank, int chair, Status status, const char *sentence)
{
    (void)chair;
    if (!comm_board_fail(world->board, rank, status, sentence)) return;
    LocalWorld *w = world->state;
    pthread_mutex_lock(&w->lock);
    for (LocalGroup *g = w->groups; g; g = g->next) pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&w->lock);
}

/* ---- world ------------------------------------------------------------------------------ */

static void destroy(CommWorld *world)
{
    LocalWorld *w = world->state;
    pthread_mutex_destroy(&w->lock);
    free(w);
    free(world->board);
}

static const CommTransport local_transport = {
    .name = "local",
    .open = open_group,
    .close = close_group,
    .start = start,
    .wait = wait,
    .look = look,
    .listen = listen_for,
    .report = report,
    .destroy = destroy,
};

Status comm_world_create_local(int n, const CommOptions *options, CommWorld **out)
{
    if (n < 1 || n > MAX_RANKS)
        return fail(ERR_ARG, "comm: %d ranks as threads; 1 to %d are possible", n, MAX_RANKS);
    CommWorld *world = comm_world_new(&local_transport, n, options);
    LocalWorld *w = xcalloc(1, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    world->state = w;
    world->board = xcalloc(1, comm_board_bytes(n));
    comm_board_init(world->board, n);
    for (int r = 0; r < n; r++)
        if (!comm_test_host(r, world->host[r]) &&
            gethostname(world->host[r], sizeof world->host[r] - 1) != 0)
            snprintf(world->host[r], sizeof world->host[r], "this host");
    comm_world_add_ranks(world, 0, n);
    *out = world;
    return OK;
}
