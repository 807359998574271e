/* Checkpoints of several ranks. Files hold whole tensors under their published names, whatever the layout: each
 * rank reads the runs of elements that it holds; to save, the first rank gathers the tensors from the ranks that
 * hold them. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

/* ---- load ------------------------------------------------------------------------------------------------- */

typedef struct Loading {
    const Trainer *t;
    const StateEntry *entry;
    char *data;
    RunReader read;
    const void *source;
} Loading;

static Status load_run(void *context, const StateRun *run)
{
    const Loading *l = context;
    const StatePart *part = &l->entry->part[run->part];
    return l->read(l->source, l->entry, part, run, l->data + (size_t)run->local * dtype_bytes(l->entry->dtype));
}

Status trainer_load_runs(Trainer *t, unsigned roles, RunReader read, const void *source)
{
    const Store *store = t->programs.store;
    for (int i = 0; i < store->n_entries; i++) {
        if (!(roles >> store->entry[i].role & 1)) continue;
        Loading l = {.t = t, .entry = &store->entry[i], .data = session_state(t->session, i).data, .read = read, .source = source};
        TRY(store_each_run(store, i, load_run, &l));
    }
    return OK;
}

/* ---- gather ------------------------------------------------------------------------------------------------ */

enum { NAME_BYTES = 512 };

/* A tensor, or what a rank has of one, as it is sent to the first rank: this, the runs, the elements. */
typedef struct PartHead {
    char name[NAME_BYTES];
    int32_t dtype, role, last; /* last: nothing follows */
    Shape whole;
    int64_t n_runs, n_elements;
} PartHead;

typedef struct Runs {
    VEC(int64_t) at; /* global element and length, alternating */
    VEC(char) data;
    int part;
    const char *local;
    size_t size; /* of an element */
} Runs;

static Status add_run(void *context, const StateRun *run)
{
    Runs *r = context;
    if (run->part != r->part) return OK;
    VEC_PUSH(&r->at, run->global);
    VEC_PUSH(&r->at, run->n);
    size_t bytes = (size_t)run->n * r->size;
    if (r->data.cap < r->data.n + bytes) {
        r->data.cap = 2 * (r->data.n + bytes);
        r->data.at = xrealloc(r->data.at, r->data.cap);
    }
    memcpy(r->data.at + r->data.n, r->local + (size_t)run->local * r->size, bytes);
    r->data.n += bytes;
    return OK;
}

/* Of ranks that hold the same, the first along every axis sends it. */
static bool is_holder(const Mesh *mesh, const StateEntry *e)
{
    for (int a = 0; a < MESH_AXES; a++)
        if (a != MESH_PP && !place_is_cut(e->place[a]) && mesh->coord[a] > 0) return false; /* stages hold different ones */
    return true;
}

static Status send_bytes(Trainer *t, const void *data, size_t bytes)
{
    if (bytes == 0) return OK;
    return comm_run(t->world, &(CommOp){.kind = COMM_SEND, .dtype = DTYPE_U8, .send = data, .count = (int64_t)bytes, .node = "checkpoint"});
}

static Status receive_bytes(Trainer *t, int from, void *data, size_t bytes)
{
    if (bytes == 0) return OK;
    return comm_run(t->world, &(CommOp){.kind = COMM_RECV, .dtype = DTYPE_U8, .recv = data, .count = (int64_t)bytes, .peer = from, .node = "checkpoint"});
}

static Status collect(const Trainer *t, int entry, int part, PartHead *head, Runs *runs)
{
    const StateEntry *e = &t->programs.store->entry[entry];
    const char *prefix = e->role == STATE_PARAM ? t->model.weight_prefix : "";
    memset(head, 0, sizeof *head);
    if (snprintf(head->name, NAME_BYTES, "%s%s", prefix, e->part[part].name) >= NAME_BYTES)
        return fail(ERR_ARG, "the name %s is too long for a checkpoint", e->part[part].name);
    head->dtype = (int32_t)e->dtype;
    head->role = (int32_t)e->role;
    head->whole = e->part[part].whole;
    runs->at.n = runs->data.n = 0;
    runs->part = part;
    runs->local = session_state(t->session, entry).data;
    runs->size = dtype_bytes(e->dtype);
    TRY(store_each_run(t->programs.store, entry, add_run, runs));
    head->n_runs = (int64_t)runs->at.n / 2;
    head->n_elements = (int64_t)(runs->data.n / runs->size);
    return OK;
}

static void put_runs(const Gathered *g, const Runs *runs)
{
    const char *from = runs->data.at;
    for (size_t i = 0; i < runs->at.n; i += 2) {
        size_t bytes = (size_t)runs->at.at[i + 1] * dtype_bytes(g->tensor.tensor.dtype);
        memcpy((char *)g->tensor.tensor.data + (size_t)runs->at.at[i] * dtype_bytes(g->tensor.tensor.dtype), from, bytes);
        from += bytes;
    }
}

/* The gathered tensor of that name, new when it is the first time. */
static Gathered *find_gathered(GatheredList *list, const PartHead *head)
{
    for (size_t i = list->n; i-- > 0;)
        if (!strcmp(list->at[i].tensor.name, head->name)) return &list->at[i];
    size_t bytes = (size_t)shape_count(&head->whole) * dtype_bytes((DType)head->dtype);
    Gathered g = {.tensor = {xstrdup(head->name), tensor_make(xcalloc(bytes, 1), (DType)head->dtype, head->whole)}, .role = (StateRole)head->role};
    VEC_PUSH(list, g);
    return &list->at[list->n - 1];
}

static Status receive_part(Trainer *t, int from, GatheredList *list, Runs *runs, bool *last)
{
    PartHead head;
    TRY(receive_bytes(t, from, &head, sizeof head));
    *last = head.last;
    if (head.last) return OK;
    runs->at.at = xrealloc(runs->at.at, (size_t)head.n_runs * 16 + 1);
    runs->data.at = xrealloc(runs->data.at, (size_t)head.n_elements * dtype_bytes((DType)head.dtype) + 1);
    runs->at.n = runs->at.cap = (size_t)head.n_runs * 2;
    runs->data.n = runs->data.cap = (size_t)head.n_elements * dtype_bytes((DType)head.dtype);
    TRY(receive_bytes(t, from, runs->at.at, runs->at.n * sizeof *runs->at.at));
    TRY(receive_bytes(t, from, runs->data.at, runs->data.n));
    put_runs(find_gathered(list, &head), runs);
    return OK;
}

/* This rank's own parts: into the list on the first rank, sent on the others. */
static Status give_own(Trainer *t, unsigned roles, GatheredList *list, Runs *runs)
{
    const Store *store = t->programs.store;
    PartHead head;
    for (int i = 0; i < store->n_entries; i++) {
        const StateEntry *e = &store->entry[i];
        for (int k = 0; roles >> e->role & 1 && is_holder(&t->layout.mesh, e) && k < e->n_parts; k++) {
            TRY(collect(t, i, k, &head, runs));
            if (t->rank == 0) {
                put_runs(find_gathered(list, &head), runs);
                continue;
            }
            TRY(send_bytes(t, &head, sizeof head));
            TRY(send_bytes(t, runs->at.at, runs->at.n * sizeof *runs->at.at));
            TRY(send_bytes(t, runs->data.at, runs->data.n));
        }
    }
    if (t->rank == 0) return OK;
    memset(&head, 0, sizeof head);
    head.last = 1;
    return send_bytes(t, &head, sizeof head);
}

Status trainer_gather(Trainer *t, unsigned roles, GatheredList *list)
{
    Runs runs = {0};
    Status status = give_own(t, roles, list, &runs);
    for (int from = 1; t->rank == 0 && from < comm_size(t->world) && status == OK; from++)
        for (bool last = false; !last && status == OK;) status = receive_part(t, from, list, &runs, &last);
    VEC_FREE(&runs.at);
    VEC_FREE(&runs.data);
    return status;
}

void trainer_gathered_free(GatheredList *list)
{
    for (size_t i = 0; i < list->n; i++) {
        free((void *)(uintptr_t)list->at[i].tensor.name);
        free(list->at[i].tensor.tensor.data);
    }
    VEC_FREE(list);
}
