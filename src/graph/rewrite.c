/* Copying a graph while changing it: how passes insert, replace and drop nodes. */
#include "graph/graph.h"
#include "graph/graph_internal.h"

#include <stdlib.h>
#include <string.h>

static ValueId copy_leaf(Rewrite *rewrite, int old)
{
    Graph *to = rewrite->to;
    const Value *from = &rewrite->from->value[old];
    ValueId id = graph_new_value(to);
    Value *v = graph_value(to, id);
    *v = *from;
    v->name = from->name ? arena_strdup(&to->arena, from->name) : NULL;
    if (from->n_parts) {
        v->part = arena_copy(&to->arena, from->part, sizeof *from->part * (size_t)from->n_parts);
        for (int i = 0; i < v->n_parts; i++)
            v->part[i].name = arena_strdup(&to->arena, from->part[i].name);
    }
    if (v->kind == VALUE_STATE) name_index_put(&to->states, v->name, id.id);
    return id;
}

void rewrite_begin_of(Rewrite *rewrite, const Graph *from, const bool *keep)
{
    *rewrite = (Rewrite){.from = from, .to = graph_create(from->name)};
    rewrite->to->mesh = from->mesh;
    rewrite->to->canonical = from->canonical;
    rewrite->map = xcalloc((size_t)from->n_values, sizeof *rewrite->map);
    for (int i = 1; i < from->n_values; i++)
        if (from->value[i].kind == VALUE_INPUT ||
            (from->value[i].kind == VALUE_STATE && (!keep || keep[i])))
            rewrite->map[i] = copy_leaf(rewrite, i);
    for (int i = 1; i < from->n_values; i++) { /* masters may stand behind their copies */
        if (!rewrite->map[i].id) continue;
        Value *v = graph_value(rewrite->to, rewrite->map[i]);
        if (value_ok(v->master)) v->master = rewrite->map[v->master.id];
    }
}

void rewrite_begin(Rewrite *rewrite, const Graph *from) { rewrite_begin_of(rewrite, from, NULL); }

ValueId rewrite_get(const Rewrite *rewrite, ValueId old)
{
    return old.id ? rewrite->map[old.id] : NO_VALUE;
}

void rewrite_set(Rewrite *rewrite, ValueId old, ValueId fresh) { rewrite->map[old.id] = fresh; }

Status rewrite_copy_node(Rewrite *rewrite, NodeId id)
{
    const Node *old = graph_node(rewrite->from, id);
    Graph *to = rewrite->to;
    ValueId *in = xcalloc((size_t)old->n_in + 1, sizeof *in), out[NODE_MAX_OUT];
    for (int i = 0; i < old->n_in; i++) in[i] = rewrite_get(rewrite, old->in[i]);
    to->phase = old->phase;
    to->layer = old->layer;
    to->scope = old->name ? arena_strdup(&to->arena, old->name) : NULL;
    Status status = graph_add(to, old->op, old->attr, in, old->n_in, out);
    free(in);
    TRY(status);
    Node *fresh = &to->node[to->n_nodes - 1];
    for (int i = 0; i < old->n_out; i++) {
        if (value_ok(old->out[i])) {
            rewrite->map[old->out[i].id] = out[i];
            if (graph_value(rewrite->from, old->out[i])->name)
                graph_value(to, out[i])->name = arena_strdup(
                    &to->arena, graph_value(rewrite->from, old->out[i])->name);
        } else {
            fresh->out[i] = NO_VALUE; /* was pruned */
        }
    }
    return OK;
}

Status rewrite_end(Rewrite *rewrite, Graph **graph)
{
    const Graph *from = rewrite->from;
    for (int i = 0; i < from->n_outputs; i++) {
        ValueId v = rewrite_get(rewrite, from->output[i].value);
        if (!value_ok(v)) {
            Status status = fail(ERR_ARG, "output %s was lost while rewriting graph %s",
                                 from->output[i].name, from->name);
            rewrite_abort(rewrite);
            return status;
        }
        graph_output(rewrite->to, from->output[i].name, v);
    }
    rewrite->to->phase = from->phase;
    rewrite->to->layer = -1;
    rewrite->to->scope = NULL;
    CHECK(*graph == from);
    graph_destroy(*graph);
    *graph = rewrite->to;
    free(rewrite->map);
    *rewrite = (Rewrite){0};
    return OK;
}

void rewrite_abort(Rewrite *rewrite)
{
    graph_destroy(rewrite->to);
    free(rewrite->map);
    *rewrite = (Rewrite){0};
}
