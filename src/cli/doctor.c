/* drover doctor: what this machine has, and what it can do, measured in about two seconds; with
 * --calibrate, in minutes. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <xxhash.h>
#include <yaml.h>
#include <zlib.h>
#include <zstd.h>

#include "calibrate/calibrate.h"
#include "comm/comm.h"
#include "gpu/attention.h"
#include "gpu/gpu.h"
#include "gpu/report.h"
#include "ops/probe.h"

typedef struct DoctorFlags {
    int64_t threads;
    bool json;
    const char *calibrate;
    int64_t rounds;
    int device; /* DeviceKind */
} DoctorFlags;

static const Option options[] = {
    {"threads", OPTION_INT, "N", 0, 4096, "0", NULL, offsetof(DoctorFlags, threads),
     "to measure with; 0: all cores"},
    {"json", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(DoctorFlags, json), "one JSON object"},
    {"calibrate", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(DoctorFlags, calibrate),
     "time the ops of real training programs for some minutes and write this machine as a "
     "cluster's file, for --cluster; "
     "under mpirun exchanges are those between its processes"},
    {"device", OPTION_CHOICE, "DEVICE", 0, 0, "auto", "auto|cpu|cuda",
     offsetof(DoctorFlags, device),
     "that --calibrate measures; auto: GPUs where there are some, else the processor"},
    {"rounds", OPTION_INT, "N", 1, 1000, "5", NULL, offsetof(DoctorFlags, rounds),
     "steps of each program that --calibrate times"},
};

/* ---- one line of the report ------------------------------------------------------------- */

/* A line for people, or a member of the JSON object. */
typedef struct Report {
    bool json;
    json_t *object;
} Report;

static void say(Report *r, const char *name, const char *format, ...) PRINTF_LIKE(3, 4);
static void say(Report *r, const char *name, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!r->json) printf("%-16s %s\n", name, text);
    json_object_set_new(r->object, name, json_string(text));
}

static void say_rate(Report *r, const char *name, const char *key, double per_s, const char *unit)
{
    if (!r->json) printf("%-16s %.4g G%s/s\n", name, per_s * 1e-9, unit);
    json_object_set_new(r->object, key, json_real(per_s));
}

/* ---- processor -------------------------------------------------------------------------- */

static void say_processor(Report *r, const Device *device)
{
    say(r, "processor", "%s", device_text(device));
    say(r, "cores", "%d that this process may use, of %ld", cpu_count(),
        sysconf(_SC_NPROCESSORS_ONLN));
#if defined(__x86_64__)
    __builtin_cpu_init();
    char features[128];
    snprintf(features, sizeof features, "%s%s%s%s%s", __builtin_cpu_supports("avx2") ? "avx2 " : "",
             __builtin_cpu_supports("fma") ? "fma " : "",
             __builtin_cpu_supports("avx512f") ? "avx512 " : "",
             __builtin_cpu_supports("avx512vnni") ? "vnni " : "",
             cpu_best_isa() == ISA_AVX512BF16 ? "bf16" : "");
    say(r, "instructions", "%s", features);
#endif
    say(r, "kernels", "those for %s", isa_name(device_target(device).isa));
}

/* ---- memory and disk -------------------------------------------------------------------- */

static void say_space(Report *r)
{
    char a[32], b[32];
    uint64_t bytes;
    say(r, "memory", "%s, of which %s can be had now",
        format_bytes((double)memory_total_bytes(), a),
        format_bytes((double)memory_available_bytes(), b));
    if (dir_free_bytes(".", &bytes) == OK)
        say(r, "disk", "%s free in this directory", format_bytes((double)bytes, a));
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0)
        say(r, "open files", "%llu at most", (unsigned long long)files.rlim_cur);
}

/* ---- speed ------------------------------------------------------------------------------ */

static void say_speed(Report *r, const Device *device)
{
    Target t = device_target(device);
    double f32 = 0, bf16 = 0, read = 0;
    for (int i = 0; i < 3;
         i++) { /* in turns, so that a short disturbance spoils no figure for good */
        f32 = fmax(f32, probe_peak_flop_per_s(t.isa, DTYPE_F32, t.threads, 0.2));
        bf16 = fmax(bf16, probe_peak_flop_per_s(t.isa, DTYPE_BF16, t.threads, 0.2));
        read = fmax(read, probe_read_bytes_per_s(t.threads, 0.2));
    }
    say_rate(r, "matrix peak f32", "peak_f32_flop_per_s", f32, "FLOP");
    say_rate(r, "matrix peak bf16", "peak_bf16_flop_per_s", bf16, "FLOP");
    say_rate(r, "memory read", "memory_read_bytes_per_s", read, "B");
}

/* ---- libraries -------------------------------------------------------------------------- */

static void say_libraries(Report *r)
{
    char pcre2[64] = "?";
    unsigned xxh = XXH_versionNumber();
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    pcre2[strcspn(pcre2, " ")] = 0;
    say(r, "libraries", "jansson %s, PCRE2 %s, zstd %s, zlib %s, libyaml %s, xxHash %u.%u.%u",
        jansson_version_str(), pcre2, ZSTD_versionString(), zlibVersion(),
        yaml_get_version_string(), xxh / 10000, xxh / 100 % 100, xxh % 100);
    char mpi[64];
    say(r, "MPI", "%s",
        comm_mpi_version(mpi) ? mpi
                              : "not built in (libopenmpi-dev): ranks are threads of one process");
}

/* ---- GPUs ------------------------------------------------------------------------------- */

static void say_gpu(Report *r, int index)
{
    Gpu *gpu;
    char name[16], all[32], left[32];
    snprintf(name, sizeof name, "GPU %d", index);
    if (gpu_open(index, &gpu) != OK) {
        say(r, name, "cannot be used: %s", status_message());
        return;
    }
    const GpuInfo *i = gpu_info(gpu);
    say(r, name,
        "%s, %d multiprocessors of compute capability %d.%d at up to %d MHz, memory at %d MHz, %s "
        "free of %s, ECC %s",
        i->name, i->multiprocessors, i->major, i->minor, i->clock_mhz, i->memory_clock_mhz,
        format_bytes((double)i->free_bytes, left), format_bytes((double)i->memory_bytes, all),
        i->ecc ? "on" : "off");
    if (index == 0) {
        say(r, "CUDA", "runtime %d.%d, driver for %d.%d; %s; %s", i->runtime / 1000,
            i->runtime % 1000 / 10, i->driver / 1000, i->driver % 1000 / 10, gpu_libraries(gpu),
            gpu_exchange_library(gpu));
        say(r, "attention", "our own kernels; %s",
            gpu_attention_can(gpu) == OK ? gpu_attention_library(gpu) : status_message());
    }
    gpu_close(gpu);
}

/* How GPU `index` reaches each other one: a letter each, as in a row of nvidia-smi's matrix. */
static void say_peers(Report *r, int index, int n)
{
    Str row = {0};
    char name[24];
    snprintf(name, sizeof name, "GPU %d to others", index);
    for (int to = 0; to < n; to++) {
        GpuPeer peer = {0};
        if (to == index) continue;
        bool known = gpu_peer(index, to, &peer) == OK;
        const char *how = !known         ? "unknown"
                          : peer.atomics ? "NVLink"
                          : peer.direct  ? "PCIe"
                                         : "through the host";
        str_printf(&row, "%s%d %s", row.n ? ", " : "", to, how);
    }
    say(r, name, "%s", row.at);
    str_deinit(&row);
}

static void say_gpus(Report *r)
{
    const char *why;
    int n = gpu_count(&why);
    if (!n) say(r, "GPU", "none: %s", why);
    for (int i = 0; i < n; i++) say_gpu(r, i);
    for (int i = 0; i < n && n > 1; i++) say_peers(r, i, n);
}

static Status examine(const DoctorFlags *o)
{
    Device *device;
    TRY(device_create_cpu((CpuOptions){.threads = (int)o->threads}, &device));
    Report report = {.json = o->json, .object = json_object()};
    say(&report, "drover", "%s", drover_version());
    say_processor(&report, device);
    say_space(&report);
    say_libraries(&report);
    say_gpus(&report);
    say_speed(&report, device);
    if (o->json) {
        json_dumpf(report.object, stdout, JSON_COMPACT);
        putchar('\n');
    }
    json_decref(report.object);
    device_destroy(device);
    return OK;
}

/* ---- calibration ------------------------------------------------------------------------ */

static void say_progress(void *context, const char *what)
{
    (void)context;
    log_info("calibrating: %s", what);
}

/* Without a team's columns for a GPU. */
static void say_ops(const OpFit *fit, int n, bool team)
{
    static const char *const reads[] = {"", "f32", "bf16", "fp8"};
    printf("%-28s %6s %9s %9s %10s %10s %8s %7s%s\n", "op", "nodes", "ms in all", "fixed us",
           "GFLOP/s", "GB/s", "error %", "bias %", team ? "  team us  cores" : "");
    for (int i = 0; i < n; i++) {
        const OpFit *f = &fit[i];
        char name[64];
        snprintf(name, sizeof name, "%s %s", f->rate.op, reads[f->rate.math]);
        printf("%-28s %6d %9.2f %9.2f %10.3g %10.3g %8.1f %7.1f", name, f->n, f->total_s * 1e3,
               f->rate.fixed_s * 1e6, f->rate.flop_per_s * 1e-9, f->rate.bytes_per_s * 1e-9,
               f->error * 100, f->bias * 100);
        if (team) printf(" %8.2f %6.2f", f->rate.team_s * 1e6, f->rate.team_speed);
        printf("\n");
    }
}

static void say_fits(const Calibration *c)
{
    say_ops(c->fit, c->n_fits, true);
    for (int i = 0; i < c->n_exchanges; i++)
        printf("all-reduce %10.0f bytes, %d ranks: %.2f us\n", c->exchange[i].bytes,
               c->exchange_ranks, c->exchange[i].seconds * 1e6);
    printf("all cores as one rank: %.2f of one rank on each\n", c->team_eta);
}

static void say_curves(const GpuCalibration *c)
{
    const DeviceSheet *d = &c->sheet;
    printf("%s\n", c->device);
    for (int i = 0; i < MATH_KINDS; i++)
        if (c->best_flop_per_s[i] > 0)
            printf(
                "products in %-5s %.4g TFLOP/s at best; %.1f%% of %.4g for large ones, half of it "
                "at k = %.0f; told within %.1f%%\n",
                cluster_math_name((MathKind)i), c->best_flop_per_s[i] * 1e-12,
                d->matrix[i].eta_inf * 100, d->matrix[i].peak_flop_per_s * 1e-12,
                d->matrix[i].k_half, c->matrix_error[i] * 100);
    printf("attention         %.1f%% of the bf16 peak at most, half of it at heads of %.0f and at "
           "%.0f keys; backward %.2f of forward; told within %.1f%%\n",
           d->attention.eta_inf * 100, d->attention.head_half, d->attention.keys_half,
           d->attention.backward, c->attention_error * 100);
    printf(
        "memory            copies %.4g GB/s; %.1f%% of %.4g GB/s, half of it at %.3g bytes; told "
        "within %.1f%%\n",
        c->copy.copy_bytes_per_s * 1e-9, d->memory.eta * 100, d->memory.bytes_per_s * 1e-9,
        d->memory.half_bytes, c->memory_error * 100);
    printf("host              to the GPU %.4g GB/s, from it %.4g GB/s\n",
           c->copy.write_bytes_per_s * 1e-9, c->copy.read_bytes_per_s * 1e-9);
    printf(
        "launches          a kernel of a step %.2f us, a step %.2f us, a kernel alone %.2f us of "
        "the host\n",
        c->launch.kernel_s * 1e6, c->launch.graph_s * 1e6, c->launch.host_s * 1e6);
    for (int i = 0; i < c->n_exchanges; i++)
        printf("all-reduce %10.0f bytes, %d GPUs: %.2f us\n", c->exchange[i].bytes,
               c->exchange_ranks, c->exchange[i].seconds * 1e6);
}

static Status write_sheet(const DoctorFlags *o, Str *sheet)
{
    Status status = file_write_atomic(o->calibrate, sheet->at, sheet->n);
    if (status == OK)
        printf("written to %s: --cluster %s means this machine\n", o->calibrate, o->calibrate);
    str_deinit(sheet);
    return status;
}

static Status calibrate_gpus(const DoctorFlags *o)
{
    GpuCalibration c;
    Str sheet = {0};
    TRY(calibrate_gpu(&(CalibrateOptions){.rounds = (int)o->rounds, .progress = say_progress}, &c));
    say_ops(c.fit, c.n_fits, false);
    say_curves(&c);
    calibrate_gpu_sheet(&c, &sheet);
    calibrate_gpu_deinit(&c);
    return write_sheet(o, &sheet);
}

/* By every process that a launcher started, else by this one. */
static Status calibrate(const Rank *rank, void *context)
{
    const DoctorFlags *o = context;
    Calibration c;
    Str sheet = {0};
    TRY(calibrate_machine(&(CalibrateOptions){.cores = (int)o->threads,
                                              .rounds = (int)o->rounds,
                                              .world = rank->world,
                                              .progress = say_progress},
                          &c));
    Status status = OK;
    if (rank->first) {
        say_fits(&c);
        calibrate_sheet(&c, &sheet);
        status = write_sheet(o, &sheet);
    }
    calibrate_deinit(&c);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    DoctorFlags o = *(const DoctorFlags *)opaque;
    (void)operands;
    if (!o.calibrate) return examine(&o);
    if (o.device == DEVICE_CUDA || (o.device == DEVICE_AUTO && gpu_count(NULL)))
        return calibrate_gpus(&o);
    int launched = ranks_launched();
    return ranks_run(launched > 0 ? launched : 1, calibrate, &o);
}

const Command command_doctor = {
    .name = "doctor",
    .operands = "",
    .sentence = "what this machine has, and its measured speed",
    COMMAND_OPTIONS(DoctorFlags, options),
    .run = run,
};
