/* Shared by the files of the CUDA implementation. */
#ifndef GPU_CUDA_INTERNAL_H
#define GPU_CUDA_INTERNAL_H

#include "gpu/choices.h"

#include <cuda_runtime_api.h>

struct Gpu {
    GpuInfo info;
    void *products; /* what cuda_product.c keeps for the device; it frees it */
    void *nccl;     /* likewise cuda_exchange.c */
    GpuChoices choices;
    void *cudnn; /* and cuda_attention.c */
};

struct GpuStream {
    Gpu *gpu;
    cudaStream_t cuda;
    GpuSide *side;
    GpuLook *look;
    void *look_context;
};

/* ERR_DEVICE, or ERR_MEMORY, with CUDA's name of the error and what it was about. */
Status cuda_check(cudaError_t error, const char *what);
/* Launches of .cu files. */
cudaStream_t gpu_stream_cuda(GpuStream *stream);
Status gpu_launched(const char *kernel);
Status gpu_allowed(cudaError_t error, const char *kernel);

void cuda_products_close(Gpu *gpu);
void cuda_exchange_close(Gpu *gpu);
void cuda_attention_close(Gpu *gpu);

#endif
