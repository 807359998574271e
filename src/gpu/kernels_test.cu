/* Kernels for gpu_test.c. */
#include "gpu/launch.cuh"

extern "C" {
Status test_sums(GpuStream *stream, const float *x, float *y, int n);
Status test_lanes(GpuStream *stream, int *y);
Status test_race(GpuStream *stream, int *y);
Status test_stuck(GpuStream *stream, int *y);
Status test_poison(GpuStream *stream, float *y);
}

/* y[b] = the sum of block b's part of x */
__global__ void sums_kernel(const float *x, float *y, int n)
{
    __shared__ float scratch[WARP];
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float sum = block_sum(i < n ? x[i] : 0, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

Status test_sums(GpuStream *stream, const float *x, float *y, int n)
{
    return GPU_LAUNCH(stream, (unsigned)ceil_div(n, 96), 96, 0, (sums_kernel), x, y, n);
}

/* y[6][32]: what lanes exchange */
__global__ void lanes_kernel(int *y)
{
    int lane = (int)threadIdx.x;
    y[lane] = __shfl_sync(FULL_WARP, 100 + lane, (lane + 5) % 32);
    y[32 + lane] = __shfl_xor_sync(FULL_WARP, lane, 3);
    y[64 + lane] = __shfl_up_sync(FULL_WARP, lane, 4);
    y[96 + lane] = __shfl_down_sync(FULL_WARP, lane, 4);
    y[128 + lane] = (int)__ballot_sync(FULL_WARP, lane % 3 == 0);
    y[160 + lane] = __shfl_sync(FULL_WARP, lane, 2, 8);
}

Status test_lanes(GpuStream *stream, int *y)
{
    return GPU_LAUNCH(stream, 1, 32, 0, (lanes_kernel), y);
}

/* Without a barrier between: what a thread reads depends on who ran first. */
__global__ void race_kernel(int *y)
{
    __shared__ int box[64];
    box[threadIdx.x] = (int)threadIdx.x;
    y[threadIdx.x] = box[63 - threadIdx.x];
    __syncthreads();
    box[threadIdx.x] = -1;
}

Status test_race(GpuStream *stream, int *y)
{
    return GPU_LAUNCH(stream, 1, 64, 0, (race_kernel), y);
}

__global__ void stuck_kernel(int *y)
{
    if (threadIdx.x == 0)
        __syncthreads();
    else
        y[threadIdx.x] = __shfl_sync(FULL_WARP, 1, 0);
}

Status test_stuck(GpuStream *stream, int *y)
{
    return GPU_LAUNCH(stream, 1, 32, 0, (stuck_kernel), y);
}

__global__ void poison_kernel(float *y)
{
    GPU_DYNAMIC_SHARED(shared);
    y[threadIdx.x] = ((const float *)shared)[threadIdx.x];
}

Status test_poison(GpuStream *stream, float *y)
{
    return GPU_LAUNCH(stream, 1, 32, 128, (poison_kernel), y);
}
