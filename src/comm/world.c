/* Worlds and groups, and the life of a request: check, number, start, wait, count. */
#include "comm/comm_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double default_deadline_s = 600;

/* ---- worlds ----------------------------------------------------------------------------- */

CommWorld *comm_world_new(const CommTransport *transport, int n, const CommOptions *options)
{
    CommWorld *w = xcalloc(1, sizeof *w);
    w->transport = transport;
    w->n = n;
    w->deadline_s = options && options->deadline_s > 0 ? options->deadline_s : default_deadline_s;
    w->host = xcalloc((size_t)n, sizeof *w->host);
    return w;
}

bool comm_test_host(int rank, char host[64])
{
    const char *at = getenv("DROVER_TEST_HOSTS");
    if (!at || !*at) return false;
    while (*at) {
        size_t name = strcspn(at, ":,"), entry = strcspn(at, ",");
        long slots = at[name] == ':' ? strtol(at + name + 1, NULL, 10) : 1;
        snprintf(host, 64, "%.*s", (int)name, at);
        if ((rank -= (int)slots) < 0) break;
        at += entry + (at[entry] == ',');
    }
    return true;
}

static Comm *group_new(CommWorld *w, int self, const char *name, const int *ranks, int n)
{
    Comm *c = xcalloc(1, sizeof *c);
    c->world = w;
    c->self = self;
    c->n = n;
    c->deadline_s = w->deadline_s;
    snprintf(c->name, sizeof c->name, "%s", name);
    c->ranks = xmalloc((size_t)n * sizeof(int));
    for (int r = 0; r < n; r++) {
        c->ranks[r] = ranks ? ranks[r] : r;
        if (c->ranks[r] == self) c->rank = r;
    }
    c->sent = xcalloc(2 * (size_t)n, sizeof(int64_t));
    c->received = c->sent + n;
    c->key = hash_bytes(c->ranks, (size_t)n * sizeof(int)) ^ rng_key((uint64_t)n, c->name);
    w->transport->open(c);
    return c;
}

void comm_world_add_ranks(CommWorld *w, int first, int here)
{
    w->first = first;
    w->here = here;
    w->all = xcalloc((size_t)here, sizeof(Comm *));
    w->row = xcalloc((size_t)here, sizeof(CommRow));
    for (int i = 0; i < here; i++) w->row[i].pid = (int32_t)getpid();
    for (int i = 0; i < here; i++) w->all[i] = group_new(w, first + i, "world", NULL, w->n);
}

void comm_request_free(CommRequest *r)
{
    if (r->prev) r->prev->next = r->next;
    if (r->next) r->next->prev = r->prev;
    if (r->comm->open == r) r->comm->open = r->next;
    free(r->parts.count);
    free(r->carried);
    free(r);
}

static void group_free(Comm *c)
{
    comm_device_close(c);
    c->world->transport->close(c);
    for (CommRequest *r = c->open, *next; r; r = next) {
        next = r->next;
        comm_request_free(r);
    }
    free(c->ranks);
    free(c->sent);
    free(c);
}

void comm_world_destroy(CommWorld *w)
{
    if (!w) return;
    for (int i = 0; i < w->here; i++) {
        for (Comm *c = w->all[i], *next; c; c = next) {
            next = c->next;
            group_free(c);
        }
    }
    w->transport->destroy(w);
    free(w->all);
    free(w->row);
    free(w->host);
    free(w);
}

int comm_world_size(const CommWorld *w) { return w->n; }

int comm_world_here(const CommWorld *w, int *first)
{
    *first = w->first;
    return w->here;
}

Comm *comm_of_rank(CommWorld *w, int rank)
{
    CHECK(rank >= w->first && rank < w->first + w->here);
    return w->all[rank - w->first];
}

/* ---- groups ----------------------------------------------------------------------------- */

static Status check_group(const Comm *member, const char *name, const int *ranks, int n)
{
    const CommWorld *w = member->world;
    if (!name[0] || strlen(name) >= COMM_NAME_BYTES)
        return fail(ERR_ARG, "comm: a group's name has 1 to %d letters, not '%.64s'",
                    COMM_NAME_BYTES - 1, name);
    if (n < 1 || n > w->n)
        return fail(ERR_ARG, "%s: a group of %d ranks in a world of %d", name, n, w->n);
    char *seen = xcalloc(1, (size_t)w->n);
    int bad = -1;
    for (int i = 0; i < n && bad < 0; i++) {
        bool fresh = ranks[i] >= 0 && ranks[i] < w->n && !seen[ranks[i]];
        if (fresh)
            seen[ranks[i]] = 1;
        else
            bad = i;
    }
    bool includes = seen[member->self];
    free(seen);
    if (bad >= 0)
        return fail(ERR_ARG, "%s: rank %d is named twice or is not of this world of %d", name,
                    ranks[bad], w->n);
    if (!includes)
        return fail(ERR_ARG, "%s: rank %d is not in the group that it asks for", name,
                    member->self);
    return OK;
}

Status comm_group(Comm *member, const char *name, const int *ranks, int n, Comm **group)
{
    CommWorld *w = member->world;
    TRY(check_group(member, name, ranks, n));
    Comm *last = w->all[member->self - w->first];
    for (int groups = 1;; last = last->next, groups++) {
        if (last->n == n && !strcmp(last->name, name) &&
            !memcmp(last->ranks, ranks, (size_t)n * sizeof(int))) {
            *group = last;
            return OK;
        }
        if (groups > COMM_GROUP_LIMIT)
            return fail(ERR_ARG, "%s: rank %d is in %d groups already", name, member->self,
                        groups - 1);
        if (!last->next) break;
    }
    last->next = group_new(w, member->self, name, ranks, n);
    last->next->deadline_s = member->deadline_s;
    *group = last->next;
    return OK;
}

const char *comm_name(const Comm *c) { return c->name; }
int comm_size(const Comm *c) { return c->n; }
int comm_rank(const Comm *c) { return c->rank; }
int comm_world_rank(const Comm *c, int rank)
{
    CHECK(rank >= 0 && rank < c->n);
    return c->ranks[rank];
}
const char *comm_host(const Comm *c, int rank) { return c->world->host[comm_world_rank(c, rank)]; }
void comm_set_deadline(Comm *c, double deadline_s) { c->deadline_s = deadline_s; }

/* ---- the life of a request -------------------------------------------------------------- */

static CommRow *row_of(const Comm *c) { return &c->world->row[c->self - c->world->first]; }

/* Often enough that ranks on other hosts see within a second what is so now, and seldom enough to
 * cost nothing: most waits end before the first word. */
static const double say_every_s = 0.1;

void comm_board_say(const CommRequest *r, CommPhase phase)
{
    Comm *c = r->comm;
    CommRow *row = row_of(c);
    row->phase = (int32_t)phase;
    row->head = r->head;
    row->time_s = clock_s();
    row->waits_s = 0;
    row->n_waits = 0;
    memcpy(row->group, c->name, sizeof row->group);
    comm_board_write(c->world->board, c->self, row);
}

void comm_board_say_waits(CommRequest *r, const bool *missing, bool arrived)
{
    Comm *c = r->comm;
    CommRow *row = row_of(c);
    row->waits_s = clock_s();
    row->n_waits = 0;
    row->arrived = arrived;
    for (int i = 0; i < c->n; i++) {
        if (!missing[i]) continue;
        if (row->n_waits < COMM_WAITS) row->waits_for[row->n_waits] = c->ranks[i];
        row->n_waits++;
    }
    r->say_s = row->waits_s + say_every_s;
    comm_board_write(c->world->board, c->self, row);
}

void comm_note(Comm *c, const char *doing, int64_t step)
{
    CommRow *row = row_of(c);
    row->step = step;
    row->note_s = clock_s();
    snprintf(row->doing, sizeof row->doing, "%s", doing);
    comm_board_write(c->world->board, c->self, row);
}

/* Fault comm_stall: the rank does not take part, until the others have noticed. */
static Status stall(const Comm *c)
{
    while (!comm_board_failed(c->world->board))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return comm_failure(c->world);
}

static void add_open(CommRequest *r)
{
    r->next = r->comm->open;
    if (r->next) r->next->prev = r;
    r->comm->open = r;
}

static CommRequest *request_new(Comm *c, const CommOp *op)
{
    CommRequest *r = xcalloc(1, sizeof *r);
    r->comm = c;
    r->op = *op;
    snprintf(r->node, sizeof r->node, "%s", op->node ? op->node : "");
    r->op.node = r->node;
    comm_op_cut(op, c->n, &r->parts);
    r->op.counts = r->op.send_counts = r->op.recv_counts = r->op.send_offsets = r->op.recv_offsets =
        NULL;
    r->number = 1 + (op->kind == COMM_SEND   ? c->sent[op->peer]++
                     : op->kind == COMM_RECV ? c->received[op->peer]++
                                             : c->started++);
    r->head = comm_op_head(r);
    r->sent_bytes = comm_sent_bytes(op, c->n, c->rank);
    add_open(r);
    return r;
}

/* Fault comm_skip: this rank's program does not know of the collective. */
static CommRequest *request_skipped(Comm *c)
{
    CommRequest *r = xcalloc(1, sizeof *r);
    r->comm = c;
    r->skipped = true;
    add_open(r);
    return r;
}

Status comm_request_begin(Comm *c, const CommOp *op, CommRequest **request)
{
    *request = NULL;
    TRY(comm_op_check(c, op));
    if (fault_hit("comm"))
        return fail(ERR_COMM, "%s: %s failed on rank %d (injected fault)", c->name,
                    comm_kind_name(op->kind), c->self);
    if (fault_hit("comm_stall")) return stall(c);
    if (comm_board_failed(c->world->board)) return comm_failure(c->world);
    bool collective = !comm_kind_is_message(op->kind); /* a barrier has no size */
    bool differs = collective && op->kind != COMM_BARRIER && fault_hit("comm_differ");
    if (collective && fault_hit("comm_skip")) return OK;
    CommRequest *r = request_new(c, op);
    r->head.count += differs; /* fault comm_differ: this rank's program says another size */
    comm_board_say(r, COMM_PHASE_STARTED);
    r->start_s = clock_s();
    *request = r;
    return OK;
}

Status comm_start(Comm *c, const CommOp *op, CommRequest **request)
{
    CommRequest *r;
    TRY(comm_request_begin(c, op, &r));
    Status status = r ? c->world->transport->start(r) : OK;
    if (status != OK) {
        comm_request_free(r);
        return status;
    }
    *request = r ? r : request_skipped(c);
    return OK;
}

/* The group of all ranks, as the rank of this group sees it: the head of the list of its groups. */
Comm *comm_of_all(const Comm *c) { return c->world->all[c->self - c->world->first]; }

static void count(CommRequest *r, double blocked_s)
{
    Comm *c = r->comm;
    CommCounts *k = &c->stats.kind[r->op.kind];
    k->calls++;
    k->sent_bytes += r->sent_bytes;
    c->stats.check_bytes += r->check_bytes;
    k->blocked_s += blocked_s;
    if (r->arrived_s > r->start_s) k->late_s += r->arrived_s - r->start_s;
    CommTrace *t = &c->trace[c->n_traces++ % COMM_TRACES];
    *t = (CommTrace){r->op.kind,   r->number, r->sent_bytes, r->start_s,
                     r->arrived_s, r->end_s,  blocked_s,     {0}};
    if (r->op.kind == COMM_RECV) t->bytes = r->op.count * (int64_t)dtype_bytes(r->op.dtype);
    memcpy(t->node, r->node, sizeof t->node);
    const Comm *all = comm_of_all(c);
    if (all->on_done) all->on_done(all->on_done_context, c, t);
}

/* What a GPU does is seen to be done when the host has long begun what comes later: that it stands
 * on the board says more. */
static bool is_last_said(const CommRequest *r)
{
    const CommRow *row = row_of(r->comm);
    return row->head.kind == r->head.kind && row->head.number == r->head.number &&
           !strncmp(row->group, r->comm->name, sizeof row->group);
}

void comm_board_say_gpu_waits(CommRequest *r, const bool *missing, bool arrived)
{
    if (!is_last_said(r) || row_of(r->comm)->phase != COMM_PHASE_WAITING)
        comm_board_say(r, COMM_PHASE_WAITING);
    comm_board_say_waits(r, missing, arrived);
}

void comm_request_end(CommRequest *r, double blocked_s)
{
    if (is_last_said(r)) comm_board_say(r, COMM_PHASE_DONE);
    count(r, blocked_s);
    comm_request_free(r);
}

Status comm_wait(CommRequest *r)
{
    double start_s = clock_s();
    if (r->skipped) {
        comm_request_free(r);
        return OK;
    }
    r->until_s = start_s + r->comm->deadline_s;
    r->say_s = start_s + say_every_s;
    comm_board_say(r, COMM_PHASE_WAITING);
    Status status = r->comm->world->transport->wait(r);
    if (status == OK)
        comm_request_end(r, clock_s() - start_s);
    else
        comm_request_free(r);
    return status;
}

Status comm_run(Comm *comm, const CommOp *op)
{
    CommRequest *request = NULL;
    TRY(comm_start(comm, op, &request));
    CHECK(request);
    return comm_wait(request);
}

CommStats comm_stats(const Comm *c) { return c->stats; }
void comm_stats_reset(Comm *c) { c->stats = (CommStats){0}; }

CommStats comm_stats_of_rank(const Comm *member)
{
    CommStats sum = {0};
    for (const Comm *c = comm_of_all(member); c; c = c->next) {
        for (int k = 0; k < COMM_KINDS; k++) {
            sum.kind[k].calls += c->stats.kind[k].calls;
            sum.kind[k].sent_bytes += c->stats.kind[k].sent_bytes;
            sum.kind[k].blocked_s += c->stats.kind[k].blocked_s;
            sum.kind[k].late_s += c->stats.kind[k].late_s;
        }
        sum.check_bytes += c->stats.check_bytes;
    }
    return sum;
}

void comm_on_done(Comm *member, CommDone *fn, void *context)
{
    Comm *all = comm_of_all(member);
    all->on_done = fn;
    all->on_done_context = context;
}

int comm_traces(const Comm *c, CommTrace out[COMM_TRACES])
{
    int n = (int)min_i64(c->n_traces, COMM_TRACES);
    for (int i = 0; i < n; i++) out[i] = c->trace[(c->n_traces - n + i) % COMM_TRACES];
    return n;
}
