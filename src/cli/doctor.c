/* drover doctor: what this machine has, and what it can do, measured in about two seconds. */
#include "cli/cli.h"

#include <math.h>
#include <omp.h>
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

#include "comm/comm.h"
#include "ops/probe.h"

typedef struct DoctorFlags {
    int64_t threads;
    bool json;
} DoctorFlags;

static const Option options[] = {
    {"threads", OPTION_INT, "N", 0, 4096, "0", NULL, offsetof(DoctorFlags, threads), "to measure with; 0: all cores"},
    {"json", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(DoctorFlags, json), "one JSON object"},
};

/* ---- one line of the report ------------------------------------------------------------------- */

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

/* ---- processor -------------------------------------------------------------------------------- */

static void say_processor(Report *r, const Device *device)
{
    say(r, "processor", "%s", device_text(device));
    say(r, "cores", "%d that this process may use, of %ld", cpu_count(), sysconf(_SC_NPROCESSORS_ONLN));
#if defined(__x86_64__)
    __builtin_cpu_init();
    char features[128];
    snprintf(features, sizeof features, "%s%s%s%s%s", __builtin_cpu_supports("avx2") ? "avx2 " : "",
             __builtin_cpu_supports("fma") ? "fma " : "", __builtin_cpu_supports("avx512f") ? "avx512 " : "",
             __builtin_cpu_supports("avx512vnni") ? "vnni " : "", cpu_best_isa() == ISA_AVX512BF16 ? "bf16" : "");
    say(r, "instructions", "%s", features);
#endif
    say(r, "kernels", "those for %s", isa_name(device_target(device).isa));
}

/* ---- memory and disk ----------------------------------------------------------------------------- */

static void say_space(Report *r)
{
    char a[32], b[32];
    uint64_t bytes;
    say(r, "memory", "%s, of which %s can be had now", format_bytes((double)memory_total_bytes(), a),
        format_bytes((double)memory_available_bytes(), b));
    if (dir_free_bytes(".", &bytes) == OK) say(r, "disk", "%s free in this directory", format_bytes((double)bytes, a));
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) say(r, "open files", "%llu at most", (unsigned long long)files.rlim_cur);
}

/* ---- speed --------------------------------------------------------------------------------------- */

enum { SWEEP_BYTES = 256 << 20 };

/* Eight running sums, so that the additions do not wait for each other; volatile keeps the walk. */
static uint64_t walk(const uint64_t *data, size_t n)
{
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++) sum[k] += data[i + k];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* Bytes per second read by all threads together from memory far beyond the caches; the best of several
 * walks, since neighbours only ever slow it down. 0 when there is no memory for it. */
static double measure_read(int threads, double seconds)
{
    size_t n = SWEEP_BYTES / sizeof(uint64_t), part = n / (size_t)threads;
    uint64_t *data = malloc(SWEEP_BYTES);
    volatile uint64_t sink = 0;
    double best = 0, end = 0;
    if (!data) return 0;
#pragma omp parallel num_threads(threads)
    memset(data + part * (size_t)omp_get_thread_num(), 1, part * sizeof *data);
    end = clock_s() + seconds;
    do {
        double start = clock_s();
        uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += walk(data + part * (size_t)omp_get_thread_num(), part);
        sink = sink + sum;
        double rate = (double)(part * (size_t)threads * sizeof *data) / (clock_s() - start);
        if (rate > best) best = rate;
    } while (clock_s() < end);
    free(data);
    return best;
}

static void say_speed(Report *r, const Device *device)
{
    Target t = device_target(device);
    double f32 = 0, bf16 = 0, read = 0;
    for (int i = 0; i < 3; i++) { /* in turns, so that a short disturbance spoils no figure for good */
        f32 = fmax(f32, probe_peak_flop_per_s(t.isa, DTYPE_F32, t.threads, 0.2));
        bf16 = fmax(bf16, probe_peak_flop_per_s(t.isa, DTYPE_BF16, t.threads, 0.2));
        read = fmax(read, measure_read(t.threads, 0.2));
    }
    say_rate(r, "matrix peak f32", "peak_f32_flop_per_s", f32, "FLOP");
    say_rate(r, "matrix peak bf16", "peak_bf16_flop_per_s", bf16, "FLOP");
    say_rate(r, "memory read", "memory_read_bytes_per_s", read, "B");
}

/* ---- libraries ------------------------------------------------------------------------------------- */

static void say_libraries(Report *r)
{
    char pcre2[64] = "?";
    unsigned xxh = XXH_versionNumber();
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    pcre2[strcspn(pcre2, " ")] = 0;
    say(r, "libraries", "jansson %s, PCRE2 %s, zstd %s, zlib %s, libyaml %s, xxHash %u.%u.%u", jansson_version_str(), pcre2,
        ZSTD_versionString(), zlibVersion(), yaml_get_version_string(), xxh / 10000, xxh / 100 % 100, xxh % 100);
    char mpi[64];
    say(r, "MPI", "%s", comm_mpi_version(mpi) ? mpi : "not built in (libopenmpi-dev): ranks are threads of one process");
    say(r, "CUDA", "not built in: the processor computes");
}

static Status run(const void *opaque, Operands operands)
{
    const DoctorFlags *o = opaque;
    (void)operands;
    Device *device;
    TRY(device_create_cpu((CpuOptions){.threads = (int)o->threads}, &device));
    Report report = {.json = o->json, .object = json_object()};
    say(&report, "drover", "%s", drover_version());
    say_processor(&report, device);
    say_space(&report);
    say_libraries(&report);
    say_speed(&report, device);
    if (o->json) {
        json_dumpf(report.object, stdout, JSON_COMPACT);
        putchar('\n');
    }
    json_decref(report.object);
    device_destroy(device);
    return OK;
}

const Command command_doctor = {
    .name = "doctor",
    .operands = "",
    .sentence = "what this machine has, and its measured speed",
    COMMAND_OPTIONS(DoctorFlags, options),
    .run = run,
};
