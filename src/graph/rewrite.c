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
    rewrite->to->expert_room = from->expert_room;
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

const char *rewrite_scope(Rewrite *rewrite, const char *name)
{
    if (!name) return NULL;
    if (name != rewrite->scope[0]) {
        rewrite->scope[0] = name;
        rewrite->scope[1] = arena_strdup(&rewrite->to->arena, name);
    }
    return rewrite->scope[1];
}

/* ---- nodes whose operands are as they were ---------------------------------------------- */

static bool same_axes(const Shape *a, const Shape *b)
{
    for (int i = 0; i < a->rank; i++)
        if (a->axis[i] != b->axis[i]) return false;
    return true;
}

/* All that the rules of an op can see of an operand. */
static bool looks_alike(const Value *a, const Value *b)
{
    return a->kind == b->kind && a->role == b->role && a->dtype == b->dtype &&
           shape_equal(&a->shape, &b->shape) && same_axes(&a->shape, &b->shape) &&
           !memcmp(a->stride, b->stride, sizeof *a->stride * (size_t)a->shape.rank) &&
           !memcmp(a->place, b->place, sizeof a->place) && shape_equal(&a->whole, &b->whole);
}

/* Then shapes and places of the results are what they were, and no rule need be asked again. What
 * changes a state must still find one. */
static bool keeps_results(const Rewrite *r, const Node *old)
{
    const Graph *from = r->from, *to = r->to;
    if (memcmp(&from->mesh, &to->mesh, sizeof to->mesh) != 0 || from->canonical != to->canonical)
        return false;
    for (int i = 0; i < old->n_in; i++) {
        ValueId fresh = rewrite_get(r, old->in[i]);
        if (value_ok(fresh) != value_ok(old->in[i])) return false;
        if (!value_ok(fresh)) continue;
        if (!looks_alike(graph_value(from, old->in[i]), graph_value(to, fresh))) return false;
        if (old->op->flags & OP_EFFECT && graph_value(from, graph_root(from, old->in[i]))->kind !=
                                              graph_value(to, graph_root(to, fresh))->kind)
            return false;
    }
    return true;
}

static void copy_result(Rewrite *r, const Node *old, Node *fresh, int k)
{
    if (!value_ok(old->out[k])) return; /* was pruned */
    const Value *from = graph_value(r->from, old->out[k]);
    ValueId id = graph_new_value(r->to);
    Value *v = graph_value(r->to, id);
    *v = *from;
    v->name = from->name ? arena_strdup(&r->to->arena, from->name) : NULL;
    v->producer = (NodeId){r->to->n_nodes - 1};
    v->base = rewrite_get(r, from->base);
    fresh->out[k] = r->map[old->out[k].id] = id;
}

static void copy_as_it_is(Rewrite *r, const Node *old)
{
    Graph *to = r->to;
    Node *fresh = graph_new_node(to);
    fresh->op = old->op;
    fresh->name = to->scope = rewrite_scope(r, old->name);
    fresh->phase = to->phase = old->phase;
    fresh->layer = to->layer = old->layer;
    fresh->n_in = old->n_in;
    fresh->n_out = old->n_out;
    fresh->in = ARENA_ARRAY(&to->arena, ValueId, old->n_in);
    fresh->attr = old->op->attr_bytes ? arena_copy(&to->arena, old->attr, old->op->attr_bytes)
                                      : NULL;
    for (int i = 0; i < old->n_in; i++) fresh->in[i] = rewrite_get(r, old->in[i]);
    for (int k = 0; k < old->n_out; k++) copy_result(r, old, fresh, k);
}

/* ---- nodes ------------------------------------------------------------------------------ */

Status rewrite_copy_node(Rewrite *rewrite, NodeId id)
{
    const Node *old = graph_node(rewrite->from, id);
    Graph *to = rewrite->to;
    if (keeps_results(rewrite, old)) {
        copy_as_it_is(rewrite, old);
        return OK;
    }
    ValueId *in = xcalloc((size_t)old->n_in + 1, sizeof *in), out[NODE_MAX_OUT];
    for (int i = 0; i < old->n_in; i++) in[i] = rewrite_get(rewrite, old->in[i]);
    to->phase = old->phase;
    to->layer = old->layer;
    to->scope = rewrite_scope(rewrite, old->name);
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
