/* Expert parallelism: experts are shared out over the ranks of an axis that also cuts the batch. Rows go to the
 * owners of their experts before the experts' products, and back behind them (Lepikhin 2020; dropless, as in
 * Gale 2022). */
#include "pass/pass_internal.h"
#include "pass/shard.h"

typedef struct Exchange {
    Rewrite rewrite;
    ValueId offsets, table, owned; /* of the layer at hand */
} Exchange;

static void stamp(Exchange *x, const Node *node)
{
    Graph *g = x->rewrite.to;
    g->phase = node->phase;
    g->layer = node->layer;
    graph_set_scope(g, node->name);
}

/* Behind the gathering of tokens into rows: to the owners. */
static Status send_rows(Exchange *x, const Node *gather)
{
    ValueId rows = rewrite_get(&x->rewrite, gather->out[0]);
    stamp(x, gather);
    TRY(op_expert_plan(x->rewrite.to, rewrite_get(&x->rewrite, x->offsets), &x->table, &x->owned));
    TRY(op_expert_dispatch(x->rewrite.to, rows, x->table, &rows));
    rewrite_set(&x->rewrite, gather->out[0], rows);
    rewrite_set(&x->rewrite, x->offsets, x->owned); /* the experts' products go by these */
    return OK;
}

/* In front of the combination: back. */
static Status return_rows(Exchange *x, const Node *combine)
{
    ValueId rows = rewrite_get(&x->rewrite, combine->in[0]);
    stamp(x, combine);
    TRY(op_expert_collect(x->rewrite.to, rows, x->table, &rows));
    rewrite_set(&x->rewrite, combine->in[0], rows);
    return OK;
}

static Status rewrite_all(Exchange *x)
{
    const Graph *g = x->rewrite.from;
    for (int i = 1; i < g->n_nodes; i++) {
        const Node *node = &g->node[i];
        if (node_is(node, "expert_combine")) TRY(return_rows(x, node));
        TRY(rewrite_copy_node(&x->rewrite, (NodeId){i}));
        if (node_is(node, "expert_sort")) x->offsets = node->out[0];
        if (node_is(node, "expert_gather")) TRY(send_rows(x, node));
    }
    return OK;
}

Status pass_expert_prepare(Graph **graph, const Layout *layout)
{
    if (mesh_size(&layout->mesh, MESH_EP) < 2) return OK;
    Exchange x = {0};
    rewrite_begin(&x.rewrite, *graph);
    Status status = rewrite_all(&x);
    if (status != OK) {
        rewrite_abort(&x.rewrite);
        return status;
    }
    TRY(rewrite_end(&x.rewrite, graph));
    return pass_check(*graph, "expert_prepare");
}

Status pass_expert(Graph **graph, const Layout *layout, const Graph *like)
{
    ShardPlan plan = {.axis = MESH_EP, .n = mesh_size(&layout->mesh, MESH_EP), .rank = layout->mesh.coord[MESH_EP],
                      .input_axes = 1u << AXIS_BATCH, .experts = true, .like = like};
    return pass_shard(graph, &plan);
}
