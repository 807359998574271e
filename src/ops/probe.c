/* Rounds and threads of the peak probe; the loops are in probe_cpu.c. */
#include "ops/probe.h"

#include "ops/kernel.h"

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
        { /* each thread by its own clock: one that is kept waiting does not slow the others' figures */
            double start = clock_s(), flop = loop(dtype, 100000);
            rate += flop / (clock_s() - start);
        }
        if (rate > best) best = rate;
    } while (clock_s() < end);
    return best;
}
