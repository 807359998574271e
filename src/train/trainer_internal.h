/* Shared by the files of the trainer. */
#ifndef TRAIN_TRAINER_INTERNAL_H
#define TRAIN_TRAINER_INTERNAL_H

#include "ckpt/ckpt.h"
#include "data/data.h"
#include "train/progress.h"
#include "train/train.h"
#include "weights/weights.h"

enum { PREFETCH_DEPTH = 2 };

typedef struct Trace Trace;

struct Trainer {
    const RunConfig *config; /* borrowed */
    Arena arena;
    const char *dir, *ckpt_dir;
    int64_t steps;  /* of the whole run; chosen by measuring when train.minutes is set */
    int64_t warmup; /* resolved */
    int64_t micro_batch, n_micro;
    DType dtype;

    Tokenizer *tokenizer; /* NULL with random ids only */
    TokenizerFile tokenizer_file[TOKENIZER_MAX_FILES]; /* for checkpoints, once they were asked for */
    int n_tokenizer_files;
    const char *chat_template; /* of ours, beside a tokenizer without one; NULL: none */
    ModelConfig model;
    Data *data;
    DataLoader *loader, *val_loader;
    DataPrefetch *prefetch;
    int64_t val_steps;

    Comm *world; /* this rank among all; NULL: the only one */
    int rank, ranks_here; /* of how many in this process or on this host */
    Layout layout;
    PipelineStep *pipeline; /* 2 n_micro phases, with several stages */
    bool planning; /* what the first rank would need; there are no others */
    Device *device;
    StepOptions options;
    StepPrograms programs;
    Session *session;
    double peak_flop_per_s;

    NamedTensor *weights, *others; /* for checkpoints: the model's files, and those beside them */
    int n_weights, n_others;
    CkptStore *store;
    size_t snapshot_bytes, prefetch_bytes;

    int64_t step, tokens; /* done */
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
Status trainer_setup_model(Trainer *t);     /* tokenizer and configuration of the model */
Status trainer_setup_data(Trainer *t);      /* shards, loaders */
/* memory.c */
Status trainer_setup_programs(Trainer *t);  /* compiles, plans, refuses what does not fit */
size_t trainer_total_bytes(const Trainer *t);
void trainer_plan_text(const Trainer *t, Str *out);
/* state.c */
void trainer_list_state(Trainer *t);        /* what a checkpoint holds, by published names */
Status trainer_check_from(Trainer *t);      /* that model.from has what the programs need; reads headers only */
Status trainer_load_or_init(Trainer *t);    /* newest good checkpoint, model.from, or initial weights */
Status trainer_save(Trainer *t, bool wait); /* a checkpoint of the present step */
Status trainer_poll_save(Trainer *t);       /* reports a finished save */
Status trainer_finish_saves(Trainer *t);
/* files.c */
enum { TRAINER_MAX_FILES = 8 };
Status trainer_model_files(Trainer *t, Arena *arena, CkptFile *files, int *n); /* beside the tensors */
/* steps.c */
Status trainer_run_step(Trainer *t, StepMetrics *m); /* one optimizer step, or a skipped one */
/* inject.c: what FAULT breaks in a step, put back when the step has been judged */
typedef struct StepFaults {
    bool loss, gradient;
    float *poisoned, kept; /* a weight and its true value; NULL: none */
} StepFaults;
StepFaults faults_begin(Trainer *t);
void faults_in_batch(const StepFaults *f, Trainer *t, int program);
void faults_in_sums(const StepFaults *f, Trainer *t);
double faults_in_norm(const StepFaults *f, const Trainer *t, double grad_norm);
void faults_end(const StepFaults *f);
/* ranks.c */
Status trainer_setup_ranks(Trainer *t);     /* the layout, and this rank's share of a batch */
Status trainer_check_divides(const Trainer *t);
Status trainer_meet(Trainer *t);            /* returns when all ranks have come here */
Status trainer_agree(Trainer *t, int64_t *value); /* all get the first rank's */
Status trainer_sum_stages(Trainer *t, double *value); /* over the pipeline's stages, of which one has it */
Status trainer_any(Trainer *t, bool *flag); /* true when it is on any rank */
Status trainer_feed(Trainer *t, int program, const DataBatch *batch);
/* exchange.c */
typedef Status (*RunReader)(const void *source, const StateEntry *entry, const StatePart *part, const StateRun *run, void *out);
/* Reads every run of the entries of these roles (bits by StateRole). */
Status trainer_load_runs(Trainer *t, unsigned roles, RunReader read, const void *source);
typedef struct Gathered {
    NamedTensor tensor; /* whole; name and data are the list's */
    StateRole role;
} Gathered;
typedef VEC(Gathered) GatheredList;
/* All ranks call it; the first has the whole tensors of all then. */
Status trainer_gather(Trainer *t, unsigned roles, GatheredList *list);
void trainer_gathered_free(GatheredList *list);
/* trace.c: done steps of this run, before and after one; all ranks call them alike */
Status trainer_trace_before(Trainer *t, int64_t done);
Status trainer_trace_after(Trainer *t, int64_t done);
void trainer_trace_end(Trainer *t); /* frees it */
/* What this rank waited for others since `before`, by kind, as text: "all_reduce 1.2 ms, ... a step, 3.1% of the time". */
void trainer_exposed_text(const Trainer *t, const CommStats *before, double seconds, int64_t steps, Str *out);
/* validate.c */
Status trainer_validate(Trainer *t, double *loss, double *bits_per_byte);
/* duration.c */
Status trainer_choose_steps(Trainer *t);    /* from train.minutes, by measuring */

bool trainer_stop_requested(void);

#endif
