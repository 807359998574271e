/* What rope.c, query_temperature.c and their kernels share: the attributes. */
#ifndef OPS_ROPE_INTERNAL_H
#define OPS_ROPE_INTERNAL_H

#include "ops/ops.h"

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

extern const OpDef op_def_rope_table, op_def_rope, op_def_query_temperature;

#endif
