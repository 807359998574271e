/* data: text from files to batches of token ids.
 *
 * What it is.   Sources (files, directories, globs, JSON lines, compressed or not) are tokenised
 *               once
 *               into shards in a cache directory, split by document into training and held-out
 *               text,
 *               mixed by weight, packed into sequences and handed out as batches.
 * Depends on.   base, text; jansson, zlib, zstd.
 * Owns.         Data: the mapped shards. DataLoader: a small scratch; one thread at a time.
 *               DataPrefetch: its thread and buffers, with a loader borrowed.
 * Invariants.   What stands in row r of step s is a pure function of (data, tokenizer, seed, batch,
 *               seq,
 *               s, r): not of micro-batches, ranks, threads or of what was read before. Each token
 *               of a
 *               source is read once an epoch. Held-out documents depend on their text alone.
 * Use:
 *     DataSource source = {.path = "/usr/include", .weight = 1, .key = "text"};
 *     DataOptions options = {.sources = &source, .n_sources = 1, .tokenizer = tokenizer, .cache_dir
 *     = "cache",
 *                            .holdout = 0.01, .bos = true, .eos = true, .shuffle = true};
 *     TRY(data_open(&options, &data));
 *     TRY(data_loader_create(data, &(DataPlan){.batch = 16, .micro_batch = 16, .seq = 256},
 *     &loader));
 *     TRY(data_fill(loader, step, 0, &(DataBatch){ids, targets, pos, weights}));
 */
#ifndef DATA_DATA_H
#define DATA_DATA_H

#include "base/base.h"
#include "text/text.h"

/* ---- sources ---------------------------------------------------------------------------- */

typedef struct DataSource {
    const char *path; /* file, directory, or glob with * ? [] and **; NULL: uniformly random ids */
    double weight;    /* above 0; share of the sequences */
    const char *key;  /* field of a JSON line that holds the text; NULL: "text" */
} DataSource;

typedef struct DataProgress {
    const char *path;                 /* of the source */
    uint64_t done_bytes, total_bytes; /* of its files as they lie on disk */
    int64_t n_documents, n_tokens;
} DataProgress;

typedef struct DataOptions {
    const DataSource *sources;
    int n_sources;
    const Tokenizer *tokenizer; /* outlives the Data; NULL only when all sources are random ids */
    int32_t vocab_size;         /* of random ids; 0: that of the tokenizer */
    const char *cache_dir;      /* made when absent */
    double holdout;             /* share of documents, 0 to 0.5 */
    double bad_share;           /* of records that may be skipped */
    /* longest JSON line; a longer text file becomes several documents; 0: 64 MiB */
    size_t line_limit;
    bool bos, eos; /* begin-of-text before, end-of-text after each document */
    bool shuffle;
    int threads; /* 0: all */
    /* Called now and then while shards are built; anything but OK stops. May be NULL. */
    Status (*progress)(void *context, const DataProgress *progress);
    void *progress_context;
} DataOptions;

typedef enum DataSplit { DATA_TRAIN, DATA_HOLDOUT } DataSplit;

typedef struct DataStats {
    int64_t n_files, n_documents, n_tokens;
    uint64_t text_bytes;
    int64_t n_skipped_files; /* binary or not UTF-8 */
    int64_t n_bad_records;
} DataStats;

typedef struct Data Data;

/* Opens the shards, building those that are absent, out of date or damaged. */
Status data_open(const DataOptions *options, Data **out);
void data_close(Data *data);
DataStats data_stats(const Data *data, DataSplit split);
/* Hashes every byte of every shard against its header. */
Status data_verify(const Data *data);
/* Counts, the commonest tokens, bytes per token, five decoded samples: for people. */
Status data_inspect(const Data *data, Str *out);
/* Appends the text of the held-out documents, one after another, as it was in the files, and stops
 * after about max_bytes. What a compressor needs for it can stand beside our bits per byte. */
Status data_holdout_text(const Data *data, size_t max_bytes, Str *out);

/* ---- texts for training a tokenizer ----------------------------------------------------- */

/* Documents of the sources as texts, about limit_bytes of them taken evenly, none that is held out.
 */
typedef struct DataTexts DataTexts;
Status data_texts_open(const DataOptions *options, uint64_t limit_bytes, DataTexts **out);
/* Fits TextSource.next: at == NULL after the last. */
Status data_texts_next(void *texts, Bytes *text);
uint64_t data_texts_total_bytes(const DataTexts *texts); /* expected, for a progress bar */
void data_texts_close(DataTexts *texts);

/* ---- the lines of one file -------------------------------------------------------------- */

typedef struct DataLine {
    int64_t number; /* from 1 */
    Bytes json;     /* at == NULL and not bad: there are no more; valid until the next call */
    bool bad;       /* too long, or where a compressed file breaks off */
    char why[160];
} DataLine;

/* Lines that are not blank of a JSON lines file, which may be compressed (.gz, .zst). */
typedef struct DataLines DataLines;
Status data_lines_open(const char *path, DataLines **out);
Status data_lines_next(DataLines *lines, DataLine *line);
void data_lines_close(DataLines *lines);

/* ---- batches ---------------------------------------------------------------------------- */

typedef struct DataPlan {
    DataSplit split;
    uint64_t seed; /* of the order; the held-out order does not depend on it */
    int64_t batch,
        micro_batch; /* sequences per step over all ranks, and per call; one divides the other */
    int64_t seq;
    int64_t part, parts; /* prefetching a rank's share, a parts-th of the micro-batches, from number
                            `part` on; 0 parts: all */
    int64_t stride;      /* and every stride-th from there; 0: every parts-th */
} DataPlan;

/* All [micro_batch seq]. A position restarts at 0 with each document and at the start of a row; a
 * target is -1 at a document's last token and in padding; a weight is 1 / targets of the whole
 * step, or 0. */
typedef struct DataBatch {
    int32_t *ids, *targets, *pos;
    float *weights;
} DataBatch;

typedef struct DataLoader DataLoader;

Status data_loader_create(const Data *data, const DataPlan *plan, DataLoader **out);
void data_loader_destroy(DataLoader *loader);
/* Steps until each sequence was seen once: of the held-out split this is the whole of it, and later
 * steps are all padding; 0 when nothing was held out. For random ids INT64_MAX. */
int64_t data_loader_steps(const DataLoader *loader);
/* Rows micro_index * micro_batch and on of the step. */
Status data_fill(DataLoader *loader, int64_t step, int64_t micro_index, const DataBatch *batch);
/* Targets of a step over all its rows. */
Status data_step_targets(DataLoader *loader, int64_t step, int64_t *n_targets);
/* Bytes of text that the targets of steps [0, n_steps) stand for: loss sum / ln 2 / this = bits per
 * byte. */
Status data_target_bytes(DataLoader *loader, int64_t n_steps, uint64_t *bytes);

/* ---- prefetch --------------------------------------------------------------------------- */

typedef struct DataPrefetch DataPrefetch;

/* What a prefetch of this depth allocates, known beforehand. */
Status data_prefetch_bytes(const DataPlan *plan, int depth, size_t *bytes);
/* A thread fills the batches from step `first_step` on, at most `depth` ahead. It borrows the
 * loader. */
Status data_prefetch_create(DataLoader *loader, int64_t first_step, int depth, DataPrefetch **out);
void data_prefetch_destroy(DataPrefetch *prefetch);
/* The batch, valid until the next call. In order of (step, micro_index); any other place is
 * possible but throws away what was read ahead. */
Status data_prefetch_next(DataPrefetch *prefetch, int64_t step, int64_t micro_index,
                          const DataBatch **batch);
double
data_prefetch_wait_s(const DataPrefetch *prefetch); /* spent waiting in data_prefetch_next so far */

#endif
