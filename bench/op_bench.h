/* What the benches of kernels share: which instruction set, how an op is timed, the peak. */
#ifndef BENCH_OP_BENCH_H
#define BENCH_OP_BENCH_H

#include "ops/kernel.h"
#include "ops/probe.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OP_BENCH_MOST_RUNS = 40 };

/* The one named, or the best that this processor has. */
static inline Isa op_bench_isa(const char *name)
{
    for (int i = 0; i < ISA_COUNT && name; i++)
        if (!strcmp(name, isa_name((Isa)i))) return (Isa)i;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16")) return ISA_AVX512BF16;
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) return ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ISA_AVX2;
#endif
    return ISA_GENERIC;
}

/* One thread is timed by its own clock, which a busy machine disturbs less. */
static inline double op_bench_now_s(int threads)
{
    struct timespec t;
    if (threads > 1) return clock_s();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int op_bench_order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Best and median seconds of up to most_runs runs over about 0.3 s, after one that is not timed. */
static inline Status op_bench_time(const Kernel *kernel, KernelArgs *args, int most_runs,
                                   double took_s[2])
{
    double run_s[OP_BENCH_MOST_RUNS], start = clock_s();
    int n = 0;
    TRY(kernel->run(args));
    while (n < most_runs && (n < 5 || clock_s() - start < 0.3)) {
        double t = op_bench_now_s(args->threads);
        TRY(kernel->run(args));
        run_s[n++] = op_bench_now_s(args->threads) - t;
    }
    qsort(run_s, (size_t)n, sizeof *run_s, op_bench_order);
    took_s[0] = run_s[0];
    took_s[1] = run_s[n / 2];
    return OK;
}

/* GFLOP/s of the multiply-add units in f32 and in bf16; says them. */
static inline void op_bench_peaks(const Target *target, double peak[2])
{
    for (int d = 0; d < 2; d++)
        peak[d] = 1e-9 * probe_peak_flop_per_s(target->isa, d ? DTYPE_BF16 : DTYPE_F32,
                                               target->threads, 0.2);
    printf("%s, %d threads: peak f32 %.1f, bf16 %.1f GFLOP/s\n", isa_name(target->isa),
           target->threads, peak[0], peak[1]);
}

#endif
