/* The verifier: what every graph must be, checked before and after each pass in debug builds. */
#include "graph/graph.h"
#include "graph/graph_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Verifier {
    const Graph *graph;
    const char *after;
    int *overwritten; /* per value: the node that overwrote its storage, 0 none */
    bool *waited;     /* per node that starts something: waited for */
    Phase *phase;     /* per node: in which it is run, with what comes behind it at the latest */
} Verifier;

static Status broken(const Verifier *v, int node, const char *what)
{
    const Node *n = &v->graph->node[node];
    return fail(ERR_ARG, "graph %s after %s: node %d (%s%s%s): %s", v->graph->name, v->after, node,
                n->op->name, n->name ? " " : "", n->name ? n->name : "", what);
}

static Status check_operands(const Verifier *v, int i)
{
    const Graph *g = v->graph;
    const Node *node = &g->node[i];
    for (int k = 0; k < node->n_in; k++) {
        ValueId id = node->in[k];
        if (!value_ok(id)) {
            if (k < 32 && node->op->optional_in >> k & 1) continue;
            return broken(v, i, "an operand is missing");
        }
        if (id.id < 0 || id.id >= g->n_values) return broken(v, i, "an operand does not exist");
        const Value *value = graph_value(g, id);
        if (value->kind == VALUE_TEMP && (value->producer.id <= 0 || value->producer.id >= i))
            return broken(v, i, "an operand is made later than it is read");
        if (v->overwritten[id.id] && v->overwritten[id.id] < i)
            return broken(v, i, "reads a state version that was overwritten");
        bool any_stride = k < 32 && node->op->strided_in >> k & 1;
        if (!any_stride && !(node->op->flags & OP_VIEW) &&
            !stride_is_contiguous(&value->shape, value->stride))
            return broken(v, i, "an operand has strides that the op does not read");
    }
    return OK;
}

/* What the shape rule says now must be what the values say. */
static Status check_outputs(const Verifier *v, int i)
{
    const Graph *g = v->graph;
    const Node *node = &g->node[i];
    InferCtx ctx;
    TRY_AS(graph_infer(g, node->op, node->attr, node->in, node->n_in, &ctx),
           "graph %s after %s: node %d", g->name, v->after, i);
    for (int k = 0; k < node->n_out; k++) {
        if (!value_ok(node->out[k])) continue;
        const Value *out = graph_value(g, node->out[k]);
        if (out->producer.id != i || out->out_index != k)
            return broken(v, i, "an output belongs to another node");
        if (out->dtype != ctx.out[k].dtype || !shape_equal(&out->shape, &ctx.out[k].shape))
            return broken(v, i, "an output has another dtype or shape than its shape rule says");
        if (ctx.out[k].alias >= 0 && out->base.id != node->in[ctx.out[k].alias].id)
            return broken(v, i, "a view does not share the storage of its operand");
    }
    return OK;
}

/* What is on its way is read by the node that waits for it, and by nobody else. */
static Status check_waits(Verifier *v, int i)
{
    const Graph *g = v->graph;
    const Node *node = &g->node[i];
    int started = 0;
    for (int k = 0; k < node->n_in; k++) {
        int producer = value_ok(node->in[k]) ? graph_value(g, node->in[k])->producer.id : 0;
        if (!(g->node[producer].op && g->node[producer].op->flags & OP_STARTS)) continue;
        if (!(node->op->flags & OP_WAITS)) return broken(v, i, "reads what is still on its way");
        if (v->waited[producer]) return broken(v, i, "waits for what was waited for");
        if (v->phase[producer] != v->phase[i])
            return broken(v, i, "waits in another phase than that of the start");
        started = producer;
    }
    if (started) v->waited[started] = true;
    return OK;
}

/* A part of a state that was changed by itself goes back: some op that changes states reads it. */
static Status check_parts(const Verifier *v, int i)
{
    const Graph *g = v->graph;
    const Node *node = &g->node[i];
    for (int k = 0; k < node->n_out && node->op->flags & OP_PARTS; k++) {
        bool back = !value_ok(node->out[k]) ||
                    graph_value(g, graph_root(g, node->out[k]))->kind == VALUE_STATE;
        for (int j = i + 1; j < g->n_nodes && !back; j++)
            for (int m = 0; m < g->node[j].n_in; m++)
                back |= g->node[j].op->flags & (OP_EFFECT | OP_STARTS) &&
                        g->node[j].in[m].id == node->out[k].id;
        if (!back) return broken(v, i, "changes a part of a state that does not go back into it");
    }
    return OK;
}

static void find_phases(Verifier *v)
{
    Phase phase = PHASE_UPDATE;
    for (int i = v->graph->n_nodes - 1; i > 0; i--) {
        if (v->graph->node[i].phase < phase) phase = v->graph->node[i].phase;
        v->phase[i] = phase;
    }
}

static Status check_all_waited(const Verifier *v)
{
    for (int i = 1; i < v->graph->n_nodes; i++)
        if (v->graph->node[i].op->flags & OP_STARTS && !v->waited[i])
            return broken(v, i, "is never waited for");
    return OK;
}

/* What lies where must be what the cutting rules say: no reduction is missing, none is doubled. */
static Status check_places(const Verifier *v, int i)
{
    const Graph *g = v->graph;
    const Node *node = &g->node[i];
    for (int a = 0; a < MESH_AXES; a++) {
        Place place[NODE_MAX_OUT];
        if (mesh_size(&g->mesh, (MeshAxis)a) < 2) continue;
        TRY_AS(graph_place_node(g, node, (MeshAxis)a, place), "graph %s after %s: node %d", g->name,
               v->after, i);
        for (int k = 0; k < node->n_out; k++)
            if (value_ok(node->out[k]) &&
                !place_equal(place[k], graph_value(g, node->out[k])->place[a]))
                return broken(v, i, "an output lies otherwise than its cutting rule says");
    }
    return OK;
}

/* An aliasing output of an op that is not a view overwrites: older versions end here. */
static void mark_overwritten(Verifier *v, int i)
{
    const Graph *g = v->graph;
    const Node *node = &g->node[i];
    if (node->op->flags & OP_VIEW) return;
    for (int k = 0; k < node->n_out; k++) {
        if (!value_ok(node->out[k]) || !value_ok(graph_value(g, node->out[k])->base)) continue;
        ValueId root = graph_root(g, node->out[k]);
        for (int j = 1; j < node->out[k].id; j++)
            if (!v->overwritten[j] && graph_root(g, (ValueId){j}).id == root.id &&
                graph_value(g, (ValueId){j})->producer.id != i)
                v->overwritten[j] = i;
    }
}

Status graph_verify(const Graph *graph, const char *after)
{
    Verifier v = {.graph = graph, .after = after};
    v.overwritten = xcalloc((size_t)graph->n_values, sizeof *v.overwritten);
    v.waited = xcalloc((size_t)graph->n_nodes, sizeof *v.waited);
    v.phase = xcalloc((size_t)graph->n_nodes, sizeof *v.phase);
    find_phases(&v);
    Status status = OK;
    for (int i = 1; i < graph->n_nodes && status == OK; i++) {
        status = check_operands(&v, i);
        if (status == OK) status = check_outputs(&v, i);
        if (status == OK) status = check_places(&v, i);
        if (status == OK) status = check_waits(&v, i);
        if (status == OK) status = check_parts(&v, i);
        if (status == OK) mark_overwritten(&v, i);
    }
    if (status == OK) status = check_all_waited(&v);
    for (int i = 0; i < graph->n_outputs && status == OK; i++)
        if (v.overwritten[graph->output[i].value.id])
            status = fail(ERR_ARG, "graph %s after %s: output %s was overwritten", graph->name,
                          after, graph->output[i].name);
    free(v.overwritten);
    free(v.waited);
    free(v.phase);
    return status;
}
