/* The pass that cuts a graph along one mesh axis. The kinds of parallelism fill in its plan
 * (tensor.c, data.c,
 * ...). Internal to pass/. */
#ifndef PASS_SHARD_H
#define PASS_SHARD_H

#include "pass/pass.h"

typedef struct ShardPlan {
    MeshAxis axis;
    int n, rank;
    unsigned input_axes; /* bits by Axis: inputs are cut along these */
    unsigned state_axes; /* weights, their optimizer states, and caches along these */
    bool experts;        /* experts are shared out */
    bool flat;           /* other weights are cut flat and gathered where they are read */
    int zero; /* 1: weights are whole, their optimizer states (and masters of copies) cut flat; 2:
                 sums of gradients too */
    bool sequence; /* sums of activations are left cut along the sequence */
    bool ring; /* attention takes keys and values as they come round, and never has all (ring.c) */
    bool at_once; /* gradients are summed over the axis in every micro-batch */
    bool leaves;  /* outputs that are sums over the batch stay each rank's own summand */
    const Graph
        *like; /* another graph of the same step, cut already, whose sums this one reads; or NULL */
} ShardPlan;

Status pass_shard(Graph **graph, const ShardPlan *plan);

/* y: x in one run, itself where it is. */
Status shard_contiguous(Graph *g, ValueId x, ValueId *y);

/* Elements in each rank's part of a state that is cut flat. */
int64_t shard_flat_part(int64_t count, int n);

#endif
