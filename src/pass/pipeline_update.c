/* The update of a pipeline's rank: the states of all its stages, one norm over all ranks, and
 * weights that two ranks hold. */
#include "ops/grad_norm.h"
#include "pass/pass_internal.h"

#include <string.h>

/* ---- states of several stages ----------------------------------------------------------- */

static const char *name_with(Graph *to, const char *prefix, const char *name)
{
    return *prefix ? arena_printf(&to->arena, "%s%s", prefix, name) : name;
}

static void add_state(Graph *to, const Graph *from, const Value *old, const char *prefix)
{
    if (old->kind != VALUE_STATE || old->role == STATE_NONE) return;
    const char *wanted = name_with(to, prefix, old->name);
    if (value_ok(graph_find_state(to, wanted))) return;
    ValueId id = graph_state(to, wanted, old->dtype, old->shape, old->role);
    Value *v = graph_value(to, id);
    const char *name = v->name;
    NodeId none = v->producer;
    *v = *old;
    v->name = name;
    v->producer = none;
    v->master = NO_VALUE;
    v->part = arena_copy(&to->arena, old->part, sizeof *old->part * (size_t)old->n_parts);
    for (int k = 0; k < v->n_parts; k++)
        v->part[k].name = arena_strdup(&to->arena, old->part[k].name);
    if (!value_ok(old->master)) return;
    const Value *master = graph_value(from, old->master);
    add_state(to, from, master, prefix);
    graph_value(to, id)->master = graph_find_state(to, name_with(to, prefix, master->name));
}

Graph *pass_pipeline_states(Graph *const *stage, int n)
{
    Graph *all = graph_create("states");
    all->mesh = stage[0]->mesh;
    all->canonical = stage[0]->canonical;
    for (int s = 0; s < n; s++)
        for (int i = 1; i < stage[s]->n_values; i++)
            add_state(all, stage[s], &stage[s]->value[i], "");
    return all;
}

Graph *pass_pipeline_twin(const Graph *stage, const char *prefix)
{
    Graph *twin = graph_create("twin");
    twin->mesh = stage->mesh;
    twin->canonical = stage->canonical;
    for (int i = 1; i < stage->n_values; i++) add_state(twin, stage, &stage->value[i], prefix);
    return twin;
}

/* ---- weights on two ranks --------------------------------------------------------------- */

Status pass_pipeline_join(Graph *g, ValueId grad, ValueId *sum)
{
    int twin = graph_value(g, grad)->twin;
    return twin ? op_join_stages(g, *sum, twin - 1, sum) : OK;
}

bool pass_pipeline_counts(const Graph *g, ValueId grad)
{
    int twin = graph_value(g, grad)->twin;
    return !twin || g->mesh.coord[MESH_PP] < twin - 1;
}

/* ---- norms ------------------------------------------------------------------------------ */

/* Stages differ in what they hold, one may have no experts: norms are joined along every axis that
 * could have cut gradients on any of them, or the stages would wait for each other in different
 * groups. */
void pass_pipeline_norms(Graph *graph, const Layout *layout)
{
    static const MeshAxis cutting[] = {MESH_PP, MESH_FSDP, MESH_EP, MESH_TP};
    unsigned axes = layout->zero && mesh_size(&layout->mesh, MESH_DP) > 1 ? 1u << MESH_DP : 0;
    if (mesh_size(&layout->mesh, MESH_PP) < 2) return;
    for (int i = 0; i < COUNT_OF(cutting); i++)
        if (mesh_size(&layout->mesh, cutting[i]) > 1) axes |= 1u << cutting[i];
    for (int i = 1; i < graph->n_nodes; i++) {
        Node *node = &graph->node[i];
        if (!node_is(node, "grad_norm") && !node_is(node, "join_norms")) continue;
        GradNormAttr *attr = arena_copy(&graph->arena, node->attr, sizeof *attr);
        attr->cut_axes |= axes;
        node->attr = attr;
        if (node_is(node, "grad_norm"))
            graph_value(graph, node->out[0])->place[MESH_PP] = (Place){PLACE_CUT, 0};
    }
}
