/* The search's coarse stage: memory and time of a layout from profiles of its layers, by formulas,
 * in a microsecond. Only to choose what is simulated. Internal to planner/. */
#ifndef PLANNER_ESTIMATE_H
#define PLANNER_ESTIMATE_H

#include "planner/profile.h"

/* What a layout adds to a LayerCut. */
typedef struct Spread {
    int64_t pp, dp, fsdp, zero, virtual_stages;
    const char *schedule;
    int64_t n_micro;
} Spread;

typedef struct Estimate {
    double bytes, step_s;
} Estimate;
/* sim: of the layout's mesh. n_layers: of the whole model. */
Estimate estimate_layout(const Sim *sim, const Profile *profile, const Spread *spread,
                         int64_t n_layers);

#endif
