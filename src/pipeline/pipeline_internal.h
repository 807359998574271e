/* Shared by the files of pipeline/. */
#ifndef PIPELINE_PIPELINE_INTERNAL_H
#define PIPELINE_PIPELINE_INTERNAL_H

#include "pipeline/pipeline.h"

enum {
    PIPELINE_MAX_RANKS = 4096,
    PIPELINE_MAX_STAGES = 1 << 14,
    PIPELINE_MAX_MICRO = 1 << 20,
    PIPELINE_MAX_ACTIONS = 1 << 25
};

/* An empty table; stage s lies on rank s % n_ranks until rank_of says otherwise. */
Pipeline *pipeline_new(const char *name, int n_ranks, int n_stages, int n_micro);
void pipeline_add(Pipeline *pipeline, int rank, PipelineWork work, int stage, int micro);
/* Verifies, then counts slots and sets times. On failure the pipeline is destroyed. `from` opens
 * the sentence. */
Status pipeline_finish(Pipeline *pipeline, const char *from, Pipeline **out);

/* Where F, B (0, 1) or W (2) of a stage and micro-batch stands in its rank's list; -1: nowhere. */
static inline int *pipeline_place(const Pipeline *p, int stage, int micro, int work)
{
    return &p->place[((int64_t)stage * p->n_micro + micro) * 3 + work];
}

/* Runs the table: sets start and end of every action. False when it stands still; at[n_ranks] is
 * then where each rank waits. */
bool pipeline_run(Pipeline *pipeline, PipelineCost cost, int *at);

/* Generators (generate.c, vshape.c): fill in an empty table. */
void pipeline_gpipe(Pipeline *pipeline);
void pipeline_1f1b(Pipeline *pipeline);
void pipeline_interleaved(Pipeline *pipeline);
void pipeline_zb_h1(Pipeline *pipeline);
void pipeline_zb_v(Pipeline *pipeline);
void pipeline_dualpipev(Pipeline *pipeline);

#endif
