/* Recompute: forward values that gradients read are made again just before, instead of being kept.
 *
 * Which values are remade is decided first (remade[]); then the graph is copied, and the first
 * backward node that reads a remade value gets a clone of its producer in front of it, and so on
 * through the producer's own operands as far as they are remade too. */
#include "pass/pass_internal.h"

#include <stdlib.h>

typedef struct Recomputing {
    const Graph *graph;
    Rewrite rewrite;
    bool *remade; /* per forward value: not kept until the backward pass */
    bool *cloned; /* already made again */
} Recomputing;

static bool is_forward(const Graph *g, int v)
{
    const Value *value = &g->value[v];
    return value->kind == VALUE_TEMP && g->node[value->producer.id].phase == PHASE_FORWARD;
}

static bool *read_by_backward(const Graph *g)
{
    bool *read = xcalloc((size_t)g->n_values, sizeof *read);
    for (int i = 1; i < g->n_nodes; i++) {
        if (g->node[i].phase == PHASE_FORWARD) continue;
        for (int k = 0; k < g->node[i].n_in; k++) {
            read[g->node[i].in[k].id] = true;
            /* reading a view is reading what it is a view of */
            for (ValueId v = g->node[i].in[k]; value_ok(v); v = graph_value(g, v)->base)
                read[v.id] = true;
        }
    }
    for (int i = 0; i < g->n_outputs; i++) read[g->output[i].value.id] = true;
    return read;
}

/* Selective: outputs of cheap ops whose operands are there anyway, or are cheap to remake
 * themselves. Nodes are in order, so each operand's fate is known when its reader's is decided.
 * Only in layers: behind the last one the backward pass begins at once, so nothing is gained, and a
 * loss whose operand is remade does not fuse with its gradient. */
static void choose_selective(Recomputing *r)
{
    const Graph *g = r->graph;
    bool *read = read_by_backward(g);
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (node->phase != PHASE_FORWARD) break;
        bool can = node->layer >= 0 && node->op->flags & (OP_CHEAP | OP_VIEW),
             fresh = node->op->flags & OP_CHEAP;
        for (int k = 0; k < node->n_in && can; k++) {
            ValueId in = node->in[k];
            bool leaf = !value_ok(in) || graph_value(g, in)->kind != VALUE_TEMP;
            if (leaf) continue;
            can = r->remade[in.id] || read[in.id];
            fresh |= r->remade[in.id];
        }
        /* a view is remade only when its base is: else it costs nothing to keep */
        for (int k = 0; k < node->n_out; k++)
            if (value_ok(node->out[k])) r->remade[node->out[k].id] = can && fresh;
    }
    for (int i = 0; i < g->n_outputs; i++) r->remade[g->output[i].value.id] = false;
    free(read);
}

/* What another layer or the end reads in forward stays. */
static void keep_between_layers(Recomputing *r)
{
    const Graph *g = r->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        if (g->node[i].phase != PHASE_FORWARD) continue;
        for (int k = 0; k < g->node[i].n_in; k++) {
            if (!value_ok(g->node[i].in[k])) continue;
            const Value *in = graph_value(g, g->node[i].in[k]);
            if (in->kind == VALUE_TEMP && g->node[in->producer.id].layer != g->node[i].layer)
                r->remade[g->node[i].in[k].id] = false;
        }
    }
    for (int i = 0; i < g->n_outputs; i++) r->remade[g->output[i].value.id] = false;
}

/* Who tells others numbers (how many rows go to whom) tells them once: they are few, and everybody
 * waits for them. */
static bool tells_numbers(const Node *node)
{
    return (node->op->flags & (OP_SOURCE | OP_COLLECTIVE)) == (OP_SOURCE | OP_COLLECTIVE);
}

/* Full: everything that a layer's nodes make, and that no other layer reads in forward. */
static void choose_full(Recomputing *r)
{
    const Graph *g = r->graph;
    for (int v = 1; v < g->n_values; v++) {
        if (!is_forward(g, v)) continue;
        const Node *node = graph_node(g, g->value[v].producer);
        r->remade[v] = node->layer >= 0 && !tells_numbers(node);
    }
    keep_between_layers(r);
}

static Status remake(Recomputing *r, ValueId v)
{
    if (!value_ok(v) || !r->remade[v.id] || r->cloned[v.id]) return OK;
    const Node *node = graph_node(r->graph, graph_value(r->graph, v)->producer);
    for (int k = 0; k < node->n_in; k++) TRY(remake(r, node->in[k]));
    for (int k = 0; k < node->n_out; k++)
        if (value_ok(node->out[k])) r->cloned[node->out[k].id] = true;
    TRY(rewrite_copy_node(&r->rewrite, graph_value(r->graph, v)->producer));
    r->rewrite.to->node[r->rewrite.to->n_nodes - 1].phase = PHASE_BACKWARD;
    return OK;
}

static Status copy_all(Recomputing *r)
{
    const Graph *g = r->graph;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (node->phase != PHASE_FORWARD)
            for (int k = 0; k < node->n_in; k++) TRY(remake(r, node->in[k]));
        TRY(rewrite_copy_node(&r->rewrite, (NodeId){i}));
    }
    return OK;
}

Status pass_recompute(Graph **graph, Recompute mode, bool layers_apart, ParamGrads *grads)
{
    if (mode == RECOMPUTE_NONE) return OK;
    Recomputing r = {.graph = *graph};
    r.remade = xcalloc((size_t)r.graph->n_values, sizeof *r.remade);
    r.cloned = xcalloc((size_t)r.graph->n_values, sizeof *r.cloned);
    if (mode == RECOMPUTE_SELECTIVE)
        choose_selective(&r);
    else
        choose_full(&r);
    if (layers_apart) keep_between_layers(&r);
    rewrite_begin(&r.rewrite, r.graph);
    Status status = copy_all(&r);
    free(r.remade);
    free(r.cloned);
    if (status != OK) {
        rewrite_abort(&r.rewrite);
        return status;
    }
    for (int i = 0; i < grads->n; i++) {
        grads->at[i].leaf = rewrite_get(&r.rewrite, grads->at[i].leaf);
        grads->at[i].grad = rewrite_get(&r.rewrite, grads->at[i].grad);
    }
    TRY(rewrite_end(&r.rewrite, graph));
    return pass_check(*graph, "recompute");
}
