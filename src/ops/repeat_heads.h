/* What repeat_heads and its kernels share. Internal to ops/. */
#ifndef OPS_REPEAT_HEADS_H
#define OPS_REPEAT_HEADS_H

#include "ops/ops.h"

/* Of heads x copies, this rank makes so many, from one on; copy j is of head j / copies. */
typedef struct RepeatHeadsAttr {
    int64_t heads, copies, first, made;
} RepeatHeadsAttr;

#endif
