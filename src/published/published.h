/* published: training runs that others have published, as rows of CSV files: what ran, where, and
 * how long a step took.
 *
 * What it is.   CSV; models.csv, calibration.csv and grids in their columns; layouts as their
 *               authors write them; the
 *               machine that a row ran on as a Cluster.
 * Depends on.   base, cluster
 * Owns.         Everything lives in the arena of the caller.
 * Invariants.   A row is either complete enough to be predicted or says in `skip` why not; one bad
 *               row spoils no other. What its source leaves open is
 *               0 or RECOMPUTED_OPEN, never guessed here. Refusals name file and line.
 * Use:
 *     PublishedRows rows;
 *     TRY(published_load(&arena, "calibration.csv", &rows));      models.csv and clusters.csv stand
 *     beside it
 *     for (int i = 0; i < rows.n; i++) log_info("%s %g s", rows.row[i].id, rows.row[i].step_s);
 */
#ifndef PUBLISHED_PUBLISHED_H
#define PUBLISHED_PUBLISHED_H

#include "cluster/cluster.h"

/* ---- CSV -------------------------------------------------------------------------------- */

/* Fields may be quoted; quotes inside are doubled. Every line has as many fields as the first,
 * which names them. */
typedef struct Csv {
    const char *path;
    char **name; /* [columns] */
    int columns;
    char ***field; /* [rows][columns] */
    int *line;     /* [rows], from 1 */
    int rows;
} Csv;
enum { CSV_MAX_BYTES = 64 << 20, CSV_MAX_COLUMNS = 256 };
Status csv_parse(Arena *arena, Bytes text, const char *path, Csv *csv);
int csv_column(const Csv *csv, const char *name); /* -1: there is none */

/* ---- models ----------------------------------------------------------------------------- */

typedef struct PublishedModel {
    const char *key;
    int64_t layers, hidden, heads, kv_heads, head_dim, vocab;
    int64_t ffn; /* of dense layers; 0: there are none */
    bool gated;  /* three matrices in a feed-forward, RMSNorm and rotary positions; else GPT's: two,
                    LayerNorm, and the next three */
    const char *positions, *activation; /* learned, alibi, rope; gelu, relu2: as config.json says */
    bool bias;                          /* of products and norms */
    bool tied;                          /* the head is the embedding */
    int64_t experts, experts_per_token, expert_ffn, shared_ffn, moe_layers; /* 0 experts: dense */
    int64_t window; /* every other layer sees so many keys; 0: all see all */
    bool mla;
    double params, active_params; /* as published; 0: not said */
} PublishedModel;

/* ---- rows ------------------------------------------------------------------------------- */

typedef enum PublishedPrecision {
    PUBLISHED_FP16,
    PUBLISHED_BF16,
    PUBLISHED_FP8
} PublishedPrecision;
typedef enum PublishedRecompute {
    RECOMPUTED_NONE,
    RECOMPUTED_SELECTIVE,
    RECOMPUTED_FULL,
    RECOMPUTED_OPEN
} PublishedRecompute;
/* Of one stack of software; at most one constant is fitted for each. */
typedef enum Framework {
    FRAMEWORK_MEGATRON,           /* Megatron-LM, and what is not said */
    FRAMEWORK_MEGATRON_CORE,      /* Megatron Core with Transformer Engine: NeMo, Megatron-Bridge,
                            NVIDIA's      submissions to MLPerf, Megatron's README of 2024 */
    FRAMEWORK_MEGATRON_DEEPSPEED, /* Megatron's layers in DeepSpeed's pipeline: vTrain */
    FRAMEWORK_BIGSCIENCE,         /* a fork of that, with ALiBi, blocked launches: BLOOM */
    FRAMEWORK_DEEPSPEED,          /* ZeRO-3 without model parallelism */
    FRAMEWORK_MAXTEXT,
    FRAMEWORK_FSDP,     /* PyTorch's: torchtitan, fms-fsdp, Automodel */
    FRAMEWORK_COMPOSER, /* MosaicML's, on the PyTorch of 2023 */
    FRAMEWORK_INTERNEVO,
    FRAMEWORKS
} Framework;
const char *published_framework_name(Framework framework);
/* Megatron's layers, whatever runs them. */
static inline bool published_is_megatron(Framework f) { return f <= FRAMEWORK_BIGSCIENCE; }

/* Ranks along each axis; 0: not said. Data-parallel ranks are what is left of the devices. */
typedef struct PublishedLayout {
    int64_t tp, pp, virtual_stages, cp, ep, expert_tp, dp, fsdp;
    int zero;           /* 0 to 3 */
    int64_t accumulate; /* micro-batches per step */
    bool sequence;      /* "SP" is said */
    bool no_sequence;   /* "no SP" is said */
    bool async_tp;
} PublishedLayout;
/* "TP8 PP8 v3 SP", "FSDP8 TP8 async-TP", "ZeRO-3", "TP8 PP8 v6 DP4; Megatron-LM". Words without a
 * digit are remarks; others that are unknown are refused. */
Status published_layout_parse(Arena *arena, const char *text, PublishedLayout *layout);

typedef struct PublishedRow {
    const char *id, *note;
    const char *device;  /* preset of cluster/ */
    const char *cluster; /* preset of cluster/, or a one-line form; by the id's letters */
    int64_t devices;
    PublishedModel model; /* cut to the row's layers */
    int64_t seq, batch;   /* tokens; sequences of all devices */
    int64_t micro_batch;  /* 0: open */
    PublishedLayout layout;
    PublishedPrecision precision;
    PublishedRecompute recompute;
    bool open_stages;         /* whether a rank of the pipeline has several stages is not said */
    bool compiled, f32_grads; /* torch.compile is said; gradients are kept in f32 by the optimizer
                                 of that run */
    Framework framework;
    const char *grid;  /* rows of the same grid and group were measured alike: ranks are compared
                          inside; "" outside */
    double step_s;     /* measured; 0: out of memory */
    double peak_bytes; /* measured; 0: not said */
    bool with_context; /* by nvidia-smi: with what contexts and libraries hold */
    bool out_of_memory;
    const char *skip; /* NULL, or why nobody can predict it here */
} PublishedRow;

typedef struct PublishedRows {
    PublishedRow *row;
    int n;
} PublishedRows;

/* A CSV in the columns of calibration.csv or of a grid; models.csv is read from its directory.
 * ERR_FORMAT names the line of what is no such CSV; a row that cannot be read is in its place, with
 * the sentence as its `skip` and nothing but its id. */
Status published_load(Arena *arena, const char *path, PublishedRows *rows);
/* The same from memory; models may have no rows. */
Status published_parse(Arena *arena, const Csv *csv, const Csv *models, PublishedRows *rows);
/* The machine of a row with just its devices. */
Status published_cluster(const PublishedRow *row, Cluster *cluster);

#endif
