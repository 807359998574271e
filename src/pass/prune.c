/* Dead code: nodes whose outputs nobody reads and that change no state. */
#include "pass/pass_internal.h"

#include <stdlib.h>

Status pass_prune(Graph **graph)
{
    const Graph *g = *graph;
    bool *live = xcalloc((size_t)g->n_values, sizeof *live);
    bool *keep = xcalloc((size_t)g->n_nodes, sizeof *keep);
    for (int i = 0; i < g->n_outputs; i++) live[g->output[i].value.id] = true;
    for (int i = g->n_nodes - 1; i > 0; i--) {
        const Node *node = &g->node[i];
        keep[i] = node->op->flags & (OP_EFFECT | OP_STARTS | OP_WAITS);
        for (int k = 0; k < node->n_out; k++)
            keep[i] |= value_ok(node->out[k]) && live[node->out[k].id];
        if (!keep[i]) continue;
        for (int k = 0; k < node->n_in; k++) live[node->in[k].id] = true;
    }
    Rewrite rewrite;
    rewrite_begin(&rewrite, g);
    Status status = OK;
    for (int i = 1; i < g->n_nodes && status == OK; i++)
        if (keep[i]) status = rewrite_copy_node(&rewrite, (NodeId){i});
    free(live);
    free(keep);
    if (status != OK) {
        rewrite_abort(&rewrite);
        return status;
    }
    TRY(rewrite_end(&rewrite, graph));
    return pass_check(*graph, "prune");
}
