/* What a .cu file may use: how kernels are launched, the two activation types, vectors of them,
 * sums over a warp and a block. Included by .cu files only.
 *
 * A .cu file is compiled by nvcc for the device, and by the C++ compiler for the emulated one
 * (emulated.h): it uses what stands here and these of CUDA's own words: __global__, __device__,
 * __shared__ (arrays without initialiser), threadIdx, blockIdx, blockDim, gridDim, __syncthreads,
 * __syncwarp, the __shfl and __ballot family with full masks, fmaf and its like.
 */
#ifndef GPU_LAUNCH_CUH
#define GPU_LAUNCH_CUH

extern "C" {
#include "gpu/gpu.h"
}

#ifdef GPU_EMULATED
#include "gpu/emulated.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

extern "C" cudaStream_t gpu_stream_cuda(GpuStream *stream);
extern "C" Status gpu_launched(const char *kernel);

/* GPU_LAUNCH(stream, grid, block, bytes of dynamic shared memory, (kernel), arguments...): a
 * Status. The kernel stands in parentheses, for the commas of its template arguments. */
#define GPU_LAUNCH(stream, grid, block, shared, kernel, ...)                                       \
    (kernel<<<(grid), (block), (shared), gpu_stream_cuda(stream)>>>(__VA_ARGS__),                  \
     gpu_launched(#kernel))
/* A kernel may have more than 48 KiB of dynamic shared memory after this. */
#define GPU_ALLOW_SHARED(kernel, bytes)                                                            \
    gpu_allowed(cudaFuncSetAttribute((const void *)kernel,                                         \
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)),   \
                #kernel)
extern "C" Status gpu_allowed(cudaError_t error, const char *kernel);
/* Declares `name` as the block's dynamic shared memory, aligned to 128 bytes. */
#define GPU_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

/* ---- the activation types ----------------------------------------------------------------- */

struct bf16 {
    uint16_t bits;
};

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
template <class T> __device__ inline T from_f32(float x);
template <> __device__ inline float from_f32<float>(float x) { return x; }
template <> __device__ inline bf16 from_f32<bf16>(float x)
{
#ifdef GPU_EMULATED
    return bf16{bf16_from_f32(x)};
#else
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
}

/* N neighbours, moved in one access of up to 16 bytes where they are aligned to their size. */
template <class T, int N> struct alignas(sizeof(T) * N) Neighbours {
    T at[N];
};
template <int N, class T> __device__ inline Neighbours<T, N> load_neighbours(const T *p)
{
    return *(const Neighbours<T, N> *)(const void *)p;
}
template <int N, class T> __device__ inline void store_neighbours(T *p, Neighbours<T, N> v)
{
    *(Neighbours<T, N> *)(void *)p = v;
}
/* ---- sums --------------------------------------------------------------------------------- */

enum { WARP = 32, FULL_WARP = 0xffffffff };

__device__ inline float warp_sum(float x)
{
    for (int at = WARP / 2; at; at /= 2) x += __shfl_xor_sync(FULL_WARP, x, at);
    return x;
}
__device__ inline float warp_max(float x)
{
    for (int at = WARP / 2; at; at /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, at));
    return x;
}
/* Of all threads of a block of whole warps; every thread gets it. Uses `scratch`, WARP floats of
 * shared memory, which may be used again after the next barrier. */
__device__ inline float block_sum(float x, float *scratch)
{
    int warps = (int)blockDim.x / WARP, lane = (int)threadIdx.x % WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0);
}
__device__ inline float block_max(float x, float *scratch)
{
    int warps = (int)blockDim.x / WARP, lane = (int)threadIdx.x % WARP;
    x = warp_max(x);
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : -INFINITY);
}

static inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
/* Blocks of a grid that walks n pieces: one each, as long as the device's counters go. */
static inline unsigned grid_of(int64_t n) { return (unsigned)(n < 1 << 30 ? n : 1 << 30); }

#endif
