/* What repeat_heads and its kernels share. Internal to ops/. */
#ifndef OPS_REPEAT_HEADS_H
#define OPS_REPEAT_HEADS_H

#include "ops/ops.h"

/* Of the tree in which copies are summed: there are fewer than 2^REPEAT_LEVELS of a head. */
enum { REPEAT_LEVELS = 10 };

/* Of heads x copies, this rank makes so many, from one on; copy j is of head j / copies. */
typedef struct RepeatHeadsAttr {
    int64_t heads, copies, first, made;
    bool f32; /* the gradient: in a canonical graph it is summed over ranks in f32 */
} RepeatHeadsAttr;

#endif
