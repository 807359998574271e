/* How expert_sort cuts its work on GPUs. Internal to ops/. */
#ifndef OPS_EXPERT_SORT_H
#define OPS_EXPERT_SORT_H

#include <stdint.h>

/* (token, choice) pairs that one warp sorts, one after the other. */
enum { GPU_SORT_RUN = 512 };
static inline int64_t gpu_sort_runs(int64_t pairs)
{
    return (pairs + GPU_SORT_RUN - 1) / GPU_SORT_RUN;
}

#endif
