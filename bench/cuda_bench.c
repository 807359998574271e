/* cuda_bench: what a GPU does with the ops of training steps: time, rate, and the share of what
 * this machine's measured copies and products would let it be (its roofline; Williams 2009).
 *
 *     build/cuda_bench [rounds [small]]      small: tiny models, for tests on the emulated device
 *
 * Llama 3.2 1B and 3B and a Scout with eight experts, two layers of each, a sequence of 8,192
 * tokens in bf16, 1B also with products in 8 bits: the programs that the trainer runs, each
 * instruction timed by the GPU's clock. A line is all nodes of one op with the same work; its time
 * is that of one, the median of the rounds. Ends with 3 where there is no GPU.
 */
#include "calibrate/calibrate_internal.h"

#include <stdlib.h>
#include <string.h>

enum { EXIT_NO_GPU = 3 };

static const CalibrateJob jobs[] = {
    {"llama3.2-1b", DTYPE_BF16, 1, 1, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2"},
    {"llama3.2-3b", DTYPE_BF16, 1, 1, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2"},
    {"llama3.2-1b", DTYPE_BF16, 1, 1, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2", .fp8 = FP8_ROW},
    {"llama4-scout", DTYPE_BF16, 1, 1, 8192, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=2 num_local_experts=8 vocab_size=25256"},
};
static const CalibrateJob small_jobs[] = {
    {"llama3-nano", DTYPE_BF16, 1, 1, 16, RECOMPUTE_NONE, .gpu = true,
     .fields = "num_hidden_layers=1 vocab_size=256"},
};

/* What shares are counted of. */
typedef struct Roofline {
    double
        flop_per_s[MATH_KINDS]; /* of large products; 0: not measured, shares are of bytes alone */
    double bytes_per_s;         /* of copies inside the device, read and written */
} Roofline;

/* ---- the roofline ------------------------------------------------------------------------- */

static Status best_product(Device *device, const CalibrateShape *shape, int rounds, double *best)
{
    OpSamples samples = {0};
    TRY(calibrate_run_shape(device, shape, rounds, &samples));
    *best = 0;
    for (size_t i = 0; i < samples.n; i++)
        if (samples.at[i].matmul && samples.at[i].flop / samples.at[i].seconds > *best)
            *best = samples.at[i].flop / samples.at[i].seconds;
    VEC_FREE(&samples);
    return OK;
}

static Status measure_roofline(int rounds, bool small, Roofline *r)
{
    int64_t side = small ? 32 : 8192, half = small ? 32 : 4096;
    CalibrateShape bf16 = {SHAPE_PRODUCTS, DTYPE_BF16, side, side, side},
                   fp8 = {SHAPE_PRODUCTS, DTYPE_F8_E4M3, side, side, side},
                   f32 = {SHAPE_PRODUCTS, DTYPE_F32, half, half, half};
    Device *device;
    CopyRates copy;
    LaunchTimes launch;
    TRY(calibrate_time_copies(0, small ? 1 << 16 : 256 << 20, &copy));
    TRY(device_create(DEVICE_CUDA, (CpuOptions){.tune = !gpu_is_emulated()}, &device));
    Status status = best_product(device, &bf16, rounds, &r->flop_per_s[MATH_BF16]);
    if (status == OK) status = best_product(device, &f32, rounds, &r->flop_per_s[MATH_F32]);
    if (status == OK && device_check_fp8(device) == OK)
        status = best_product(device, &fp8, rounds, &r->flop_per_s[MATH_FP8]);
    if (status == OK) status = calibrate_time_launches(device, &launch);
    r->bytes_per_s = copy.copy_bytes_per_s;
    if (status == OK)
        printf(
            "%s\nbest product bf16 %.4g, f32 %.4g, fp8 %.4g TFLOP/s; copy %.4g GB/s; host to GPU "
            "%.4g, back "
            "%.4g GB/s; a kernel of a step %.2f us, a step %.2f us, a kernel alone %.2f us of the "
            "host\n",
            device_text(device), r->flop_per_s[MATH_BF16] * 1e-12, r->flop_per_s[MATH_F32] * 1e-12,
            r->flop_per_s[MATH_FP8] * 1e-12, r->bytes_per_s * 1e-9, copy.write_bytes_per_s * 1e-9,
            copy.read_bytes_per_s * 1e-9, launch.kernel_s * 1e6, launch.graph_s * 1e6,
            launch.host_s * 1e6);
    device_destroy(device);
    return status;
}

static double least_s(const Roofline *r, const OpSample *s)
{
    double bytes_s = s->bytes / r->bytes_per_s, peak = r->flop_per_s[s->math];
    double flop_s = s->matmul && peak > 0 ? s->flop / peak : 0;
    return flop_s > bytes_s ? flop_s : bytes_s;
}

/* ---- the table ---------------------------------------------------------------------------- */

static int by_work(const void *left, const void *right)
{
    const OpSample *a = left, *b = right;
    int order = strcmp(a->op, b->op);
    if (order) return order;
    if (a->math != b->math) return a->math < b->math ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
    return a->flop < b->flop ? 1 : a->flop > b->flop ? -1 : 0;
}

static void say_line(const OpSample *s, int n, double each_s, const Roofline *r)
{
    char shape[64] = "";
    if (s->matmul)
        snprintf(shape, sizeof shape, "%.0f x %.0f x %.0f%s%.0f", s->cost.m, s->cost.k, s->cost.n,
                 s->cost.count > 1 ? " times " : "", s->cost.count > 1 ? s->cost.count : 0);
    if (s->matmul && s->cost.count <= 1) shape[strlen(shape) - 1] = 0;
    printf("%-26s %-4s %4d %10.1f", s->op, cluster_math_name(s->math), n, each_s * 1e6);
    if (s->matmul)
        printf(" %9.1f TFLOP/s", s->flop / each_s * 1e-12);
    else
        printf(" %9.1f GB/s   ", s->bytes / each_s * 1e-9);
    printf(" %6.1f%%  %s\n", 100 * least_s(r, s) / each_s, shape);
}

/* Nodes with the same work are one line. */
static void say_table(OpSamples *samples, const Roofline *r)
{
    OpSample *s = samples->at;
    qsort(s, samples->n, sizeof *s, by_work);
    printf("%-26s %-4s %4s %10s %9s %15s\n", "op", "", "n", "us each", "rate", "of the roofline");
    for (size_t first = 0, end; first < samples->n; first = end) {
        double all_s = s[first].seconds;
        for (end = first + 1; end < samples->n && !by_work(&s[first], &s[end]); end++)
            all_s += s[end].seconds;
        say_line(&s[first], (int)(end - first), all_s / (double)(end - first), r);
    }
}

/* The optimizer's own pass over the weights, and what goes through memory beside it. */
static void say_optimizer(const OpSamples *samples, const Roofline *r)
{
    double bytes = 0, s = 0;
    for (size_t i = 0; i < samples->n; i++) {
        if (strcmp(samples->at[i].op, "adamw") != 0) continue;
        bytes += samples->at[i].bytes;
        s += samples->at[i].seconds;
    }
    if (s > 0)
        printf("optimizer: %.4g GB in %.3f ms, %.1f%% of the copies' rate\n", bytes * 1e-9, s * 1e3,
               100 * bytes / s / r->bytes_per_s);
}

static Status run_job(const CalibrateJob *job, int rounds, const Roofline *r)
{
    OpSamples samples = {0};
    double step_s, all_s = 0;
    Status status = calibrate_run_job(job, 1, 1, rounds, &samples, &step_s);
    if (status == OK) {
        for (size_t i = 0; i < samples.n; i++) all_s += samples.at[i].seconds;
        printf("== %s, %s, %s%s, %lld tokens: %.3f ms of kernels in a step\n", job->preset,
               job->fields, dtype_name(job->dtype), job->fp8 ? " and 8 bits" : "",
               (long long)(job->seq * job->micro_batch), all_s * 1e3);
        say_table(&samples, r);
        say_optimizer(&samples, r);
        fflush(stdout);
    }
    VEC_FREE(&samples);
    return status;
}

/* Before minutes are spent. */
static Status check_models(const CalibrateJob *list, int n)
{
    for (int i = 0; i < n; i++) {
        ModelConfig model;
        TRY_AS(calibrate_read_model(&list[i], &model), "%s", list[i].preset);
        model_config_deinit(&model);
    }
    return OK;
}

static Status run(int rounds, bool small)
{
    Roofline roofline = {0};
    TRY(check_models(jobs, COUNT_OF(jobs)));
    TRY(measure_roofline(rounds, small, &roofline));
    const CalibrateJob *list = small ? small_jobs : jobs;
    for (int i = 0; i < (small ? COUNT_OF(small_jobs) : COUNT_OF(jobs)); i++) {
        Status status = run_job(&list[i], rounds, &roofline);
        if (status == ERR_MEMORY || status == ERR_UNSUPPORTED)
            printf("== %s is left out: %s\n", list[i].preset, status_message());
        else
            TRY(status);
    }
    return OK;
}

int main(int argc, char **argv)
{
    const char *why;
    int64_t rounds = 5;
    if (argc > 1 && (!parse_i64(argv[1], &rounds) || rounds < 1 || rounds > 1000)) {
        fprintf(stderr, "usage: cuda_bench [rounds [small]]\n");
        return 2;
    }
    if (!gpu_count(&why)) {
        printf("no GPU to measure: %s\n", why);
        return EXIT_NO_GPU;
    }
    if (run((int)rounds, argc > 2 && !strcmp(argv[2], "small")) == OK) return 0;
    fprintf(stderr, "cuda_bench: %s\n", status_message());
    return 1;
}
