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
 *               is simulated.
 * Use:
 *     Plan plan;
 *     TRY(plan_make(&config, &cluster, &(PlanOptions){0}, &plan));
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

/* The breakdown as a list that is always the same and in the same order. */
enum { STEP_PARTS = SIM_WORKS + MESH_AXES + 4 };
typedef struct StepPart {
    const char *name;         /* "products", "waiting for tp" */
    double seconds, hidden_s; /* hidden_s: beside kernels */
} StepPart;
void step_parts(const StepTime *time, StepPart part[STEP_PARTS]);

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

/* A step to be drawn: all actions, and what two neighbouring layers do on every stream. */
typedef enum TimelineWork {
    TIMELINE_FORWARD,
    TIMELINE_BACKWARD, /* the gradient of inputs, and that of weights where they are not apart */
    TIMELINE_WEIGHTS,
    TIMELINE_UPDATE,
    TIMELINE_WORKS
} TimelineWork;
const char *timeline_work_name(TimelineWork work);

typedef struct TimelineAction {
    int rank, stage, micro; /* along pp; -1: no stage, no micro-batch */
    TimelineWork work;
    double begin_s, end_s;
    double exposed_s; /* of it: kernels wait for exchanges */
} TimelineAction;

typedef struct TimelineEvent {
    int track;        /* SIM_TRACK_KERNELS, or 1 + axis */
    SimWork work;     /* of a kernel */
    const char *name; /* "attn.qkv: linear"; the timeline's */
    double begin_s, end_s;
} TimelineEvent;

/* Of the first micro-batch on the rank in the middle, in the time of two layers (or of all, where
 * there are fewer): whatever runs meanwhile. */
typedef struct TimelineWindow {
    int layers;            /* 0: nothing was simulated */
    double begin_s, end_s; /* since the action began */
    TimelineEvent *event;  /* [n] by track, there by when they begin */
    int n;
} TimelineWindow;

typedef struct Timeline {
    int n_ranks;
    double step_s;          /* without jitter */
    TimelineAction *action; /* [n] in the order of the simulation */
    int n;
    TimelineWindow window[2]; /* forward; backward */
    Arena arena;
} Timeline;
void timeline_deinit(Timeline *timeline);

/* ---- a plan over a measurement ---------------------------------------------------------- */

/* One instruction of a program, the mean of the times that it ran. */
typedef struct OverlayNode {
    const char *program, *phase, *name; /* the overlay's */
    int rank, stage, layer;             /* along pp; stage, layer: -1 where there is none */
    int instr;                          /* its number in the program */
    int64_t times;                      /* in a step, on a rank */
    double measured_s, simulated_s;
} OverlayNode;

/* A simulated step over measured ones of the same layout, node by node. */
typedef struct Overlay {
    OverlayNode *node; /* [n] that are on both sides */
    int n, n_measured_only, n_simulated_only;
    const char *odd; /* the first of those, a sentence; NULL: there is none */
    double steps;    /* measured */
    double measured_s,
        simulated_s; /* of a step, from the first node's begin to the last one's end */
    Arena arena;
} Overlay;
void overlay_deinit(Overlay *overlay);
void overlay_text(const Overlay *overlay, Str *out);
void overlay_json(const Overlay *overlay, Str *out); /* a member */

/* ---- one layout ------------------------------------------------------------------------- */

typedef struct PlanOptions {
    /* file for chrome://tracing: a step of a rank of each pipeline stage, behind what was measured,
     * if anything was; NULL: none */
    const char *trace;
    const char *measured; /* file: a trace of drover train of this layout; NULL: none */
    Overlay *overlay;     /* with `measured`: filled, for the caller to deinit */
    Timeline *timeline;   /* filled, for the caller to deinit; NULL: none */
    /* standard deviation of a rank's compute time, relative; negative: PLAN_JITTER */
    double jitter;
    bool balanced; /* experts' rows come evenly, and owners of experts have room for no more: memory
                      of a benchmark that forces them to. Else for all rows that may come, which the
                      trainer has */
    SimStack stack; /* what is priced otherwise than our programs do it; with fp8 these stay bf16 */
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
    size_t packed;      /* weights as products read them */
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
    bool experts;
    double build_s, simulate_s; /* that the plan itself took */
} Plan;

/* ERR_REFUSED where the layout does not divide, is for more devices than the cluster has, or has no
 * schedule. A layout that does not fit in memory is OK and not `fits`. */
Status plan_make(const RunConfig *config, const Cluster *cluster, const PlanOptions *options,
                 Plan *plan);
void plan_deinit(Plan *plan);
void plan_text(const Plan *plan, Str *out); /* for people */
void plan_json(const Plan *plan, Str *out); /* the fields of one object, without its braces */
void plan_layout_words(const Plan *plan,
                       Str *out); /* "tp 8, pp 16 (interleaved, 4 stages a rank)" */
/* One line: what does not fit, and by how much. */
Status plan_refuse(const Plan *plan);

/* ---- how wrong plans are ---------------------------------------------------------------- */

/* Published rows of one family are wrong in like ways. */
typedef enum PlanFamily {
    FAMILY_DENSE,
    FAMILY_EXPERTS,
    FAMILY_LONG, /* 16K tokens and more, dense or not */
    PLAN_FAMILIES
} PlanFamily;
const char *plan_family_name(PlanFamily family);
PlanFamily plan_family(int64_t seq, bool experts);

/* Measured over planned step time of a family's published rows, a tenth of them cut off at either
 * end: `within` of `rows` lie between low and high. */
typedef struct PlanResiduals {
    int64_t rows, within; /* 0 rows: none of the family is planned */
    double low, high;
} PlanResiduals;
/* As `drover validate --residuals` writes them; ERR_FORMAT names the line. */
Status plan_residuals_parse(Bytes text, const char *name, PlanResiduals out[PLAN_FAMILIES]);
/* Those that this program was built with (planner/residuals.csv). */
PlanResiduals plan_residuals(PlanFamily family);
PlanFamily plan_family_of(const Plan *plan);
/* The step's time as that of published rows like it would lie around it; false: there are none. */
bool plan_step_range(const Plan *plan, double *low_s, double *high_s);

/* ---- search ----------------------------------------------------------------------------- */

/* Share of the devices that a layout may leave idle: they are its spares. */
#define SEARCH_IDLE 0.1

/* What searches of one run on clusters of one kind learn of its layers, kept from one to the next:
 * of other sizes of the cluster and of the batch. One search at a time. */
typedef struct ProfileStore ProfileStore;
ProfileStore *profile_store_create(void);
void profile_store_destroy(ProfileStore *store);

typedef struct SearchOptions {
    int64_t devices;   /* that the layout uses: all, or whole nodes but for SEARCH_IDLE of them */
    int64_t max_batch; /* sequences in a step at most; the largest batch within it is taken */
    int simulate;      /* how many of the best estimates are planned */
    int front;         /* and how many of those that need least memory for their time */
    int threads;       /* 0: all cores */
    ProfileStore *profiles; /* read and added to; NULL: none */
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
