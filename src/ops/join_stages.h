/* What join_stages says of itself: join_stages.c, join_stages.cu. */
#ifndef OPS_JOIN_STAGES_H
#define OPS_JOIN_STAGES_H

#include "ops/kernel.h"

typedef struct JoinAttr {
    int peer; /* rank along pp */
} JoinAttr;

#endif
