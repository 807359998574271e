/* Data parallelism: the batch is cut, weights are the same everywhere, gradients are summed. With
 * Layout.zero (ZeRO, Rajbhandari 2020) the ranks of dp share what the update needs: 1, its moments
 * (and the f32 weights beside working copies), each rank updates its part and all gather the whole;
 * 2, sums of gradients over micro-batches too. Fully sharded (ZeRO 3): weights, gradients and
 * optimizer states are cut flat; a weight is gathered where a layer reads it, in the forward pass
 * and again in the backward pass. */
#include "pass/pass_internal.h"
#include "pass/shard.h"

static ShardPlan cut_batch(const Layout *layout, MeshAxis axis, const Graph *like)
{
    return (ShardPlan){.axis = axis,
                       .n = mesh_size(&layout->mesh, axis),
                       .rank = layout->mesh.coord[axis],
                       .input_axes = 1u << AXIS_BATCH,
                       .like = like,
                       .leaves = layout->chunks > 0};
}

Status pass_data(Graph **graph, const Layout *layout, const Graph *like)
{
    ShardPlan plan = cut_batch(layout, MESH_DP, like);
    plan.zero = layout->zero;
    return pass_shard(graph, &plan);
}

Status pass_fsdp(Graph **graph, const Layout *layout, const Graph *like)
{
    ShardPlan plan = cut_batch(layout, MESH_FSDP, like);
    plan.flat = true;
    return pass_shard(graph, &plan);
}
