/* Sums over rows for gradients of weights that every row meets: each block of rows has its partial
 * sums in the workspace, and they are added in their order. Included by .cu files only. */
#ifndef OPS_COLUMN_SUMS_CUH
#define OPS_COLUMN_SUMS_CUH

#include "ops/kernel.cuh"
#include "ops/row_blocks.h"

template <class T>
__global__ void __launch_bounds__(256)
    sum_blocks_kernel(const float *partial, int64_t blocks, int64_t width, T *sum)
{
    int64_t column = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (column >= width) return;
    float total = 0;
    for (int64_t b = 0; b < blocks; b++) total += partial[b * width + column];
    sum[column] = from_f32<T>(total);
}

/* partial [blocks width] -> sum [width], f32 or bf16 */
static inline Status sum_row_blocks(GpuStream *stream, const float *partial, int64_t blocks,
                                    int64_t width, const Tensor *sum)
{
    unsigned grid = (unsigned)ceil_div(width, 256);
    BY_ACTIVATION(sum->dtype, T,
                  return GPU_LAUNCH(stream, grid, 256, 0, (sum_blocks_kernel<T>), partial, blocks,
                                    width, (T *)sum->data));
}

#endif
