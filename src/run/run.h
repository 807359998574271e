/* run: the run file, and the one table of everything that a user can set in it.
 *
 * What it is.   Each setting has one entry: dotted name, type, unit, range, default, sentence. The
 *               YAML file, `key=value` on the command line, --help, docs/run-file.md and the
 *               resolved file that a run writes back all come from it.
 * Depends on.   base, setting
 * Owns.         RunConfig owns the arena in which its texts and lists live.
 * Invariants.   A config that was loaded is complete and inside its ranges; written and loaded
 *               again
 *               it is the same. Refusals name file, line, key, what was wrong, and the nearest
 *               right
 *               key or the range. Bad values are ERR_ARG, impossible combinations ERR_REFUSED.
 * Use:
 *     RunConfig config;
 *     const char *overrides[] = {"train.steps=500", "data=/usr/include"};
 *     TRY(run_config_load("demo.yaml", overrides, 2, &config));
 *     log_info("%s: %lld steps", config.name, (long long)config.train.steps);
 *     run_config_deinit(&config);
 */
#ifndef RUN_RUN_H
#define RUN_RUN_H

#include "setting/setting.h"

/* ---- what a run file says --------------------------------------------------------------- */

typedef enum RunPrecision { RUN_AUTO, RUN_F32, RUN_BF16, RUN_FP8 } RunPrecision;
const char *run_precision_name(RunPrecision precision);
typedef enum RunFp8Scaling { RUN_FP8_ROW, RUN_FP8_BLOCK } RunFp8Scaling;
typedef enum RunTune { RUN_TUNE_AUTO, RUN_TUNE_OFF } RunTune;
typedef enum RunSchedule { RUN_WSD, RUN_COSINE, RUN_CONSTANT } RunSchedule;
typedef enum RunRecompute {
    RUN_RECOMPUTE_NONE,
    RUN_RECOMPUTE_SELECTIVE,
    RUN_RECOMPUTE_FULL
} RunRecompute;
typedef enum RunAttention { RUN_ATTENTION_OWN, RUN_ATTENTION_CUDNN } RunAttention;
typedef enum RunBalance { RUN_BALANCE_BIAS, RUN_BALANCE_AUX, RUN_BALANCE_NONE } RunBalance;
typedef enum RunSynthetic { RUN_SYNTHETIC_NONE, RUN_SYNTHETIC_UNIFORM } RunSynthetic;

/* Texts that were not given are empty, never NULL. */

typedef struct RunModel {
    const char *preset; /* by name, or empty */
    const char *from;   /* a Hugging Face directory or checkpoint of ours, or empty */
    const char
        *fields_json; /* a JSON object of config.json fields, laid over the above; at least {} */
    const SettingNode *fields; /* the same, as read; for the resolved file */
} RunModel;

typedef struct RunSource {
    const char *path; /* file, directory or glob; empty for a synthetic source */
    double weight;
    const char *key; /* of JSON lines */
    RunSynthetic synthetic;
} RunSource;

typedef struct RunDataset {
    double holdout;     /* share of documents */
    const char *cache;  /* where shards lie; empty: data/ in the run's directory */
    double bad_share;   /* of records that may be skipped */
    int64_t line_limit; /* bytes */
    bool bos, eos, shuffle;
} RunDataset;

typedef enum RunChatTemplate { RUN_CHAT_TEMPLATE_NONE, RUN_CHAT_TEMPLATE_DROVER } RunChatTemplate;

typedef struct RunTokenizer {
    const char *path; /* empty: that of model.from, or one that is trained */
    bool train; /* the file has tokenizer.train: it is trained even where model.from has one */
    int64_t vocab_size, train_limit;
    RunChatTemplate chat_template;
} RunTokenizer;

typedef struct RunTrain {
    int64_t steps;
    double minutes; /* 0: no limit */
    int64_t batch, micro_batch, seq;
    RunPrecision precision;
    RunFp8Scaling fp8_scaling;
    int device;   /* DeviceKind */
    RunTune tune; /* of products on GPUs */
    RunAttention attention;
    double lr, min_lr_ratio;
    RunSchedule schedule;
    int64_t warmup;
    double decay; /* share of the steps */
    double weight_decay, beta1, beta2, eps, clip;
    RunRecompute recompute;
    int64_t seed;
    bool canonical;
    bool pack_weights;
    int64_t canonical_chunks; /* 0: as many as the model allows, at most 8 */
    int64_t val_every, val_batches;
    double z_loss;
    RunBalance balance;
    double balance_rate, balance_aux, router_z_loss;
    bool skip_nonfinite;
    double spike_factor;
    int64_t max_skips;
    int64_t check_replicas; /* steps */
    int64_t threads;        /* 0: all */
    int64_t memory_limit;   /* bytes; 0: what is available */
} RunTrain;

enum { RUN_RING_RANKS = 127 }; /* most of a ring */
typedef enum RunContext { RUN_CONTEXT_GATHER, RUN_CONTEXT_RING } RunContext;

typedef struct RunParallel {
    int64_t dp, fsdp, tp, pp;
    const char *schedule;   /* of the pipeline: a name, or a file */
    int64_t virtual_stages; /* 0: as many as the schedule has */
    int64_t cp, ep;
    bool fold_experts;
    RunContext context;
    int64_t zero; /* 0 to 3 */
    bool overlap;
    int64_t bucket;  /* bytes */
    double deadline; /* seconds */
} RunParallel;

typedef struct RunCheckpoint {
    int64_t every, keep;
    double minutes;
    bool async;
    int64_t memory_every; /* steps between copies in memory; 0: none */
    const char *memory_dir;
} RunCheckpoint;

typedef struct RunLog {
    int64_t every;
    bool tensorboard;
    const char *trace; /* file, or empty */
    int64_t trace_after, trace_steps;
    double slow_rank; /* times the median */
} RunLog;

typedef struct RunConfig {
    const char *name;
    const char *dir; /* runs/NAME unless set */
    RunModel model;
    RunTokenizer tokenizer;
    RunSource *sources;
    int n_sources;
    RunDataset dataset;
    RunTrain train;
    RunParallel parallel;
    RunCheckpoint checkpoint;
    RunLog log;
    Arena arena;
} RunConfig;

/* ---- load and write --------------------------------------------------------------------- */

/* `path` NULL: defaults and overrides only. An override is a dotted key, =, and a value as in the
 * file: train.lr=1e-3, data=/usr/include, data.0.weight=2, model.num_hidden_layers=4. */
Status run_config_load(const char *path, const char *const *overrides, int n_overrides,
                       RunConfig *config);
/* The same from memory; `name` stands for the file in sentences. */
Status run_config_parse(Bytes text, const char *name, const char *const *overrides, int n_overrides,
                        RunConfig *config);
void run_config_deinit(RunConfig *config);
/* The resolved file: every setting with its value. */
void run_config_text(const RunConfig *config, Str *out);
Status run_config_write(const RunConfig *config, const char *path);

/* ---- ranks ------------------------------------------------------------------------------ */

int64_t run_ranks(const RunConfig *config);       /* that the layout is for */
int64_t run_micro_batch(const RunConfig *config); /* sequences that one rank computes at once */
int64_t
run_n_micro(const RunConfig *config); /* how often in a step; both of a layout that was checked */
/* That so many ranks are what the layout is for, and share batch and sequences evenly; refused by
 * name. */
Status run_layout_check(const RunConfig *config, int64_t n_ranks);

/* ---- the table -------------------------------------------------------------------------- */

int run_setting_count(void);
const Setting *run_setting(int i);
const Setting *run_setting_find(const char *name); /* NULL when there is none */
void run_settings_help(Str *out);                  /* for --help, wrapped at 100 columns */
void run_settings_markdown(Str *out);              /* the text of docs/run-file.md */

#endif
