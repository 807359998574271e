/* Tensor parallelism (Shoeybi 2019): heads, feed-forward and vocabulary are cut; with sequence
 * parallelism (Korthikanti 2022) what lies between is cut along the sequence. */
#include "pass/pass_internal.h"
#include "pass/shard.h"

/* Over a cut vocabulary the cross entropy is made in two steps, with a gathering in between. */
static Status split_loss(Rewrite *rewrite, const Node *node, int parts)
{
    ValueId in[4], stats, loss, nll;
    for (int k = 0; k < 4; k++) in[k] = rewrite_get(rewrite, node->in[k]);
    Graph *g = rewrite->to;
    g->phase = node->phase;
    g->layer = node->layer;
    graph_set_scope(g, node->name);
    TRY(op_vocab_stats(g, in[0], in[1], in[2], parts, &stats));
    TRY(op_vocab_loss(g, stats, in[2], in[3], op_cross_entropy_z_loss(node), &loss, &nll));
    if (value_ok(node->out[0])) rewrite_set(rewrite, node->out[0], loss);
    if (value_ok(node->out[1])) rewrite_set(rewrite, node->out[1], nll);
    return OK;
}

Status pass_tensor_prepare(Graph **graph, const Layout *layout)
{
    if (mesh_size(&layout->mesh, MESH_TP) < 2 && !layout->chunks) return OK;
    Rewrite rewrite;
    rewrite_begin(&rewrite, *graph);
    Status status = OK;
    for (int i = 1; i < (*graph)->n_nodes && status == OK; i++) {
        const Node *node = &(*graph)->node[i];
        status = node_is(node, "linear_cross_entropy") ? split_loss(&rewrite, node, layout->chunks)
                                                       : rewrite_copy_node(&rewrite, (NodeId){i});
    }
    if (status != OK) {
        rewrite_abort(&rewrite);
        return status;
    }
    TRY(rewrite_end(&rewrite, graph));
    return pass_check(*graph, "tensor_prepare");
}

Status pass_tensor(Graph **graph, const Layout *layout, const Graph *like)
{
    ShardPlan plan = {.axis = MESH_TP,
                      .n = mesh_size(&layout->mesh, MESH_TP),
                      .rank = layout->mesh.coord[MESH_TP],
                      .state_axes = 1u << AXIS_HEADS | 1u << AXIS_KV_HEADS | 1u << AXIS_FFN |
                                    1u << AXIS_VOCAB,
                      .experts = layout->fold_experts,
                      .sequence = layout->sequence,
                      .like = like};
    return pass_shard(graph, &plan);
}
