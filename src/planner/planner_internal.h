/* Shared by the files of planner/. */
#ifndef PLANNER_PLANNER_INTERNAL_H
#define PLANNER_PLANNER_INTERNAL_H

#include "planner/planner.h"

/* Put into the program by the build (CMakeLists.txt). */
typedef struct PlannerFile {
    const char *name;
    const unsigned char *text;
    size_t n;
} PlannerFile;
extern const PlannerFile planner_files[];

/* Of one layout all that is simulated. */
typedef struct PlanJob {
    Sim sim;
    Target target;
    const ModelConfig *model; /* borrowed */
    Pipeline *pipeline;
    StepOptions options;
    StepRoles roles;
} PlanJob;

/* `model` is that of the run file, with router biases where it balances by them (plan_read_model);
 * options: NULL for those of our trainer. */
Status plan_job_init(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                     const PlanOptions *options, PlanJob *job);
Status plan_read_model(const RunConfig *config, ModelConfig *model);
void plan_job_deinit(PlanJob *job);
Status plan_make_of(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                    const PlanOptions *options, Plan *plan);
/* Events of a simulated step in the form of a trace: of a rank of each pipeline stage all actions,
 * and of the first micro-batch (all: of every one) and the update all instructions. */
typedef struct TraceForm {
    const char *name; /* of processes, in front of the rank's number */
    int process;      /* the number of the first */
    bool all;
} TraceForm;
void plan_trace_text(const PlanJob *job, const TraceForm *form, Str *out);
Status plan_write_trace(const PlanJob *job, const char *path);
void plan_fill_timeline(const PlanJob *job, Timeline *timeline);

#endif
