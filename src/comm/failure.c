/* The sentences of a lost world: who is late and what it does, who called what, who gave up.
 *
 * When a rank hangs, the waiting spreads: those that need it are late for others. A rank whose late
 * ones do nothing but wait themselves therefore goes on waiting until their deadlines have passed,
 * for they know better; unless they go on without it. Where several deadlines pass at the same
 * moment, all reports go through one rank (the chair), whose first one is the failure of the world.
 * So the sentence names the rank that hangs, and there is one sentence. */
#include "comm/comm_internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    NAMED = 4,      /* ranks that a sentence names before it counts */
    LOOKED_AT = 16, /* of the late ones, to find which of them hang */
};
static const double silent_s = 0.9; /* without a word of a host, which is to be heard twice a
                                       second: what it said last is no longer so */
static const double patience_s =
    0.55; /* longer than a look at silent ranks takes, and its report */

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

typedef struct Late {
    int rank[LOOKED_AT]; /* in the world, those that hang first */
    CommSeen seen[LOOKED_AT];
    int n, n_all; /* looked at, and late in all */
    int culprits; /* that hang: they are in no operation */
} Late;

static bool is_in_operation(const CommSeen *s)
{
    bool alive = s->known && s->state != 'T' && s->state != 'X' && s->silent_s < silent_s;
    return alive && (s->row.phase == COMM_PHASE_WAITING || s->row.phase == COMM_PHASE_STARTED);
}

static Late look_at_late(const Comm *c, const bool *missing)
{
    Late all = {0}, sorted;
    for (int r = 0; r < c->n; r++) {
        if (!missing[r]) continue;
        if (all.n < LOOKED_AT) all.rank[all.n++] = c->ranks[r];
        all.n_all++;
    }
    c->world->transport->look(c->world, all.rank, all.n, all.seen);
    sorted = all;
    int at = 0;
    for (int waits = 0; waits < 2; waits++)
        for (int i = 0; i < all.n; i++) {
            if (is_in_operation(&all.seen[i]) != (bool)waits) continue;
            sorted.rank[at] = all.rank[i];
            sorted.seen[at++] = all.seen[i];
            sorted.culprits += !waits;
        }
    return sorted;
}

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
        (unsigned)row->kind < COMM_KINDS) {
        str_printf(s, "; last: %s %s #%lld of %s", did[row->phase],
                   comm_kind_name((CommKind)row->kind), (long long)row->number, row->group);
        if (row->node[0]) str_printf(s, " in '%s'", row->node);
        if (row->phase == COMM_PHASE_WAITING && row->late > 0 && row->late <= world->n)
            str_printf(s, " for rank %d on %s", row->late - 1, world->host[row->late - 1]);
        str_printf(s, ", %.1f s ago", seen->age_s);
    }
    if (seen->silent_s >= silent_s)
        str_printf(s, "; its host is silent for %.1f s", seen->silent_s);
    str_add(s, ")");
}

static void add_late(Str *s, const CommWorld *world, const Late *late)
{
    int named = late->n < NAMED ? late->n : NAMED;
    for (int i = 0; i < named; i++) {
        str_printf(s, "%s rank %d on %s", i ? "," : "", late->rank[i], world->host[late->rank[i]]);
        add_seen(s, world, &late->seen[i]);
    }
    if (late->n_all > named) str_printf(s, ", and %d more", late->n_all - named);
}

/* The lowest rank of the world that does not hang, as far as this rank can see. */
static int choose_chair(const Late *late)
{
    for (int chair = 0;; chair++) {
        bool hangs = false;
        for (int i = 0; i < late->culprits; i++) hangs |= late->rank[i] == chair;
        if (!hangs) return chair;
    }
}

/* What the late ones are in, all of which wait, and how long until the last of them must have
 * spoken. */
static double speak_in_s(const Late *late, uint64_t *key)
{
    double longest_s = 0;
    *key = 0;
    for (int i = 0; i < late->n; i++) {
        const CommRow *row = &late->seen[i].row;
        double left_s = row->deadline_s - late->seen[i].age_s + patience_s;
        if (row->phase == COMM_PHASE_WAITING && left_s > longest_s)
            longest_s = left_s; /* one that has only started it computes */
        *key = rng_key(*key + (uint64_t)late->rank[i], row->group) +
               (uint64_t)row->number * COMM_KINDS + (uint64_t)row->kind;
    }
    *key |= 1;
    return longest_s;
}

/* Whom the late ones wait for they will say themselves. Who is in another operation than a moment
 * before does not: it has left this rank behind. */
static bool hold_back(CommRequest *r, const Late *late)
{
    uint64_t key;
    double left_s = speak_in_s(late, &key);
    bool first = r->late_key == 0, same = r->late_key == key;
    if (late->culprits > 0 || !(first || (same && left_s > 0))) return false;
    r->late_key = key;
    r->until_s = clock_s() + (left_s > 0 && left_s < patience_s ? left_s : patience_s);
    comm_board_say_late(r->comm, late->rank[0]);
    return true;
}

Status comm_fail_late(CommRequest *request, const bool *missing, bool arrived, double waited_s)
{
    Comm *c = request->comm;
    Str s = {0};
    char op[192];
    Late late = look_at_late(c, missing);
    if (hold_back(request, &late)) return OK;
    comm_text_op(op, sizeof op, &request->head);
    str_printf(&s, "%s: #%lld, %s, waited %.1f s on rank %d; %s:", c->name,
               (long long)request->number, op, waited_s, c->self,
               arrived ? "started there too, but no data comes from" : "not arrived");
    add_late(&s, c->world, &late);
    Status status = report(c, choose_chair(&late), ERR_COMM, s.at);
    str_deinit(&s);
    return status;
}
