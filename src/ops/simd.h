/* Vectors of f32, as wide as the instruction-set level that this file is compiled for (see
 * kernel.h): 16, 8 or 4 lanes. GCC's vector types give + - * / and comparisons; here are loads,
 * stores with conversion from and to bf16, reductions in a fixed order, and exp. Only *_cpu.c files
 * include it.
 */
#ifndef OPS_SIMD_H
#define OPS_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { VL = 16 };
#elif defined(__AVX2__)
enum { VL = 8 };
#else
enum { VL = 4 };
#endif

typedef float Vf __attribute__((vector_size(VL * 4)));
typedef int32_t Vi __attribute__((vector_size(VL * 4)));
#define SIMD static inline __attribute__((always_inline))

/* a plain broadcast; (Vf){0} + x would cost an addition and lose the sign of -0 */
SIMD Vf vf_set(float x)
{
#if defined(__AVX512F__)
    return _mm512_set1_ps(x);
#elif defined(__AVX2__)
    return _mm256_set1_ps(x);
#else
    return (Vf){x, x, x, x};
#endif
}
SIMD Vf vf_zero(void) { return (Vf){0}; }
SIMD Vf vf_load(const float *p)
{
    Vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
SIMD void vf_store(float *p, Vf v) { memcpy(p, &v, sizeof v); }
/* Element i is element order[i] of a and b laid end to end. clang asks for constants where gcc
 * finds out. */
SIMD Vf vf_shuffle(Vf a, Vf b, Vi order)
{
#if defined(__clang__)
    Vf y;
    for (int i = 0; i < VL; i++) y[i] = order[i] < VL ? a[order[i]] : b[order[i] - VL];
    return y;
#else
    return __builtin_shuffle(a, b, order);
#endif
}

/* VL x VL elements in place: log2(VL) rounds that interleave the first half of the rows with the
 * second. With AVX2 the rounds take pairs, fours and halves instead, eight instructions each. */
SIMD void vf_transpose(Vf m[VL])
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    Vf t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        m[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        m[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        m[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        m[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(m[i], m[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(m[i], m[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) m[i] = t[i];
#else
    Vi low, high;
    for (int i = 0; i < VL; i++) {
        low[i] = i / 2 + i % 2 * VL;
        high[i] = low[i] + VL / 2;
    }
#pragma GCC unroll 4
    for (int round = 1; round < VL; round *= 2) {
        Vf t[VL];
#pragma GCC unroll 16
        for (int i = 0; i < VL / 2; i++) {
            t[2 * i] = vf_shuffle(m[i], m[i + VL / 2], low);
            t[2 * i + 1] = vf_shuffle(m[i], m[i + VL / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) m[i] = t[i];
    }
#endif
}

SIMD Vi vi_bits(Vf v)
{
    Vi b;
    memcpy(&b, &v, sizeof b);
    return b;
}
SIMD Vf vf_bits(Vi b)
{
    Vf v;
    memcpy(&v, &b, sizeof v);
    return v;
}

SIMD Vf vf_fma(Vf a, Vf b, Vf c)
{
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

SIMD Vf vf_max(Vf a, Vf b)
{
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    Vi m = a > b;
    return vf_bits((vi_bits(a) & m) | (vi_bits(b) & ~m));
#endif
}

SIMD Vf vf_min(Vf a, Vf b)
{
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    Vi m = a < b;
    return vf_bits((vi_bits(a) & m) | (vi_bits(b) & ~m));
#endif
}

/* n lanes from p, the others zero; reads nothing past p[n-1] */
SIMD Vf vf_load_n(const float *p, int64_t n)
{
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    float t[VL] = {0};
    memcpy(t, p, (size_t)n * 4);
    return vf_load(t);
#endif
}
SIMD void vf_store_n(float *p, Vf v, int64_t n)
{
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#else
    memcpy(p, &v, (size_t)n * 4);
#endif
}

SIMD Vf vf_load_bf16(const uint16_t *p)
{
#if defined(__AVX512F__)
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#elif defined(__AVX2__)
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#else
    Vi b;
    for (int i = 0; i < VL; i++) b[i] = (int32_t)((uint32_t)p[i] << 16);
    return vf_bits(b);
#endif
}

/* round to nearest even; NaN stays NaN */
SIMD void vf_store_bf16(uint16_t *p, Vf v)
{
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh(v);
    memcpy(p, &h, 32);
#elif defined(__AVX512F__)
    __m512i b = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(
        _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(r));
#else
    Vi b = vi_bits(v), nan = v != v;
    Vi r = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    r = (r & ~nan) | (0x7fc0 & nan);
#if defined(__AVX2__)
    r &= 0xffff;
    __m256i halves = _mm256_packus_epi32((__m256i)r, (__m256i)r); /* in each half of the vector */
    halves = _mm256_permute4x64_epi64(halves, 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(halves));
#else
    for (int i = 0; i < VL; i++) p[i] = (uint16_t)r[i];
#endif
#endif
}

SIMD Vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[VL] = {0};
    memcpy(t, p, (size_t)n * 2);
    return vf_load_bf16(t);
}
SIMD void vf_store_bf16_n(uint16_t *p, Vf v, int64_t n)
{
    uint16_t t[VL];
    vf_store_bf16(t, v);
    memcpy(p, t, (size_t)n * 2);
}

/* halves added pairwise down to one lane: the same order at every call */
SIMD float vf_sum(Vf v)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m128 t = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
    t += _mm_movehl_ps(t, t);
    return t[0] + t[1];
#else
    float t[VL];
    vf_store(t, v);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    return t[0];
#endif
}
SIMD float vf_max_lane(Vf v)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
#else
    float t[VL], m;
    vf_store(t, v);
    m = t[0];
    for (int i = 1; i < VL; i++) m = t[i] > m ? t[i] : m;
    return m;
#endif
}

/* p 2^n for whole n; 0 and infinity where the exponent does not reach. */
SIMD Vf vf_times_power(Vf p, Vf n)
{
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    /* two steps, so that 2^n may be subnormal or overflow properly; n in the low bits of n + 1.5 *
     * 2^23 */
    const Vf magic = vf_set(12582912.0f);
    Vi whole = vi_bits(n + magic) - vi_bits(magic), half = whole >> 1;
    return p * vf_bits((half + 127) << 23) * vf_bits((whole - half + 127) << 23);
#endif
}

/* e^x to about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial for e^r with
 * the coefficients of Cephes' expf, then the exponent by bits. Far below -87: 0; above 88.7: inf;
 * NaN stays NaN, because the second operand of a minimum or maximum is what comes out of one. */
SIMD Vf vf_exp(Vf x)
{
    const Vf log2e = vf_set(1.44269504f),
             magic = vf_set(12582912.0f); /* 1.5 * 2^23 rounds to int */
    Vf clamped = vf_min(vf_set(89.0f), vf_max(vf_set(-104.0f), x));
    Vf n = vf_fma(clamped, log2e, magic) - magic;
    Vf r = vf_fma(n, vf_set(-0.693359375f), clamped);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    Vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p * r, r, r + vf_set(1.0f));
    return vf_times_power(p, n);
}

/* 1 / (1 + e^-x) */
SIMD Vf vf_sigmoid(Vf x) { return vf_set(1.0f) / (vf_set(1.0f) + vf_exp(-x)); }

/* Loads and stores chosen by dtype: kernels are written once, as a macro or an inline function with
 * a constant `bf16`, and the compiler drops the other branch. */
SIMD Vf vf_load_as(const void *p, int64_t i, int bf16)
{
    return bf16 ? vf_load_bf16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}
SIMD void vf_store_as(void *p, int64_t i, Vf v, int bf16)
{
    if (bf16)
        vf_store_bf16((uint16_t *)p + i, v);
    else
        vf_store((float *)p + i, v);
}
SIMD Vf vf_load_as_n(const void *p, int64_t i, int64_t n, int bf16)
{
    return bf16 ? vf_load_bf16_n((const uint16_t *)p + i, n) : vf_load_n((const float *)p + i, n);
}
SIMD void vf_store_as_n(void *p, int64_t i, Vf v, int64_t n, int bf16)
{
    if (bf16)
        vf_store_bf16_n((uint16_t *)p + i, v, n);
    else
        vf_store_n((float *)p + i, v, n);
}

#endif
