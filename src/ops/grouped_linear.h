/* What grouped_linear's rules and kernels share. */
#ifndef OPS_GROUPED_LINEAR_H
#define OPS_GROUPED_LINEAR_H

#include "ops/ops.h"

typedef struct GroupedAttr {
    ExpertLayout layout;
    Shape weight; /* grouped_linear_dw only: the shape of dw, which its operands do not tell */
} GroupedAttr;

/* The axis of the weight that x meets; y has the other one of axes 1 and 2. */
static inline int grouped_in_axis(const GroupedAttr *attr) { return attr->layout == EXPERTS_OUT_IN ? 2 : 1; }

#endif
