/* Shared by the files of calibrate/. */
#ifndef CALIBRATE_CALIBRATE_INTERNAL_H
#define CALIBRATE_CALIBRATE_INTERNAL_H

#include "calibrate/calibrate.h"

typedef VEC(OpSample) OpSamples;

/* A training program that is measured. */
typedef struct CalibrateJob {
    const char *preset;
    DType dtype;
    int64_t micro_batch, n_micro, seq;
    Recompute recompute;
    MeshAxis cut; /* ranks along this axis; MESH_PP: every rank alone */
} CalibrateJob;
extern const CalibrateJob calibrate_jobs[];
extern const int calibrate_jobs_n;

/* `rounds` steps of the job on `ranks` ranks at once, each of `threads` threads. Adds a sample for
 * every node that neither exchanges nor is free, from all ranks; *step_s: the median of a step, of
 * the slowest rank. */
Status calibrate_run_job(const CalibrateJob *job, int ranks, int threads, int rounds,
                         OpSamples *samples, double *step_s);
/* All-reduces of rising sizes among all ranks of the world, or of `ranks` threads. */
Status calibrate_run_exchanges(Comm *world, int ranks, Arena *arena, ExchangeSample **samples,
                               int *n);

int calibrate_ascending(const void *a, const void *b);
double calibrate_median(double *values, int n); /* sorts them */

#endif
