/* The sentences of a lost world: who is late and what it does, who called what, who gave up.
 *
 * When a rank hangs, the waiting spreads: those that need it are late for others, and whose
 * deadline passes first may be far from it. So a rank whose deadline has passed follows the waits
 * to where they end (waits.c) and tells of the collective there. It looks twice: what waits for
 * what is sure only when it was so at one time. Where several deadlines pass at the same moment,
 * all reports go through one rank (the chair), whose first one is the failure of the world. So the
 * sentence names the rank that hangs, and there is one sentence. */
#include "comm/comm_internal.h"

#include <stdlib.h>
#include <string.h>

enum { NAMED = 4 }; /* ranks that a sentence names before it counts */
/* Between two looks all that wait have said anew for whom (world.c); when they cannot be told apart
 * by then, what is known must do, so that with the looks and the report a second is not over. */
static const double look_again_s = 0.15, patience_s = 0.45;

Status comm_failure(const CommWorld *world)
{
    return fail((Status)world->board->failed_status, "%s", world->board->sentence);
}

int comm_failed_rank(const Comm *comm)
{
    const CommBoard *board = comm->world->board;
    return comm_board_failed(board) ? board->failed_rank : -1;
}

static Status report(Comm *comm, int chair, Status status, const char *sentence)
{
    CommWorld *world = comm->world;
    if (comm_board_failed(world->board)) return comm_failure(world);
    world->transport->report(world, comm->self, chair, status, sentence);
    world->transport->listen(world,
                             1); /* another rank may be writing its sentence, or died of it */
    return comm_failure(world);
}

Status comm_fail_world(Comm *comm, const char *sentence)
{
    return report(comm, 0, ERR_COMM, sentence);
}

void comm_abort(Comm *comm, Status why)
{
    char text[COMM_SENTENCE_BYTES];
    snprintf(text, sizeof text, "rank %d on %s gave up: %s", comm->self,
             comm->world->host[comm->self], status_message());
    bool of_all = why == ERR_REFUSED || why == ERR_ARG;
    (void)report(comm, 0, of_all ? why : ERR_COMM, text);
}

Status comm_fail_mismatch(const CommRequest *mine, int peer, const CommHead *theirs)
{
    Comm *c = mine->comm;
    char a[192], b[192], text[COMM_SENTENCE_BYTES];
    char(*host)[64] = c->world->host;
    bool first = c->rank < peer;
    CommHead own = comm_head_expected(mine, peer);
    comm_text_op(a, sizeof a, first ? &own : theirs);
    comm_text_op(b, sizeof b, first ? theirs : &own);
    int low = first ? c->rank : peer, high = first ? peer : c->rank;
    snprintf(text, sizeof text,
             "%s: %s #%lld differs: rank %d on %s calls %s, rank %d on %s calls %s", c->name,
             comm_kind_is_message(mine->op.kind) ? "message" : "collective",
             (long long)mine->number, c->ranks[low], host[c->ranks[low]], a, c->ranks[high],
             host[c->ranks[high]], b);
    return comm_fail_world(c, text);
}

/* ---- what a late rank does -------------------------------------------------------------- */

static const char *state_text(int state)
{
    switch (state) {
    case 'T': return ", stopped by a signal";
    case 't': return ", held by a debugger";
    case 'D': return ", waiting for a disk or device";
    case 'Z':
    case 'X': return ", dead";
    default: return "";
    }
}

/* "all_reduce #6 of tp in 'mlp.down' for rank 3 on node1" */
static void add_operation(Str *s, const CommWorld *world, const CommRow *row)
{
    str_printf(s, "%s #%lld of %s", comm_kind_name((CommKind)row->head.kind),
               (long long)row->head.number, row->group);
    if (row->head.node[0]) str_printf(s, " in '%s'", row->head.node);
    if (row->phase != COMM_PHASE_WAITING || row->n_waits < 1) return;
    int first = row->waits_for[0];
    if (first < 0 || first >= world->n) return;
    str_printf(s, " for rank %d on %s", first, world->host[first]);
    if (row->n_waits > 1) str_printf(s, " and %d more", row->n_waits - 1);
}

/* " (pid 77, stopped by a signal; in backward of step 17; last: left all_reduce #6 of tp in
 * 'mlp.down', 3.2 s ago)" */
static void add_seen(Str *s, const CommWorld *world, const CommSeen *seen)
{
    static const char *const did[] = {"", "started", "waits in", "left"};
    const CommRow *row = &seen->row;
    if (!seen->known) {
        str_add(s, " (nothing known of it)");
        return;
    }
    str_printf(s, " (pid %d%s", row->pid, state_text(seen->state));
    if (row->doing[0]) str_printf(s, "; in %s of step %lld", row->doing, (long long)row->step);
    if (row->phase > COMM_PHASE_NONE && row->phase <= COMM_PHASE_DONE &&
        (unsigned)row->head.kind < COMM_KINDS) {
        str_printf(s, "; last: %s ", did[row->phase]);
        add_operation(s, world, row);
        str_printf(s, ", %.1f s ago", seen->age_s);
    }
    if (comm_is_silent(seen)) str_printf(s, "; its host is silent for %.1f s", seen->silent_s);
    str_add(s, ")");
}

static void add_ranks(Str *s, const CommWorld *world, const CommHang *hang)
{
    int named = hang->n < NAMED ? hang->n : NAMED;
    for (int i = 0; i < named; i++) {
        str_printf(s, "%s rank %d on %s",
                   !i           ? ""
                   : hang->ring ? ", which waits for"
                                : ",",
                   hang->rank[i], world->host[hang->rank[i]]);
        add_seen(s, world, &hang->seen[i]);
    }
    if (hang->n_all > named) str_printf(s, ", and %d more", hang->n_all - named);
}

/* The lowest rank of the world that does not hang, as far as this rank can see. */
static int choose_chair(const CommHang *hang)
{
    for (int chair = 0;; chair++) {
        bool hangs = false;
        for (int i = 0; i < hang->culprits; i++) hangs |= hang->rank[i] == chair;
        if (!hangs) return chair;
    }
}

/* ---- the line --------------------------------------------------------------------------- */

/* What the waiter waits in. */
static void add_wait(Str *s, const char *group, const CommHead *head, double waited_s, int rank)
{
    char op[192];
    comm_text_op(op, sizeof op, head);
    str_printf(s, "%s: #%lld, %s, waited %.1f s on rank %d", group, (long long)head->number, op,
               waited_s, rank);
}

static Status tell_hang(const CommRequest *r, const CommHang *hang, bool arrived, double waited_s)
{
    Comm *c = r->comm;
    Str s = {0};
    const CommRow *row = &hang->waits.row;
    bool own = hang->waiter == c->self;
    if (own)
        add_wait(&s, c->name, &r->head, waited_s, c->self);
    else
        add_wait(&s, row->group, &row->head, hang->waits.age_s, hang->waiter);
    str_printf(&s, "; %s:",
               (own ? arrived : row->arrived) ? "started there too, but no data comes from"
                                              : "not arrived");
    add_ranks(&s, c->world, hang);
    if (!own)
        str_printf(&s, "; behind it rank %d waits in %s #%lld of %s in '%s', %.1f s", c->self,
                   comm_kind_name(r->op.kind), (long long)r->number, c->name, r->node, waited_s);
    Status status = report(c, choose_chair(hang), ERR_COMM, s.at);
    str_deinit(&s);
    return status;
}

/* Until the same was seen twice, and in between all have said once more for whom they wait: then
 * all these waits were so at the end of the look before. */
static bool look_again(CommRequest *r, const CommHang *hang, double began_s)
{
    bool sure = hang->key && hang->key == r->late_key && hang->age_s <= began_s - r->late_s;
    if (r->speak_s <= 0) r->speak_s = began_s + patience_s;
    if (sure || began_s >= r->speak_s) return false;
    r->late_key = hang->key;
    r->late_s = clock_s();
    r->until_s = r->late_s + look_again_s;
    return true;
}

Status comm_fail_late(CommRequest *request, const bool *missing, bool arrived, double waited_s)
{
    CommHang hang;
    double began_s = clock_s();
    comm_find_hang(request->comm, missing, request->late_key, &hang);
    if (look_again(request, &hang, began_s)) return OK;
    return tell_hang(request, &hang, arrived, waited_s + clock_s() - began_s);
}
