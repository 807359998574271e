/* Copies of each rank's share in memory, between checkpoints (checkpoint.memory_every): one in the
 * memory of its own host, and one with a rank of another host, its keeper. Processes may die, and
 * one host of each pair: what is left is a state that the next start goes on from (restore.c),
 * without the disk.
 *
 * The copy is taken between two steps; it travels to the keeper while the next step computes, and
 * has arrived on all ranks before they meet again: then it is whole, and the older slot may be
 * given up for the next one. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/trainer_internal.h"

/* ---- sizes ------------------------------------------------------------------------------ */

static Status count_run(void *count, const StateRun *run)
{
    (void)run;
    ++*(int64_t *)count;
    return OK;
}

static size_t own_bytes(const Trainer *t)
{
    int64_t n_runs = 0;
    for (int k = 0; k < t->saved.n; k++) {
        const SavedEntry *e = &t->saved.entry[k];
        for (int p = 0; p < t->programs.store->entry[e->entry].n_parts; p++)
            (void)store_each_part_run(t->programs.store, e->entry, p, e->first, e->n, count_run,
                                      &n_runs); /* counting does not fail */
    }
    return ckpt_copy_bytes(t->saved.part, t->saved.n, n_runs);
}

/* A rank and the first rank of its host. */
typedef struct RankPlace {
    int rank, host;
} RankPlace;

static int by_host(const void *a, const void *b)
{
    const RankPlace *x = a, *y = b;
    return x->host != y->host ? x->host - y->host : x->rank - y->rank;
}

/* All ranks in the order of their hosts, the longest stretch of one host counted. */
static int sort_by_host(const Comm *world, RankPlace *place)
{
    int n = comm_size(world), longest = 0;
    NameIndex hosts = {0};
    for (int r = 0; r < n; r++) {
        if (name_index_find(&hosts, comm_host(world, r)) < 0)
            name_index_put(&hosts, comm_host(world, r), r);
        place[r] = (RankPlace){r, name_index_find(&hosts, comm_host(world, r))};
    }
    name_index_deinit(&hosts);
    qsort(place, (size_t)n, sizeof *place, by_host);
    for (int i = 0, first = 0; i < n; i++) {
        if (place[i].host != place[first].host) first = i;
        longest = i + 1 - first > longest ? i + 1 - first : longest;
    }
    return longest;
}

/* In that order each rank's keeper is as many places further on as the largest host has ranks: on
 * another host, wherever no host has more than half of them. Who would get a keeper on its own host
 * has none. */
static void choose_keepers(Copies *c, const Comm *world)
{
    int n = comm_size(world), at = 0;
    RankPlace *place = xcalloc((size_t)n, sizeof *place);
    int step = sort_by_host(world, place);
    while (place[at].rank != comm_rank(world)) at++;
    const RankPlace *to = &place[(at + step) % n], *from = &place[(at + n - step) % n];
    c->to = to->host != place[at].host ? to->rank : -1;
    c->from = from->host != place[at].host ? from->rank : -1;
    free(place);
}

Status trainer_plan_copies(Trainer *t)
{
    Copies *c = &t->copies;
    c->to = c->from = -1;
    if (t->config->checkpoint.memory_every == 0) return OK;
    c->own_bytes = own_bytes(t);
    if (!t->world) return OK;
    choose_keepers(c, t->world);
    int64_t mine = (int64_t)c->own_bytes,
            *bytes = xcalloc((size_t)comm_size(t->world), sizeof *bytes);
    Status status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_GATHER,
                                                 .dtype = DTYPE_I64,
                                                 .send = &mine,
                                                 .recv = bytes,
                                                 .count = 1,
                                                 .node = "copies"});
    if (status == OK && c->from >= 0) c->kept_bytes = (size_t)bytes[c->from];
    free(bytes);
    return status;
}

size_t trainer_copies_bytes(const Trainer *t) { return t->copies.own_bytes + t->copies.kept_bytes; }

/* ---- files ------------------------------------------------------------------------------ */

uint64_t trainer_copies_key(const Trainer *t)
{
    char path[PATH_MAX];
    const char *real = realpath(t->dir, path); /* the same run may be named in several ways */
    return hash_bytes(real ? real : t->dir, strlen(real ? real : t->dir));
}

/* Copies of earlier layouts that do not hold step `keep`: they only take up memory. Those of this
 * layout are gone over by their ranks. Ranks of one host do this side by side. */
static void remove_stale(Trainer *t, int64_t keep)
{
    Arena arena = {0};
    CkptCopyFound *found;
    int n;
    if (ckpt_copies_find(&arena, t->config->checkpoint.memory_dir, trainer_copies_key(t), &found,
                         &n) != OK)
        n = 0;
    for (int i = 0; i < n; i++) {
        bool good = found[i].ranks == t->saved.share.ranks;
        for (int k = 0; k < n; k++)
            good |= !strcmp(found[i].path, found[k].path) && found[k].step == keep;
        if (!good) unlink(found[i].path);
    }
    arena_deinit(&arena);
}

Status trainer_open_copies(Trainer *t, int64_t from)
{
    Copies *c = &t->copies;
    const char *dir = t->config->checkpoint.memory_dir;
    if (t->config->checkpoint.memory_every == 0 || c->own) return OK;
    CkptCopyName name = {.dir = dir,
                         .run = trainer_copies_key(t),
                         .start = ckpt_store_key(t->store),
                         .rank = t->rank,
                         .ranks = t->saved.share.ranks,
                         .keeper = t->rank};
    remove_stale(t, from);
    TRY(ckpt_copy_create(&name, c->own_bytes, from, &c->own));
    if (c->to < 0 && c->from < 0) return OK;
    name.rank = c->from;
    if (c->from >= 0) TRY(ckpt_copy_create(&name, c->kept_bytes, from, &c->kept));
    int n = comm_size(t->world), *ranks = xcalloc((size_t)n, sizeof *ranks);
    for (int r = 0; r < n; r++) ranks[r] = r;
    Status status = comm_group(t->world, "copies", ranks, n, &c->group);
    free(ranks);
    return status;
}

/* What was on its way in a world that is lost may still arrive: then the memory stays as it is. */
void trainer_close_copies(Trainer *t)
{
    if (t->copies.sending || t->copies.receiving) return;
    ckpt_copy_close(t->copies.own, t->copies.done);
    ckpt_copy_close(t->copies.kept, t->copies.done);
}

/* ---- taken ------------------------------------------------------------------------------ */

static Status send_copy(Copies *c)
{
    size_t own, kept;
    if (c->kept) {
        void *room = ckpt_copy_receive(c->kept, &kept);
        TRY(comm_start(c->group,
                       &(CommOp){.kind = COMM_RECV,
                                 .dtype = DTYPE_U8,
                                 .recv = room,
                                 .count = (int64_t)kept,
                                 .peer = c->from,
                                 .node = "copies"},
                       &c->receiving));
    }
    if (c->to < 0) return OK;
    const void *slot = ckpt_copy_slot(c->own, &own);
    return comm_start(c->group,
                      &(CommOp){.kind = COMM_SEND,
                                .dtype = DTYPE_U8,
                                .send = slot,
                                .count = (int64_t)own,
                                .peer = c->to,
                                .node = "copies"},
                      &c->sending);
}

Status trainer_take_copy(Trainer *t)
{
    Copies *c = &t->copies;
    int64_t every = t->config->checkpoint.memory_every;
    if (!c->own || t->step % every) return OK;
    double start = clock_s();
    if (c->n == 1) remove_stale(t, -1); /* the first of this layout is whole on all ranks */
    char *json = trainer_run_json(t);
    Status status = ckpt_copy_take(c->own, &t->saved.share, t->step, json);
    free(json);
    if (status == OK) status = send_copy(c);
    c->step = t->step;
    c->n++;
    c->held_s += clock_s() - start;
    return status;
}

static Status await(CommRequest **request)
{
    CommRequest *r = *request;
    *request = NULL;
    return r ? comm_wait(r) : OK;
}

Status trainer_await_copy(Trainer *t)
{
    Copies *c = &t->copies;
    bool receiving = c->receiving != NULL;
    double start = clock_s();
    Status status = await(&c->receiving), sent = await(&c->sending);
    c->held_s += clock_s() - start;
    if (status == OK) status = sent;
    if (status == OK && receiving) ckpt_copy_received(c->kept, c->step);
    return status;
}
