/* Going on from copies in memory (copies.c), under any layout.
 *
 * Ranks tell each other which copies lie on their hosts, and all find the newest step of which
 * every share is there; whoever is to give out a copy looks first whether all its bits are those
 * that were copied, and if not, another copy of the same share or an older step takes its place.
 * The elements of each tensor have homes: equal ranges, one a rank. Who has found a copy sends its
 * runs to their homes; then every rank asks the homes for the runs that it holds. A batch of
 * tensors at a time, so that little memory is needed beside the states. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

enum { BATCH_BYTES = 32 << 20 }; /* of each rank's home */

typedef VEC(char) Text;

static void add_bytes(Text *text, const void *data, size_t n)
{
    if (text->cap < text->n + n) {
        text->cap = 2 * (text->n + n);
        text->at = xrealloc(text->at, text->cap);
    }
    if (n) memcpy(text->at + text->n, data, n);
    text->n += n;
}

/* ---- what is there ---------------------------------------------------------------------- */

/* A copy on some rank's host. */
typedef struct Offer {
    int64_t step;
    uint64_t start;
    int32_t rank, ranks, keeper, finder;
    int32_t bad, unused; /* found damaged */
} Offer;

typedef struct Restore {
    Trainer *t;
    Arena arena;
    CkptCopyFound *found; /* on this host */
    int n_found;
    Offer *offer; /* of all ranks, sorted */
    int64_t n_offers;
    int64_t chosen, end; /* the offers of the newest whole step; none: chosen is -1 */
    CkptCopyView *view;  /* [n_views] of the copies that this rank gives out */
    int n_views;
    int n; /* ranks */
} Restore;

static Status gather_offers(Restore *r)
{
    Trainer *t = r->t;
    int64_t mine = r->n_found, total = 0, *counts = xcalloc((size_t)r->n, sizeof *counts);
    Offer *own = ARENA_ARRAY(&r->arena, Offer, r->n_found + 1);
    for (int i = 0; i < r->n_found; i++)
        own[i] = (Offer){.step = r->found[i].step,
                         .start = r->found[i].start,
                         .rank = r->found[i].rank,
                         .ranks = r->found[i].ranks,
                         .keeper = r->found[i].keeper,
                         .finder = t->rank};
    counts[0] = mine;
    Status status = !t->world ? OK
                              : comm_run(t->world, &(CommOp){.kind = COMM_ALL_GATHER,
                                                             .dtype = DTYPE_I64,
                                                             .send = &mine,
                                                             .recv = counts,
                                                             .count = 1,
                                                             .node = "copies"});
    for (int i = 0; i < r->n; i++) {
        total += counts[i];
        counts[i] *= (int64_t)sizeof(Offer);
    }
    r->offer = ARENA_ARRAY(&r->arena, Offer, total + 1);
    r->n_offers = total;
    if (!t->world) memcpy(r->offer, own, (size_t)mine * sizeof *own);
    if (t->world && status == OK)
        status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_GATHER,
                                              .dtype = DTYPE_U8,
                                              .send = own,
                                              .recv = r->offer,
                                              .counts = counts,
                                              .node = "copies"});
    free(counts);
    return status;
}

/* Newest first; then those that belong together, by rank and finder. */
static int by_newest(const void *a, const void *b)
{
    const Offer *x = a, *y = b;
    if (x->step != y->step) return x->step > y->step ? -1 : 1;
    if (x->start != y->start) return x->start > y->start ? -1 : 1;
    if (x->ranks != y->ranks) return x->ranks - y->ranks;
    if (x->rank != y->rank) return x->rank - y->rank;
    return x->keeper != y->keeper ? x->keeper - y->keeper : x->finder - y->finder;
}

static bool same_set(const Offer *a, const Offer *b)
{
    return a->step == b->step && a->start == b->start && a->ranks == b->ranks;
}

/* The first set of offers, of a step after `than`, in which every rank has a good one. */
static void choose_step(Restore *r, int64_t than)
{
    r->chosen = -1;
    for (int64_t i = 0, end; i < r->n_offers && r->chosen < 0 && r->offer[i].step > than; i = end) {
        int next = 0;
        for (end = i; end < r->n_offers && same_set(&r->offer[i], &r->offer[end]); end++)
            next += !r->offer[end].bad && r->offer[end].rank == next;
        if (next != r->offer[i].ranks) continue;
        r->chosen = i;
        r->end = end;
    }
}

/* ---- opened ----------------------------------------------------------------------------- */

static Status open_view(Restore *r, const Offer *o)
{
    for (int k = 0; k < r->n_found; k++) {
        const CkptCopyFound *f = &r->found[k];
        if (f->step != o->step || f->start != o->start || f->rank != o->rank ||
            f->ranks != o->ranks || f->keeper != o->keeper)
            continue;
        TRY(ckpt_copy_open(f, &r->t->saved.share, &r->view[r->n_views]));
        r->n_views++;
        return OK;
    }
    return OK;
}

static void close_views(Restore *r)
{
    while (r->n_views > 0) ckpt_copy_view_close(&r->view[--r->n_views]);
}

/* Those that this rank is the first to offer; bad[i] for the i-th of the chosen that cannot be
 * used. */
static Status open_views(Restore *r, int32_t *bad)
{
    Status status = OK;
    r->view = ARENA_ARRAY(&r->arena, CkptCopyView, r->offer[r->chosen].ranks);
    int last = -1;
    for (int64_t i = r->chosen; i < r->end; i++) {
        const Offer *o = &r->offer[i];
        if (o->bad || o->rank == last) continue;
        last = o->rank;
        if (o->finder != r->t->rank) continue;
        Status opened = open_view(r, o);
        bad[i - r->chosen] = opened != OK;
        if (opened != OK) status = opened;
    }
    return status;
}

/* What one finder sees damaged is so for all that find this copy on the same host. */
static void drop(Restore *r, const int32_t *bad)
{
    for (int64_t i = r->chosen; i < r->end; i++)
        for (int64_t k = r->chosen; bad[i - r->chosen] && k < r->end; k++)
            r->offer[k].bad |= r->offer[k].rank == r->offer[i].rank &&
                               r->offer[k].keeper == r->offer[i].keeper;
}

/* Opens the chosen copies, the same ones on all ranks; *good: none of them was damaged. */
static Status open_chosen(Restore *r, bool *good)
{
    Trainer *t = r->t;
    int64_t n = r->end - r->chosen;
    int32_t *bad = ARENA_ARRAY(&r->arena, int32_t, n);
    Status mine = open_views(r, bad), said = trainer_accord(t, mine);
    *good = said == OK;
    if (*good || said == ERR_COMM) return said;
    log_warn("%s; it is not used", status_message());
    if (t->world)
        TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                         .dtype = DTYPE_I32,
                                         .reduce = COMM_MAX,
                                         .send = bad,
                                         .recv = bad,
                                         .count = n,
                                         .node = "copies"}));
    drop(r, bad);
    close_views(r);
    return OK;
}

static Status find(Restore *r, int64_t than)
{
    const RunCheckpoint *c = &r->t->config->checkpoint;
    if (ckpt_copies_find(&r->arena, c->memory_dir, trainer_copies_key(r->t), &r->found,
                         &r->n_found) != OK)
        r->n_found = 0;
    TRY(gather_offers(r));
    if (r->n_offers) qsort(r->offer, (size_t)r->n_offers, sizeof *r->offer, by_newest);
    for (bool good = false; !good;) {
        choose_step(r, than);
        if (r->chosen < 0) break;
        TRY(open_chosen(r, &good));
    }
    return OK;
}

Status trainer_find_copies(Trainer *t, int64_t than, int64_t *step)
{
    Restore *r = xcalloc(1, sizeof *r);
    *r = (Restore){.t = t, .chosen = -1, .n = t->saved.share.ranks};
    t->copies.restore = r;
    *step = -1;
    if (t->config->checkpoint.memory_every == 0) return OK;
    TRY(find(r, than));
    if (r->chosen >= 0) *step = r->offer[r->chosen].step;
    return OK;
}

void trainer_forget_copies(Trainer *t)
{
    Restore *r = t->copies.restore;
    if (!r) return;
    close_views(r);
    arena_deinit(&r->arena);
    free(r);
    t->copies.restore = NULL;
}

/* ---- homes ------------------------------------------------------------------------------ */

static int64_t home_begin(int64_t count, int64_t rank, int64_t n)
{
    return count / n * rank + count % n * rank / n;
}

static int home_of(int64_t count, int64_t element, int n)
{
    int rank = (int)((double)element / (double)count * n);
    while (rank > 0 && home_begin(count, rank, n) > element) rank--;
    while (rank + 1 < n && home_begin(count, rank + 1, n) <= element) rank++;
    return rank;
}

/* A run on its way; in the first exchange its elements follow. */
typedef struct Range {
    int64_t first, n;
    int64_t tensor;
} Range;

typedef struct Batch {
    Restore *r;
    int from, to;          /* tensors from .. to-1 */
    char *home;            /* this rank's ranges of them */
    size_t *home_at;       /* [to - from] */
    int64_t *got;          /* [to - from] elements that have come home */
    Text *out;             /* [n] for each rank */
    char *in;              /* what came, in the order of ranks */
    int64_t *in_n, *in_at; /* [n] */
    int64_t *cursor;       /* [n] in what came */
    int tensor;            /* that is being asked for or filled */
    bool fill;
    char *data; /* of the entry */
} Batch;

static const CkptTensor *tensor_of(const Batch *b, int64_t i)
{
    return &b->r->t->saved.share.tensors[i];
}
static int64_t count_of(const Batch *b, int64_t i) { return shape_count(&tensor_of(b, i)->shape); }
static size_t size_of(const Batch *b, int64_t i) { return dtype_bytes(tensor_of(b, i)->dtype); }

static void clear_out(Batch *b)
{
    for (int k = 0; k < b->r->n; k++) b->out[k].n = 0;
}

/* All that is in out[k] goes to rank k; what came from all lies in `in`. */
static Status exchange(Batch *b)
{
    Trainer *t = b->r->t;
    int n = b->r->n;
    Text all = {0};
    int64_t *counts = xcalloc((size_t)n, sizeof *counts), total = 0;
    for (int k = 0; k < n; k++) {
        counts[k] = (int64_t)b->out[k].n;
        add_bytes(&all, b->out[k].at, b->out[k].n);
    }
    clear_out(b);
    b->in_n[0] = counts[0];
    Status status = !t->world ? OK
                              : comm_run(t->world, &(CommOp){.kind = COMM_ALL_TO_ALL,
                                                             .dtype = DTYPE_I64,
                                                             .send = counts,
                                                             .recv = b->in_n,
                                                             .count = 1,
                                                             .node = "copies"});
    for (int k = 0; k < n; k++) {
        b->in_at[k] = b->cursor[k] = total;
        total += b->in_n[k];
    }
    b->in = xrealloc(b->in, (size_t)total + 1);
    if (!t->world && total) memcpy(b->in, all.at, (size_t)total);
    if (t->world && status == OK)
        status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_TO_ALL,
                                              .dtype = DTYPE_U8,
                                              .send = all.at ? all.at : b->in,
                                              .recv = b->in,
                                              .send_counts = counts,
                                              .recv_counts = b->in_n,
                                              .node = "copies"});
    VEC_FREE(&all);
    free(counts);
    return status;
}

/* The part of a run that has one home; returns how many elements. */
static int64_t cut_at_home(const Batch *b, int64_t tensor, int64_t first, int64_t n, int *home)
{
    int64_t count = count_of(b, tensor);
    *home = home_of(count, first, b->r->n);
    return min_i64(n, home_begin(count, *home + 1, b->r->n) - first);
}

/* ---- the three exchanges ---------------------------------------------------------------- */

static void give_runs(Batch *b, const CkptCopyView *v)
{
    for (int64_t i = 0; i < v->n_runs; i++) {
        const CkptCopyRun *run = &v->run[i];
        if (run->tensor < b->from || run->tensor >= b->to) continue;
        for (int64_t done = 0, n; done < run->n; done += n) {
            int home;
            n = cut_at_home(b, run->tensor, run->first + done, run->n - done, &home);
            Range range = {run->first + done, n, run->tensor};
            add_bytes(&b->out[home], &range, sizeof range);
            add_bytes(&b->out[home], v->data + run->at + (size_t)done * size_of(b, run->tensor),
                      (size_t)n * size_of(b, run->tensor));
        }
    }
}

static char *home_place(const Batch *b, const Range *range)
{
    int64_t begin = home_begin(count_of(b, range->tensor), b->r->t->rank, b->r->n);
    return b->home + b->home_at[range->tensor - b->from] +
           (size_t)(range->first - begin) * size_of(b, range->tensor);
}

static Status take_home(Batch *b)
{
    int64_t end = b->in_at[b->r->n - 1] + b->in_n[b->r->n - 1];
    for (int64_t at = 0; at < end;) {
        Range range;
        memcpy(&range, b->in + at, sizeof range);
        size_t bytes = (size_t)range.n * size_of(b, range.tensor);
        memcpy(home_place(b, &range), b->in + at + (int64_t)sizeof range, bytes);
        at += (int64_t)(sizeof range + bytes);
        b->got[range.tensor - b->from] += range.n;
    }
    for (int i = b->from; i < b->to; i++) {
        int64_t count = count_of(b, i), want = home_begin(count, b->r->t->rank + 1, b->r->n) -
                                               home_begin(count, b->r->t->rank, b->r->n);
        if (b->got[i - b->from] != want)
            return fail(ERR_FORMAT, "the copies in memory lack a part of %s",
                        tensor_of(b, i)->name);
    }
    return OK;
}

/* Asks for a run that this rank holds; in the second pass, in the same order, fills it. */
static Status want_run(void *context, const StateRun *run)
{
    Batch *b = context;
    size_t size = size_of(b, b->tensor);
    for (int64_t done = 0, n; done < run->n; done += n) {
        int home;
        n = cut_at_home(b, b->tensor, run->global + done, run->n - done, &home);
        Range range = {run->global + done, n, b->tensor};
        if (!b->fill) {
            add_bytes(&b->out[home], &range, sizeof range);
            continue;
        }
        memcpy(b->data + (size_t)(run->local + done) * size, b->in + b->cursor[home],
               (size_t)n * size);
        b->cursor[home] += n * (int64_t)size;
    }
    return OK;
}

static Status want_all(Batch *b, bool fill)
{
    const Trainer *t = b->r->t;
    b->fill = fill;
    for (b->tensor = b->from; b->tensor < b->to; b->tensor++) {
        SavedPlace place = t->saved.place[b->tensor];
        if (place.saved < 0) continue;
        int entry = t->saved.entry[place.saved].entry;
        b->data = session_state(t->session, entry).data;
        TRY(store_each_part_run(t->programs.store, entry, place.part, 0,
                                shape_count(&t->programs.store->entry[entry].shape), want_run, b));
    }
    return OK;
}

static void answer(Batch *b)
{
    for (int k = 0; k < b->r->n; k++)
        for (int64_t at = b->in_at[k]; at < b->in_at[k] + b->in_n[k];
             at += (int64_t)sizeof(Range)) {
            Range range;
            memcpy(&range, b->in + at, sizeof range);
            add_bytes(&b->out[k], home_place(b, &range),
                      (size_t)range.n * size_of(b, range.tensor));
        }
}

/* What is wrong on one rank is said when all have done their exchanges: none waits for another. */
static Status restore_batch(Batch *b)
{
    for (int i = 0; i < b->r->n_views; i++) give_runs(b, &b->r->view[i]);
    TRY(exchange(b));
    TRY(trainer_accord(b->r->t, take_home(b)));
    TRY(want_all(b, false));
    TRY(exchange(b));
    answer(b);
    TRY(exchange(b));
    return want_all(b, true);
}

/* ---- batches ---------------------------------------------------------------------------- */

static size_t home_bytes(const Batch *b, int64_t i)
{
    return ((size_t)count_of(b, i) / (size_t)b->r->n + 1) * size_of(b, i);
}

static Status restore_batches(Batch *b)
{
    int n_tensors = b->r->t->saved.share.n_tensors;
    for (b->from = 0; b->from < n_tensors; b->from = b->to) {
        size_t bytes = 0;
        for (b->to = b->from;
             b->to < n_tensors && (b->to == b->from || bytes + home_bytes(b, b->to) <= BATCH_BYTES);
             b->to++) {
            b->home_at[b->to - b->from] = bytes;
            b->got[b->to - b->from] = 0;
            bytes += home_bytes(b, b->to);
        }
        b->home = xrealloc(b->home, bytes + 1);
        TRY(restore_batch(b));
    }
    return OK;
}

static Status restore_all(Restore *r)
{
    size_t n = (size_t)r->n, n_tensors = (size_t)r->t->saved.share.n_tensors + 1;
    Batch b = {.r = r};
    b.out = xcalloc(n, sizeof *b.out);
    b.in_n = xcalloc(n, sizeof *b.in_n);
    b.in_at = xcalloc(n, sizeof *b.in_at);
    b.cursor = xcalloc(n, sizeof *b.cursor);
    b.home_at = xcalloc(n_tensors, sizeof *b.home_at);
    b.got = xcalloc(n_tensors, sizeof *b.got);
    Status status = restore_batches(&b);
    for (size_t k = 0; k < n; k++) VEC_FREE(&b.out[k]);
    free(b.out);
    free(b.in);
    free(b.in_n);
    free(b.in_at);
    free(b.cursor);
    free(b.home);
    free(b.home_at);
    free(b.got);
    return status;
}

/* The run's state as the copies have it: that of the first rank that has opened one. */
static Status share_json(Restore *r, char **json)
{
    Trainer *t = r->t;
    const char *own = r->n_views > 0 ? r->view[0].run_json : "";
    int32_t first = r->n_views > 0 ? r->n - t->rank : 0;
    if (t->world)
        TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                         .dtype = DTYPE_I32,
                                         .reduce = COMM_MAX,
                                         .send = &first,
                                         .recv = &first,
                                         .count = 1,
                                         .node = "copies"}));
    int giver = r->n - first;
    int64_t length = (int64_t)strlen(own);
    if (t->world)
        TRY(comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST,
                                         .dtype = DTYPE_I64,
                                         .send = &length,
                                         .recv = &length,
                                         .count = 1,
                                         .peer = giver,
                                         .node = "copies"}));
    *json = arena_alloc(&r->arena, (size_t)length + 1);
    if (t->rank == giver) memcpy(*json, own, (size_t)length);
    if (!t->world) return OK;
    return comm_run(t->world, &(CommOp){.kind = COMM_BROADCAST,
                                        .dtype = DTYPE_U8,
                                        .send = *json,
                                        .recv = *json,
                                        .count = length,
                                        .peer = giver,
                                        .node = "copies"});
}

Status trainer_restore_copies(Trainer *t, char **run_json)
{
    Restore *r = t->copies.restore;
    TRY(share_json(r, run_json));
    return trainer_accord(t, restore_all(r));
}
