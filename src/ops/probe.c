/* Rounds and threads of the peak probe, whose loops are in probe_cpu.c; walks through memory. */
#include "ops/probe.h"

#include "ops/kernel.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef double ProbeLoop(DType dtype, int64_t rounds); /* FLOP done by the calling thread */

#define DECLARE(isa) extern ProbeLoop *const cpu_probe_##isa
DECLARE(generic);
#if defined(__x86_64__)
DECLARE(avx2);
DECLARE(avx512);
DECLARE(avx512bf16);
#endif

static ProbeLoop *loop_for(Isa isa)
{
#if defined(__x86_64__)
    if (isa == ISA_AVX512BF16) return cpu_probe_avx512bf16;
    if (isa == ISA_AVX512) return cpu_probe_avx512;
    if (isa == ISA_AVX2) return cpu_probe_avx2;
#endif
    (void)isa;
    return cpu_probe_generic;
}

double probe_peak_flop_per_s(Isa isa, DType dtype, int threads, double seconds)
{
    ProbeLoop *loop = loop_for(isa);
    double best = 0, end = clock_s() + seconds;
    do {
        double rate = 0;
#pragma omp parallel num_threads(threads) reduction(+ : rate)
        { /* each thread by its own clock: one that is kept waiting does not slow the others'
             figures */
            double start = clock_s(), flop = loop(dtype, 100000);
            rate += flop / (clock_s() - start);
        }
        if (rate > best) best = rate;
    } while (clock_s() < end);
    return best;
}

/* ---- memory ----------------------------------------------------------------------------- */

enum { SWEEP_BYTES = 256 << 20 };

/* Eight running sums, so that the additions do not wait for each other; volatile keeps the walk. */
static uint64_t walk(const uint64_t *data, size_t n)
{
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++) sum[k] += data[i + k];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* Each thread goes through its part of the memory, and of `to` where it is not NULL. */
static double sweep(uint64_t *data, uint64_t *to, int threads, double seconds)
{
    size_t part = SWEEP_BYTES / sizeof *data / (size_t)threads;
    volatile uint64_t sink = 0;
    double best = 0, bytes = (double)(part * (size_t)threads * sizeof *data) * (to ? 2 : 1), end;
#pragma omp parallel num_threads(threads)
    {
        size_t at = part * (size_t)omp_get_thread_num();
        memset(data + at, 1, part * sizeof *data);
        if (to) memset(to + at, 1, part * sizeof *to);
    }
    end = clock_s() + seconds;
    do {
        double start = clock_s();
        uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        {
            size_t at = part * (size_t)omp_get_thread_num();
            if (to)
                memcpy(to + at, data + at, part * sizeof *to);
            else
                sum += walk(data + at, part);
        }
        sink = sink + sum;
        double rate = bytes / (clock_s() - start);
        if (rate > best) best = rate;
    } while (clock_s() < end);
    return best;
}

double probe_read_bytes_per_s(int threads, double seconds)
{
    uint64_t *data = malloc(SWEEP_BYTES);
    double rate = data ? sweep(data, NULL, threads, seconds) : 0;
    free(data);
    return rate;
}

double probe_copy_bytes_per_s(int threads, double seconds)
{
    uint64_t *data = malloc(SWEEP_BYTES), *to = malloc(SWEEP_BYTES);
    double rate = data && to ? sweep(data, to, threads, seconds) : 0;
    free(data);
    free(to);
    return rate;
}
