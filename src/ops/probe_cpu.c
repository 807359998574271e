/* Multiply-adds on twelve independent accumulators: enough to hide the latency of two units. All
 * loops over them are unrolled, so that they live in registers. */
#include "ops/kernel.h"
#include "ops/simd.h"

enum { ACCUMULATORS = 12 };

static double f32_loop(int64_t rounds)
{
    Vf acc[ACCUMULATORS], a = vf_set(1.0000001f), b = vf_set(1e-9f);
#pragma GCC unroll 12
    for (int i = 0; i < ACCUMULATORS; i++) acc[i] = vf_set((float)i);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < ACCUMULATORS; i++) acc[i] = vf_fma(acc[i], a, b);
        __asm__ volatile("" : "+m"(rounds)); /* each round is done */
    }
    float sum = 0;
#pragma GCC unroll 12
    for (int i = 0; i < ACCUMULATORS; i++) sum += vf_sum(acc[i]);
    volatile float sink = sum;
    (void)sink;
    return (double)rounds * ACCUMULATORS * VL * 2;
}

#if defined(__AVX512BF16__)
static double bf16_loop(int64_t rounds)
{
    __m512 acc[ACCUMULATORS];
    __m512i one = _mm512_set1_epi16(0x3c23); /* about 0.01: nothing grows */
    __m512bh a, b;
    memcpy(&a, &one, 64);
    memcpy(&b, &one, 64);
#pragma GCC unroll 12
    for (int i = 0; i < ACCUMULATORS; i++) acc[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < ACCUMULATORS; i++) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
        __asm__ volatile("" : "+m"(rounds));
    }
    float sum = 0;
#pragma GCC unroll 12
    for (int i = 0; i < ACCUMULATORS; i++) sum += vf_sum(acc[i]);
    volatile float sink = sum;
    (void)sink;
    return (double)rounds * ACCUMULATORS * 64;
}
#endif

static double loop(DType dtype, int64_t rounds)
{
#if defined(__AVX512BF16__)
    if (dtype == DTYPE_BF16) return bf16_loop(rounds);
#endif
    (void)dtype;
    return f32_loop(rounds);
}

typedef double ProbeLoop(DType dtype, int64_t rounds);
extern ProbeLoop *const CPU(probe);
ProbeLoop *const CPU(probe) = loop;
