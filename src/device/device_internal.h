/* Shared by the files of device/. */
#ifndef DEVICE_DEVICE_INTERNAL_H
#define DEVICE_DEVICE_INTERNAL_H

#include "device/device.h"
#include "gpu/gpu.h"

struct Device {
    Ranks ranks; /* first: a Ranks that a kernel is given is its device */
    Comm *world;
    Mesh mesh;
    Comm *group[1 << MESH_AXES]; /* by axes; made when first asked for */
    Target target;
    Gpu *gpu; /* NULL: the processor */
    GpuStream *stream;
    bool tunes; /* algorithms of products are tried out */
    size_t allocated_bytes, peak_bytes;
    char text[128];
};

typedef struct DeviceMemory {
    char *at;     /* for kernels */
    char *host;   /* the same bytes for the host: `at`, or a copy (NULL: there is none) */
    size_t bytes; /* asked for and counted */
    void *map;    /* of the host */
    size_t map_bytes;
} DeviceMemory;

/* What the host wants of memory that only the device can reach. */
typedef enum HostCopy {
    HOST_NONE,
    HOST_LAZY,   /* pages that cost nothing until they are touched */
    HOST_PINNED, /* from which copies need not be waited for */
} HostCopy;

/* Zeros. ERR_MEMORY with the bytes asked and available when it cannot be had. */
Status device_alloc(Device *device, size_t bytes, const char *what, HostCopy copy,
                    DeviceMemory *memory);
void device_free(Device *device, DeviceMemory *memory);

/* After programs were prepared: all ranks of the world take the lowest rank's choices for products
 * (gpu_product_tell). Nothing on a processor, alone, or where nothing is tried. */
Status device_agree(Device *device);

/* device.c, for cpu.c and cuda.c */
void device_join(Device *device, Comm *world, Mesh mesh);

#endif
