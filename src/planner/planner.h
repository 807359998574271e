/* planner: what a layout of a run needs and delivers on a cluster that need not be here, and which
 * layout is better.
 *
 * What it is.   Plan: memory, step time and rates of one layout, from the programs that the trainer
 *               would run, on device/sim. Search
 *               over layouts. Tables, JSON and traces of plans.
 * Depends on.   base, tensor, comm, run, pipeline, cluster, graph, ops, pass, program, device,
 *               model, train
 * Owns.         A Plan owns its lists. Configurations and clusters are borrowed while a plan is
 *               made.
 * Invariants.   Nothing here knows of ops, and no figure of a plan has a formula of its own: memory
 *               is the programs' own plan, time the sum of
 *               what was simulated. Only the search's first, coarse stage estimates, to choose what
 * is simulated. Use: Plan plan; TRY(plan_make(&config, &cluster, &(PlanOptions){0}, &plan));
 *     plan_text(&plan, &out);
 *     plan_deinit(&plan);
 */
#ifndef PLANNER_PLANNER_H
#define PLANNER_PLANNER_H

#include "cluster/cluster.h"
#include "device/sim.h"
#include "model/model.h"
#include "run/run.h"
#include "train/train.h"

/* ---- one step of a job ------------------------------------------------------------------ */

/* Where the time of a step goes, averaged over the ranks of a pipeline; sums to step_s. */
typedef struct StepBreakdown {
    double work_s[SIM_WORKS];    /* kernels of forward and backward */
    double launch_s;             /* kernels wait for the host */
    double exposed_s[MESH_AXES]; /* waiting for exchanges; MESH_PP: for messages on their way, and
                                    loss and norm of all stages */
    double bubble_s;             /* waiting in the pipeline for other stages' work */
    double optimizer_s;          /* kernels of norm and update */
    double jitter_s;             /* waiting for the slowest of all ranks */
} StepBreakdown;

typedef struct StepTime {
    double step_s;
    StepBreakdown part;
    double hidden_s[MESH_AXES]; /* exchanges beside kernels */
    double slowed_s;            /* of work_s: by which they made kernels slower */
    double flop;                /* of products and attention, all ranks of one pipeline */
} StepTime;

/* An action of a pipeline's rank, or what a rank does without one; for traces. */
typedef struct StepSpan {
    int rank, stage, micro; /* along pp; -1: no stage, no micro-batch */
    const Program *program;
    Phase first, last;
    double begin_s, end_s;
} StepSpan;
typedef void StepWatch(void *context, const StepSpan *span);

/* A step of as many micro-batches as the options say: roles are theirs. Without jitter. */
StepTime step_time(const Sim *sim, const StepRoles *roles, const StepOptions *options,
                   StepWatch *watch, void *context);

/* ---- one layout ------------------------------------------------------------------------- */

typedef struct PlanOptions {
    const char
        *trace; /* file for chrome://tracing: a step of a rank of each pipeline stage; NULL: none */
    /* standard deviation of a rank's compute time, relative; negative: PLAN_JITTER */
    double jitter;
} PlanOptions;
/* Synchronous steps wait for the slowest of n ranks: mean + deviation sqrt(2 ln n). Weak scaling of
 * published runs (64 to 2,048 devices: 0 to 4%) is what no more than a few per cent explain. */
#define PLAN_JITTER 0.005

/* Of a rank of the pipeline, bytes. */
typedef struct PlanMemory {
    size_t weights, copies, moments, gradients,
        buffers;        /* f32 weights; in the compute dtype; Adam's; sums; experts' */
    size_t messages;    /* to other stages */
    size_t activations; /* kept from forward to backward, of all micro-batches that are in flight */
    size_t step;        /* what lives within one action: gradients, workspace, gathered weights */
    size_t inputs;
    size_t total; /* what a session allocates, to the byte */
} PlanMemory;

typedef struct Plan {
    RunConfig config;             /* resolved; borrows the texts of the one it was made of */
    const char *cluster, *device; /* names; the cluster's */
    int64_t ranks, devices;       /* of the layout; of the cluster */
    bool fits;
    size_t limit_bytes;    /* of a device, for programs */
    PlanMemory *memory;    /* [n_stages] by rank along pp */
    int n_stages, largest; /* the rank that holds most */
    StepTime time;
    double tokens, tokens_per_s, model_flop_per_token;
    double tflops_per_gpu,
        mfu; /* by model_train_flop_per_token: causal attention, nothing made again */
    double weights, active_weights; /* counts */
    double build_s, simulate_s;     /* that the plan itself took */
} Plan;

/* ERR_REFUSED where the layout does not divide, is for more devices than the cluster has, or has no
 * schedule. A layout that does not fit in memory is OK and not `fits`. */
Status plan_make(const RunConfig *config, const Cluster *cluster, const PlanOptions *options,
                 Plan *plan);
void plan_deinit(Plan *plan);
void plan_text(const Plan *plan, Str *out); /* for people */
void plan_json(const Plan *plan, Str *out); /* the fields of one object, without its braces */
/* One line: what does not fit, and by how much. */
Status plan_refuse(const Plan *plan);

/* ---- search ----------------------------------------------------------------------------- */

typedef struct SearchOptions {
    int64_t devices;   /* that the layout uses, all of them */
    int64_t max_batch; /* sequences in a step at most; the largest batch within it is taken */
    int simulate;      /* how many of the best estimates are planned */
    int threads;       /* 0: all cores */
} SearchOptions;

typedef struct SearchResult {
    Plan *plan; /* [n] that fit, the best first */
    int n, n_simulated;
    int64_t n_layouts, n_estimated; /* that divide; that seem to fit */
    double seconds;
} SearchResult;

/* Of tp, cp, ep, fsdp, dp, zero, pp with its schedules and stages per rank, micro-batch and
 * recompute: what makes most tokens per second. All else is the run file's. ERR_REFUSED where
 * nothing divides or fits. */
Status plan_search(const RunConfig *config, const Cluster *cluster, const SearchOptions *options,
                   SearchResult *out);
void search_result_deinit(SearchResult *result);
/* The best `most` in a table. */
void search_text(const SearchResult *result, int most, Str *out);

#endif
