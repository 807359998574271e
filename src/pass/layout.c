/* The passes of a layout, in their order: what cuts a weight by its axes comes before what cuts it
 * flat. */
#include "ops/collective.h"
#include "pass/pass_internal.h"
#include "pass/shard.h"

int64_t shard_flat_part(int64_t count, int n) { return collective_flat_part(count, n); }

Status pass_layout_prepare(Graph **graph, const Layout *layout)
{
    (*graph)->canonical = layout->chunks > 0;
    (*graph)->expert_room = layout->expert_room;
    TRY(pass_expert_prepare(graph, layout));
    return pass_tensor_prepare(graph, layout);
}

Status pass_layout(Graph **graph, const Layout *layout, const Graph *like)
{
    pass_pipeline_norms(*graph, layout);
    TRY(pass_context(graph, layout, like));
    TRY(pass_tensor(graph, layout, like));
    TRY(pass_expert(graph, layout, like));
    if (layout->chunks)
        TRY(pass_fsdp(graph, layout,
                      like)); /* what is summed first is cut first: see canonical.c */
    TRY(pass_data(graph, layout, like));
    return layout->chunks ? OK : pass_fsdp(graph, layout, like);
}
