/* The sentences of a lost world: who is late and what it did last, who called what, who gave up. */
#include "comm/comm_internal.h"

#include <string.h>
#include <time.h>

enum { NAMED = 4 }; /* ranks that a sentence names before it counts */

Status comm_failure(const CommWorld *world)
{
    return fail(ERR_COMM, "%s", world->board->sentence);
}

Status comm_fail_world(Comm *comm, Status status, const char *sentence)
{
    CommWorld *world = comm->world;
    if (comm_board_fail(world->board, comm->self, status, sentence)) world->transport->spread(world);
    for (int ms = 0; ms < 1000 && !comm_board_failed(world->board); ms++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* another rank is writing its sentence, or died of it */
    return comm_failure(world);
}

void comm_abort(Comm *comm)
{
    char text[COMM_SENTENCE_BYTES];
    snprintf(text, sizeof text, "rank %d on %s gave up: %s", comm->self, comm->world->host[comm->self], status_message());
    (void)comm_fail_world(comm, ERR_COMM, text);
}

Status comm_fail_mismatch(const CommRequest *mine, int peer, const CommHead *theirs)
{
    Comm *c = mine->comm;
    char a[192], b[192], text[COMM_SENTENCE_BYTES];
    bool first = c->rank < peer;
    CommHead own = comm_head_expected(mine, peer);
    comm_text_op(a, sizeof a, first ? &own : theirs);
    comm_text_op(b, sizeof b, first ? theirs : &own);
    int low = first ? c->rank : peer, high = first ? peer : c->rank;
    snprintf(text, sizeof text, "%s: %s #%lld differs: rank %d calls %s, rank %d calls %s", c->name,
             comm_kind_is_message(mine->op.kind) ? "message" : "collective", (long long)mine->number, c->ranks[low], a,
             c->ranks[high], b);
    return comm_fail_world(c, ERR_COMM, text);
}

/* " (last: left all_reduce #6 of tp in 'mlp.down' 3.2 s ago)" */
static void add_row(Str *s, const CommWorld *world, int rank, double now_s)
{
    static const char *const did[] = {"", "started", "waits in", "left"};
    CommRow row;
    if (!comm_board_read(world->board, rank, &row) || row.phase <= COMM_PHASE_NONE || row.phase > COMM_PHASE_DONE ||
        (unsigned)row.kind >= COMM_KINDS) {
        str_printf(s, " (nothing known of it here)");
        return;
    }
    str_printf(s, " (pid %d; last: %s %s #%lld of %s", row.pid, did[row.phase], comm_kind_name((CommKind)row.kind),
               (long long)row.number, row.group);
    if (row.node[0]) str_printf(s, " in '%s'", row.node);
    str_printf(s, ", %.1f s ago)", now_s - row.time_s);
}

static void add_missing(Str *s, const Comm *c, const bool *missing)
{
    int named = 0, more = 0;
    double now_s = clock_s();
    for (int r = 0; r < c->n; r++) {
        if (!missing[r]) continue;
        if (named++ >= NAMED) {
            more++;
            continue;
        }
        str_printf(s, "%s rank %d on %s", named > 1 ? "," : "", c->ranks[r], c->world->host[c->ranks[r]]);
        add_row(s, c->world, c->ranks[r], now_s);
    }
    if (more) str_printf(s, ", and %d more", more);
}

Status comm_fail_late(const CommRequest *request, const bool *missing, bool arrived, double waited_s)
{
    Comm *c = request->comm;
    Str s = {0};
    char op[192];
    comm_text_op(op, sizeof op, &request->head);
    str_printf(&s, "%s: #%lld, %s, waited %.1f s on rank %d; %s:", c->name, (long long)request->number, op, waited_s, c->self,
               arrived ? "started there too, but no data comes from" : "not arrived");
    add_missing(&s, c, missing);
    Status status = comm_fail_world(c, ERR_COMM, s.at);
    str_deinit(&s);
    return status;
}
