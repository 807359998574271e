/* What grouped_linear's rules and kernels share. */
#ifndef OPS_GROUPED_LINEAR_H
#define OPS_GROUPED_LINEAR_H

#include "ops/ops.h"

typedef struct GroupedAttr {
    ExpertLayout layout;
    Shape weight; /* grouped_linear_dw only: the shape of dw, which its operands do not tell */
} GroupedAttr;

typedef struct ChunkedGroupedAttr {
    int64_t axis; /* of the weight, that the rows meet */
    Chunks chunks;
} ChunkedGroupedAttr;

/* The axis of the weight that x meets; y has the other one of axes 1 and 2. */
static inline int grouped_in_axis(const GroupedAttr *attr)
{
    return attr->layout == EXPERTS_OUT_IN ? 2 : 1;
}

/* rows [R n] against axis `axis` of the weight, and offsets of E segments of rows, or E n when n
 * ranks sent them */
Status grouped_check(const InferCtx *ctx, const Value *rows, const Shape *w, int axis,
                     const Value *offsets);
Cost grouped_cost(const Graph *g, const Node *node);

#endif
