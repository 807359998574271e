/* Shared by the files of the trainer. */
#ifndef TRAIN_TRAINER_INTERNAL_H
#define TRAIN_TRAINER_INTERNAL_H

#include "ckpt/ckpt.h"
#include "data/data.h"
#include "train/progress.h"
#include "train/train.h"
#include "weights/weights.h"

enum { PREFETCH_DEPTH = 2 };

/* How long this rank computes in the steps of a window, and on the first rank what it thinks of the
 * others. */
typedef struct SlowWatch {
    double blocked_s, queued_s; /* when the step began */
    double began_s;             /* the window */
    float window[SLOW_WINDOW], queued[SLOW_WINDOW];
    int n, n_warm_up; /* steps in the window; steps that were not judged */
    int schedstat;    /* file of the rank's thread; 0: not opened yet, -1: there is none */
    SlowRank *rank;   /* [ranks], in the trainer's arena */
} SlowWatch;

typedef struct Trace Trace;

/* Of a state that checkpoints hold, the local elements that this rank writes; n may be 0. */
typedef struct SavedEntry {
    int entry;
    int64_t first, n;
} SavedEntry;

typedef struct SavedPlace {
    int saved, part; /* index in Saved.entry, -1: not on this rank; part of that state */
} SavedPlace;

/* What a checkpoint holds, and what of it this rank has (exchange.c). */
typedef struct Saved {
    SavedEntry *entry; /* [n] */
    Tensor *part; /* [n] what is written of each, flat; without memory until there is a session */
    int n;
    CkptShare share;
    SavedPlace *place; /* [share.n_tensors] */
} Saved;

/* A save that is under way, as all ranks see it. */
typedef struct Saving {
    bool under_way;  /* its ranks have not ended its last phase */
    bool begun_well; /* on this rank */
    int64_t step;
    Status outcome; /* of the last one that ended, on any rank */
    char sentence[512];
    double begin_s, interval_s; /* when it began, and how long after the one before */
    double stall_s;             /* for which the step loop was held */
    bool alarmed;               /* it was said that this save takes long */
} Saving;

/* Copies in memory (copies.c). */
typedef struct Copies {
    CkptCopy *own, *kept; /* NULL: none */
    size_t own_bytes, kept_bytes;
    Comm *group;
    int to, from; /* the keeper of this rank's copy, and whose it keeps; -1: a single host */
    CommRequest *sending, *receiving;
    int64_t step; /* of the copy on its way */
    int64_t n;    /* taken */
    double held_s;
    bool done;               /* the run has ended in order, and needs them no more */
    struct Restore *restore; /* while a run is being resumed */
} Copies;

/* A batch that other stages of this rank will read too. */
typedef struct KeptBatch {
    DataBatch batch;
    int micro, left; /* readers to come; 0: free */
} KeptBatch;

struct Trainer {
    const RunConfig *config; /* borrowed */
    Arena arena;
    const char *dir, *ckpt_dir;
    int64_t steps;  /* of the whole run; chosen by measuring when train.minutes is set */
    int64_t warmup; /* resolved */
    int64_t micro_batch, n_micro;
    float *leaf_loss; /* [n_leaves] of the step, in canonical mode; zero where another rank's */
    int64_t n_leaves; /* 0: there is no such mode */
    DType dtype;

    Tokenizer *tokenizer; /* NULL with random ids only */
    TokenizerFile
        tokenizer_file[TOKENIZER_MAX_FILES]; /* for checkpoints, once they were asked for */
    int n_tokenizer_files;
    const char *chat_template; /* of ours, beside a tokenizer without one; NULL: none */
    ModelConfig model;
    Data *data;
    DataLoader *loader, *val_loader;
    DataPrefetch *prefetch;
    int64_t val_steps;

    Comm *world;          /* this rank among all; NULL: the only one */
    int rank, ranks_here; /* of how many in this process or on this host */
    Layout layout;
    Pipeline *pipeline; /* its schedule; NULL: there is no pipeline */
    KeptBatch *kept;
    int n_kept;
    bool planning; /* what the first rank would need; there are no others */
    Device *device;
    StepOptions options;
    StepPrograms programs;
    Session *session;
    double peak_flop_per_s;

    NamedTensor *weights; /* by published names; of a single rank */
    int n_weights;
    CkptStore *store;
    Saved saved;
    Saving saving;
    double save_alarm_s; /* a save that takes longer is named */
    Copies copies;
    size_t snapshot_bytes, prefetch_bytes;

    int64_t step, tokens; /* done */
    int64_t checked_step; /* after which replicas were last compared */
    SlowWatch slow;
    BadSteps bad_steps;
    Schedule schedule;
    Metrics *metrics;
    Trace *trace; /* while steps are traced */
    Progress progress;
    double last_save_s;
    bool resumed;
    bool torn; /* an update began and did not end: what is in memory is no step's state */
};

/* setup.c */
Status trainer_setup_model(Trainer *t); /* tokenizer and configuration of the model */
Status trainer_setup_data(Trainer *t);  /* shards, loaders */
/* memory.c */
Status trainer_setup_programs(Trainer *t);        /* compiles, plans, refuses what does not fit */
Status trainer_check_attention(const Trainer *t); /* that train.attention can be had */
size_t trainer_total_bytes(const Trainer *t);
void trainer_plan_text(const Trainer *t, Str *out);
/* state.c */
void trainer_list_weights(Trainer *t);
Status
trainer_check_from(Trainer *t); /* that model.from has what the programs need; reads headers only */
int64_t trainer_sequences_together(const Trainer *t); /* that all ranks compute at once */
Status
trainer_load_or_init(Trainer *t); /* newest good checkpoint, model.from, or initial weights */
/* save.c */
Status trainer_open_store(
    Trainer *t); /* the checkpoints' directory, and this rank's share of what they hold */
Status trainer_save(Trainer *t, bool wait); /* a checkpoint of the present step */
/* Between steps: whether any rank wants to stop, and a save that is under way goes on if all ranks
 * can. */
Status trainer_meet_between_steps(Trainer *t, bool *stop);
Status trainer_poll_save(Trainer *t); /* reports a finished save */
Status trainer_finish_saves(Trainer *t);
char *trainer_run_json(const Trainer *t); /* what else the next step depends on; free it */
/* copies.c */
Status trainer_plan_copies(Trainer *t); /* sizes and keepers; all ranks call it */
size_t trainer_copies_bytes(const Trainer *t);
uint64_t trainer_copies_key(const Trainer *t);
Status
trainer_open_copies(Trainer *t,
                    int64_t from); /* the run goes on from this step: copies of others are void */
void trainer_close_copies(Trainer *t);
Status trainer_take_copy(Trainer *t);  /* after a step, if it is time */
Status trainer_await_copy(Trainer *t); /* before ranks meet again */
/* restore.c */
/* The newest step after `than` that is whole in memory, with no bit changed; -1: none. Damaged
 * copies are named. */
Status trainer_find_copies(Trainer *t, int64_t than, int64_t *step);
Status
trainer_restore_copies(Trainer *t,
                       char **run_json); /* that step; the text lives until they are forgotten */
void trainer_forget_copies(Trainer *t);
/* files.c */
enum { TRAINER_MAX_FILES = 8 };
Status trainer_model_files(Trainer *t, Arena *arena, CkptFile *files,
                           int *n); /* beside the tensors */
/* steps.c */
Status trainer_run_step(Trainer *t, StepMetrics *m); /* one optimizer step, or a skipped one */
/* The loss of the micro-batch that the program has just seen, should it be this program that makes
 * it. */
Status trainer_add_loss(Trainer *t, int program, int64_t micro, double *loss);
/* leaves.c: canonical mode */
Status trainer_setup_leaves(Trainer *t); /* what divides and what does not; the model is known */
/* of n leaves, of which each rank has its own and zeros: what all ranks together have */
Status trainer_gather_leaves(Trainer *t, float *leaf, int64_t n);
Status trainer_sum_leaves(Trainer *t, double *loss); /* of the step, in the order of leaves */
void trainer_canonical_text(const Trainer *t,
                            Str *out); /* what the mode costs here; nothing without it */
/* inject.c: what FAULT breaks in a step, put back when the step has been judged */
typedef struct StepFaults {
    bool loss, gradient;
    float *poisoned, kept; /* a weight and its true value; NULL: none */
} StepFaults;
Status faults_begin(Trainer *t, StepFaults *f);
void faults_in_batch(const StepFaults *f, Trainer *t, int program);
Status faults_in_sums(const StepFaults *f, Trainer *t);
double faults_in_norm(const StepFaults *f, const Trainer *t, double grad_norm);
Status faults_end(const StepFaults *f, Trainer *t);
/* pipeline.c */
Status trainer_run_pipeline(Trainer *t, const StepFaults *faults,
                            double *loss); /* a step's micro-batches, in the schedule's order */
size_t trainer_pipeline_bytes(const Trainer *t); /* of batches that several stages read */
void trainer_pipeline_free(Trainer *t);
/* ranks.c */
Status trainer_setup_ranks(Trainer *t); /* the layout, and this rank's share of a batch */
typedef enum TrainerPhase {
    TRAINER_DATA,
    TRAINER_FORWARD,
    TRAINER_BACKWARD,
    TRAINER_UPDATE,
    TRAINER_VALIDATE,
    TRAINER_SAVE
} TrainerPhase;
/* Says what this rank does from now on, should others miss it; and passes the fault point of that
 * phase. */
Status trainer_enter(Trainer *t, TrainerPhase phase);
/* While the first rank makes what all need, the others wait for it: each word of it within the
 * run's deadline (first_rank.c). `made` is what came of it; with a failure nothing is said, and the
 * rank's end tells the others. */
typedef struct FirstRank FirstRank;
Status first_rank_begin(Trainer *t, FirstRank **first);
Status first_rank_end(FirstRank *first, Status made);
Status first_rank_await(Trainer *t);
Status trainer_meet(Trainer *t);                  /* returns when all ranks have come here */
Status trainer_agree(Trainer *t, int64_t *value); /* all get the first rank's */
Status trainer_sum_stages(Trainer *t,
                          double *value);   /* over the pipeline's stages, of which one has it */
Status trainer_any(Trainer *t, bool *flag); /* true when it is on any rank */
Status trainer_feed(Trainer *t, int program, const DataBatch *batch, int64_t micro);
/* The same on all ranks: OK, or the status and sentence of the first rank that has another one. */
Status trainer_accord(Trainer *t, Status mine);
/* replicas.c */
unsigned
trainer_replica_axes(const Trainer *t,
                     int entry); /* along which other ranks hold the same; 0: nobody does */
Status trainer_check_replicas(Trainer *t); /* ERR_DEVICE when a bit differs */
/* slow.c */
void trainer_begin_timing(Trainer *t); /* of a step */
Status trainer_end_timing(Trainer *t, double step_s);
void trainer_end_watch(Trainer *t);
/* exchange.c */
void trainer_list_parts(Trainer *t);                             /* t->saved: entries and parts */
Status trainer_share_checkpoint(Trainer *t);                     /* all of it; all ranks call it */
Status trainer_sum_tallies(Trainer *t, CkptTally *tally, int n); /* over all ranks */
typedef Status (*RunReader)(const void *source, const StateEntry *entry, const StatePart *part,
                            const StateRun *run, void *out);
/* Reads every run of the entries of these roles (bits by StateRole). */
Status trainer_load_runs(Trainer *t, unsigned roles, RunReader read, const void *source);
/* trace.c: done steps of this run, before and after one; all ranks call them alike */
Status trainer_trace_before(Trainer *t, int64_t done);
Status trainer_trace_after(Trainer *t, int64_t done);
void trainer_trace_end(Trainer *t); /* frees it */
/* What this rank waited for others since `before`, by kind, as text: "all_reduce 1.2 ms, ... a
 * step, 3.1% of the time". */
void trainer_exposed_text(const Trainer *t, const CommStats *before, double seconds, int64_t steps,
                          Str *out);
/* validate.c */
Status trainer_validate(Trainer *t, double *loss, double *bits_per_byte);
/* duration.c */
Status trainer_choose_steps(Trainer *t); /* from train.minutes, by measuring */

bool trainer_stop_requested(void);

#endif
