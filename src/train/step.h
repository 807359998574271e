/* How the programs of a step come about, in two halves: what all ranks share, and what one of them
 * makes of it. Internal to train/. */
#ifndef TRAIN_STEP_H
#define TRAIN_STEP_H

#include "train/train.h"

/* The differentiated graphs of all ranks, not cut yet. */
typedef struct StepWhole {
    Graph *step, *eval; /* eval: NULL without StepOptions.eval_batch */
} StepWhole;

/* That the layout's schedule is for its ranks and micro-batches. */
Status step_check_pipeline(const StepOptions *options);
Status step_whole_build(const ModelConfig *model, const StepOptions *options, StepWhole *out);
void step_whole_destroy(StepWhole *whole);
/* The programs of the rank at the coordinates of options->layout. In a pipeline the whole stays as
 * it is, for other ranks; without one its graphs become the rank's. */
Status step_rank_build(const ModelConfig *model, const StepOptions *options, StepWhole *whole,
                       Target target, StepPrograms *out);

#endif
