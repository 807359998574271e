/* The order in which a pipeline stage runs its micro-batches. */
#include "train/train.h"

static int64_t warm_up(RunPipeline kind, int stages, int stage, int64_t n_micro)
{
    return kind == RUN_PIPELINE_GPIPE && stages > 1 ? n_micro : min_i64(stages - stage - 1, n_micro);
}

int64_t pipeline_slots(RunPipeline kind, int stages, int stage, int64_t n_micro)
{
    return kind == RUN_PIPELINE_GPIPE && stages > 1 ? n_micro : min_i64(stages - stage, n_micro);
}

void pipeline_order(RunPipeline kind, int stages, int stage, int64_t n_micro, PipelineStep *step)
{
    int64_t ahead = warm_up(kind, stages, stage, n_micro), forward = 0, n = 0;
    while (forward < ahead) step[n++] = (PipelineStep){false, forward++};
    for (int64_t backward = 0; backward < n_micro; backward++) {
        if (forward < n_micro) step[n++] = (PipelineStep){false, forward++};
        step[n++] = (PipelineStep){true, backward};
    }
}
