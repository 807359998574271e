/* calibrate: this machine, measured into a cluster's file: the sheet by which device/sim tells what
 * a run here takes.
 *
 * What it is.   Times of every op in real training programs, on every core at once and as one team,
 *               or on a GPU; exchanges between
 *               ranks; peaks and memory. Curves and rates fitted to them.
 * Depends on.   base, gpu, comm, cluster, device, model, train, run
 * Owns.         Nothing after a call.
 * Invariants.   What is measured is what runs: the programs are those of the trainer. An op's rates
 *               are fitted to all its
 *               nodes in all programs, never to one model.
 * Use:
 *     Str sheet = {0};
 *     Calibration c;
 *     TRY(calibrate_machine(&(CalibrateOptions){.rounds = 5}, &c));
 *     calibrate_sheet(&c, &sheet);                 a file for --cluster
 *     calibrate_deinit(&c);
 */
#ifndef CALIBRATE_CALIBRATE_H
#define CALIBRATE_CALIBRATE_H

#include "cluster/cluster.h"
#include "comm/comm.h"
#include "train/train.h"

/* One node of a program: the median of its times over the rounds. */
typedef struct OpSample {
    const char *op;
    MathKind math; /* of what it reads */
    bool matmul;   /* a product or attention */
    double flop, bytes;
    Cost cost;       /* as the op counts it */
    int64_t m, n, k; /* of a plain product; else 0 */
    double seconds;
    int among; /* of an exchange: between so many ranks, `kind`, of whole_bytes; else 0 */
    CommKind kind;
    double whole_bytes;
} OpSample;

/* Rates of one op and how well they tell its times. */
typedef struct OpFit {
    OpRate rate;
    int n;          /* samples */
    double total_s; /* of all samples */
    double error;   /* relative, root mean square weighted by time */
    double bias;    /* predicted total over measured total, less 1 */
} OpFit;

/* Ranks of one host: an all-reduce of `bytes` takes `seconds`. */
typedef struct ExchangeSample {
    double bytes, seconds;
} ExchangeSample;

typedef struct CalibrateOptions {
    int cores;   /* to measure with; 0: all */
    int rounds;  /* steps of each program; 0: 5 */
    Comm *world; /* processes that exchange; NULL: threads of this one */
    /* of calibrate_gpu */
    bool small; /* a few small shapes: for tests on an emulated device */
    int ranks;  /* that exchange; 0: one on each GPU */
    void (*progress)(void *context, const char *what); /* or NULL */
    void *context;
} CalibrateOptions;

typedef struct Calibration {
    int cores;
    double memory_bytes;
    double peak_flop_per_s[MATH_KINDS]; /* of one core while all are busy; 0: no such kernels */
    double read_bytes_per_s, copy_bytes_per_s; /* the same; copy counts bytes read and written */
    MatrixCurve matrix[MATH_KINDS];
    double matrix_error[MATH_KINDS];
    OpFit *fit;
    int n_fits;
    double team_eta;
    ExchangeSample *exchange;
    int n_exchanges, exchange_ranks; /* 0: one core, nothing measured */
    const char *transport;           /* "threads" or the name of MPI */
    double exchange_base_s, exchange_hop_s, exchange_bytes_per_s;
    const char *machine; /* for the source of every value */
    Arena arena;
} Calibration;

/* Takes a minute or two. With options->world every process calls it; the first one's result counts.
 */
Status calibrate_machine(const CalibrateOptions *options, Calibration *out);
void calibrate_deinit(Calibration *c);
/* A cluster of one node with this processor, as a file. */
void calibrate_sheet(const Calibration *c, Str *out);

/* ---- a GPU ------------------------------------------------------------------------------ */

typedef struct LaunchTimes {
    double kernel_s; /* of a small kernel behind another in a captured step, on the device */
    double graph_s;  /* of a captured step beyond its kernels */
    double host_s;   /* that the host is busy with starting one kernel alone */
} LaunchTimes;

typedef struct CopyRates {
    double write_bytes_per_s, read_bytes_per_s; /* from and to pinned memory of the host */
    double copy_bytes_per_s;                    /* inside the device; bytes read and written */
} CopyRates;

typedef struct GpuCalibration {
    GpuInfo info;
    int gpus;           /* of this machine */
    const char *preset; /* whose sheet knows what is not measured; NULL: none */
    char device[128];
    LaunchTimes launch;
    CopyRates copy;
    DeviceSheet sheet;                  /* the curves; it has no texts and no ops */
    double best_flop_per_s[MATH_KINDS]; /* of a plain product; 0: nothing was measured */
    double matrix_error[MATH_KINDS], attention_error,
        memory_error; /* root mean squares, relative */
    OpFit *fit;
    int n_fits;
    OpSample *sample; /* all that was timed */
    int n_samples;
    ExchangeSample *exchange;
    int n_exchanges, exchange_ranks; /* 0: one GPU, nothing measured */
    double exchange_base_s, exchange_hop_s, exchange_bytes_per_s;
    double host_memory_bytes;
    const char *machine; /* for the source of every value */
    Arena arena;
} GpuCalibration;

/* The first GPU of this machine, and exchanges among all of them: a few minutes. ERR_UNSUPPORTED
 * where there is none. */
Status calibrate_gpu(const CalibrateOptions *options, GpuCalibration *out);
void calibrate_gpu_deinit(GpuCalibration *c);
/* A cluster of one node of this machine's GPUs, as a file. */
void calibrate_gpu_sheet(const GpuCalibration *c, Str *out);

/* ---- parts ------------------------------------------------------------------------------ */

/* seconds = fixed + flop a + bytes b, none negative, by weighted least squares: every second counts
 * alike, and the sum of what is predicted is that of what was measured. Of samples that do not tell
 * terms apart, time goes with the work. */
OpFit calibrate_fit_op(const OpSample *sample, int n);
/* Of an op whose rates on one core are known: those of a team, from samples of one. */
void calibrate_fit_team(const OpSample *sample, int n, OpRate *rate);
/* base + 2 (ranks - 1) hop + 2 (ranks - 1) / ranks bytes / rate through the samples of an
 * all-reduce. */
void calibrate_fit_exchange(const ExchangeSample *sample, int n, int ranks, double *base_s,
                            double *hop_s, double *bytes_per_s);

#endif
