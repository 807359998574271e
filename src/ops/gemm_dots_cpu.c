/* Products of a few rows, both operands contiguous along k, as dot products: nothing is packed, so
 * the weight is read once and in order, which is what decoding is limited by. A tile is 4 rows of A
 * by 4 lines of B, 16 sums of a vector each.
 */
#include "ops/gemm.h"
#include "ops/simd.h"

enum { TILE = 4 };
#if defined(__AVX512BF16__)
enum { PAIRS = 1 };
#else
enum { PAIRS = 0 };
#endif

/* elements that a vector step takes */
SIMD int64_t step_of(const int bf16) { return bf16 && PAIRS ? 2 * VL : VL; }

/* `left` elements from p, at most a step's, the others zero; bf16 stays packed in pairs */
SIMD Vf load_step(const char *p, int64_t left, const int bf16)
{
#if defined(__AVX512BF16__)
    if (bf16) {
        __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
        return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
    }
#endif
    return left >= VL ? vf_load_as(p, 0, bf16) : vf_load_as_n(p, 0, left, bf16);
}

SIMD Vf multiply_add(Vf a, Vf b, Vf sum, const int bf16)
{
#if defined(__AVX512BF16__)
    if (bf16) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
    (void)bf16;
    return vf_fma(a, b, sum);
}

static void store(const GemmBlock *block, int64_t row, int64_t line, float value)
{
    int64_t at = row * block->c_pitch + line;
    if (block->c_dtype == DTYPE_BF16)
        ((uint16_t *)block->c)[at] = bf16_from_f32(value);
    else
        ((float *)block->c)[at] = block->add ? ((float *)block->c)[at] + value : value;
}

/* rows, lines and bf16 are constants where this is used */
SIMD void tile(const int rows, const int lines, const int bf16, const GemmBlock *block, int64_t row,
               int64_t line)
{
    const int64_t size = bf16 ? 2 : 4, step = step_of(bf16);
    const int64_t a_line = block->a.line_stride * size, b_line = block->b.line_stride * size;
    const char *a = (const char *)block->a.data + row * a_line,
               *b = (const char *)block->b.data + line * b_line;
    Vf sum[TILE][TILE];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < lines; j++) sum[i][j] = vf_zero();
    for (int64_t k = 0; k < block->k; k += step) {
        Vf av[TILE];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++)
            av[i] = load_step(a + i * a_line + k * size, block->k - k, bf16);
#pragma GCC unroll 4
        for (int j = 0; j < lines; j++) {
            Vf bv = load_step(b + j * b_line + k * size, block->k - k, bf16);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) sum[i][j] = multiply_add(av[i], bv, sum[i][j], bf16);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < lines; j++) store(block, row + i, line + j, vf_sum(sum[i][j]));
}

SIMD void lines_of(const int lines, const int bf16, const GemmBlock *block, int64_t line)
{
    int64_t row = 0;
    for (; row + TILE <= block->m; row += TILE) tile(TILE, lines, bf16, block, row, line);
    for (; row < block->m; row++) tile(1, lines, bf16, block, row, line);
}

SIMD void all(const int bf16, const GemmBlock *block)
{
    int64_t line = 0;
    for (; line + TILE <= block->n; line += TILE) lines_of(TILE, bf16, block, line);
    for (; line < block->n; line++) lines_of(1, bf16, block, line);
}

void CPU(gemm_dots)(const GemmBlock *block)
{
    if (block->a.dtype == DTYPE_BF16)
        all(1, block);
    else
        all(0, block);
}
