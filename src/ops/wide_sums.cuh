/* Sums of doubles and of 64-bit integers over the threads of a block. Included by .cu files only.
 */
#ifndef OPS_WIDE_SUMS_CUH
#define OPS_WIDE_SUMS_CUH

#include "ops/kernel.cuh"

/* S is double or int64_t. */
template <class S> __device__ inline S wide_warp_sum(S x)
{
    for (int at = WARP / 2; at; at /= 2) x += __shfl_xor_sync(FULL_WARP, x, at);
    return x;
}

/* Of all threads of a block of whole warps; every thread gets it. `scratch` is WARP elements of
 * shared memory, which may be used again at once. */
template <class S> __device__ inline S wide_block_sum(S x, S *scratch)
{
    int warps = (int)blockDim.x / WARP, lane = (int)threadIdx.x % WARP;
    x = wide_warp_sum(x);
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = wide_warp_sum(lane < warps ? scratch[lane] : (S)0);
    __syncthreads();
    return x;
}

#endif
