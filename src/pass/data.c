/* Data parallelism: the batch is cut, weights are the same everywhere, gradients are summed. Fully sharded
 * (ZeRO 3, Rajbhandari 2020): weights, gradients and optimizer states are cut flat; a weight is gathered where
 * a layer reads it, in the forward pass and again in the backward pass. */
#include "pass/pass_internal.h"
#include "pass/shard.h"

static Status cut_batch(Graph **graph, const Layout *layout, MeshAxis axis, bool flat, const Graph *like)
{
    ShardPlan plan = {.axis = axis, .n = mesh_size(&layout->mesh, axis), .rank = layout->mesh.coord[axis],
                      .input_axes = 1u << AXIS_BATCH, .flat = flat, .like = like};
    return pass_shard(graph, &plan);
}

Status pass_data(Graph **graph, const Layout *layout, const Graph *like)
{
    return cut_batch(graph, layout, MESH_DP, false, like);
}

Status pass_fsdp(Graph **graph, const Layout *layout, const Graph *like)
{
    return cut_batch(graph, layout, MESH_FSDP, true, like);
}
