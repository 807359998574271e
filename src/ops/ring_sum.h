/* What ring_sum, its kernel and pass/ring share. Internal to ops/ and pass/. */
#ifndef OPS_RING_SUM_H
#define OPS_RING_SUM_H

#include "ops/ops.h"

typedef struct RingSumAttr {
    MeshAxis axis;   /* of the ring */
    int hop;         /* x was made by the rank so many places behind this one */
    int halves;      /* which halves of the part x is of (HALF_*, collective.h) */
    int part, parts; /* the sum has `part` summands, and will have `parts` */
} RingSumAttr;

Status op_ring_sum(Graph *g, ValueId sum, ValueId x, const RingSumAttr *attr, ValueId *y);

#endif
