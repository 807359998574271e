/* pipeline: in which order the ranks of a pipeline work, as tables.
 *
 * What it is.   A schedule: for every rank an ordered list of actions (forward, backward, weight
 *               gradients of a stage
 *               and a micro-batch). Generators of the published schedules, one verifier for all,
 *               their time in a
 *               simple cost model, text that is written and read back, pictures.
 * Depends on.   base
 * Owns.         A Pipeline owns its tables.
 * Invariants.   A Pipeline that exists is verified: every action is there once, on the rank of its
 *               stage; all stages
 *               take micro-batches in the same order, so that messages need no number; and run in
 *               order, each rank
 *               waiting for what it reads, it comes to its end. Everything here is a pure function
 *               of its arguments.
 * Use:
 *     Pipeline *p;
 *     TRY(pipeline_create("zb-v", 4, 2, 16, &p));                        4 ranks, 2 stages each, 16
 *     micro-batches
 *     for (int i = 0; i < p->rank[r].n; i++) run(&p->rank[r].at[i]);     what rank r does, in order
 *     printf("%.3f\n", pipeline_time(p, pipeline_equal_cost()).bubble);
 *     pipeline_destroy(p);
 */
#ifndef PIPELINE_PIPELINE_H
#define PIPELINE_PIPELINE_H

#include "base/base.h"

typedef enum PipelineWork {
    PIPELINE_FORWARD,  /* F */
    PIPELINE_BACKWARD, /* B: the gradient of the stage's input */
    PIPELINE_WEIGHTS,  /* W: the gradients of its weights, some time after B */
    PIPELINE_BOTH,     /* BW: B, and W right behind it */
} PipelineWork;
const char *pipeline_work_name(PipelineWork work);

/* Memory that a micro-batch holds on a stage, by the works between which it must stay. FB and BW
 * share slots: as the one kind becomes less, the other becomes more. */
typedef enum PipelineSpan { PIPELINE_FB, PIPELINE_FW, PIPELINE_BW, PIPELINE_SPANS } PipelineSpan;

typedef struct PipelineAction {
    PipelineWork work;
    bool paired; /* meant to run together with the rank's next action; one after the other is right
                    too */
    int stage, micro;
    int slot[PIPELINE_SPANS]; /* of the rank's slots for each span, that of this stage and
                                 micro-batch */
    double start, end;        /* when it would run if every F, B and W of a stage took 1 */
} PipelineAction;

typedef struct PipelineRank {
    PipelineAction *at; /* in order */
    int n, cap;
} PipelineRank;

typedef struct Pipeline {
    char *name;
    int n_ranks, n_stages, n_micro;
    int *rank_of;       /* [stages] */
    PipelineRank *rank; /* [ranks] */
    int *place;         /* [stages x micro-batches x 3]: of F, B, W in the rank's list */
    int *slots;         /* [ranks x spans]: micro-batches of its stages that a rank holds at most */
    bool splits;        /* some W stands apart from its B */
} Pipeline;

/* ---- making ----------------------------------------------------------------------------- */

/* gpipe (Huang 2019), 1f1b (Narayanan 2019), interleaved (Narayanan 2021: several stages per rank,
 * in turn), zb-h1 (Qi 2023), zb-v (Qi 2024: two stages per rank, placed like a V) and dualpipev
 * (DeepSeek 2025: the same place; from 2 n_ranks micro-batches on). ERR_REFUSED with a remedy where
 * a schedule cannot be. */
Status pipeline_create(const char *name, int n_ranks, int stages_per_rank, int n_micro,
                       Pipeline **out);
const char *const *pipeline_names(int *n);
/* Stages per rank that a schedule has when nothing else is said. */
int pipeline_default_stages(const char *name);
void pipeline_destroy(Pipeline *pipeline);

/* The form that a file has:
 *     pipeline NAME
 *     micro-batches 4
 *     stages 0 1 1 0                      the rank of every stage
 *     rank 0: F0.0 F0.1 BW3.0 ...         WORK STAGE . MICRO-BATCH; & instead of a blank between
 *                                         two that are paired
 * Blank lines and what follows # say nothing. */
void pipeline_text(const Pipeline *pipeline, Str *out);
/* `from` stands for the text in sentences. ERR_FORMAT: it is no such text; ERR_REFUSED: it is no
 * schedule that works. */
Status pipeline_parse(Bytes text, const char *from, Pipeline **out);
Status pipeline_load(const char *path, Pipeline **out);

/* ---- reading ---------------------------------------------------------------------------- */

static inline int pipeline_slots(const Pipeline *p, int rank, PipelineSpan span)
{
    return p->slots[rank * PIPELINE_SPANS + (int)span];
}
/* The stages of a rank, rising; returns how many. stage [n_stages] may be NULL. */
int pipeline_stages_of(const Pipeline *pipeline, int rank, int *stage);
/* Messages that may be under way at once from work `made` of stage `from` to work `read` of stage
 * `to`, so that no send waits for its receiver. */
int pipeline_depth(const Pipeline *pipeline, int from, PipelineWork made, int to,
                   PipelineWork read);
/* Micro-batches whose inputs a rank holds at most: from its first forward action of one to its
 * last. */
int pipeline_inputs(const Pipeline *pipeline, int rank);

/* ---- time ------------------------------------------------------------------------------- */

/* Of one stage and micro-batch, in any unit. pair: of a forward and a joint backward that run
 * together; 0: as long as one after the other. Messages take no time. */
typedef struct PipelineCost {
    double forward, backward, weights, pair;
} PipelineCost;
PipelineCost pipeline_equal_cost(void); /* 1, 1, 1, 0 */

typedef struct PipelineTime {
    double total;  /* from the first action to the last rank's end */
    double work;   /* of the busiest rank */
    double bubble; /* share of all ranks' time in which they wait */
    double gaps;   /* longest waiting of a rank between its first and its last action */
} PipelineTime;
PipelineTime pipeline_time(const Pipeline *pipeline, PipelineCost cost);

/* A row for each rank, a cell for each unit of time at equal cost: the work and the micro-batch,
 * small letters for a rank's second stage, capital ones again for its third. At most `columns`
 * wide; a longer one ends in dots. */
void pipeline_picture(const Pipeline *pipeline, int columns, Str *out);
void pipeline_svg(const Pipeline *pipeline, Str *out);

#endif
