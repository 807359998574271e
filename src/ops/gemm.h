/* Matrix products: C [m n] = or += sum over k of A(i, k) B(j, k), operands with any strides, f32 or
 * bf16. Internal to ops/.
 *
 * A GemmBlock is the work of one thread. B's lines are
 * packed into panels of gemm->columns lines, A's into panels of gemm->rows lines unless they can be
 * read in place; a tile of C stays in registers over a block of k. Who has many threads cuts C into
 * blocks by shape; an element of C is always summed in the same order, so any cut and any number of
 * threads give the same bits.
 *
 * Share of the register peak on one Zen 4 core, packing included; in brackets oneDNN 2.6.3's best
 * (weights packed, matmul or inner_product), measured beside an earlier version of ours;
 * bench/linear_bench.c measures anew:
 *                                   f32            bf16
 *     y   4096 tokens, 384 -> 2048  90% (93%)      89% (92%)
 *     dx                            93% (93%)      86% (92%)
 *     dw                            89% (87%)      84% (84%)
 *     y   2048 tokens, 768 -> 4096  91% (91%)      91%
 *     dx                            90% (94%)      87%
 *     dw                            88% (88%)      87%
 * The library was left out: it decides sizes at creation (experts have none then), creates for
 * milliseconds, sums in an order that depends on the threads, and needs AVX-512 for bf16.
 * Weights are packed for each product, or once a step (Target.packs), which holds them a second and
 * a third time, as y and dx read them along other axes. Packed for a product they are in L2 when
 * they are read; packed before, they come from memory, and more of them. Measured, the latter pays
 * with a few dozen rows, not with hundreds (docs/benchmarks.md).
 *
 *     GemmBlock product = {.m = 4096, .n = 640, .k = 384, .a = ..., .b = ..., .c = ..., .scratch =
 *     workspace};
 *     CPU(gemm).multiply(&product, args->threads);
 */
#ifndef OPS_GEMM_H
#define OPS_GEMM_H

#include "ops/kernel.h"

/* Line i (a row of A, a column of B), position k: data + (i * line_stride + k * k_stride) elements.
 */
typedef struct GemmOperand {
    const void *data;
    DType dtype; /* f32 or bf16 */
    int64_t line_stride, k_stride;
} GemmOperand;

typedef struct GemmBlock {
    int64_t m, n, k;
    GemmOperand a, b; /* of one dtype */
    void *c;
    DType c_dtype;
    int64_t c_pitch; /* elements */
    bool add;        /* C += ; f32 only */
    void *scratch;   /* 64-byte aligned */
    /* What Gemm.pack made of B's lines from the first of the block on; NULL: packed here. */
    const uint32_t *packed;
} GemmBlock;

/* One for each instruction-set level, as kernels are. */
typedef struct Gemm {
    int rows, columns; /* of a tile; cuts at their multiples waste nothing */
    /* One block on the calling thread; scratch: block_scratch bytes, which do for any smaller n and
     * k. */
    void (*run)(const GemmBlock *block);
    size_t (*block_scratch)(const GemmBlock *block);
    /* A whole product on a team of threads; scratch: scratch bytes for that many threads. */
    void (*multiply)(const GemmBlock *product, int threads);
    size_t (*scratch)(const GemmBlock *product, int threads);
    /* All of B packed, for who reads it more than once: packed_bytes, 64-byte aligned; and where in
     * it line `line` begins, a multiple of columns. */
    size_t (*packed_bytes)(const GemmBlock *product);
    void (*pack)(const GemmBlock *product, uint32_t *packed, int threads);
    const uint32_t *(*packed_line)(const GemmBlock *product, const uint32_t *packed, int64_t line);
} Gemm;

/* A block of few rows, k contiguous in both operands, without scratch: gemm_dots_cpu.c. */
void CPU(gemm_dots)(const GemmBlock *block);

#if defined(__x86_64__)
extern const Gemm cpu_gemm_generic, cpu_gemm_avx2, cpu_gemm_avx512, cpu_gemm_avx512bf16;
#else
extern const Gemm cpu_gemm_generic;
#endif

#endif
