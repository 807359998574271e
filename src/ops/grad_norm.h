/* Between grad_norm.c and its kernel: the blocks whose sums are added in order. */
#ifndef OPS_GRAD_NORM_H
#define OPS_GRAD_NORM_H

#include <stdbool.h>
#include <stdint.h>

typedef struct GradNormAttr {
    unsigned cut_axes; /* mesh axes whose ranks hold parts of gradients */
    bool exact; /* the squares are summed without rounding, so that it does not matter who holds
                   what (exact_sum.h) */
} GradNormAttr;

enum { NORM_BLOCK = 65536 }; /* elements */

static inline int64_t norm_blocks(int64_t n) { return (n + NORM_BLOCK - 1) / NORM_BLOCK; }

/* On GPUs, where many are summed at once. */
enum { GPU_NORM_BLOCK = 32768 };

static inline int64_t gpu_norm_blocks(int64_t n)
{
    return (n + GPU_NORM_BLOCK - 1) / GPU_NORM_BLOCK;
}

#endif
