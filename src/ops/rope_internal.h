/* What rope.c, query_temperature.c and their kernels share: the attributes, the frequencies. */
#ifndef OPS_ROPE_INTERNAL_H
#define OPS_ROPE_INTERNAL_H

#include "ops/device_too.h"
#include "ops/ops.h"

#include <math.h>

typedef struct RopeTableAttr {
    int64_t head_dim;
    double theta;
    RopeScaling scaling;
} RopeTableAttr;

typedef struct RopeAttr {
    bool interleaved;
    bool inverse; /* turns back: the gradient */
} RopeAttr;

typedef struct QueryTemperatureAttr {
    float scale, floor_scale;
} QueryTemperatureAttr;

/* f_j = 1 / theta^(2j / d) and its scaling, each step rounded to f32 as the published models do. */
DEVICE_TOO static inline float rope_frequency(const RopeTableAttr *attr, int64_t j)
{
    float exponent = (float)(2 * j) / (float)attr->head_dim;
    float f = 1.0f / (float)pow(attr->theta, (double)exponent);
    const RopeScaling *s = &attr->scaling;
    if (s->factor == 0 || s->factor == 1) return f;
    float wavelength = (float)(2 * M_PI) / f;
    if (wavelength < s->original_max_position / s->high_freq_factor) return f;
    /* with low == high the middle band is empty, and its blend would be 0 / 0 */
    if (wavelength > s->original_max_position / s->low_freq_factor ||
        s->high_freq_factor == s->low_freq_factor)
        return f / s->factor;
    float smooth = (s->original_max_position / wavelength - s->low_freq_factor) /
                   (s->high_freq_factor - s->low_freq_factor);
    return (1 - smooth) * f / s->factor + smooth * f;
}

extern const OpDef op_def_rope_table, op_def_rope, op_def_query_temperature;

#endif
