/* Sibling products: y_i = x w_i^T for several weights of one input become one product with the rows
 * of all w_i behind each other, and a split of its result.
 *
 * The weights are leaves; their fused state keeps each as a part with its published name and shape,
 * so that files and dumps never see the fusion. */
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SIBLINGS = NODE_MAX_OUT };

typedef struct Siblings {
    int node[MAX_SIBLINGS];
    int n;
} Siblings;

typedef struct Fusing {
    const Graph *graph;
    int *uses;
    Readers readers;
    bool *output; /* per value */
    bool *done;   /* per node */
} Fusing;

/* What reads y, also through views of it, can read rows of a wider result. */
static bool readers_take_rows(const Fusing *f, ValueId y)
{
    for (int at = f->readers.begin[y.id]; at < f->readers.begin[y.id + 1]; at++) {
        const Node *node = &f->graph->node[f->readers.at[at]];
        for (int k = 0; k < node->n_in; k++) {
            if (node->in[k].id != y.id) continue;
            bool takes = node->op->flags & OP_VIEW ? readers_take_rows(f, node->out[0])
                                                   : k < 32 && node->op->strided_in >> k & 1;
            if (!takes) return false;
        }
    }
    return !f->output[y.id];
}

static bool is_fusable(const Fusing *f, int i)
{
    const Graph *g = f->graph;
    const Node *node = &g->node[i];
    if (!node_is(node, "linear")) return false;
    const Value *w = graph_value(g, node->in[1]), *x = graph_value(g, node->in[0]);
    const Value *y = graph_value(g, node->out[0]);
    bool leaf = w->kind == VALUE_STATE && !value_ok(w->base) &&
                (w->role == STATE_PARAM || w->role == STATE_COPY);
    return leaf && f->uses[node->in[1].id] == 1 && x->dtype == y->dtype && w->dtype == x->dtype &&
           readers_take_rows(f, node->out[0]);
}

/* What no axis names is never cut; it lies apart from what may be. */
static bool has_named_rows(const Graph *g, int node)
{
    return graph_value(g, g->node[node].in[1])->shape.axis[0] != AXIS_ANY;
}

/* The fusable products that read the same input as node i, from i on, in the same layer. */
static Siblings find_siblings(const Fusing *f, int i)
{
    const Graph *g = f->graph;
    Siblings s = {{i}, 1};
    for (int j = i + 1; j < g->n_nodes && s.n < MAX_SIBLINGS; j++) {
        const Node *node = &g->node[j];
        if (node->layer != g->node[i].layer || node->phase != g->node[i].phase) break;
        bool same = node->n_in > 0 && node->in[0].id == g->node[i].in[0].id;
        if (same && is_fusable(f, j) && has_named_rows(g, j) == has_named_rows(g, i))
            s.node[s.n++] = j;
    }
    return s;
}

/* One state for the rows of all weights; `which` picks the working copies or their masters. */
static ValueId fuse_states(Graph *to, const ValueId *w, int n)
{
    Str name = {0};
    int64_t rows = 0;
    for (int k = 0; k < n; k++) {
        str_printf(&name, "%s%s", k ? "+" : "", graph_value(to, w[k])->name);
        rows += graph_value(to, w[k])->shape.dim[0];
    }
    Value first = *graph_value(to, w[0]);
    Shape shape = first.shape;
    shape.dim[0] = rows;
    for (int k = 1; k < n; k++)
        if (graph_value(to, w[k])->shape.axis[0] != shape.axis[0]) shape.axis[0] = AXIS_ANY;
    ValueId fused = graph_state(to, name.at, first.dtype, shape, first.role);
    str_deinit(&name);
    Value *v = graph_value(to, fused);
    v->decay = first.decay;
    v->part = ARENA_ARRAY(&to->arena, StatePart, n);
    v->n_parts = n;
    size_t offset = 0;
    for (int k = 0; k < n; k++) {
        const Value *one = graph_value(to, w[k]);
        v->part[k] = one->part[0];
        v->part[k].offset_bytes = offset;
        offset += (size_t)shape_count(&one->shape) * dtype_bytes(one->dtype);
    }
    return fused;
}

static ValueId fuse_weights(Graph *to, const ValueId *w, int n)
{
    ValueId master[MAX_SIBLINGS];
    CHECK(n > 1);
    bool copies = value_ok(graph_value(to, w[0])->master);
    ValueId fused = fuse_states(to, w, n);
    if (!copies) return fused;
    for (int k = 0; k < n; k++) master[k] = graph_value(to, w[k])->master;
    ValueId fused_master = fuse_states(to, master, n);
    graph_value(to, fused)->master = fused_master;
    return fused;
}

static Status emit_fused(Rewrite *rewrite, const Siblings *s)
{
    const Graph *from = rewrite->from;
    Graph *to = rewrite->to;
    const Node *first = &from->node[s->node[0]];
    ValueId w[MAX_SIBLINGS], part[MAX_SIBLINGS], y;
    int64_t width[MAX_SIBLINGS];
    Axis axis[MAX_SIBLINGS];
    CHECK(s->n > 1);
    for (int k = 0; k < s->n; k++) {
        w[k] = rewrite_get(rewrite, from->node[s->node[k]].in[1]);
        width[k] = graph_value(to, w[k])->shape.dim[0];
        axis[k] = graph_value(to, w[k])->shape.axis[0];
    }
    to->phase = first->phase;
    graph_set_layer(to, first->layer);
    graph_set_scope(to, first->name);
    TRY(op_linear(to, rewrite_get(rewrite, first->in[0]), fuse_weights(to, w, s->n), &y));
    TRY(op_split(to, y, s->n, width, axis, part));
    for (int k = 0; k < s->n; k++) rewrite_set(rewrite, from->node[s->node[k]].out[0], part[k]);
    return OK;
}

static Status fuse_all(Fusing *f, Rewrite *rewrite)
{
    for (int i = 1; i < f->graph->n_nodes; i++) {
        if (f->done[i]) continue;
        Siblings s = {.n = 0};
        if (is_fusable(f, i)) s = find_siblings(f, i);
        if (s.n < 2) {
            TRY(rewrite_copy_node(rewrite, (NodeId){i}));
            continue;
        }
        for (int k = 0; k < s.n; k++) f->done[s.node[k]] = true;
        TRY(emit_fused(rewrite, &s));
    }
    return OK;
}

Status pass_fuse_siblings(Graph **graph)
{
    const Graph *g = *graph;
    Fusing f = {.graph = g, .uses = pass_count_uses(g), .readers = pass_find_readers(g)};
    f.output = xcalloc((size_t)g->n_values, sizeof *f.output);
    f.done = xcalloc((size_t)g->n_nodes, sizeof *f.done);
    for (int i = 0; i < g->n_outputs; i++) f.output[g->output[i].value.id] = true;
    Rewrite rewrite;
    rewrite_begin(&rewrite, g);
    Status status = fuse_all(&f, &rewrite);
    free(f.uses);
    readers_deinit(&f.readers);
    free(f.output);
    free(f.done);
    if (status != OK) {
        rewrite_abort(&rewrite);
        return status;
    }
    TRY(rewrite_end(&rewrite, graph));
    return pass_check(*graph, "fuse_siblings");
}
