/* Context parallelism: sequences are cut. A rank has two blocks of each, one from the beginning and
 * one from the end (zigzag), so that causal attention is as much work for every rank. Queries stay
 * where they are; keys and values are gathered for attention, and their gradients scattered, or
 * they go round the ring of ranks (ring.c). A chunked layer's masks see the same rows as ever,
 * since they go by the row in the whole sequence. */
#include "pass/pass_internal.h"
#include "pass/shard.h"

Status pass_context(Graph **graph, const Layout *layout, const Graph *like)
{
    ShardPlan plan = {.axis = MESH_CP,
                      .n = mesh_size(&layout->mesh, MESH_CP),
                      .rank = layout->mesh.coord[MESH_CP],
                      .input_axes = 1u << AXIS_SEQ,
                      .ring = layout->ring,
                      .like = like};
    return pass_shard(graph, &plan);
}
