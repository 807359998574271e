/* What all passes share: verification in debug builds, use counts, readers. */
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

Readers pass_find_readers(const Graph *g)
{
    Readers r = {.begin = xcalloc((size_t)g->n_values + 2, sizeof *r.begin)};
    for (int i = 1; i < g->n_nodes;
         i++) /* counted two places further: at the end they begin there */
        for (int k = 0; k < g->node[i].n_in; k++) r.begin[g->node[i].in[k].id + 2]++;
    for (int v = 2; v < g->n_values + 2; v++) r.begin[v] += r.begin[v - 1];
    r.at = xcalloc((size_t)r.begin[g->n_values + 1] + 1, sizeof *r.at);
    for (int i = 1; i < g->n_nodes; i++)
        for (int k = 0; k < g->node[i].n_in; k++) r.at[r.begin[g->node[i].in[k].id + 1]++] = i;
    return r;
}

void readers_deinit(Readers *readers)
{
    free(readers->begin);
    free(readers->at);
    *readers = (Readers){0};
}
