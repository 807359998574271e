/* Shared by the files of device/. */
#ifndef DEVICE_DEVICE_INTERNAL_H
#define DEVICE_DEVICE_INTERNAL_H

#include "device/device.h"

struct Device {
    Ranks ranks; /* first: a Ranks that a kernel is given is its device */
    Comm *world;
    Mesh mesh;
    Comm *group[1 << MESH_AXES]; /* by axes; made when first asked for */
    Target target;
    size_t allocated_bytes, peak_bytes;
    char text[128];
};

typedef struct DeviceMemory {
    char *at;
    size_t bytes; /* asked for and counted */
    void *map;
    size_t map_bytes;
} DeviceMemory;

/* ERR_MEMORY with the bytes asked and available when it cannot be had. */
Status device_alloc(Device *device, size_t bytes, const char *what, DeviceMemory *memory);
void device_free(Device *device, DeviceMemory *memory);

#endif
