/* The tensors that live across programs: one table by name, one region of memory. */
#include "program/program.h"

#include <stdlib.h>
#include <string.h>

Store *store_create(void) { return xcalloc(1, sizeof(Store)); }

void store_destroy(Store *store)
{
    if (!store) return;
    free(store->entry);
    name_index_deinit(&store->names);
    arena_deinit(&store->arena);
    free(store);
}

const char *state_role_name(StateRole role)
{
    static const char *const names[] = {
        "none",    "weights", "working weights", "gradients",    "sums of gradients under way",
        "adam m",  "adam v",  "buffers",         "expert loads", "pipeline buffers",
        "kv cache"};
    return names[role];
}

int store_find(const Store *store, const char *name)
{
    return name_index_find(&store->names, name);
}

size_t store_role_bytes(const Store *store, StateRole role)
{
    size_t sum = 0;
    for (int i = 0; i < store->n_entries; i++)
        if (store->entry[i].role == role) sum += round_up(store->entry[i].bytes, TENSOR_ALIGN);
    return sum;
}

static Status check_same(const StateEntry *e, const Value *v)
{
    char a[SHAPE_TEXT], b[SHAPE_TEXT];
    if (e->dtype == v->dtype && shape_equal(&e->shape, &v->shape) &&
        !memcmp(e->place, v->place, sizeof e->place))
        return OK;
    return fail(ERR_SHAPE, "state %s is %s [%s] in one program and %s [%s] in another", e->name,
                dtype_name(e->dtype), shape_text(&e->shape, a), dtype_name(v->dtype),
                shape_text(&v->shape, b));
}

static Status add_state(Store *store, const Graph *graph, ValueId id, const char *prefix,
                        int *index)
{
    const Value *v = graph_value(graph, id);
    const char *name = *prefix ? arena_printf(&store->arena, "%s%s", prefix, v->name) : v->name;
    int master = -1, found = store_find(store, name);
    *index = found;
    if (found >= 0) return check_same(&store->entry[found], v);
    if (value_ok(v->master)) TRY(add_state(store, graph, v->master, prefix, &master));
    if (store->n_entries == store->cap) {
        store->cap = store->cap ? 2 * store->cap : 64;
        store->entry = xrealloc(store->entry, sizeof *store->entry * (size_t)store->cap);
    }
    *index = store->n_entries;
    StateEntry *e = &store->entry[store->n_entries++];
    *e = (StateEntry){.name = arena_strdup(&store->arena, name),
                      .dtype = v->dtype,
                      .shape = v->shape,
                      .role = v->role,
                      .decay = v->decay,
                      .master = master,
                      .n_parts = v->n_parts,
                      .offset = store->bytes,
                      .whole = v->whole,
                      .twin = v->twin};
    memcpy(e->place, v->place, sizeof e->place);
    name_index_put(&store->names, e->name, *index);
    e->bytes = (size_t)shape_count(&v->shape) * dtype_bytes(v->dtype);
    e->part = arena_copy(&store->arena, v->part, sizeof *v->part * (size_t)v->n_parts);
    for (int k = 0; k < e->n_parts; k++)
        e->part[k].name = arena_strdup(&store->arena, v->part[k].name);
    store->bytes += round_up(e->bytes, TENSOR_ALIGN);
    return OK;
}

Status store_add_graph(Store *store, const Graph *graph)
{
    return store_add_twin(store, graph, "");
}

Status store_add_twin(Store *store, const Graph *graph, const char *prefix)
{
    int ignored;
    store->mesh = graph->mesh;
    for (int i = 1; i < graph->n_nodes; i++)
        for (int k = 0; k < graph->node[i].n_in; k++) {
            ValueId in = graph->node[i].in[k];
            if (!value_ok(in)) continue;
            ValueId root = graph_root(graph, in);
            if (graph_value(graph, root)->kind == VALUE_STATE)
                TRY(add_state(store, graph, root, prefix, &ignored));
        }
    return OK;
}
