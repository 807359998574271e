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
    MeshAxis cut;       /* ranks along this axis; MESH_PP: every rank alone */
    bool gpu;           /* on a GPU; else on the processor */
    const char *fields; /* of the model, not the preset's: "num_hidden_layers=2 ..." */
    Fp8 fp8;            /* products of layers in 8 bits */
} CalibrateJob;
extern const CalibrateJob calibrate_jobs[];
extern const int calibrate_jobs_n;
extern const CalibrateJob calibrate_gpu_jobs[];
extern const int calibrate_gpu_jobs_n;
/* The model of a job. */
Status calibrate_read_model(const CalibrateJob *job, ModelConfig *model);

/* `rounds` steps of the job on `ranks` ranks at once, each of `threads` threads. Adds a sample for
 * every node that neither exchanges nor is free, from all ranks; *step_s: the median of a step, of
 * the slowest rank. */
Status calibrate_run_job(const CalibrateJob *job, int ranks, int threads, int rounds,
                         OpSamples *samples, double *step_s);
/* All-reduces of rising sizes among all ranks of the world, or of `ranks` threads. */
Status calibrate_run_exchanges(Comm *world, int ranks, Arena *arena, ExchangeSample **samples,
                               int *n);

/* Operands of chosen sizes on a GPU. */
typedef enum ShapeKind { SHAPE_PRODUCTS, SHAPE_ATTENTION, SHAPE_CHAIN } ShapeKind;
typedef struct CalibrateShape {
    ShapeKind kind;
    DType dtype;
    /* products: [m k] with [k n], and both gradients; in f8_e4m3 the product alone; attention: m
     * tokens, n heads of k elements, and the gradient; a chain of n sums of m elements */
    int64_t m, n, k;
} CalibrateShape;
Status calibrate_run_shape(Device *device, const CalibrateShape *shape, int rounds,
                           OpSamples *samples);
Status calibrate_time_launches(Device *device, LaunchTimes *out);
/* Of GPU `index`, with copies of so many bytes. */
Status calibrate_time_copies(int index, size_t bytes, CopyRates *out);
/* All-reduces of rising sizes, up to `most` bytes, among `ranks` threads, each with a GPU where
 * there are as many. */
Status calibrate_run_gpu_exchanges(int ranks, size_t most, Arena *arena, ExchangeSample **samples,
                                   int *n);

/* A node that took so long; false: it counts for nothing (it exchanges, or is free). */
bool calibrate_sample(const Graph *graph, const Node *node, double seconds, OpSample *out);
/* Sorts the samples. */
void calibrate_fit_ops(OpSamples *samples, Arena *arena, OpFit **fit, int *n);
const char *calibrate_math_word(enum OpMath math); /* as a cluster's file has it */

int calibrate_ascending(const void *a, const void *b);
double calibrate_median(double *values, int n); /* sorts them */

#endif
