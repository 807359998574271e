/* What ranks on different hosts tell each other of those that are late, and how all learn of one
 * failure.
 *
 * A rank that is stopped cannot answer for itself. Ranks of its host see its row on their board and
 * the state of its process; and every host tells the next one, twice a second, what its ranks do,
 * so that a host that has gone silent altogether has left word. Who misses a rank asks both. Each
 * host sends and keeps the rows of one, whatever the number of hosts. */
#include "comm/mpi_transport.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double beat_every_s = 0.5;
/* Together with failure.c's looks these stay below a second. */
static const double answer_s = 0.2, chair_s = 0.15, spread_s = 0.15;

/* ---- hosts ------------------------------------------------------------------------------ */

void mpi_lost_open(MpiWorld *w)
{
    CommWorld *world = w->world;
    MpiHosts *h = &w->hosts;
    NameIndex known = {0};
    h->of = xcalloc((size_t)world->n, sizeof(int));
    h->first = xcalloc((size_t)world->n, sizeof(int));
    for (int r = 0; r < world->n; r++) {
        h->of[r] = name_index_find(&known, world->host[r]);
        if (h->of[r] >= 0) continue;
        h->of[r] = h->n;
        h->first[h->n] = r;
        name_index_put(&known, world->host[r], h->n++);
    }
    name_index_deinit(&known);
    h->here = h->of[world->first];
}

void mpi_lost_close(MpiWorld *w)
{
    free(w->hosts.of);
    free(w->hosts.first);
    VEC_FREE(&w->beats);
}

static bool is_here(const MpiWorld *w, int rank) { return w->hosts.of[rank] == w->hosts.here; }

/* Who is told how the ranks of a host are. */
static int neighbour(const MpiHosts *h, int host) { return h->first[(host + 1) % h->n]; }

/* ---- what is known of a rank ------------------------------------------------------------ */

static CommSeen known_of(const MpiWorld *w, int rank)
{
    if (is_here(w, rank)) return comm_board_look(w->world->board, rank, true);
    for (size_t i = 0; i < w->beats.n; i++) {
        const MpiBeat *b = &w->beats.at[i];
        if (b->rank != rank) continue;
        CommSeen seen = b->seen;
        seen.silent_s = clock_s() - b->heard_s;
        seen.age_s += seen.silent_s;
        seen.waits_age_s += seen.silent_s;
        return seen;
    }
    return (CommSeen){0};
}

static void send_seen(MpiWorld *w, MpiControlKind what, int rank, int to)
{
    MpiControl message = {.what = what, .rank = rank};
    message.seen = known_of(w, rank);
    mpi_control_send(w, &message, SEEN_BYTES, to);
}

/* By the first rank of each host. Nothing is sent on while the neighbour has not taken what was
 * sent before. */
void mpi_lost_beat(MpiWorld *w)
{
    const MpiHosts *h = &w->hosts;
    double now_s;
    if (h->n < 2 || h->first[h->here] != w->world->first || w->sends || w->stop) return;
    now_s = clock_s();
    if (now_s - w->last_beat_s < beat_every_s || comm_board_failed(w->world->board)) return;
    w->last_beat_s = now_s;
    for (int r = 0; r < w->world->n; r++)
        if (is_here(w, r)) send_seen(w, CONTROL_BEAT, r, neighbour(h, h->here));
}

static void note_beat(MpiWorld *w, const MpiControl *m)
{
    MpiBeat beat = {.rank = m->rank, .heard_s = clock_s(), .seen = m->seen};
    for (size_t i = 0; i < w->beats.n; i++)
        if (w->beats.at[i].rank == m->rank) {
            w->beats.at[i] = beat;
            return;
        }
    VEC_PUSH(&w->beats, beat);
}

static void note_answer(MpiWorld *w, const MpiControl *m)
{
    MpiQuestion *q = w->question;
    if (!q) return; /* too late */
    q->open--;
    for (int i = 0; i < q->n; i++)
        if (q->ranks[i] == m->rank && m->seen.known &&
            (!q->seen[i].known || m->seen.silent_s < q->seen[i].silent_s))
            q->seen[i] = m->seen;
}

static bool is_among(const int *ranks, int n, int rank)
{
    for (int i = 0; i < n; i++)
        if (ranks[i] == rank) return true;
    return false;
}

/* A rank of its host that is not late itself, or else the late one, should it only compute; and the
 * neighbour of the host. */
static void ask(MpiWorld *w, MpiQuestion *q, int rank)
{
    const MpiHosts *h = &w->hosts;
    MpiControl message = {.what = CONTROL_QUESTION, .rank = rank};
    int mate = rank, next = neighbour(h, h->of[rank]);
    for (int r = w->world->n - 1; r >= 0; r--)
        if (h->of[r] == h->of[rank] && !is_among(q->ranks, q->n, r)) mate = r;
    for (int k = 0; k < 2; k++) {
        int to = k ? next : mate;
        if (to == w->world->first || (k && to == mate)) continue;
        mpi_control_send(w, &message, SEEN_BYTES, to);
        q->open++;
    }
}

void mpi_lost_look(CommWorld *world, const int *ranks, int n, CommSeen *seen)
{
    MpiWorld *w = world->state;
    MpiQuestion question = {.ranks = ranks, .seen = seen, .n = n};
    double until_s = clock_s() + answer_s;
    pthread_mutex_lock(&w->lock);
    w->question = &question;
    for (int i = 0; i < n; i++) {
        seen[i] = known_of(w, ranks[i]); /* what there is, should nobody answer */
        if (!is_here(w, ranks[i])) ask(w, &question, ranks[i]);
    }
    while (question.open > 0 && clock_s() < until_s && !comm_board_failed(world->board)) {
        mpi_control_poll(w);
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    w->question = NULL;
    pthread_mutex_unlock(&w->lock);
}

/* ---- failures --------------------------------------------------------------------------- */

void mpi_lost_listen(CommWorld *world, double seconds)
{
    MpiWorld *w = world->state;
    double until_s = clock_s() + seconds;
    while (!comm_board_failed(world->board) && clock_s() < until_s) {
        pthread_mutex_lock(&w->lock);
        mpi_control_poll(w);
        pthread_mutex_unlock(&w->lock);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

/* Ranks of this host see the board; the others are told. What is on its way gets a moment to leave.
 */
static void spread(MpiWorld *w)
{
    const CommBoard *b = w->world->board;
    MpiControl message = {
        .what = CONTROL_FAILURE, .rank = b->failed_rank, .status = b->failed_status};
    snprintf(message.sentence, sizeof message.sentence, "%s", b->sentence);
    bool others = false;
    for (int r = 0; r < w->world->n; r++) {
        if (is_here(w, r)) continue;
        mpi_control_send(w, &message, sizeof message, r);
        others = true;
    }
    double until_s = clock_s() + spread_s;
    while (others && w->sends && clock_s() < until_s) {
        mpi_control_poll(w);
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

static void decide(MpiWorld *w, int rank, Status status, const char *sentence)
{
    if (comm_board_fail(w->world->board, rank, status, sentence)) spread(w);
}

/* A chair on another host that does not react in time is no chair. */
void mpi_lost_report(CommWorld *world, int rank, int chair, Status status, const char *sentence)
{
    MpiWorld *w = world->state;
    if (!is_here(w, chair)) {
        MpiControl message = {.what = CONTROL_REPORT, .rank = rank, .status = (int32_t)status};
        snprintf(message.sentence, sizeof message.sentence, "%s", sentence);
        pthread_mutex_lock(&w->lock);
        mpi_control_send(w, &message, sizeof message, chair);
        pthread_mutex_unlock(&w->lock);
        mpi_lost_listen(world, chair_s);
    }
    pthread_mutex_lock(&w->lock);
    decide(w, rank, status, sentence);
    pthread_mutex_unlock(&w->lock);
}

/* A message of another rank about one that is late, or about the end. */
void mpi_lost_take(MpiWorld *w, const MpiControl *m, int from)
{
    char sentence[COMM_SENTENCE_BYTES] = "";
    Status status = m->status == ERR_REFUSED || m->status == ERR_ARG ? (Status)m->status : ERR_COMM;
    if (m->rank < 0 || m->rank >= w->world->n) return;
    if (m->what == CONTROL_FAILURE || m->what == CONTROL_REPORT)
        snprintf(sentence, sizeof sentence, "%.*s", (int)sizeof m->sentence - 1, m->sentence);
    switch ((MpiControlKind)m->what) {
    case CONTROL_FAILURE: (void)comm_board_fail(w->world->board, m->rank, status, sentence); break;
    case CONTROL_REPORT: decide(w, m->rank, status, sentence); break;
    case CONTROL_QUESTION: send_seen(w, CONTROL_ANSWER, m->rank, from); break;
    case CONTROL_ANSWER: note_answer(w, m); break;
    case CONTROL_BEAT: note_beat(w, m); break;
    case CONTROL_GREETING: break;
    }
}
