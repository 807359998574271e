/* Fusion after autodiff: one node where two would walk the same memory twice.
 *
 *   h = add(a, b); y = rmsnorm(h, w)        ->  h, y = add_rmsnorm(a, b, w)
 *   d, dw = rmsnorm_grad(...); add(r, d)    ->  d', dw = rmsnorm_grad(..., residual r)
 *   both likewise of layernorm
 *   linear_cross_entropy and its gradient   ->  the gradient alone, which makes loss and nll too;
 *                                               also where a weight is gathered for each of them
 *   accumulate(state, linear_dw(dy, x))     ->  linear_dw_accumulate(dy, x, state)
 * and every other accumulate moves right behind the node that makes what it adds, so that the
 * summand dies at once. */
#include "pass/pass_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct Fusing {
    const Graph *graph;
    bool phases_apart;
    int *uses;
    Readers readers;
    bool *done; /* per node: already emitted as part of another */
    Rewrite rewrite;
    bool fused; /* the pattern at hand applied */
} Fusing;

enum { NORM_GRAD_RESIDUAL = 3 }; /* operand index: dy, x, w, residual */

/* The first node after i that has `op` and reads v as operand k; 0 if none. */
static int find_reader(const Fusing *f, int i, ValueId v, const char *op, int k)
{
    const Readers *r = &f->readers;
    for (int at = r->begin[v.id]; value_ok(v) && at < r->begin[v.id + 1]; at++) {
        const Node *node = &f->graph->node[r->at[at]];
        if (r->at[at] > i && node->n_in > k && node->in[k].id == v.id && node_is(node, op))
            return r->at[at];
    }
    return 0;
}

static void stamp(Fusing *f, int i)
{
    const Node *node = &f->graph->node[i];
    f->rewrite.to->phase = node->phase;
    f->rewrite.to->layer = node->layer;
    graph_set_scope(f->rewrite.to, node->name);
}

/* Something that is there only after node i, such as a weight that is gathered in between. */
static bool made_after(const Fusing *f, ValueId v, int i)
{
    return graph_value(f->graph, v)->producer.id > i;
}

static Status fuse_add_norm(Fusing *f, int i)
{
    const Node *add = &f->graph->node[i];
    ValueId in[4], out[NODE_MAX_OUT];
    if (!node_is(add, "add")) return OK;
    int j = find_reader(f, i, add->out[0], "rmsnorm", 0);
    const char *fused = j ? "add_rmsnorm" : "add_layernorm";
    if (!j) j = find_reader(f, i, add->out[0], "layernorm", 0);
    const Node *norm = &f->graph->node[j];
    if (!j || norm->phase != add->phase || f->done[j]) return OK;
    for (int k = 1; k < norm->n_in; k++) {
        if (made_after(f, norm->in[k], i)) return OK;
        in[k + 1] = rewrite_get(&f->rewrite, norm->in[k]);
    }
    for (int k = 0; k < 2; k++) in[k] = rewrite_get(&f->rewrite, add->in[k]);
    stamp(f, i);
    TRY(graph_add(f->rewrite.to, op_find(fused), norm->attr, in, norm->n_in + 1, out));
    rewrite_set(&f->rewrite, add->out[0], out[0]);
    rewrite_set(&f->rewrite, norm->out[0], out[1]);
    f->done[j] = f->fused = true;
    return OK;
}

static Status fuse_residual(Fusing *f, int i)
{
    const Graph *g = f->graph;
    const Node *grad = &g->node[i];
    if ((!node_is(grad, "rmsnorm_grad") && !node_is(grad, "layernorm_grad")) ||
        grad->n_in > NORM_GRAD_RESIDUAL || f->uses[grad->out[0].id] != 1)
        return OK;
    int j = find_reader(f, i, grad->out[0], "add", 1), other = 0;
    if (!j) j = find_reader(f, i, grad->out[0], "add", 0), other = 1;
    if (!j) return OK;
    ValueId residual = g->node[j].in[other];
    if (graph_value(g, residual)->producer.id >= i || f->done[j]) return OK;
    ValueId in[4], out[NODE_MAX_OUT];
    for (int k = 0; k < 3; k++) in[k] = rewrite_get(&f->rewrite, grad->in[k]);
    in[NORM_GRAD_RESIDUAL] = rewrite_get(&f->rewrite, residual);
    stamp(f, i);
    TRY(graph_add(f->rewrite.to, grad->op, grad->attr, in, 4, out));
    for (int k = 0; k < grad->n_out; k++)
        if (value_ok(grad->out[k])) rewrite_set(&f->rewrite, grad->out[k], out[k]);
    rewrite_set(&f->rewrite, g->node[j].out[0], out[0]);
    f->done[j] = f->fused = true;
    return OK;
}

/* What sums an output of node i moves right behind it. */
static Status move_accumulates(Fusing *f, int i)
{
    const Node *node = &f->graph->node[i];
    for (int k = 0; k < node->n_out; k++) {
        int j = find_reader(f, i, node->out[k], "accumulate", 1);
        if (!j) j = find_reader(f, i, node->out[k], "accumulate_leaf", 1);
        if (!j || f->done[j]) continue;
        TRY(rewrite_copy_node(&f->rewrite, (NodeId){j}));
        f->done[j] = true;
    }
    return OK;
}

/* The same, or gathered from the same in each of two phases (shard.c). */
static bool is_same_gathered(const Graph *g, ValueId a, ValueId b)
{
    if (a.id == b.id) return true;
    const Node *x = graph_node(g, graph_value(g, a)->producer),
               *y = graph_node(g, graph_value(g, b)->producer);
    return node_is(x, "all_gather") && node_is(y, "all_gather") && x->in[0].id == y->in[0].id &&
           !memcmp(x->attr, y->attr, x->op->attr_bytes);
}

/* One gathering does: that in front of the loss, which goes on beside the last layer. Where the
 * phases run apart, what is gathered forward would be kept for each micro-batch that is under way:
 * there it is that of the gradient, right in front of both. */
static Status gather_once(Fusing *f, ValueId forward, ValueId backward)
{
    NodeId again = graph_value(f->graph, backward)->producer;
    if (forward.id == backward.id) return OK;
    if (f->phases_apart) {
        if (!f->done[again.id]) TRY(rewrite_copy_node(&f->rewrite, again));
        f->done[again.id] = true;
        return OK;
    }
    rewrite_set(&f->rewrite, backward, rewrite_get(&f->rewrite, forward));
    f->done[again.id] = true;
    return OK;
}

static Status fuse_cross_entropy(Fusing *f, int i)
{
    const Graph *g = f->graph;
    const Node *loss = &g->node[i];
    if (!node_is(loss, "linear_cross_entropy")) return OK;
    int j = find_reader(f, i, loss->in[0], "linear_cross_entropy_grad", 0);
    const Node *grad = &g->node[j];
    if (!j) return OK;
    for (int k = 0; k < loss->n_in; k++)
        if (!is_same_gathered(g, loss->in[k], grad->in[k])) return OK;
    /* only when the gradient starts from a constant, which can be made here as well as there */
    NodeId seed = graph_value(g, grad->in[4])->producer;
    if (!seed.id || g->node[seed.id].n_in > 0) return OK;
    if (!f->done[seed.id]) TRY(rewrite_copy_node(&f->rewrite, seed));
    for (int k = 0; k < loss->n_in; k++) TRY(gather_once(f, loss->in[k], grad->in[k]));
    TRY(rewrite_copy_node(&f->rewrite, (NodeId){j}));
    rewrite_set(&f->rewrite, loss->out[0], rewrite_get(&f->rewrite, grad->out[0]));
    rewrite_set(&f->rewrite, loss->out[1], rewrite_get(&f->rewrite, grad->out[1]));
    f->done[seed.id] = f->done[j] = f->fused = true;
    return move_accumulates(f, j);
}

static Status fuse_accumulate(Fusing *f, int i)
{
    const Node *dw = &f->graph->node[i];
    bool eight = node_is(dw, "linear_8");
    if ((!eight && !node_is(dw, "linear_dw")) || f->uses[dw->out[0].id] != 1) return OK;
    int j = find_reader(f, i, dw->out[0], "accumulate", 1);
    if (!j) return OK;
    ValueId in[4] = {NO_VALUE}, state = rewrite_get(&f->rewrite, f->graph->node[j].in[0]), fresh;
    for (int k = 0; k < dw->n_in; k++) in[k] = rewrite_get(&f->rewrite, dw->in[k]);
    stamp(f, i);
    TRY(eight ? op_linear_8_into(f->rewrite.to, dw, in, state, &fresh)
              : op_linear_dw_accumulate(f->rewrite.to, in[0], in[1], state, &fresh));
    rewrite_set(&f->rewrite, f->graph->node[j].out[0], fresh);
    f->done[j] = f->fused = true;
    return OK;
}

static Status fuse_node(Fusing *f, int i)
{
    static Status (*const patterns[])(Fusing *, int) = {fuse_add_norm, fuse_residual,
                                                        fuse_cross_entropy, fuse_accumulate};
    f->fused = false;
    for (int k = 0; k < COUNT_OF(patterns) && !f->fused; k++) TRY(patterns[k](f, i));
    if (!f->fused) TRY(rewrite_copy_node(&f->rewrite, (NodeId){i}));
    return move_accumulates(f, i);
}

Status pass_fuse(Graph **graph, bool phases_apart)
{
    Fusing f = {.graph = *graph, .phases_apart = phases_apart};
    f.uses = pass_count_uses(f.graph);
    f.readers = pass_find_readers(f.graph);
    f.done = xcalloc((size_t)f.graph->n_nodes, sizeof *f.done);
    rewrite_begin(&f.rewrite, f.graph);
    Status status = OK;
    for (int i = 1; i < f.graph->n_nodes && status == OK; i++)
        if (!f.done[i]) status = fuse_node(&f, i);
    free(f.uses);
    readers_deinit(&f.readers);
    free(f.done);
    if (status != OK) {
        rewrite_abort(&f.rewrite);
        return status;
    }
    TRY(rewrite_end(&f.rewrite, graph));
    return pass_check(*graph, "fuse");
}
