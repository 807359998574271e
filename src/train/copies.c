/* Copies of each rank's share in memory, between checkpoints (checkpoint.memory_every): one in the memory of its own
 * host, and one with a rank of another host, its keeper. Processes may die, and one host of each pair: what is left
 * is a state that the next start goes on from (restore.c), without the disk.
 *
 * The copy is taken between two steps; it travels to the keeper while the next step computes, and has arrived on all
 * ranks before they meet again: then it is whole, and the older slot may be given up for the next one. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/trainer_internal.h"

/* ---- sizes -------------------------------------------------------------------------------------------------------- */

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
            (void)store_each_part_run(t->programs.store, e->entry, p, e->first, e->n, count_run, &n_runs); /* counting does not fail */
    }
    return ckpt_copy_bytes(t->saved.part, t->saved.n, n_runs);
}

/* Ranks next to each other share a host; where they do not, their names tell. */
static uint64_t host_of(const Trainer *t)
{
    char name[HOST_NAME_MAX + 1] = "";
    gethostname(name, sizeof name - 1);
    return hash_bytes(name, strlen(name)) + (uint64_t)(t->rank / (t->ranks_here > 0 ? t->ranks_here : 1));
}

/* How far on the keeper of every rank is: the nearest distance that leads to another host most often; 0 when there is
 * one host only. */
static int keeper_distance(const int64_t *host, int n)
{
    int best = 0, most = 0;
    for (int d = 1; d < n && most < n; d++) {
        int others = 0;
        for (int r = 0; r < n; r++) others += host[r] != host[(r + d) % n];
        if (others > most) most = others, best = d;
    }
    return best;
}

Status trainer_plan_copies(Trainer *t)
{
    Copies *c = &t->copies;
    c->to = c->from = -1;
    if (t->config->checkpoint.memory_every == 0) return OK;
    c->own_bytes = own_bytes(t);
    if (!t->world) return OK;
    int n = comm_size(t->world);
    int64_t mine[2] = {(int64_t)host_of(t), (int64_t)c->own_bytes}, *all = xcalloc(2 * (size_t)n, sizeof *all);
    Status status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_GATHER, .dtype = DTYPE_I64, .send = mine, .recv = all, .count = 2, .node = "copies"});
    int64_t *host = xcalloc((size_t)n, sizeof *host);
    for (int r = 0; r < n; r++) host[r] = all[2 * r];
    int distance = keeper_distance(host, n);
    if (status == OK && distance > 0) {
        c->to = (t->rank + distance) % n;
        c->from = (t->rank + n - distance) % n;
        c->kept_bytes = (size_t)all[2 * c->from + 1];
    }
    free(host);
    free(all);
    return status;
}

size_t trainer_copies_bytes(const Trainer *t) { return t->copies.own_bytes + t->copies.kept_bytes; }

/* ---- files ---------------------------------------------------------------------------------------------------------- */

uint64_t trainer_copies_key(const Trainer *t)
{
    char path[PATH_MAX];
    const char *real = realpath(t->dir, path); /* the same run may be named in several ways */
    return hash_bytes(real ? real : t->dir, strlen(real ? real : t->dir));
}

/* Copies of earlier layouts that do not hold step `keep`: they only take up memory. Those of this layout are gone over
 * by their ranks. Ranks of one host do this side by side. */
static void remove_stale(Trainer *t, int64_t keep)
{
    Arena arena = {0};
    CkptCopyFound *found;
    int n;
    if (ckpt_copies_find(&arena, t->config->checkpoint.memory_dir, trainer_copies_key(t), &found, &n) != OK) n = 0;
    for (int i = 0; i < n; i++) {
        bool good = found[i].ranks == t->saved.share.ranks;
        for (int k = 0; k < n; k++) good |= !strcmp(found[i].path, found[k].path) && found[k].step == keep;
        if (!good) unlink(found[i].path);
    }
    arena_deinit(&arena);
}

Status trainer_open_copies(Trainer *t, int64_t from)
{
    Copies *c = &t->copies;
    const char *dir = t->config->checkpoint.memory_dir;
    if (t->config->checkpoint.memory_every == 0 || c->own) return OK;
    CkptCopyName name = {.dir = dir, .run = trainer_copies_key(t), .start = ckpt_store_key(t->store), .rank = t->rank, .ranks = t->saved.share.ranks, .keeper = t->rank};
    remove_stale(t, from);
    TRY(ckpt_copy_create(&name, c->own_bytes, from, &c->own));
    if (c->to < 0) return OK;
    name.rank = c->from;
    TRY(ckpt_copy_create(&name, c->kept_bytes, from, &c->kept));
    int n = comm_size(t->world), *ranks = xcalloc((size_t)n, sizeof *ranks);
    for (int r = 0; r < n; r++) ranks[r] = r;
    Status status = comm_group(t->world, "copies", ranks, n, &c->group);
    free(ranks);
    return status;
}

/* What was on its way in a world that is lost may still arrive: then the memory stays as it is. */
void trainer_close_copies(Trainer *t)
{
    if (t->copies.sending) return;
    ckpt_copy_close(t->copies.own, t->copies.done);
    ckpt_copy_close(t->copies.kept, t->copies.done);
}

/* ---- taken ------------------------------------------------------------------------------------------------------------ */

static Status send_copy(Trainer *t)
{
    Copies *c = &t->copies;
    size_t own, kept;
    const void *slot = ckpt_copy_slot(c->own, &own);
    void *room = ckpt_copy_receive(c->kept, &kept);
    TRY(comm_start(c->group, &(CommOp){.kind = COMM_RECV, .dtype = DTYPE_U8, .recv = room, .count = (int64_t)kept, .peer = c->from, .node = "copies"}, &c->receiving));
    return comm_start(c->group, &(CommOp){.kind = COMM_SEND, .dtype = DTYPE_U8, .send = slot, .count = (int64_t)own, .peer = c->to, .node = "copies"}, &c->sending);
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
    if (status == OK && c->kept) status = send_copy(t);
    c->step = t->step;
    c->n++;
    c->held_s += clock_s() - start;
    return status;
}

Status trainer_await_copy(Trainer *t)
{
    Copies *c = &t->copies;
    if (!c->sending) return OK;
    CommRequest *receiving = c->receiving, *sending = c->sending;
    double start = clock_s();
    c->receiving = c->sending = NULL;
    Status status = comm_wait(receiving), sent = comm_wait(sending);
    c->held_s += clock_s() - start;
    if (status == OK) status = sent;
    if (status == OK) ckpt_copy_received(c->kept, c->step);
    return status;
}
