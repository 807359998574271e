/* Where GPUs cannot exchange among themselves: the host carries the data. Included by the file that
 * stands for such a device. */
#ifndef GPU_NO_EXCHANGE_H
#define GPU_NO_EXCHANGE_H

#include "gpu/gpu.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

static Status no_exchange(void)
{
    return fail(ERR_UNSUPPORTED, "these GPUs do not exchange among themselves");
}

bool gpu_can_exchange(Gpu *gpu) { return false; }
void gpu_group_destroy(GpuGroup *group) {}

#define NO_EXCHANGE(name, ...)                                                                     \
    Status name(__VA_ARGS__) { return no_exchange(); }
NO_EXCHANGE(gpu_group_id, Gpu *gpu, uint8_t id[GPU_GROUP_ID_BYTES])
NO_EXCHANGE(gpu_group_create, GpuStream *stream, const uint8_t id[GPU_GROUP_ID_BYTES], int n,
            int rank, GpuGroup **group)
NO_EXCHANGE(gpu_group_look, GpuGroup *group, bool *ready)
NO_EXCHANGE(gpu_all_reduce, GpuGroup *group, const void *send, void *recv, int64_t count,
            DType dtype, GpuReduce reduce)
NO_EXCHANGE(gpu_all_gather, GpuGroup *group, const void *send, void *recv, int64_t count,
            DType dtype)
NO_EXCHANGE(gpu_reduce_scatter, GpuGroup *group, const void *send, void *recv, int64_t count,
            DType dtype)
NO_EXCHANGE(gpu_reduce, GpuGroup *group, const void *send, void *recv, int64_t count, DType dtype,
            int root)
NO_EXCHANGE(gpu_broadcast, GpuGroup *group, const void *send, void *recv, int64_t count,
            DType dtype, int root)
NO_EXCHANGE(gpu_batch_begin, GpuGroup *group)
NO_EXCHANGE(gpu_batch_end, GpuGroup *group)
NO_EXCHANGE(gpu_send, GpuGroup *group, const void *data, int64_t count, DType dtype, int to)
NO_EXCHANGE(gpu_recv, GpuGroup *group, void *data, int64_t count, DType dtype, int from)
#undef NO_EXCHANGE
#pragma GCC diagnostic pop

#endif
