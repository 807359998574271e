/* Where the elements of a rank's states are in the published tensors. */
#include "program/program.h"

typedef struct Walk {
    const StateEntry *entry;
    const Mesh *mesh;
    int stacked;                /* axes of the entry in front of its parts' */
    int64_t flat_first, flat_n; /* elements of the uncut-flat entry that lie here */
} Walk;

/* The range that this rank holds of an entry that is cut flat; all of it otherwise. */
static void find_flat_range(Walk *w)
{
    const StateEntry *e = w->entry;
    w->flat_first = 0;
    w->flat_n = shape_count(&e->shape);
    w->stacked = (e->whole.rank ? e->whole.rank : e->shape.rank) - e->part[0].shape.rank;
    for (int a = 0; a < MESH_AXES; a++)
        if (place_is_cut(e->place[a]) && e->place[a].dim == PLACE_FLAT)
            w->flat_first = w->mesh->coord[a] * w->flat_n;
}

/* Element `at` of axis `dim` of this rank's part, in the whole. Halves are cut each by itself. */
static int64_t global_of(const Walk *w, const StatePart *part, int dim, int64_t at)
{
    int64_t length = part->shape.dim[dim], whole = part->whole.dim[dim];
    int64_t blocks = part_blocks(part, dim);
    int64_t in_block = at % (length / blocks), block = at / (length / blocks), first = 0;
    for (int nested = 0; nested < MESH_AXES; nested++) { /* experts may be cut by two mesh axes */
        int a = 0;
        while (mesh_axis_nesting((MeshAxis)a) != nested) a++;
        const Place *p = &w->entry->place[a];
        if (!place_is_cut(*p) || p->dim == PLACE_FLAT || p->dim - w->stacked != dim) continue;
        first = first * mesh_size(w->mesh, (MeshAxis)a) + w->mesh->coord[a];
    }
    return block * (whole / blocks) + first * (length / blocks) + in_block;
}

/* The innermost axis that is cut, -1 for none. */
static int last_cut(const StatePart *part)
{
    int dim = -1;
    for (int i = 0; i < part->shape.rank; i++)
        if (part->shape.dim[i] != part->whole.dim[i]) dim = i;
    return dim;
}

/* Elements from the start of a run to its end, and the run's place in the whole. */
static int64_t run_at(const Walk *w, const StatePart *part, int dim, int64_t at, int64_t *global)
{
    int64_t inner = 1, coordinate[MAX_RANK], rest, offset = 0;
    for (int i = dim + 1; i < part->shape.rank; i++) inner *= part->shape.dim[i];
    rest = at / inner;
    for (int i = dim; i >= 0; i--) {
        coordinate[i] = rest % part->shape.dim[i];
        rest /= part->shape.dim[i];
    }
    for (int i = 0; i <= dim; i++)
        offset = offset * part->whole.dim[i] + global_of(w, part, i, coordinate[i]);
    int64_t blocks = part_blocks(part, dim);
    int64_t length = part->shape.dim[dim] / blocks, left = length - coordinate[dim] % length;
    *global = offset * inner + at % inner;
    return left * inner - at % inner;
}

/* Of part k, what lies in local elements lo .. hi-1. */
static Status walk_part(const Walk *w, int k, int64_t lo, int64_t hi, StateRunFn fn, void *context)
{
    const StatePart *part = &w->entry->part[k];
    int64_t begin = (int64_t)(part->offset_bytes / dtype_bytes(w->entry->dtype)),
            count = shape_count(&part->shape);
    int64_t first = max_i64(w->flat_first + lo - begin, 0),
            end = min_i64(w->flat_first + hi - begin, count);
    int dim = last_cut(part);
    for (int64_t at = first; at < end;) {
        StateRun run = {
            .part = k, .local = begin + at - w->flat_first, .global = at, .n = end - at};
        if (dim >= 0) run.n = min_i64(run_at(w, part, dim, at, &run.global), end - at);
        TRY(fn(context, &run));
        at += run.n;
    }
    return OK;
}

/* NOLINTNEXTLINE(readability-function-size): a part of a state, a range of it, and whom to call */
Status store_each_part_run(const Store *store, int entry, int part, int64_t first, int64_t n,
                           StateRunFn fn, void *context)
{
    Walk w = {.entry = &store->entry[entry], .mesh = &store->mesh};
    find_flat_range(&w);
    return walk_part(&w, part, first, min_i64(first + n, w.flat_n), fn, context);
}

Status store_each_run(const Store *store, int entry, StateRunFn fn, void *context)
{
    int64_t all = shape_count(&store->entry[entry].shape);
    for (int k = 0; k < store->entry[entry].n_parts; k++)
        TRY(store_each_part_run(store, entry, k, 0, all, fn, context));
    return OK;
}
