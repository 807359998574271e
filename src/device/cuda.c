/* The cuda device: a GPU and the stream on which programs run. */
#include "device/device_internal.h"
#include "gpu/tune.h"

#include <stdlib.h>

Status device_create_cuda(CudaOptions options, Device **out)
{
    Device *device = xcalloc(1, sizeof *device);
    Status status = gpu_open(options.index, &device->gpu);
    if (status == OK) status = gpu_stream_create(device->gpu, &device->stream);
    if (status != OK) {
        device_destroy(device);
        return status;
    }
    const GpuInfo *info = gpu_info(device->gpu);
    gpu_product_tune(device->gpu, options.choices);
    device->tunes = options.choices;
    device_join(device, options.world, options.mesh);
    if (options.world) comm_join_gpu(options.world, device->stream);
    device->target = (Target){.isa = ISA_GENERIC, .threads = 1, .gpu = true};
    snprintf(device->text, sizeof device->text, "GPU %d: %s, %d multiprocessors", info->index,
             info->name, info->multiprocessors);
    *out = device;
    return OK;
}
