/* What quantise makes, in double precision: rounding by division and rint, not by bits. For tests.
 */
#ifndef OPS_QUANTISE_TESTKIT_H
#define OPS_QUANTISE_TESTKIT_H

#include "ops/optest.h"
#include "ops/quantise.h"

#include <math.h>
#include <stdlib.h>

/* To nearest even among the numbers of the format, the largest at most. */
static inline double kit_round_8(DType dtype, double x)
{
    int mantissa = dtype == DTYPE_F8_E5M2 ? 2 : 3, least = dtype == DTYPE_F8_E5M2 ? -14 : -6, e;
    double largest = (double)f8_largest(dtype);
    if (x == 0 || isnan(x)) return x;
    (void)frexp(x, &e);
    double step = ldexp(1, (e - 1 > least ? e - 1 : least) - mantissa), y = rint(x / step) * step;
    return fabs(y) > largest ? copysign(largest, y) : y;
}

/* Lines of a matrix: its rows, or its columns. */
typedef struct KitLines {
    const double *x;
    int64_t n, width, line_stride, stride;
} KitLines;

static inline KitLines kit_rows(const double *x, int64_t rows, int64_t columns)
{
    return (KitLines){x, rows, columns, columns, 1};
}
static inline KitLines kit_columns(const double *x, int64_t rows, int64_t columns)
{
    return (KitLines){x, columns, rows, 1, columns};
}

static inline double kit_at(const KitLines *l, int64_t line, int64_t k)
{
    return l->x[line * l->line_stride + k * l->stride];
}

/* The largest |x| of what shares the scale of element k of a line. */
static inline double kit_most(const KitLines *l, ScalingUnit scaling, int64_t line, int64_t k)
{
    const int64_t w = SCALING_WIDTH;
    bool row = scaling == SCALING_ROW, square = scaling == SCALING_SQUARE;
    int64_t first = square ? line / w * w : line, last = square ? first + w - 1 : line;
    int64_t from = row ? 0 : k / w * w, to = row ? l->width - 1 : from + w - 1;
    double most = 0;
    for (int64_t i = first; i <= last && i < l->n; i++)
        for (int64_t j = from; j <= to && j < l->width; j++)
            most = fmax(most, fabs(kit_at(l, i, j)));
    return most;
}

static inline float kit_scale(DType dtype, double most)
{
    return fmaxf((float)most / f8_largest(dtype), FLT_MIN);
}

/* q [n width]; scale as scaling_shape says; either may be NULL. */
static inline void kit_quantise(const KitLines *l, DType dtype, ScalingUnit scaling, double *q,
                                double *scale)
{
    const int64_t w = SCALING_WIDTH, pitch = scaling_square_pitch(l->width);
    for (int64_t i = 0; scaling == SCALING_SQUARE && scale && i < scaling_blocks(l->n) * pitch; i++)
        scale[i] = 0;
    for (int64_t i = 0; i < l->n; i++)
        for (int64_t b = 0; b < scaling_blocks(l->width); b++) {
            float s = kit_scale(dtype, kit_most(l, scaling, i, b * w)), inverse = 1 / s;
            int64_t at = scaling == SCALING_SQUARE ? i / w * pitch + b
                         : scaling == SCALING_ROW  ? i
                                                   : b * l->n + i;
            if (scale) scale[at] = (double)s;
            for (int64_t k = b * w; q && k < l->width && k < (b + 1) * w; k++)
                q[i * l->width + k] = kit_round_8(dtype,
                                                  (double)((float)kit_at(l, i, k) * inverse));
        }
}

/* The numbers that q and scale stand for: [n width], to be freed. */
static inline double *kit_rounded(const KitLines *l, DType dtype, ScalingUnit scaling)
{
    const int64_t w = SCALING_WIDTH;
    double *q = xcalloc((size_t)(l->n * l->width), sizeof *q);
    kit_quantise(l, dtype, scaling, q, NULL);
    for (int64_t i = 0; i < l->n; i++)
        for (int64_t b = 0; b < scaling_blocks(l->width); b++) {
            double scale = (double)kit_scale(dtype, kit_most(l, scaling, i, b * w));
            for (int64_t k = b * w; k < l->width && k < (b + 1) * w; k++)
                q[i * l->width + k] *= scale;
        }
    return q;
}

#endif
