/* train: the step loop, and everything that a run writes.
 *
 * What it is.   The programs of a training step, initial weights, learning-rate schedules, the
 *               policy
 *               for bad steps, metrics, progress, checkpoints, restart.
 * Depends on.   base, tensor, pipeline, run, graph, ops, pass, program, device, model, text, data,
 *               ckpt, weights
 * Owns.         A Trainer owns all that a run needs, from the tokenizer to the session.
 * Invariants.   A run is a pure function of its run file: weights from (seed, name), data from
 *               (seed,
 *               step), the update from both. Stopped and started again it gives the same bits.
 *               Nothing begins before the plan fits; nothing is lost by a signal, a full disk or a
 *               kill.
 * Use:
 *     Trainer *trainer;
 *     TRY(trainer_create(&config, &trainer));      plans, checks, loads or initialises
 *     TRY(trainer_run(trainer, &outcome));         until done, out of time, or stopped
 *     trainer_destroy(trainer);
 */
#ifndef TRAIN_TRAIN_H
#define TRAIN_TRAIN_H

#include "device/device.h"
#include "model/model.h"
#include "pass/pass.h"
#include "run/run.h"

/* ---- the programs of a step ------------------------------------------------------------- */

typedef struct StepOptions {
    int64_t micro_batch; /* sequences in one run of the step program, of this rank */
    int64_t n_micro;     /* runs per step; more than one: gradients are summed in states */
    int64_t eval_batch;  /* sequences in one run of the evaluation program; 0: no such program */
    int64_t seq;
    DType dtype;
    Fp8 fp8; /* products of layers; dtype is bf16 */
    Recompute recompute;
    ModelBalance balance;
    float aux_loss, router_z_loss, z_loss;
    bool
        pack_weights; /* the products of a step read weights that were packed once (Target.packs) */
    bool library_attention; /* on GPUs by the vendor's library, where it has it */
    Layout layout;          /* of the ranks that share a step; its pipeline is for n_micro */
    bool update_last; /* ranks without a pipeline, several micro-batches: PROGRAM_UPDATE runs the
                         last of them too, so that sums of gradients are on their way while it still
                         goes backward */
} StepOptions;

enum { PROGRAM_STEP, PROGRAM_UPDATE, PROGRAM_EVAL, PROGRAM_MAX };

enum { MAX_OWN_STAGES = 64 };

/* The step program runs forward and backward; with one micro-batch it holds the update phase too,
 * else PROGRAM_UPDATE does. at[] has no holes: index[] says where each program stands, -1 nowhere.
 * In a pipeline the programs of a rank's stages stand one behind the other from index[PROGRAM_STEP]
 * on, and from index[PROGRAM_EVAL] on. */
typedef struct StepPrograms {
    Store *store;
    Program *at[2 * MAX_OWN_STAGES + 1];
    int n;
    int index[PROGRAM_MAX];
    int last;     /* which runs the last micro-batch: PROGRAM_STEP, or PROGRAM_UPDATE */
    int n_stages; /* of this rank */
} StepPrograms;

Status step_programs_build(const ModelConfig *model, const StepOptions *options, Target target,
                           StepPrograms *out);
void step_programs_destroy(StepPrograms *programs);
/* Of the layers' products in the step's programs: with operands of 8 bits, and of bf16 that might
 * have them (experts' grouped ones are not counted). */
void step_count_products(const StepPrograms *programs, int *eight, int *others);
/* Loss and the gradient of every weight as outputs called by their states' names: for `drover
 * grads`. */
Status step_grads_build(const ModelConfig *model, const StepOptions *options, Target target,
                        StepPrograms *out);

/* From a run file: all but the pipeline's schedule, which the caller puts into the layout
 * (train_pipeline). `rank` is one of run_ranks. */
Layout train_layout(const RunConfig *config, int rank);
StepOptions train_step_options(const RunConfig *config, const Layout *layout, DType dtype,
                               bool evaluates);
/* The model that a run file describes, with its preset's or directory's vocabulary. */
Status train_read_model(const RunConfig *config, ModelConfig *model);
/* The same with the vocabulary that a tokenizer on disk has, or one that is yet to be trained will
 * have at most; and whether the run will validate. For plans: nothing is made. */
Status train_expect_model(const RunConfig *config, ModelConfig *model);
bool train_expects_validation(const RunConfig *config);
/* train.canonical: into how many pieces sums along tp are cut; nothing where it is off. ERR_REFUSED
 * by name where that does not go together with the layout. */
Status train_layout_chunks(const RunConfig *config, const ModelConfig *model, Layout *layout);
/* What is cut must divide: ERR_REFUSED by the model's own words, with what would. */
Status train_check_divides(const RunConfig *config, const ModelConfig *model);

/* ---- programs without a machine --------------------------------------------------------- */

/* Ranks along pp whose stages have the same kinds of layers; they differ in how many micro-batches
 * they hold, and in nothing else that takes time or memory. So do ranks that differ along other
 * axes. */
typedef struct StepRole {
    StepPrograms programs; /* of one of them; in a pipeline layers are numbered as they were built,
                              fewer than the model has, and stages with the same layers have one
                              program in several places of at[], each with states of its own */
    int built_for;         /* that rank along pp */
    int n_ranks;           /* along pp */
} StepRole;

/* What all ranks of a job compute and hold, each distinct program built once, for a target that
 * need not be here. */
typedef struct StepRoles {
    StepRole *role;        /* [n] */
    int n, n_ranks;        /* n_ranks: along pp */
    int *role_of;          /* [n_ranks] */
    MemoryPlan *memory;    /* [n_ranks]: what a session of each holds, to the byte */
    size_t *message_bytes; /* [n_ranks]: of memory.state_bytes, for messages to other stages */
} StepRoles;
/* ERR_REFUSED where layers cannot be shared out over the stages. Of options' mesh only the
 * coordinate along cp matters, and only where keys and values go round a ring. */
Status step_roles_build(const ModelConfig *model, const StepOptions *options, Target target,
                        StepRoles *out);
void step_roles_destroy(StepRoles *roles);

/* ---- pipeline --------------------------------------------------------------------------- */

/* The pipeline's schedule that a run file asks for, by name or from a file; NULL without one
 * (parallel.pp 1). ERR_REFUSED where it does not fit the run. */
Status train_pipeline(const RunConfig *config, int64_t n_micro, Pipeline **pipeline);
/* For people: what the schedule is and how long its ranks wait, when F, B and W take the same and
 * (unless it is NULL) when they take as long as in this program of a stage; with a picture of at
 * most `columns` columns (0: none). */
void train_pipeline_report(const Pipeline *pipeline, const Program *stage, int columns, Str *out);

/* ---- schedule --------------------------------------------------------------------------- */

typedef struct Schedule {
    RunSchedule kind;
    double lr, min_ratio; /* the end of a decay is lr * min_ratio */
    int64_t steps, warmup, decay_steps;
} Schedule;
/* Learning rate of step 0 .. steps-1: linear warm-up, then as the kind says (wsd: constant, then
 * down linearly over the last decay_steps). */
double schedule_lr(const Schedule *schedule, int64_t step);

/* ---- policy for bad steps --------------------------------------------------------------- */

typedef enum StepVerdict { STEP_GOOD, STEP_SKIP, STEP_STOP } StepVerdict;

/* A step whose loss or gradient norm is not finite, or whose loss is spike_factor times the running
 * mean, changes nothing; more than max_skips in a row stop the run, and without skip_nonfinite the
 * first that is not finite does. Part of a checkpoint. */
typedef struct BadSteps {
    double spike_factor; /* 0: spikes are accepted */
    int64_t max_skips;
    bool skip_nonfinite;
    double mean_loss; /* exponential mean over good steps; 0: none yet */
    int64_t n_good, n_skipped, n_in_a_row;
} BadSteps;
StepVerdict bad_steps_judge(BadSteps *policy, double loss, double grad_norm, const char **why);

/* ---- slow ranks ------------------------------------------------------------------------- */

/* Steps of a window. A rank is named when it is slow in four windows one after the other, so at
 * most 18 steps after it has become so; in 8 or 16, of which an eighth may have missed it, where
 * steps scatter more. And it must have been so for SLOW_LEAST_S: where steps take less than an
 * eighth of a second, four windows are over sooner than a disturbance of the machine. The first
 * steps of a process are not judged: it meets its memory for the first time. */
enum { SLOW_WINDOW = 4, SLOW_WARM_UP = 4, SLOW_WINDOWS = 16, SLOW_LEAST_S = 2 };

/* Of a rank in a window: how long it computes a step, the second smallest of its steps; and without
 * what it waited for a processor. */
typedef struct SlowSpeed {
    float compute_s, own_s;
} SlowSpeed;
SlowSpeed slow_speed(const float *compute_s, const float *queued_s, int n); /* n: SLOW_WINDOW */

/* What is thought of a rank; begins with zeros. */
typedef struct SlowRank {
    float ratio[SLOW_WINDOWS];          /* to its peers, in the latest windows: a ring */
    float last_s, change[SLOW_WINDOWS]; /* own_s of the last one; its relative changes: a ring */
    int n_windows, n_changes;
    double above_since_s;  /* nearly slow enough, no two windows in a row less; 0: it is not */
    int n_below;           /* windows in a row in which it was less than that */
    bool named;            /* until it has been as fast as the others for a while */
    int n_good;            /* windows in a row in which it was */
    double queued_since_s; /* slow without a break, what it waits for a processor counted; 0: not */
} SlowRank;

typedef struct SlowWindow {
    const SlowSpeed *speed; /* [n] ranks */
    const int *stage;       /* [n] of the pipeline */
    int n;
    double factor, began_s, now_s; /* seconds of clock_s: when the window began, and ended */
} SlowWindow;
/* After a window. since[r]: 0, or rank r is to be named: for so many windows it has computed more
 * than `factor` times as long as the median of the ranks of its stage, which goes to median[r]. All
 * arrays are [n]. */
void slow_judge(const SlowWindow *window, SlowRank *rank, float *median, int *since);

/* ---- trainer ---------------------------------------------------------------------------- */

typedef struct Trainer Trainer;

typedef struct TrainOutcome {
    int64_t step;                             /* steps done in all */
    bool interrupted;                         /* by a signal: the same command goes on */
    double loss, val_loss, val_bits_per_byte; /* last known; NaN when never measured */
    double tokens_per_s;
} TrainOutcome;

Status trainer_create(const RunConfig *config, Trainer **trainer);
/* One rank of them: every rank creates, runs and destroys its trainer. world: this rank among all.
 * ranks_here: of this process or host, which share its processors and memory. The first rank
 * reports, writes metrics and checkpoints. A rank that fails calls comm_abort, so that the others
 * do not wait for it. */
Status trainer_create_rank(const RunConfig *config, Comm *world, int ranks_here, Trainer **trainer);
Status trainer_run(Trainer *trainer, TrainOutcome *outcome);
void trainer_destroy(Trainer *trainer);
/* What the run will need, as text for people: weights, gradients, optimizer, activations, buffers.
 * Trains nothing; the tokenizer and the shards are made if they are not there, since sizes depend
 * on them. */
Status trainer_plan(const RunConfig *config, Str *out);

/* Asks every running trainer of this process to stop after the present step: from signal handlers.
 */
void trainer_request_stop(void);

#endif
