/* What a run writes about itself: metrics.jsonl (the truth) and TensorBoard event files, both
 * append-only. A disk that is full or gone costs lines and a warning, never a step. */
#ifndef TRAIN_METRICS_H
#define TRAIN_METRICS_H

#include "comm/comm.h"

typedef struct StepMetrics {
    int64_t step;   /* counted from 1: steps done */
    int64_t tokens; /* seen so far */
    double loss, grad_norm, lr;
    double step_s, tokens_per_s, mfu; /* mfu: share of the measured matrix peak; NaN when unknown */
    double data_wait_s;
    size_t peak_bytes;
    double val_loss, val_bits_per_byte; /* NaN: not measured after this step */
    bool skipped;
    bool has_exposed; /* of several ranks: what the step waited for each kind of exchange, on this
                         one */
    double exposed_s[COMM_KINDS];
} StepMetrics;

/* A checkpoint that is on the disk. */
typedef struct SaveMetrics {
    int64_t step;
    uint64_t bytes;
    double write_s;    /* from the snapshot until it was durable */
    double stall_s;    /* for which the step loop was held */
    double interval_s; /* since the save before began, or the loop */
} SaveMetrics;

typedef struct Metrics Metrics;
/* Opens (and continues) dir/metrics.jsonl and, if wanted, dir/tensorboard/. Never fails: see above.
 */
Metrics *metrics_open(const char *dir, bool tensorboard, int64_t first_step);
/* Without Metrics (NULL) nothing is written: one rank of a run writes for all. */
void metrics_step(Metrics *m, const StepMetrics *s);
/* {"event": kind, "step": step, "time": ..., "text": text} */
void metrics_event(Metrics *metrics, const char *kind, int64_t step, const char *text);
/* {"event": "checkpoint", "step": ..., "time": ..., "bytes": ..., "write_s": ..., "stall_s": ...,
 * "interval_s": ..., "text": text} */
void metrics_save(Metrics *metrics, const SaveMetrics *s, const char *text);
void metrics_close(Metrics *metrics);

/* TensorBoard's file format (ecosystem facts 3.4): records with masked CRC-32C around protobuf
 * events. */
typedef struct EventFile {
    int fd;
    char *path;
} EventFile;
Status event_file_open(const char *dir, int64_t first_step, EventFile *file);
Status event_file_scalars(EventFile *file, int64_t step, int n, const char *const *tag,
                          const double *value);
void event_file_close(EventFile *file);
uint32_t crc32c(const void *data, size_t n);

#endif
