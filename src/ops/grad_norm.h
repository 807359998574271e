/* Between grad_norm.c and its kernel: the blocks whose sums are added in order. */
#ifndef OPS_GRAD_NORM_H
#define OPS_GRAD_NORM_H

#include <stdint.h>

typedef struct GradNormAttr {
    unsigned cut_axes; /* mesh axes whose ranks hold parts of gradients */
} GradNormAttr;

enum { NORM_BLOCK = 65536 }; /* elements */

static inline int64_t norm_blocks(int64_t n) { return (n + NORM_BLOCK - 1) / NORM_BLOCK; }

#endif
