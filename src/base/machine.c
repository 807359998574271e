/* The clock, and what this process may use of the machine: cores and memory, limits of cgroup v2
 * (containers, Slurm steps, systemd units) included. */
#include "base/base.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double clock_read(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double clock_s(void) { return clock_read(CLOCK_MONOTONIC); }
double clock_wall_s(void) { return clock_read(CLOCK_REALTIME); }

/* ---- small files of /proc and /sys ------------------------------------------------------ */

/* The number after `key` at the start of a line, or of the file when key is "". */
static bool read_number(const char *path, const char *key, double *value)
{
    FILE *file = fopen(path, "re");
    if (!file) return false;
    char line[512];
    size_t length = strlen(key);
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) != 0) continue;
        char *end;
        *value = strtod(line + length, &end);
        found = end != line + length; /* "max" is no number */
    }
    fclose(file);
    return found;
}

/* What the limit files of our cgroup and of those around it say, the tightest of each. */
typedef struct Limits {
    double memory_bytes, memory_free_bytes, cores;
} Limits;

static void apply_level(const char *dir, Limits *limits)
{
    char path[4600];
    double max, now = 0, cached = 0, period;
    snprintf(path, sizeof path, "%s/memory.max", dir);
    if (read_number(path, "", &max)) {
        snprintf(path, sizeof path, "%s/memory.current", dir);
        read_number(path, "", &now);
        snprintf(path, sizeof path, "%s/memory.stat", dir);
        read_number(path, "inactive_file ",
                    &cached); /* counted as used, but given back on demand */
        double left = max - now + cached;
        if (max < limits->memory_bytes) limits->memory_bytes = max;
        if (left < limits->memory_free_bytes) limits->memory_free_bytes = left > 0 ? left : 0;
    }
    snprintf(path, sizeof path, "%s/cpu.max", dir); /* "quota period", or "max period" */
    FILE *file = fopen(path, "re");
    if (!file) return;
    if (fscanf(file, "%lf %lf", &max, &period) == 2 && period > 0 && max / period < limits->cores)
        limits->cores = max / period;
    fclose(file);
}

static Limits read_limits(void)
{
    Limits limits = {1e30, 1e30, 1e30};
    char line[4096], dir[4400];
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return limits;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "0::/", 4) != 0) continue; /* version 1 hierarchies have other numbers */
        line[strcspn(line, "\n")] = 0;
        snprintf(dir, sizeof dir, "/sys/fs/cgroup%s", line + 3);
        size_t root = strlen("/sys/fs/cgroup");
        while (strlen(dir) > root) {
            apply_level(dir, &limits);
            *strrchr(dir, '/') = 0;
        }
        apply_level(dir, &limits); /* inside a container the root is the container's own group */
    }
    fclose(file);
    return limits;
}

/* ---- cores and memory ------------------------------------------------------------------- */

static int affinity_count(void)
{
    for (int cores = 1024; cores <= 1 << 20; cores *= 2) { /* the kernel may know more than 1024 */
        cpu_set_t *set = CPU_ALLOC((size_t)cores);
        size_t bytes = CPU_ALLOC_SIZE((size_t)cores);
        if (!set) break;
        int n = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (n > 0) return n;
    }
    return 1;
}

int cpu_count(void)
{
    int n = affinity_count();
    double quota = read_limits().cores; /* 1.5 cores are worth two threads */
    return quota < (double)n ? (int)quota + (quota > (double)(int)quota) : n;
}

size_t memory_total_bytes(void)
{
    double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    double limit = read_limits().memory_bytes;
    return (size_t)(limit < machine ? limit : machine);
}

size_t memory_available_bytes(void)
{
    double machine_kib = 0, limit = read_limits().memory_free_bytes;
    if (!read_number("/proc/meminfo", "MemAvailable:", &machine_kib))
        machine_kib = (double)memory_total_bytes() / 1024;
    return (size_t)(limit < 1024 * machine_kib ? limit : 1024 * machine_kib);
}

size_t memory_peak_rss_bytes(void)
{
    double kib;
    if (read_number("/proc/self/status", "VmHWM:", &kib)) return (size_t)(1024 * kib);
    struct rusage usage; /* inherits the parent's peak across exec, hence the second choice */
    getrusage(RUSAGE_SELF, &usage);
    return (size_t)usage.ru_maxrss * 1024;
}
