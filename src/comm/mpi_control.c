/* Small messages beside the operations: greetings of groups, and (mpi_lost.c) all about ranks that
 * are late.
 *
 * A group begins to exist on a rank when the rank asks for it. It then tells each other member,
 * without waiting, the index under which it takes the group's messages; an operation starts to move
 * when those of its peers are known. */
#include "comm/mpi_transport.h"

#include <stdlib.h>
#include <string.h>

static void listen(MpiWorld *w)
{
    MPI_Irecv(&w->incoming, (int)sizeof w->incoming, MPI_BYTE, MPI_ANY_SOURCE, TAG_CONTROL, w->all,
              &w->incoming_request);
}

void mpi_control_send(MpiWorld *w, const MpiControl *message, size_t bytes, int rank)
{
    MpiSend *s = xcalloc(1, sizeof *s);
    memcpy(&s->message, message, bytes);
    MPI_Isend(&s->message, (int)bytes, MPI_BYTE, rank, TAG_CONTROL, w->all, &s->request);
    s->next = w->sends;
    w->sends = s;
}

/* ---- greetings -------------------------------------------------------------------------- */

static int rank_in(const Comm *c, int world_rank)
{
    for (int r = 0; r < c->n; r++)
        if (c->ranks[r] == world_rank) return r;
    return -1;
}

static void note_greeting(MpiWorld *w, uint64_t key, int rank, int index)
{
    for (MpiGroup *g = w->groups; g; g = g->next) {
        int r = g->comm->key == key ? rank_in(g->comm, rank) : -1;
        if (r < 0) continue;
        g->peer_index[r] = index;
        return;
    }
    MpiGreeting *g = xcalloc(1, sizeof *g);
    *g = (MpiGreeting){key, rank, index, w->greetings};
    w->greetings = g;
}

/* Takes the greetings that came before the group was known. */
static void take_greetings(MpiWorld *w, const Comm *c, MpiGroup *g)
{
    for (MpiGreeting **at = &w->greetings; *at;) {
        MpiGreeting *greeting = *at;
        int r = greeting->key == c->key ? rank_in(c, greeting->rank) : -1;
        if (r < 0) {
            at = &greeting->next;
            continue;
        }
        g->peer_index[r] = greeting->index;
        *at = greeting->next;
        free(greeting);
    }
}

/* The first group is that of all ranks, which has index 0 everywhere. */
void mpi_group_open(Comm *c)
{
    MpiWorld *w = c->world->state;
    MpiGroup *g = xcalloc(1, sizeof *g);
    pthread_mutex_lock(&w->lock);
    g->index = w->n_groups++;
    g->peer_index = xcalloc((size_t)c->n, sizeof(int));
    g->comm = c;
    g->next = w->groups;
    w->groups = g;
    c->state = g;
    if (g->index) {
        for (int r = 0; r < c->n; r++) g->peer_index[r] = r == c->rank ? g->index : -1;
        take_greetings(w, c, g);
        MpiControl hello = {.what = CONTROL_GREETING, .index = g->index, .key = c->key};
        for (int r = 0; r < c->n; r++)
            if (r != c->rank) mpi_control_send(w, &hello, GREETING_BYTES, c->ranks[r]);
    }
    pthread_mutex_unlock(&w->lock);
    c->stats.check_bytes += g->index ? (int64_t)GREETING_BYTES * (c->n - 1) : 0;
}

void mpi_group_close(Comm *c)
{
    MpiWorld *w = c->world->state;
    MpiGroup *g = c->state;
    pthread_mutex_lock(&w->lock);
    MpiGroup **at = &w->groups;
    while (*at != g) at = &(*at)->next;
    *at = g->next;
    pthread_mutex_unlock(&w->lock);
    free(g->peer_index);
    free(g);
}

/* ---- life ------------------------------------------------------------------------------- */

void mpi_control_poll(MpiWorld *w)
{
    int done = 1;
    MPI_Status from;
    while (MPI_Test(&w->incoming_request, &done, &from) == MPI_SUCCESS && done) {
        MpiControl m = w->incoming; /* what follows may look for messages itself */
        listen(w);
        if (m.what == CONTROL_GREETING)
            note_greeting(w, m.key, from.MPI_SOURCE, m.index);
        else
            mpi_lost_take(w, &m, from.MPI_SOURCE);
    }
    mpi_lost_beat(w);
    for (MpiSend **at = &w->sends; *at;) {
        MpiSend *s = *at;
        MPI_Test(&s->request, &done, MPI_STATUS_IGNORE);
        if (!done) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        free(s);
    }
}

void mpi_control_open(MpiWorld *w)
{
    mpi_lost_open(w);
    listen(w);
}

void mpi_control_close(MpiWorld *w)
{
    if (!comm_board_failed(w->world->board)) {
        MPI_Cancel(&w->incoming_request);
        MPI_Wait(&w->incoming_request, MPI_STATUS_IGNORE);
    }
    while (w->greetings) {
        MpiGreeting *g = w->greetings;
        w->greetings = g->next;
        free(g);
    }
    mpi_lost_close(w);
}
