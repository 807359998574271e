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
    bool folds;  /* whole experts over the ranks of tp and ep, instead of parts of each over tp */
} LayerCut;

/* A stage of one layer, one micro-batch, without replicas. */
typedef struct StageProfile {
    double forward_s, backward_s; /* backward: with gradients of weights */
    double held_bytes;            /* for one micro-batch that is in flight */
    double step_bytes;
    double message_bytes, input_bytes;
    double packed_bytes;                        /* of weights that are not gathered */
    double weights, copies, moments, gradients; /* bytes */
    double largest_layer; /* of copies, or of weights where there are none: what fsdp gathers at a
                             time */
} StageProfile;

/* Layers that are alike: experts or none, positions or none, the same chunks. */
enum { PROFILE_KINDS = 8 };
typedef struct LayerKinds {
    int64_t layer[PROFILE_KINDS]; /* the first of each */
    double share[PROFILE_KINDS];  /* of all layers */
    int n, first, last;           /* first, last: of the first and of the last layer */
} LayerKinds;
/* ERR_UNSUPPORTED: there are more. */
Status profile_kinds(const ModelConfig *model, LayerKinds *out);

typedef struct Profile {
    LayerCut cut;
    bool good; /* such a cut divides */
    LayerKinds kinds;
    StageProfile kind[PROFILE_KINDS], first, last; /* first: with the embedding; last: the loss */
} Profile;

/* A cut that does not divide is OK and not `good`. */
Status profile_make(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                    LayerCut cut, Profile *out);

#endif
