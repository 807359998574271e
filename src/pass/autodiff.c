/* Reverse-mode differentiation: one walk backwards over the nodes, each op's own rule emitting
 * ordinary nodes; several gradients of one value are added in the order in which they arise. In a
 * canonical graph those of a weight are not: they may arise on two stages of a pipeline. */
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Autodiff {
    Graph *graph;
    int n_values;           /* of the forward graph */
    bool *needed;           /* the value depends on a trained leaf */
    ValueId *grad;          /* per forward value */
    VEC(ParamGrad) further; /* of leaves that have one already */
} Autodiff;

static bool is_leaf(const Graph *g, int v)
{
    const Value *value = &g->value[v];
    if (value->kind != VALUE_STATE) return false;
    return value->role == STATE_PARAM || value->role == STATE_COPY;
}

static void find_needed(Autodiff *a)
{
    const Graph *g = a->graph;
    for (int v = 1; v < a->n_values; v++) a->needed[v] = is_leaf(g, v);
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (node->op->flags & OP_SOURCE) continue;
        bool any = false;
        for (int k = 0; k < node->n_in; k++) any |= a->needed[node->in[k].id];
        for (int k = 0; k < node->n_out; k++)
            if (value_ok(node->out[k])) a->needed[node->out[k].id] = any;
    }
}

static Status add_grad(Autodiff *a, ValueId v, ValueId grad)
{
    if (!value_ok(a->grad[v.id])) {
        a->grad[v.id] = grad;
        return OK;
    }
    if (a->graph->canonical && is_leaf(a->graph, v.id)) {
        VEC_PUSH(&a->further, ((ParamGrad){v, grad}));
        return OK;
    }
    return op_add(a->graph, a->grad[v.id], grad, &a->grad[v.id]);
}

static Status differentiate_node(Autodiff *a, int index)
{
    Graph *g = a->graph;
    const Node node = g->node[index]; /* a copy: the array moves while the rule adds nodes */
    ValueId dout[NODE_MAX_OUT];
    bool any = false, *need = xcalloc((size_t)node.n_in + 1, sizeof *need);
    ValueId *din = xcalloc((size_t)node.n_in + 1, sizeof *din);
    for (int k = 0; k < node.n_out; k++) {
        dout[k] = value_ok(node.out[k]) ? a->grad[node.out[k].id] : NO_VALUE;
        any |= value_ok(dout[k]);
    }
    bool wanted = false;
    for (int k = 0; k < node.n_in; k++) wanted |= need[k] = a->needed[node.in[k].id];
    Status status = OK;
    if (any && wanted && !(node.op->flags & OP_SOURCE)) {
        g->layer = node.layer;
        g->scope = node.name;
        GradCtx ctx = {.graph = g, .node = {index}, .dout = dout, .need = need, .din = din};
        if (!node.op->grad)
            status = fail(ERR_UNSUPPORTED, "%s has no gradient rule, but the loss depends on it",
                          node.op->name);
        else
            status = node.op->grad(&ctx);
        for (int k = 0; k < node.n_in && status == OK; k++)
            if (need[k] && value_ok(din[k])) status = add_grad(a, node.in[k], din[k]);
    }
    free(need);
    free(din);
    return status;
}

static void collect(const Autodiff *a, ParamGrads *grads)
{
    *grads = (ParamGrads){.at = xcalloc((size_t)a->n_values + a->further.n, sizeof *grads->at)};
    for (int v = 1; v < a->n_values; v++) {
        if (!is_leaf(a->graph, v) || !value_ok(a->grad[v])) continue;
        grads->at[grads->n++] = (ParamGrad){.leaf = {v}, .grad = a->grad[v]};
        for (size_t k = 0; k < a->further.n; k++)
            if (a->further.at[k].leaf.id == v) grads->at[grads->n++] = a->further.at[k];
    }
}

Status pass_autodiff(Graph *graph, const char *loss_name, ParamGrads *grads)
{
    TRY(pass_check(graph, "building"));
    ValueId loss = graph_find_output(graph, loss_name);
    if (!value_ok(loss)) return fail(ERR_ARG, "graph %s has no output %s", graph->name, loss_name);
    Autodiff a = {.graph = graph, .n_values = graph->n_values};
    a.needed = xcalloc((size_t)a.n_values, sizeof *a.needed);
    a.grad = xcalloc((size_t)a.n_values, sizeof *a.grad);
    find_needed(&a);
    int n_forward = graph->n_nodes;
    graph->phase = PHASE_BACKWARD;
    graph_set_layer(graph, -1);
    graph_set_scope(graph, "loss");
    Status status = op_fill(graph, DTYPE_F32, graph_value(graph, loss)->shape, 1.0f,
                            &a.grad[loss.id]);
    for (int i = n_forward - 1; i > 0 && status == OK; i--) status = differentiate_node(&a, i);
    graph_set_layer(graph, -1);
    graph_set_scope(graph, NULL);
    if (status == OK) collect(&a, grads);
    free(a.needed);
    free(a.grad);
    VEC_FREE(&a.further);
    TRY(status);
    return pass_check(graph, "autodiff");
}
