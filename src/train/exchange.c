/* What a checkpoint holds and what of it a rank has. Files hold whole tensors under their published
 * names, whatever the layout: each rank reads the runs of elements that it holds, and writes those
 * that are its own. Ranks that hold the same share the writing evenly: all that they hold in common
 * is one stretch of bytes, of which each writes an equal piece. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

enum { SHARE_ALIGN = 64 }; /* pieces begin at whole elements */

/* ---- which elements are whose ----------------------------------------------------------- */

static bool is_saved(const StateEntry *e)
{
    return e->role == STATE_PARAM || e->role == STATE_BUFFER || e->role == STATE_ADAM_M ||
           e->role == STATE_ADAM_V;
}

/* Of two pipeline ranks that hold one weight the first one writes it; the other one only reads. */
static bool is_written(const Mesh *mesh, const StateEntry *e)
{
    return is_saved(e) && !(e->twin && e->twin - 1 < mesh->coord[MESH_PP]);
}

/* The axes along which all ranks hold the same; stages hold different layers. */
static unsigned replica_axes(const StateEntry *e)
{
    unsigned axes = 0;
    for (int a = 0; a < MESH_AXES; a++)
        if (a != MESH_PP && !place_is_cut(e->place[a])) axes |= 1u << a;
    return axes;
}

/* Where rank r of n begins in a stretch of so many bytes. */
static uint64_t share_begin(uint64_t bytes, uint64_t r, uint64_t n)
{
    if (r == n) return bytes;
    uint64_t at = bytes / n * r + bytes % n * r / n;
    return at / SHARE_ALIGN * SHARE_ALIGN;
}

/* This rank's piece [*begin, *end) of the stretch that ranks along these axes have in common. */
static void find_share(const Mesh *mesh, unsigned axes, uint64_t bytes, uint64_t *begin,
                       uint64_t *end)
{
    uint64_t r = 0, n = 1;
    for (int a = 0; a < MESH_AXES; a++) {
        if (!(axes >> a & 1)) continue;
        r = r * (uint64_t)mesh_size(mesh, (MeshAxis)a) + (uint64_t)mesh->coord[a];
        n *= (uint64_t)mesh_size(mesh, (MeshAxis)a);
    }
    *begin = share_begin(bytes, r, n);
    *end = share_begin(bytes, r + 1, n);
}

static uint64_t stretch_bytes(const StateEntry *e) { return round_up(e->bytes, SHARE_ALIGN); }

/* What of the entry, which begins at `at` of the stretch, lies in the piece: local elements. */
static SavedEntry cut_entry(const StateEntry *e, int index, uint64_t at, uint64_t begin,
                            uint64_t end)
{
    uint64_t size = dtype_bytes(e->dtype), from = begin > at ? begin - at : 0,
             to = end > at ? end - at : 0;
    if (to > e->bytes) to = e->bytes;
    SavedEntry saved = {.entry = index};
    if (from >= to) return saved;
    saved.first = (int64_t)(from / size);
    saved.n = (int64_t)(to / size) - saved.first;
    return saved;
}

void trainer_list_parts(Trainer *t)
{
    const Store *store = t->programs.store;
    const Mesh *mesh = &t->layout.mesh;
    uint64_t bytes[1 << MESH_AXES] = {0}, at[1 << MESH_AXES] = {0};
    Saved *s = &t->saved;
    s->n = 0;
    s->entry = ARENA_ARRAY(&t->arena, SavedEntry, store->n_entries);
    s->part = ARENA_ARRAY(&t->arena, Tensor, store->n_entries);
    for (int i = 0; i < store->n_entries; i++)
        if (is_written(mesh, &store->entry[i]))
            bytes[replica_axes(&store->entry[i])] += stretch_bytes(&store->entry[i]);
    for (int i = 0; i < store->n_entries; i++) {
        const StateEntry *e = &store->entry[i];
        if (!is_saved(e)) continue;
        unsigned axes = replica_axes(e);
        uint64_t begin, end;
        find_share(mesh, axes, bytes[axes], &begin, &end);
        SavedEntry mine = is_written(mesh, e) ? cut_entry(e, i, at[axes], begin, end)
                                              : (SavedEntry){.entry = i};
        if (is_written(mesh, e)) at[axes] += stretch_bytes(e);
        char *data = t->session ? session_state(t->session, i).data : NULL;
        if (data) data += (size_t)mine.first * dtype_bytes(e->dtype);
        s->part[s->n] = tensor_make(data, e->dtype, shape_make(1, &mine.n, NULL));
        s->entry[s->n++] = mine;
    }
}

/* ---- the list of all tensors ------------------------------------------------------------ */

/* One tensor as ranks tell each other; its name follows, without a zero. */
typedef struct TensorHead {
    int32_t name_bytes, dtype, optimizer, rank;
    int64_t dim[MAX_RANK];
} TensorHead;

typedef VEC(char) Text;

static void add_bytes(Text *text, const void *data, size_t n)
{
    if (text->cap < text->n + n) {
        text->cap = 2 * (text->n + n);
        text->at = xrealloc(text->at, text->cap);
    }
    memcpy(text->at + text->n, data, n);
    text->n += n;
}

/* Weights are in the model's files under the names of the directory that the run came from. Expert
 * biases are no part of the published architecture: there they would make other programs complain,
 * so they lie with the moments. */
static char *saved_name(const Trainer *t, Arena *arena, const StateEntry *e, int part)
{
    return arena_printf(arena, "%s%s", e->role == STATE_PARAM ? t->model.weight_prefix : "",
                        e->part[part].name);
}

/* The axes along which ranks have different experts, as bits. */
static unsigned expert_axes(const Trainer *t)
{
    return 1u << MESH_EP | (t->layout.fold_experts ? 1u << MESH_TP : 0);
}

/* What other ranks of the same stage list as well need not be said twice: only stacks of experts
 * differ there. */
static bool listed_elsewhere(const Trainer *t, const StateEntry *e)
{
    for (int a = 0; a < MESH_AXES; a++)
        if (expert_axes(t) >> a & 1 && t->layout.mesh.coord[a] > 0 && !place_is_cut(e->place[a]))
            return true;
    return false;
}

static void list_own(const Trainer *t, Arena *arena, Text *text)
{
    const Store *store = t->programs.store;
    for (int k = 0; k < t->saved.n; k++) {
        const StateEntry *e = &store->entry[t->saved.entry[k].entry];
        if (listed_elsewhere(t, e)) continue;
        for (int p = 0; p < e->n_parts; p++) {
            const char *name = saved_name(t, arena, e, p);
            TensorHead head = {.name_bytes = (int32_t)strlen(name),
                               .dtype = (int32_t)e->dtype,
                               .optimizer = e->role != STATE_PARAM,
                               .rank = e->part[p].whole.rank};
            memcpy(head.dim, e->part[p].whole.dim, sizeof head.dim);
            add_bytes(text, &head, sizeof head);
            add_bytes(text, name, strlen(name));
        }
    }
}

/* Those of all stages and of all owners of experts. */
static Status gather_lists(Trainer *t, Text *text)
{
    Comm *group;
    unsigned axes = 1u << MESH_PP | expert_axes(t);
    int n = 1;
    for (int a = 0; a < MESH_AXES; a++)
        if (axes >> a & 1) n *= mesh_size(&t->layout.mesh, (MeshAxis)a);
    if (n == 1) return OK;
    TRY(device_group(t->device, axes, &group));
    int64_t mine = (int64_t)text->n, total = 0, *counts = xcalloc((size_t)n, sizeof *counts);
    Status status = comm_run(group, &(CommOp){.kind = COMM_ALL_GATHER,
                                              .dtype = DTYPE_I64,
                                              .send = &mine,
                                              .recv = counts,
                                              .count = 1,
                                              .node = "checkpoint"});
    for (int r = 0; r < n; r++) total += counts[r];
    char *all = xmalloc((size_t)total + 1);
    if (status == OK)
        status = comm_run(group, &(CommOp){.kind = COMM_ALL_GATHER,
                                           .dtype = DTYPE_U8,
                                           .send = text->at,
                                           .recv = all,
                                           .counts = counts,
                                           .node = "checkpoint"});
    free(counts);
    free(text->at);
    *text = (Text){all, (size_t)total, (size_t)total + 1};
    return status;
}

static int by_place(const void *a, const void *b)
{
    const CkptTensor *x = a, *y = b;
    return x->optimizer != y->optimizer ? x->optimizer - y->optimizer : strcmp(x->name, y->name);
}

static Status merge_lists(Trainer *t, const Text *text, CkptTensor **out, int *n)
{
    VEC(CkptTensor) list = {0};
    for (size_t at = 0; at < text->n;) {
        TensorHead head;
        memcpy(&head, text->at + at, sizeof head);
        at += sizeof head;
        CkptTensor tensor = {
            .name = arena_strndup(&t->arena, text->at + at, (size_t)head.name_bytes),
            .dtype = (DType)head.dtype,
            .shape = shape_make(head.rank, head.dim, NULL),
            .optimizer = head.optimizer};
        at += (size_t)head.name_bytes;
        VEC_PUSH(&list, tensor);
    }
    if (list.n) qsort(list.at, list.n, sizeof *list.at, by_place);
    Status status = OK;
    size_t kept = 0;
    for (size_t i = 0; i < list.n && status == OK; i++) {
        const CkptTensor *last = kept ? &list.at[kept - 1] : NULL;
        bool again = last && by_place(last, &list.at[i]) == 0;
        if (again &&
            (!shape_equal(&last->shape, &list.at[i].shape) || last->dtype != list.at[i].dtype))
            status = fail(ERR_SHAPE, "%s has one shape on some ranks and another on others",
                          last->name);
        if (!again) list.at[kept++] = list.at[i];
    }
    *out = arena_copy(&t->arena, list.at, kept * sizeof *list.at);
    *n = (int)kept;
    VEC_FREE(&list);
    return status;
}

static int find_tensor(const CkptTensor *list, int n, const CkptTensor *wanted)
{
    const CkptTensor *found = bsearch(wanted, list, (size_t)n, sizeof *list, by_place);
    return found ? (int)(found - list) : -1;
}

/* Where this rank has each of the tensors. */
static void place_own(Trainer *t)
{
    Saved *s = &t->saved;
    Arena scratch = {0};
    s->place = ARENA_ARRAY(&t->arena, SavedPlace, s->share.n_tensors);
    for (int i = 0; i < s->share.n_tensors; i++) s->place[i].saved = -1;
    for (int k = 0; k < s->n; k++) {
        const StateEntry *e = &t->programs.store->entry[s->entry[k].entry];
        for (int p = 0; p < e->n_parts; p++) {
            CkptTensor wanted = {.name = saved_name(t, &scratch, e, p),
                                 .optimizer = e->role != STATE_PARAM};
            int at = find_tensor(s->share.tensors, s->share.n_tensors, &wanted);
            CHECK(at >= 0);
            s->place[at] = (SavedPlace){k, p};
        }
    }
    arena_deinit(&scratch);
}

/* Ranks add up what they have of tensor i: all must mean the same one. */
static Status check_lists(Trainer *t)
{
    uint64_t hash = 0;
    for (int i = 0; i < t->saved.share.n_tensors; i++) {
        const CkptTensor *tensor = &t->saved.share.tensors[i];
        hash = rng_key(hash, tensor->name) ^
               hash_bytes(tensor->shape.dim,
                          sizeof *tensor->shape.dim * (size_t)tensor->shape.rank);
    }
    int32_t mine = (int32_t)hash, extremes[2] = {mine, ~mine};
    if (!t->world) return OK;
    TRY(comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                     .dtype = DTYPE_I32,
                                     .reduce = COMM_MAX,
                                     .send = extremes,
                                     .recv = extremes,
                                     .count = 2,
                                     .node = "checkpoint"}));
    return extremes[0] == ~extremes[1]
               ? OK
               : fail(ERR_COMM,
                      "the ranks hold different models: their checkpoints would not fit together");
}

/* ---- the share -------------------------------------------------------------------------- */

typedef struct Giving {
    CkptRunFn fn;
    void *to;
    int saved;
    int64_t first; /* local element that the part begins with */
} Giving;

static Status give_run(void *context, const StateRun *run)
{
    const Giving *g = context;
    return g->fn(g->to, &(CkptRun){.part = g->saved,
                                   .first = run->global,
                                   .n = run->n,
                                   .at = run->local - g->first});
}

static Status each_run(const void *context, int tensor, CkptRunFn fn, void *to)
{
    const Trainer *t = context;
    SavedPlace place = t->saved.place[tensor];
    if (place.saved < 0) return OK;
    const SavedEntry *e = &t->saved.entry[place.saved];
    Giving g = {fn, to, place.saved, e->first};
    return store_each_part_run(t->programs.store, e->entry, place.part, e->first, e->n, give_run,
                               &g);
}

Status trainer_share_checkpoint(Trainer *t)
{
    Text text = {0};
    Arena scratch = {0};
    CkptTensor *tensors = NULL;
    int n = 0;
    trainer_list_parts(t);
    list_own(t, &scratch, &text);
    arena_deinit(&scratch);
    Status status = gather_lists(t, &text);
    if (status == OK) status = merge_lists(t, &text, &tensors, &n);
    VEC_FREE(&text);
    TRY(status);
    t->saved.share = (CkptShare){.tensors = tensors,
                                 .n_tensors = n,
                                 .parts = t->saved.part,
                                 .n_parts = t->saved.n,
                                 .each_run = each_run,
                                 .context = t,
                                 .rank = t->rank,
                                 .ranks = t->world ? comm_size(t->world) : 1};
    place_own(t);
    return check_lists(t);
}

/* ---- runs of elements, read ------------------------------------------------------------- */

typedef struct Loading {
    const StateEntry *entry;
    char *data;
    RunReader read;
    const void *source;
} Loading;

static Status load_run(void *context, const StateRun *run)
{
    const Loading *l = context;
    const StatePart *part = &l->entry->part[run->part];
    return l->read(l->source, l->entry, part, run,
                   l->data + (size_t)run->local * dtype_bytes(l->entry->dtype));
}

Status trainer_load_runs(Trainer *t, unsigned roles, RunReader read, const void *source)
{
    const Store *store = t->programs.store;
    for (int i = 0; i < store->n_entries; i++) {
        if (!(roles >> store->entry[i].role & 1)) continue;
        Loading l = {.entry = &store->entry[i],
                     .data = session_state(t->session, i).data,
                     .read = read,
                     .source = source};
        TRY(store_each_run(store, i, load_run, &l));
    }
    return OK;
}

/* ---- tallies of all ranks --------------------------------------------------------------- */

/* The communicator adds 32-bit integers: a number of 64 bits goes in limbs of 11, of which two
 * million ranks may have full ones. */
enum { LIMB_BITS = 11, LIMBS = 6, TALLY_NUMBERS = sizeof(CkptTally) / sizeof(uint64_t) };

Status trainer_sum_tallies(Trainer *t, CkptTally *tally, int n)
{
    if (!t->world || n == 0) return OK;
    int64_t count = (int64_t)n * TALLY_NUMBERS;
    uint64_t *number = (uint64_t *)(void *)tally;
    int32_t *limb = xmalloc((size_t)(count * LIMBS) * sizeof *limb);
    for (int64_t i = 0; i < count * LIMBS; i++)
        limb[i] = (int32_t)(number[i / LIMBS] >> i % LIMBS * LIMB_BITS & ((1u << LIMB_BITS) - 1));
    Status status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_REDUCE,
                                                 .dtype = DTYPE_I32,
                                                 .send = limb,
                                                 .recv = limb,
                                                 .count = count * LIMBS,
                                                 .node = "checkpoint"});
    if (status == OK) memset(number, 0, (size_t)count * sizeof *number);
    for (int64_t i = 0; i < count * LIMBS && status == OK; i++)
        number[i / LIMBS] += (uint64_t)(uint32_t)limb[i] << i % LIMBS * LIMB_BITS;
    free(limb);
    return status;
}
