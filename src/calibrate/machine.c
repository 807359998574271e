/* All measurements in turn, and what they come to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calibrate/calibrate_internal.h"
#include "ops/probe.h"

static void tell(const CalibrateOptions *o, const char *what)
{
    if (o->progress) o->progress(o->context, what);
}

/* ---- programs --------------------------------------------------------------------------- */

static const char *job_text(Arena *arena, const CalibrateJob *job, int ranks)
{
    return arena_printf(arena, "%s %s%s%s", job->preset, dtype_name(job->dtype),
                        job->cut == MESH_PP || ranks < 2 ? "" : " cut along ",
                        job->cut == MESH_PP || ranks < 2 ? "" : mesh_axis_name(job->cut));
}

/* A job that this number of ranks cannot share is left out: there are others. */
static Status run_jobs(const CalibrateOptions *o, int cores, int rounds, Arena *arena,
                       OpSamples *samples, double *step_s)
{
    for (int i = 0; i < calibrate_jobs_n; i++) {
        const CalibrateJob *job = &calibrate_jobs[i];
        step_s[i] = 0;
        if (job->cut != MESH_PP && cores < 2) continue;
        tell(o, job_text(arena, job, cores));
        Status status = calibrate_run_job(job, cores, 1, rounds, samples, &step_s[i]);
        if (status == ERR_REFUSED && job->cut != MESH_PP) {
            log_debug("calibrate: %s", status_message());
            continue;
        }
        TRY(status);
    }
    return OK;
}

/* All cores as one rank against one rank on each: the mean of all jobs, and their nodes. */
static Status measure_team(const CalibrateOptions *o, int rounds, const double *step_s,
                           OpSamples *samples, Calibration *c)
{
    double sum = 0;
    int n = 0;
    c->team_eta = 1;
    for (int i = 0; i < calibrate_jobs_n && c->cores > 1; i++) {
        double team_s;
        if (calibrate_jobs[i].cut != MESH_PP) continue;
        tell(o, job_text(&c->arena, &calibrate_jobs[i], 1));
        TRY(calibrate_run_job(&calibrate_jobs[i], 1, c->cores, rounds, samples, &team_s));
        sum += log(step_s[i] / team_s / c->cores);
        n++;
    }
    if (n) c->team_eta = exp(sum / n);
    return OK;
}

/* ---- fits ------------------------------------------------------------------------------- */

static bool same_op(const OpSample *a, const OpSample *b)
{
    return !strcmp(a->op, b->op) && a->matmul == b->matmul && (!a->matmul || a->math == b->math) &&
           !a->among == !b->among;
}

static int by_op(const void *left, const void *right)
{
    const OpSample *a = left, *b = right;
    int order = strcmp(a->op, b->op);
    if (order) return order;
    return a->among != b->among ? a->among - b->among : (int)a->math - (int)b->math;
}

/* Of an exchange what the network takes by the law of all-reduces: once around for each time that
 * the bytes are passed. */
static double network_s(const Calibration *c, const OpSample *s)
{
    double passes = s->kind == COMM_ALL_REDUCE ? 2 : 1, hops = s->among - 1,
           sent = passes * hops / s->among * s->whole_bytes;
    if (s->whole_bytes <= 0 || c->exchange_bytes_per_s <= 0) return 0;
    double hop_s = s->kind == COMM_ALL_TO_ALL ? 0 : passes * hops * c->exchange_hop_s;
    return c->exchange_base_s + hop_s + sent / c->exchange_bytes_per_s;
}

/* What is left is the rank's own: it packs what lies apart, and adds up. */
static void take_network(OpSamples *samples, const Calibration *c)
{
    for (size_t i = 0; i < samples->n; i++) {
        OpSample *s = &samples->at[i];
        if (s->among) s->seconds = fmax(s->seconds - network_s(c, s), 1e-9);
    }
}

/* Products and attention by what they read; all else for any type, since bytes tell the difference.
 */
void calibrate_fit_ops(OpSamples *samples, Arena *arena, OpFit **fit, int *n)
{
    OpSample *s = samples->at;
    VEC(OpFit) fits = {0};
    qsort(s, samples->n, sizeof *s, by_op);
    for (size_t first = 0, end; first < samples->n; first = end) {
        for (end = first + 1; end < samples->n && same_op(&s[first], &s[end]);) end++;
        if (s[first].among && fits.n && !strcmp(fits.at[fits.n - 1].rate.op, s[first].op))
            continue; /* it computes, and sometimes exchanges a few numbers too */
        OpFit one = calibrate_fit_op(s + first, (int)(end - first));
        one.rate.math = s[first].matmul ? (enum OpMath)(1 + (int)s[first].math) : OP_ANY;
        VEC_PUSH(&fits, one);
    }
    *n = (int)fits.n;
    *fit = arena_copy(arena, fits.at, fits.n * sizeof *fits.at);
    VEC_FREE(&fits);
}

/* Of each op that was fitted what a team makes of it. */
static void fit_teams(const OpSamples *team, Calibration *c)
{
    OpSample *own = xcalloc(team->n + 1, sizeof *own);
    for (int i = 0; i < c->n_fits; i++) {
        OpRate *rate = &c->fit[i].rate;
        int n = 0;
        for (size_t k = 0; k < team->n; k++) {
            const OpSample *s = &team->at[k];
            bool math = !s->matmul || rate->math == (enum OpMath)(1 + (int)s->math);
            if (!strcmp(s->op, rate->op) && math) own[n++] = *s;
        }
        calibrate_fit_team(own, n, rate);
    }
    free(own);
}

/* The share of the peak by shape, from plain products: no tiles, one unit. */
static void fit_products(const OpSamples *samples, Calibration *c)
{
    DeviceSheet d = {.units = 1, .tile_m = 1, .tile_n = 1, .align = 1, .unaligned = 1};
    d.memory = (MemoryCurve){.bytes_per_s = c->read_bytes_per_s, .eta = 1};
    for (int math = 0; math < MATH_KINDS; math++) {
        VEC(MatrixPoint) points = {0};
        d.matrix[math].peak_flop_per_s = c->peak_flop_per_s[math];
        for (size_t i = 0; i < samples->n; i++) {
            const OpSample *s = &samples->at[i];
            MatrixPoint point = {s->m, s->n, s->k, s->flop / s->seconds};
            if (s->k && (int)s->math == math) VEC_PUSH(&points, point);
        }
        c->matrix[math] = (MatrixCurve){c->peak_flop_per_s[math], 0.75, 0};
        if (points.n >= 3 && c->peak_flop_per_s[math] > 0)
            c->matrix_error[math] = cluster_fit_matrix(&d, (MathKind)math, math == MATH_F32 ? 4 : 2,
                                                       points.at, (int)points.n, &c->matrix[math]);
        VEC_FREE(&points);
    }
}

/* ---- all together ----------------------------------------------------------------------- */

static void measure_peaks(int cores, Calibration *c)
{
    Isa isa = cpu_best_isa();
    for (int i = 0; i < 3;
         i++) { /* in turns, so that a short disturbance spoils no figure for good */
        c->peak_flop_per_s[MATH_F32] = fmax(c->peak_flop_per_s[MATH_F32],
                                            probe_peak_flop_per_s(isa, DTYPE_F32, cores, 0.2) /
                                                cores);
        c->peak_flop_per_s[MATH_BF16] = fmax(c->peak_flop_per_s[MATH_BF16],
                                             probe_peak_flop_per_s(isa, DTYPE_BF16, cores, 0.2) /
                                                 cores);
        c->read_bytes_per_s = fmax(c->read_bytes_per_s, probe_read_bytes_per_s(cores, 0.2) / cores);
        c->copy_bytes_per_s = fmax(c->copy_bytes_per_s, probe_copy_bytes_per_s(cores, 0.2) / cores);
    }
}

static Status describe(int cores, Calibration *c)
{
    Device *device;
    TRY(device_create_cpu((CpuOptions){.threads = cores}, &device));
    c->machine = arena_printf(&c->arena, "measured by drover doctor --calibrate: %s",
                              device_text(device));
    device_destroy(device);
    return OK;
}

static Status measure_exchanges(const CalibrateOptions *o, int cores, Calibration *c)
{
    char name[64];
    int ranks = o->world ? comm_size(o->world) : cores;
    if (ranks < 2) return OK;
    tell(o, "exchanges");
    TRY(calibrate_run_exchanges(o->world, ranks, &c->arena, &c->exchange, &c->n_exchanges));
    c->exchange_ranks = ranks;
    c->transport = o->world && comm_mpi_version(name) ? arena_strdup(&c->arena, name)
                                                      : "threads of one process";
    calibrate_fit_exchange(c->exchange, c->n_exchanges, ranks, &c->exchange_base_s,
                           &c->exchange_hop_s, &c->exchange_bytes_per_s);
    return OK;
}

static Status measure(const CalibrateOptions *o, Calibration *c)
{
    int rounds = o->rounds > 0 ? o->rounds : 5;
    OpSamples samples = {0}, team = {0};
    double *step_s = ARENA_ARRAY(&c->arena, double, calibrate_jobs_n);
    TRY(measure_exchanges(o, c->cores, c));
    if (o->world && comm_rank(o->world) != 0) return OK; /* the first process goes on alone */
    TRY(describe(c->cores, c));
    tell(o, "peaks and memory");
    measure_peaks(c->cores, c);
    Status status = run_jobs(o, c->cores, rounds, &c->arena, &samples, step_s);
    if (status == OK) status = measure_team(o, rounds, step_s, &team, c);
    if (status == OK && samples.n == 0)
        status = fail(ERR_DEVICE, "calibrate: nothing was measured");
    take_network(&samples, c);
    if (status == OK) calibrate_fit_ops(&samples, &c->arena, &c->fit, &c->n_fits);
    if (status == OK) fit_teams(&team, c);
    if (status == OK) fit_products(&samples, c);
    VEC_FREE(&samples);
    VEC_FREE(&team);
    return status;
}

Status calibrate_machine(const CalibrateOptions *options, Calibration *out)
{
    Calibration c = {.cores = options->cores > 0 ? options->cores : cpu_count(),
                     .memory_bytes = (double)memory_total_bytes()};
    Status status = measure(options, &c);
    if (status != OK) {
        arena_deinit(&c.arena);
        return status;
    }
    *out = c;
    return OK;
}

void calibrate_deinit(Calibration *c)
{
    Arena arena = c->arena;
    *c = (Calibration){0};
    arena_deinit(&arena);
}
