/* How numbers of 8 bits and their scales lie: what quantise and linear_8 share. Internal to ops/.
 */
#ifndef OPS_QUANTISE_H
#define OPS_QUANTISE_H

#include "ops/ops.h"

#include <float.h>

typedef struct QuantiseAttr {
    DType dtype;
    ScalingUnit scaling;
    bool rows, columns; /* which results are wanted */
} QuantiseAttr;
enum { ROWS_Q, ROWS_SCALE, COLUMNS_Q, COLUMNS_SCALE }; /* its outputs */

typedef struct Linear8Attr {
    DType dtype;      /* of the result */
    ScalingUnit a, b; /* of its operands */
} Linear8Attr;

static inline int64_t scaling_blocks(int64_t n) { return (n + SCALING_WIDTH - 1) / SCALING_WIDTH; }

/* From one row of squares to the next. */
static inline int64_t scaling_square_pitch(int64_t width)
{
    return (scaling_blocks(width) + 3) / 4 * 4;
}

/* Of so many rows of `width` numbers. */
static inline Shape scaling_shape(ScalingUnit scaling, int64_t rows, int64_t width)
{
    int64_t dim[2] = {1, rows};
    if (scaling == SCALING_BLOCK) dim[0] = scaling_blocks(width);
    if (scaling == SCALING_SQUARE) {
        dim[0] = scaling_blocks(rows);
        dim[1] = scaling_square_pitch(width);
    }
    return shape_make(2, dim, NULL);
}

static inline float f8_largest(DType dtype) { return dtype == DTYPE_F8_E5M2 ? 57344.0f : 448.0f; }

#endif
