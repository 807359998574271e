/* What the collective ops and their kernels share. Internal to ops/. */
#ifndef OPS_COLLECTIVE_H
#define OPS_COLLECTIVE_H

#include "ops/ops.h"

typedef struct CollectiveAttr {
    MeshAxis axis;
    int n, rank; /* of the mesh axis */
    int dim;     /* that is cut, or PLACE_FLAT; all_reduce: unused */
    bool zigzag; /* dim is cut into 2n blocks; rank r holds blocks r and 2n - 1 - r (balanced causal attention) */
    Shape whole; /* of the gathered value */
} CollectiveAttr;

/* Elements of a flat part: equal for all ranks, the last ones padded. */
static inline int64_t collective_flat_part(int64_t count, int n) { return ((count + n - 1) / n + 15) / 16 * 16; }
/* Elements of the whole that rank r's flat part really holds. */
static inline int64_t collective_flat_count(int64_t count, int n, int r)
{
    int64_t part = collective_flat_part(count, n), left = count - part * r;
    return left < 0 ? 0 : left < part ? left : part;
}

/* Elements of rank r's part in what is exchanged. */
static inline int64_t collective_part_count(const CollectiveAttr *attr, int r)
{
    int64_t count = shape_count(&attr->whole);
    return attr->dim == PLACE_FLAT ? collective_flat_count(count, attr->n, r) : count / attr->n;
}

#endif
