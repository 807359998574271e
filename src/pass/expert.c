/* Expert parallelism: experts are shared out over the ranks of an axis that also cuts the batch.
 * Rows go to the owners of their experts before the experts' products, and back behind them
 * (Lepikhin 2020; dropless, as in Gale 2022).
 *
 * Ranks of the tensor axis hold the same rows and cut the experts' products: on the way between
 * ranks each carries a part of the rows' columns, and what arrives is united in front of the
 * products (ops/expert_columns.c), so that a row crosses the network once.
 *
 * Folded, experts are shared out over the ranks of the tensor axis too: each takes the rows of its
 * experts, and sends them on to the owners among the ranks of the expert axis. */
#include "pass/pass_internal.h"
#include "pass/shard.h"

typedef struct Exchange {
    Rewrite rewrite;
    bool folded;
    int columns;     /* ranks that carry parts of the rows' columns; 1: none */
    ValueId offsets; /* of the layer at hand, as they were */
    ValueId owned;   /* read in their place: where the rows of this rank's experts will lie */
    ValueId
        way; /* what says which rows go where: the ranks' table; folded: the offsets as they were */
} Exchange;

static void stamp(Exchange *x, const Node *node)
{
    Graph *g = x->rewrite.to;
    g->phase = node->phase;
    g->layer = node->layer;
    graph_set_scope(g, node->name);
}

/* In canonical mode sums of ranks are made whole before anything else happens to them. */
static bool has_columns(const Exchange *x, ValueId rows)
{
    const Graph *g = x->rewrite.to;
    return x->columns > 1 && !g->canonical && graph_value(g, rows)->shape.dim[1] % x->columns == 0;
}

/* Behind the sorting: who gets how many is told while tokens are gathered into rows. The experts'
 * products go by what comes of it. */
static Status plan_rows(Exchange *x, const Node *sort)
{
    Graph *g = x->rewrite.to;
    x->offsets = sort->out[0];
    ValueId offsets = rewrite_get(&x->rewrite, x->offsets);
    stamp(x, sort);
    x->way = offsets;
    TRY(x->folded ? op_expert_share(g, offsets, &x->owned)
                  : op_expert_plan(g, offsets, &x->way, &x->owned));
    rewrite_set(&x->rewrite, x->offsets, x->owned);
    return OK;
}

/* Behind the gathering of tokens into rows: to the owners. */
static Status send_rows(Exchange *x, const Node *gather)
{
    Graph *g = x->rewrite.to;
    ValueId rows = rewrite_get(&x->rewrite, gather->out[0]);
    stamp(x, gather);
    if (x->folded) {
        TRY(op_expert_pick(g, rows, x->way, &rows));
    } else {
        bool columns = has_columns(x, rows);
        TRY(op_expert_dispatch(g, rows, x->way, columns, &rows));
        if (columns) TRY(op_expert_unite(g, rows, x->owned, &rows));
    }
    rewrite_set(&x->rewrite, gather->out[0], rows);
    return OK;
}

/* In front of the combination: back. */
static Status return_rows(Exchange *x, const Node *combine)
{
    Graph *g = x->rewrite.to;
    ValueId rows = rewrite_get(&x->rewrite, combine->in[0]);
    bool columns = has_columns(x, rows);
    stamp(x, combine);
    if (columns && !x->folded) TRY(op_expert_divide(g, rows, x->owned, &rows));
    if (x->folded)
        TRY(op_expert_put(g, rows, x->way, &rows));
    else
        TRY(op_expert_collect(g, rows, x->way, columns, &rows));
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
        if (node_is(node, "expert_sort")) TRY(plan_rows(x, node));
        if (node_is(node, "expert_gather")) TRY(send_rows(x, node));
    }
    return OK;
}

static Status exchange(Graph **graph, bool folded, int columns)
{
    Exchange x = {.folded = folded, .columns = columns};
    rewrite_begin(&x.rewrite, *graph);
    Status status = rewrite_all(&x);
    if (status != OK) {
        rewrite_abort(&x.rewrite);
        return status;
    }
    TRY(rewrite_end(&x.rewrite, graph));
    return pass_check(*graph, "expert_prepare");
}

/* The tensor axis cuts into the larger pieces (mesh_axis_nesting): its nodes, put in last, stand
 * nearer to the tokens. */
Status pass_expert_prepare(Graph **graph, const Layout *layout)
{
    int tp = mesh_size(&layout->mesh, MESH_TP);
    if (mesh_size(&layout->mesh, MESH_EP) > 1)
        TRY(exchange(graph, false, layout->fold_experts ? 1 : tp));
    if (tp > 1 && layout->fold_experts) TRY(exchange(graph, true, 1));
    return OK;
}

Status pass_expert(Graph **graph, const Layout *layout, const Graph *like)
{
    ShardPlan plan = {.axis = MESH_EP,
                      .n = mesh_size(&layout->mesh, MESH_EP),
                      .rank = layout->mesh.coord[MESH_EP],
                      .input_axes = 1u << AXIS_BATCH,
                      .experts = true,
                      .like = like,
                      .at_once = layout->chunks > 0,
                      .leaves = layout->chunks > 0};
    return pass_shard(graph, &plan);
}
