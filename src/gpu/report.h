/* What `drover doctor` tells of GPUs beside GpuInfo. */
#ifndef GPU_REPORT_H
#define GPU_REPORT_H

#include "gpu/gpu.h"

/* "NCCL 2.27.3", or what is missing. */
const char *gpu_exchange_library(Gpu *gpu);

/* How one GPU reaches another one's memory. */
typedef struct GpuPeer {
    bool direct;  /* else the host's memory lies between them */
    bool atomics; /* also its atomics: over NVLink, not over PCIe */
} GpuPeer;
Status gpu_peer(int from, int to, GpuPeer *peer);

#endif
