/* What a layer takes, for the search's coarse stage: measured on a short pipeline of the same
 * model, simulated once for all layouts that cut a layer and a micro-batch in the same way.
 * Internal to planner/. */
#ifndef PLANNER_PROFILE_H
#define PLANNER_PROFILE_H

#include "planner/planner_internal.h"

/* How a layer is cut and computed. */
typedef struct LayerCut {
    int64_t tp, cp, ep, micro_batch;
    RunRecompute recompute;
    bool splits; /* gradients of weights apart from those of inputs, and kept for them what both
                    read */
} LayerCut;

/* A stage of one period of layers, one micro-batch, without replicas. */
typedef struct StageProfile {
    double forward_s, backward_s; /* backward: with gradients of weights */
    double held_bytes;            /* for one micro-batch that is in flight */
    double step_bytes;
    double message_bytes, input_bytes;
    double weights, copies, moments, gradients; /* bytes */
    double largest_layer; /* of copies, or of weights where there are none: what fsdp gathers at a
                             time */
} StageProfile;

typedef struct Profile {
    LayerCut cut;
    bool good; /* such a cut divides */
    StageProfile first, middle, last;
    int64_t period; /* layers of each */
} Profile;

/* Layers after which their kinds repeat. */
int64_t profile_period(const ModelConfig *model);
/* A cut that does not divide is OK and not `good`. */
Status profile_make(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                    LayerCut cut, Profile *out);

#endif
