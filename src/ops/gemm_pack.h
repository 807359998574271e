/* Packing for the products of gemm_cpu.c: lines of an operand become panels of words.
 *
 * A word is four bytes: one f32, or, where the processor multiplies bf16 (AVX512-BF16), two bf16
 * that are neighbours along k. Elsewhere bf16 becomes f32 here. A panel of `width` lines is stored
 * [word][line]; lines past the end are zero. Included by gemm_cpu.c only.
 */
#ifndef OPS_GEMM_PACK_H
#define OPS_GEMM_PACK_H

#include "ops/gemm.h"
#include "ops/simd.h"

enum {
    PACK_AHEAD = 8, /* words along k */
    CACHE_LINE = 64,
};
#if defined(__AVX512BF16__)
enum { PAIRS = 1 };
#else
enum { PAIRS = 0 };
#endif

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* elements along k in one word */
static int64_t per_word(DType dtype) { return dtype == DTYPE_BF16 && PAIRS ? 2 : 1; }

static int64_t element_bytes(const GemmOperand *o) { return o->dtype == DTYPE_BF16 ? 2 : 4; }

/* A window of an operand: `lines` lines from `line`, elements k0..k1-1. Its panels begin
 * panel_words times their width apart: as many words as it has along k, or more, where they are
 * part of longer ones. */
typedef struct Window {
    const GemmOperand *operand;
    int64_t line, lines, k0, k1;
    int64_t panel_words;
} Window;

/* where a line begins */
static const char *operand_line(const GemmOperand *o, int64_t line)
{
    return (const char *)o->data + line * o->line_stride * element_bytes(o);
}

static const char *element(const Window *w, int64_t line, int64_t k)
{
    const GemmOperand *o = w->operand;
    return (const char *)o->data +
           ((w->line + line) * o->line_stride + k * o->k_stride) * element_bytes(o);
}

static uint16_t half_at(const Window *w, int64_t line, int64_t k)
{
    uint16_t h;
    memcpy(&h, element(w, line, k), sizeof h);
    return h;
}

/* word `word` of the window's k range, of one line: the slow way, for edges */
static uint32_t word_at(const Window *w, int64_t line, int64_t word)
{
    uint32_t u;
    if (w->operand->dtype == DTYPE_F32) {
        memcpy(&u, element(w, line, w->k0 + word), sizeof u);
        return u;
    }
    if (!PAIRS) return (uint32_t)half_at(w, line, w->k0 + word) << 16;
    int64_t k = w->k0 + 2 * word;
    u = half_at(w, line, k);
    if (k + 1 < w->k1) u |= (uint32_t)half_at(w, line, k + 1) << 16;
    return u;
}

/* from word `first` on, of every panel */
static void pack_slow(uint32_t *out, int width, const Window *w, int64_t first, int64_t words)
{
    for (int64_t line = 0; line < w->lines; line += width, out += width * w->panel_words)
        for (int64_t q = first; q < words; q++)
            for (int64_t i = 0; i < width; i++)
                out[q * width + i] = line + i < w->lines ? word_at(w, line + i, q) : 0;
}

/* The rows to come are far apart in memory, beyond what the processor guesses. */
SIMD void prefetch_lines(const Window *w, int64_t k, int64_t n)
{
    const int64_t bytes = w->lines * element_bytes(w->operand);
    for (int64_t i = 0; i < n; i++) {
        const char *from = element(w, 0, k + i);
        for (int64_t b = 0; b < bytes; b += CACHE_LINE) __builtin_prefetch(from + b);
    }
}

#if defined(__AVX512F__)
SIMD __mmask16 mask_of(int64_t lanes)
{
    return (__mmask16)(lanes >= 16 ? 0xffffu : lanes <= 0 ? 0u : (1u << lanes) - 1);
}

SIMD __m512i words_of_16_lines(const Window *w, int64_t line, int64_t k, __mmask16 mask)
{
    const char *p = element(w, line, k);
    if (w->operand->dtype == DTYPE_F32) return _mm512_maskz_loadu_epi32(mask, p);
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    if (!PAIRS) return _mm512_slli_epi32(low, 16);
    p += w->operand->k_stride * 2;
    __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Lines are neighbours in memory: all panels of one k before the next k, so that memory is read in
 * long runs; a panel at a time would touch a page for every few words. */
SIMD void pack_neighbours(uint32_t *out, const int width, const Window *w)
{
    const int64_t per = per_word(w->operand->dtype), whole = (w->k1 - w->k0) / per;
    const int64_t words = ceil_div(w->k1 - w->k0, per);
    for (int64_t q = 0; q < whole; q++) {
        if (q + PACK_AHEAD < whole) prefetch_lines(w, w->k0 + (q + PACK_AHEAD) * per, per);
        for (int64_t line = 0; line < w->lines; line += width) {
            uint32_t *to = out + line * w->panel_words + q * width;
            for (int i = 0; i < width; i += 16)
                _mm512_mask_storeu_epi32(
                    to + i, mask_of(width - i),
                    words_of_16_lines(w, line + i, w->k0 + q * per, mask_of(w->lines - line - i)));
        }
    }
    pack_slow(out, width, w, whole, words);
}

/* rows of 16 words become columns */
SIMD void transpose_16(__m512i v[16])
{
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            v[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            v[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* Up to 16 words along k of one line. */
SIMD __m512i words_of_line(const Window *w, int64_t line, int64_t k, __mmask16 mask)
{
    const char *p = element(w, line, k);
    if (w->operand->dtype == DTYPE_F32 || PAIRS) return _mm512_maskz_loadu_epi32(mask, p);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
}

/* k is contiguous in memory: 16 lines x 16 words at a time. */
SIMD void pack_transposing(uint32_t *out, const int width, const Window *w)
{
    const int64_t per = per_word(w->operand->dtype), whole = (w->k1 - w->k0) / per;
    const int64_t words = ceil_div(w->k1 - w->k0, per);
    for (int64_t line = 0; line < w->lines; line += width)
        for (int64_t q = 0; q < whole; q += 16)
            for (int i = 0; i < width; i += 16) {
                __m512i v[16];
                for (int r = 0; r < 16; r++)
                    v[r] = line + i + r < w->lines
                               ? words_of_line(w, line + i + r, w->k0 + q * per, mask_of(whole - q))
                               : _mm512_setzero_si512();
                transpose_16(v);
                uint32_t *to = out + line * w->panel_words + q * width + i;
                for (int r = 0; r < 16 && q + r < whole; r++)
                    _mm512_mask_storeu_epi32(to + r * width, mask_of(width - i), v[r]);
            }
    pack_slow(out, width, w, whole, words);
}
#else
/* n words that lie one behind the other, n a constant; nothing is read or written past them */
SIMD void copy_words(uint32_t *to, const char *from, const int n, const int bf16)
{
    int i = 0;
    for (; i + VL <= n; i += VL) vf_store((float *)(void *)to + i, vf_load_as(from, i, bf16));
    if (i == n) return;
    if (!bf16) {
        memcpy(to + i, from + 4 * i, (size_t)(n - i) * 4);
        return;
    }
#if defined(__AVX2__)
    if (n - i == 6) { /* a panel of A */
        uint32_t last;
        memcpy(&last, from + 2 * i + 8, sizeof last);
        __m128i half = _mm_loadl_epi64((const __m128i *)(const void *)(from + 2 * i));
        half = _mm_insert_epi32(half, (int32_t)last, 2);
        __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
        _mm_storeu_si128((__m128i *)(void *)(to + i), _mm256_castsi256_si128(words));
        _mm_storel_epi64((__m128i *)(void *)(to + i + 4), _mm256_extracti128_si256(words, 1));
        return;
    }
#endif
    vf_store_n((float *)(void *)to + i,
               vf_load_bf16_n((const uint16_t *)(const void *)from + i, n - i), n - i);
}

/* Lines are neighbours in memory: all panels of one k before the next k, as above. */
SIMD void pack_neighbours(uint32_t *out, const int width, const int bf16, const Window *w)
{
    const int64_t words = w->k1 - w->k0, whole = w->lines / width * width;
    for (int64_t q = 0; q < words; q++) {
        const char *from = element(w, 0, w->k0 + q);
        if (q + PACK_AHEAD < words) prefetch_lines(w, w->k0 + q + PACK_AHEAD, 1);
        for (int64_t line = 0; line < whole; line += width)
            copy_words(out + line * w->panel_words + q * width, from + line * (bf16 ? 2 : 4), width,
                       bf16);
    }
    Window rest = *w;
    rest.line += whole, rest.lines -= whole;
    pack_slow(out + whole * w->panel_words, width, &rest, 0, words);
}

/* The first `lines` of VL lines, `pitch` bytes apart, of `words` words in whole vectors, to their
 * place in a panel. */
SIMD void transpose_lines(float *to, const int width, const int bf16, const char *from,
                          int64_t pitch, int64_t lines, int64_t words)
{
    for (int64_t q = 0; q < words; q += VL) {
        Vf v[VL];
#pragma GCC unroll 8
        for (int r = 0; r < VL; r++)
            v[r] = r < lines ? vf_load_as(from + r * pitch, q, bf16) : vf_zero();
        vf_transpose(v);
#pragma GCC unroll 8
        for (int r = 0; r < VL; r++) vf_store(to + (q + r) * width, v[r]);
    }
}

/* k is contiguous in memory, and width in whole vectors. */
SIMD void pack_transposing(uint32_t *out, const int width, const int bf16, const Window *w)
{
    const int64_t words = w->k1 - w->k0, whole = words / VL * VL,
                  pitch = w->operand->line_stride * (bf16 ? 2 : 4);
    for (int64_t line = 0; line < w->lines; line += width)
        for (int i = 0; i < width; i += VL) {
            float *to = (float *)(void *)out + line * w->panel_words + i;
            const char *from = element(w, line + i, w->k0);
            if (line + i + VL <= w->lines)
                transpose_lines(to, width, bf16, from, pitch, VL, whole);
            else
                transpose_lines(to, width, bf16, from, pitch, w->lines - line - i, whole);
        }
    pack_slow(out, width, w, whole, words);
}
#endif

/* all panels of the window */
SIMD void pack(uint32_t *out, const int width, const Window *w)
{
    const int64_t words = ceil_div(w->k1 - w->k0, per_word(w->operand->dtype));
#if defined(__AVX512F__)
    if (w->operand->line_stride == 1)
        pack_neighbours(out, width, w);
    else if (w->operand->k_stride == 1)
        pack_transposing(out, width, w);
    else
        pack_slow(out, width, w, 0, words);
#else
    const bool bf16 = w->operand->dtype == DTYPE_BF16, lines = w->operand->line_stride == 1;
    const bool k = w->operand->k_stride == 1 && width % VL == 0;
    if (lines && bf16)
        pack_neighbours(out, width, 1, w);
    else if (lines)
        pack_neighbours(out, width, 0, w);
    else if (k && bf16)
        pack_transposing(out, width, 1, w);
    else if (k)
        pack_transposing(out, width, 0, w);
    else
        pack_slow(out, width, w, 0, words);
#endif
}

#endif
