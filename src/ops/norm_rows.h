/* What the kernels of norms share: sums over a row, and sums over rows in blocks that the shape
 * alone decides. Included by *_cpu.c files only. */
#ifndef OPS_NORM_ROWS_H
#define OPS_NORM_ROWS_H

#include "ops/elementwise.h"
#include "ops/row_blocks.h"

enum {
    NORM_PARALLEL = 16384, /* rows of less than this many elements in all are not worth waking
                              threads */
    NORM_TOGETHER = 4,     /* rows whose parts of dw are added before they go to memory */
};

/* Sums over a row go to four vectors in turn, which hides the latency of the addition. */
typedef struct Sum {
    Vf part[4];
} Sum;
SIMD float sum_total(const Sum *s)
{
    return vf_sum((s->part[0] + s->part[1]) + (s->part[2] + s->part[3]));
}
SIMD float inverse_root(float squares, int64_t n, float eps)
{
    return 1.0f / sqrtf(squares / (float)n + eps);
}

/* h = a + b as it is stored, so that fused and unfused graphs give the same bits. */
SIMD void step_add(int64_t i, int64_t m, void *h, const void *a, const void *b, int bf16)
{
    store_part(h, i, m, load_part(a, i, m, bf16) + load_part(b, i, m, bf16), bf16);
}

/* NULL where the rows are left out */
static inline void *row_at(const Rows *rows, int64_t i, int bf16)
{
    return !rows->data ? NULL : bf16 ? (void *)row_bf16(rows, i) : (void *)row_f32(rows, i);
}

/* The partial sums of blocks, `pitch` elements from block to block, in their order. */
static inline void sum_blocks(const float *partial, int64_t blocks, int64_t pitch, int64_t n,
                              float *sum)
{
    for (int64_t i = 0; i < n; i++) {
        float s = 0;
        for (int64_t b = 0; b < blocks; b++) s += partial[b * pitch + i];
        sum[i] = s;
    }
}

#endif
