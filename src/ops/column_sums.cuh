/* Sums over rows for gradients of weights that every row meets: each block of rows has its partial
 * sums in the workspace, and they are added in an order that their number alone decides. Included
 * by .cu files only. */
#ifndef OPS_COLUMN_SUMS_CUH
#define OPS_COLUMN_SUMS_CUH

#include "ops/kernel.cuh"
#include "ops/row_blocks.h"

enum { SUM_COLUMNS = 32, SUM_PARTS = 8 };

/* A block of threads sums SUM_COLUMNS columns: warp k those of the blocks k, k + SUM_PARTS, ... */
template <class T>
__global__ void __launch_bounds__(SUM_COLUMNS *SUM_PARTS)
    sum_blocks_kernel(const float *partial, int64_t blocks, int64_t width, T *sum)
{
    __shared__ float part[SUM_PARTS][SUM_COLUMNS];
    const int lane = (int)threadIdx.x % SUM_COLUMNS, warp = (int)threadIdx.x / SUM_COLUMNS;
    const int64_t column = (int64_t)blockIdx.x * SUM_COLUMNS + lane;
    float total = 0;
    for (int64_t b = warp; b < blocks && column < width; b += SUM_PARTS)
        total += partial[b * width + column];
    part[warp][lane] = total;
    __syncthreads();
    if (warp || column >= width) return;
    for (int k = 1; k < SUM_PARTS; k++) total += part[k][lane];
    sum[column] = from_f32<T>(total);
}

/* partial [blocks width] -> sum [width], f32 or bf16 */
static inline Status sum_row_blocks(GpuStream *stream, const float *partial, int64_t blocks,
                                    int64_t width, const Tensor *sum)
{
    unsigned grid = (unsigned)ceil_div(width, SUM_COLUMNS), threads = SUM_COLUMNS * SUM_PARTS;
    BY_ACTIVATION(sum->dtype, T,
                  return GPU_LAUNCH(stream, grid, threads, 0, (sum_blocks_kernel<T>), partial,
                                    blocks, width, (T *)sum->data));
}

#endif
