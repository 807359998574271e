/* What linear and its two gradient products share. Internal to ops/. */
#ifndef OPS_LINEAR_H
#define OPS_LINEAR_H

#include "ops/kernel.h"

/* Refuses operands that do not fit: rows [..., n] against axis w_axis of the weight [O I]. */
Status linear_check_operands(const InferCtx *ctx, const Value *rows, const Value *w,
                             int64_t w_axis);
/* Of rows times a weight into out. */
Cost linear_cost(const Graph *graph, ValueId rows, ValueId weight, ValueId out);

/* On GPUs: one product by the library. */
static inline size_t linear_gpu_workspace(const Graph *graph, const Node *node)
{
    (void)graph;
    (void)node;
    return GPU_PRODUCT_WORKSPACE_BYTES;
}

#endif
