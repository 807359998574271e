/* A GPU measured: launches, copies, plain traffic, products and attention by size, the ops of real
 * training programs, exchanges; and the sheet's curves fitted to them. */
#include "calibrate/calibrate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is measured: of a GPU, and of one that is emulated, on which a test has no time. */
typedef struct Plan {
    const CalibrateShape *shape;
    int n_shapes;
    const CalibrateJob *job;
    int n_jobs;
    size_t copy_bytes, exchange_bytes;
} Plan;

static const CalibrateShape gpu_shapes[] = {
    {SHAPE_CHAIN, DTYPE_F32, 1 << 14, 4, 0},
    {SHAPE_CHAIN, DTYPE_F32, 1 << 18, 4, 0},
    {SHAPE_CHAIN, DTYPE_F32, 1 << 21, 4, 0},
    {SHAPE_CHAIN, DTYPE_F32, 1 << 24, 4, 0},
    {SHAPE_CHAIN, DTYPE_F32, 1 << 27, 4, 0},
    {SHAPE_CHAIN, DTYPE_BF16, 1 << 16, 4, 0},
    {SHAPE_CHAIN, DTYPE_BF16, 1 << 22, 4, 0},
    {SHAPE_CHAIN, DTYPE_BF16, 1 << 26, 4, 0},
    {SHAPE_PRODUCTS, DTYPE_BF16, 512, 512, 512},
    {SHAPE_PRODUCTS, DTYPE_BF16, 1024, 1024, 1024},
    {SHAPE_PRODUCTS, DTYPE_BF16, 2048, 2048, 2048},
    {SHAPE_PRODUCTS, DTYPE_BF16, 4096, 4096, 4096},
    {SHAPE_PRODUCTS, DTYPE_BF16, 8192, 8192, 8192},
    {SHAPE_PRODUCTS, DTYPE_BF16, 8192, 4096, 512},
    {SHAPE_PRODUCTS, DTYPE_BF16, 8192, 512, 4096},
    {SHAPE_PRODUCTS, DTYPE_BF16, 1024, 14336, 4096},
    {SHAPE_PRODUCTS, DTYPE_BF16, 8192, 14336, 4096},
    {SHAPE_PRODUCTS, DTYPE_BF16, 4096, 28672, 8192},
    {SHAPE_PRODUCTS, DTYPE_F32, 1024, 1024, 1024},
    {SHAPE_PRODUCTS, DTYPE_F32, 4096, 4096, 1024},
    {SHAPE_PRODUCTS, DTYPE_F32, 4096, 4096, 4096},
    {SHAPE_PRODUCTS, DTYPE_F32, 1024, 8192, 2048},
    {SHAPE_PRODUCTS, DTYPE_F8_E4M3, 4096, 4096, 1024},
    {SHAPE_PRODUCTS, DTYPE_F8_E4M3, 4096, 4096, 4096},
    {SHAPE_PRODUCTS, DTYPE_F8_E4M3, 8192, 14336, 4096},
    {SHAPE_PRODUCTS, DTYPE_F8_E4M3, 8192, 8192, 8192},
    {SHAPE_ATTENTION, DTYPE_BF16, 512, 128, 64},
    {SHAPE_ATTENTION, DTYPE_BF16, 2048, 64, 64},
    {SHAPE_ATTENTION, DTYPE_BF16, 8192, 32, 64},
    {SHAPE_ATTENTION, DTYPE_BF16, 512, 128, 128},
    {SHAPE_ATTENTION, DTYPE_BF16, 2048, 64, 128},
    {SHAPE_ATTENTION, DTYPE_BF16, 8192, 32, 128},
    {SHAPE_ATTENTION, DTYPE_BF16, 16384, 16, 128},
    {SHAPE_ATTENTION, DTYPE_BF16, 4096, 16, 256},
};

/* A few layers of published models. Vocabularies are cut where the sheet's law of the loss has seen
 * a whole one already. */
const CalibrateJob calibrate_gpu_jobs[] = {
    {"llama3.2-1b", DTYPE_BF16, 1, 1, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2"},
    {"llama3.2-1b", DTYPE_BF16, 8, 2, 1024, RECOMPUTE_SELECTIVE, .gpu = true,
     .fields = "num_hidden_layers=2 vocab_size=32768"},
    {"llama3.2-3b", DTYPE_BF16, 1, 1, 4096, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2 vocab_size=32768"},
    {"llama3.1-8b", DTYPE_BF16, 2, 1, 4096, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=65536"},
    {"llama3.1-8b", DTYPE_BF16, 2, 1, 4096, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=16384", .fp8 = FP8_ROW},
    {"llama3.2-1b", DTYPE_BF16, 1, 2, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=16384", .fp8 = FP8_ROW},
    {"llama3.2-1b", DTYPE_F32, 1, 1, 2048, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=16384"},
    {"llama4-scout", DTYPE_BF16, 1, 1, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=32768 num_local_experts=8"},
    {"llama4-scout", DTYPE_BF16, 2, 2, 1024, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=16384 num_local_experts=4"},
    {"grok-1", DTYPE_BF16, 1, 1, 4096, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=16384 num_experts=2"},
    {"gpt2-xl", DTYPE_BF16, 8, 1, 1024, RECOMPUTE_NONE, .gpu = true, .fields = "n_layer=2"},
};
const int calibrate_gpu_jobs_n = COUNT_OF(calibrate_gpu_jobs);

static const CalibrateShape small_shapes[] = {
    {SHAPE_CHAIN, DTYPE_F32, 64, 2, 0},        {SHAPE_CHAIN, DTYPE_F32, 4096, 2, 0},
    {SHAPE_CHAIN, DTYPE_BF16, 1024, 2, 0},     {SHAPE_PRODUCTS, DTYPE_BF16, 16, 16, 16},
    {SHAPE_PRODUCTS, DTYPE_BF16, 32, 16, 64},  {SHAPE_PRODUCTS, DTYPE_F32, 16, 24, 16},
    {SHAPE_PRODUCTS, DTYPE_F32, 24, 16, 32},   {SHAPE_PRODUCTS, DTYPE_F8_E4M3, 16, 32, 32},
    {SHAPE_ATTENTION, DTYPE_BF16, 16, 4, 64},  {SHAPE_ATTENTION, DTYPE_BF16, 32, 2, 64},
    {SHAPE_ATTENTION, DTYPE_BF16, 16, 2, 128},
};
static const CalibrateJob small_jobs[] = {
    {"llama4-nano", DTYPE_BF16, 1, 1, 16, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2 vocab_size=256"},
    {"llama3-nano", DTYPE_BF16, 1, 1, 16, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=256", .fp8 = FP8_ROW},
};

static Plan plan_of(const CalibrateOptions *o)
{
    if (o->small)
        return (Plan){small_shapes, COUNT_OF(small_shapes),
                      small_jobs,   COUNT_OF(small_jobs),
                      1 << 16,      4 << 10};
    return (Plan){gpu_shapes,         COUNT_OF(gpu_shapes),
                  calibrate_gpu_jobs, COUNT_OF(calibrate_gpu_jobs),
                  256 << 20,          256 << 20};
}

static void tell(const CalibrateOptions *o, const char *what)
{
    if (o->progress) o->progress(o->context, what);
}

/* ---- measuring ---------------------------------------------------------------------------- */

/* What this GPU has no memory for, or no units, is left out: there are others. */
static Status left_out(Status status, const char *what)
{
    if (status != ERR_MEMORY && status != ERR_UNSUPPORTED) return status;
    log_info("calibrate: %s is left out: %s", what, status_message());
    return OK;
}

static const char *words_of(Arena *arena, const CalibrateShape *s)
{
    static const char *const kinds[] = {"products", "attention", "sums"};
    return arena_printf(arena, "%s %s %lld %lld %lld", kinds[s->kind], dtype_name(s->dtype),
                        (long long)s->m, (long long)s->n, (long long)s->k);
}

static Status run_shapes(const CalibrateOptions *o, const Plan *plan, int rounds, GpuCalibration *c,
                         OpSamples *samples)
{
    Device *device;
    TRY(device_create(DEVICE_CUDA, (CpuOptions){.tune = !gpu_is_emulated()}, &device));
    snprintf(c->device, sizeof c->device, "%s", device_text(device));
    c->preset = device_preset(device);
    tell(o, "launches");
    Status status = calibrate_time_launches(device, &c->launch);
    for (int i = 0; i < plan->n_shapes && status == OK; i++) {
        const char *what = words_of(&c->arena, &plan->shape[i]);
        tell(o, what);
        if (plan->shape[i].dtype == DTYPE_F8_E4M3 && device_check_fp8(device) != OK) continue;
        status = left_out(calibrate_run_shape(device, &plan->shape[i], rounds, samples), what);
    }
    device_destroy(device);
    return status;
}

static Status run_jobs(const CalibrateOptions *o, const Plan *plan, int rounds, GpuCalibration *c,
                       OpSamples *samples)
{
    for (int i = 0; i < plan->n_jobs; i++) {
        const CalibrateJob *job = &plan->job[i];
        double step_s;
        const char *what = arena_printf(&c->arena, "%s %s, %lld tokens", job->preset,
                                        dtype_name(job->dtype), (long long)job->seq);
        tell(o, what);
        TRY(left_out(calibrate_run_job(job, 1, 1, rounds, samples, &step_s), what));
    }
    return OK;
}

static Status run_exchanges(const CalibrateOptions *o, const Plan *plan, GpuCalibration *c)
{
    int ranks = o->ranks > 0 ? o->ranks : c->gpus;
    if (ranks < 2) return OK;
    tell(o, "exchanges");
    TRY(calibrate_run_gpu_exchanges(ranks, plan->exchange_bytes, &c->arena, &c->exchange,
                                    &c->n_exchanges));
    c->exchange_ranks = ranks;
    calibrate_fit_exchange(c->exchange, c->n_exchanges, ranks, &c->exchange_base_s,
                           &c->exchange_hop_s, &c->exchange_bytes_per_s);
    return OK;
}

/* ---- fits --------------------------------------------------------------------------------- */

static bool is_plain_product(const OpSample *s)
{
    static const char *const ops[] = {"linear",    "linear_dx",
                                      "linear_dw", "linear_dw_accumulate",
                                      "linear_8",  "linear_8_accumulate"};
    for (int i = 0; i < COUNT_OF(ops); i++)
        if (!strcmp(s->op, ops[i])) return true;
    return false;
}

/* Bytes over time, launch included: `fixed` is the launch and what a small tensor loses. */
static void fit_memory(const OpSample *sample, int n, GpuCalibration *c)
{
    VEC(OpSample) plain = {0};
    for (int i = 0; i < n; i++) {
        OpSample s = sample[i];
        s.flop = 0;
        if (!strcmp(s.op, "add")) VEC_PUSH(&plain, s);
    }
    MemoryCurve *m = &c->sheet.memory;
    if (plain.n) {
        OpFit fit = calibrate_fit_op(plain.at, (int)plain.n);
        double rate = fit.rate.bytes_per_s > 0 ? fit.rate.bytes_per_s : c->copy.copy_bytes_per_s;
        if (!c->preset) m->bytes_per_s = fmax(rate, c->copy.copy_bytes_per_s);
        m->eta = fmin(1, fmax(0.01, rate / m->bytes_per_s));
        m->half_bytes = fmax(0, fit.rate.fixed_s - c->launch.kernel_s) * rate;
        c->memory_error = fit.error;
    }
    VEC_FREE(&plain);
}

static void fit_matrix(const OpSample *sample, int n, MathKind math, GpuCalibration *c)
{
    VEC(MatrixPoint) points = {0};
    MatrixCurve *curve = &c->sheet.matrix[math];
    double best = 0;
    for (int i = 0; i < n; i++) {
        const OpSample *s = &sample[i];
        if (!is_plain_product(s) || s->math != math) continue;
        MatrixPoint point = {(int64_t)s->cost.m, (int64_t)s->cost.n, (int64_t)s->cost.k,
                             s->flop / s->seconds};
        best = fmax(best, point.flop_per_s);
        VEC_PUSH(&points, point);
    }
    c->best_flop_per_s[math] = best;
    if (points.n >= 3) {
        static const double element_bytes[MATH_KINDS] = {4, 2, 1};
        if (!(curve->peak_flop_per_s > best)) curve->peak_flop_per_s = best;
        c->matrix_error[math] = cluster_fit_matrix(&c->sheet, math, element_bytes[math], points.at,
                                                   (int)points.n, curve);
    } else if (!c->preset) {
        *curve = (MatrixCurve){.eta_inf = 0.75};
    }
    VEC_FREE(&points);
}

/* The forward rates give the curve; backward is a share of it. */
static void fit_attention(const OpSample *sample, int n, GpuCalibration *c)
{
    VEC(AttentionPoint) points = {0};
    VEC(double) shares = {0};
    double peak = c->sheet.matrix[MATH_BF16].peak_flop_per_s;
    for (int i = 0; i < n; i++) {
        const OpSample *s = &sample[i];
        AttentionPoint point = {(int64_t)s->cost.k, s->cost.n, s->flop / s->seconds};
        if (!strcmp(s->op, "attention") && s->math == MATH_BF16) VEC_PUSH(&points, point);
    }
    if (points.n && peak > 0)
        c->attention_error = cluster_fit_attention(&c->sheet, points.at, (int)points.n,
                                                   &c->sheet.attention);
    for (int i = 0; i < n; i++) {
        const OpSample *s = &sample[i];
        if (strcmp(s->op, "attention_grad") || s->math != MATH_BF16 || !points.n) continue;
        double forward = cluster_attention_efficiency(&c->sheet, (int64_t)s->cost.k, s->cost.n,
                                                      false);
        VEC_PUSH(&shares, s->flop / s->seconds / (peak * forward));
    }
    if (shares.n)
        c->sheet.attention.backward = fmin(2,
                                           fmax(0.05, calibrate_median(shares.at, (int)shares.n)));
    VEC_FREE(&points);
    VEC_FREE(&shares);
}

static Status begin_sheet(GpuCalibration *c)
{
    DeviceSheet *d = &c->sheet;
    *d = (DeviceSheet){.units = c->info.multiprocessors,
                       .tile_m = 128, /* output tiles of the library's large kernels */
                       .tile_n = 256,
                       .align = 8, /* 16 bytes of bf16 */
                       .unaligned = 0.75,
                       .attention = {0.6, 0, 0, 0.8},
                       .memory = {.bytes = (double)c->info.memory_bytes,
                                  .bytes_per_s = c->copy.copy_bytes_per_s,
                                  .eta = 1}};
    if (c->preset) {
        Cluster known;
        TRY(cluster_load(c->preset, &known));
        DeviceSheet sheet = known.device;
        sheet.name = sheet.about = NULL; /* texts are the cluster's */
        sheet.op = NULL;
        sheet.n_ops = 0;
        *d = sheet;
        cluster_deinit(&known);
    }
    d->units = c->info.multiprocessors;
    d->launch_s = c->launch.kernel_s;
    d->host_launch_s = c->launch.host_s;
    return OK;
}

/* Curves first, since each stands on those before it: products on memory, attention on the peak. */
static Status fit(OpSamples *samples, GpuCalibration *c)
{
    int n = (int)samples->n;
    TRY(begin_sheet(c));
    fit_memory(samples->at, n, c);
    for (int i = 0; i < MATH_KINDS; i++) fit_matrix(samples->at, n, (MathKind)i, c);
    fit_attention(samples->at, n, c);
    calibrate_fit_ops(samples, &c->arena, &c->fit, &c->n_fits);
    c->sample = arena_copy(&c->arena, samples->at, samples->n * sizeof *samples->at);
    c->n_samples = n;
    return OK;
}

/* ---- all together ------------------------------------------------------------------------- */

static Status describe(GpuCalibration *c)
{
    Gpu *gpu;
    const char *why;
    c->gpus = gpu_count(&why);
    if (!c->gpus) return fail(ERR_UNSUPPORTED, "%s", why);
    TRY(gpu_open(0, &gpu));
    c->info = *gpu_info(gpu);
    c->machine = arena_printf(&c->arena, "measured by drover doctor --calibrate: %s, %s",
                              c->info.name, gpu_libraries(gpu));
    gpu_close(gpu);
    return OK;
}

static Status measure(const CalibrateOptions *o, GpuCalibration *c)
{
    Plan plan = plan_of(o);
    int rounds = o->rounds > 0 ? o->rounds : 5;
    OpSamples samples = {0};
    TRY(describe(c));
    tell(o, "copies");
    Status status = calibrate_time_copies(0, plan.copy_bytes, &c->copy);
    if (status == OK) status = run_shapes(o, &plan, rounds, c, &samples);
    if (status == OK) status = run_jobs(o, &plan, rounds, c, &samples);
    if (status == OK && samples.n == 0)
        status = fail(ERR_DEVICE, "calibrate: nothing was measured");
    if (status == OK) status = fit(&samples, c);
    if (status == OK) status = run_exchanges(o, &plan, c);
    VEC_FREE(&samples);
    return status;
}

Status calibrate_gpu(const CalibrateOptions *options, GpuCalibration *out)
{
    GpuCalibration c = {.host_memory_bytes = (double)memory_total_bytes()};
    Status status = measure(options, &c);
    if (status != OK) {
        arena_deinit(&c.arena);
        return status;
    }
    *out = c;
    return OK;
}

void calibrate_gpu_deinit(GpuCalibration *c)
{
    Arena arena = c->arena;
    *c = (GpuCalibration){0};
    arena_deinit(&arena);
}
