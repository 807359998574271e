/* What all passes share: verification in debug builds, use counts. */
#include "pass/pass_internal.h"

#include <stdlib.h>

Status pass_check(const Graph *graph, const char *after)
{
#ifdef DEBUG
    return graph_verify(graph, after);
#else
    (void)graph;
    (void)after;
    return OK;
#endif
}

void param_grads_deinit(ParamGrads *grads)
{
    free(grads->at);
    *grads = (ParamGrads){0};
}

int *pass_count_uses(const Graph *graph)
{
    int *uses = xcalloc((size_t)graph->n_values, sizeof *uses);
    for (int i = 1; i < graph->n_nodes; i++)
        for (int k = 0; k < graph->node[i].n_in; k++) uses[graph->node[i].in[k].id]++;
    for (int i = 0; i < graph->n_outputs; i++) uses[graph->output[i].value.id]++;
    return uses;
}
