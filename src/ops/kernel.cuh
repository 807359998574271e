/* What the .cu file of an op needs beside gpu/launch.cuh: rows of tensors, dispatch by type, the
 * name of its kernel. Included by .cu files only.
 *
 * As everywhere: no atomics on floating-point numbers; who sums what follows from shapes only. run
 * allocates nothing; but where rows are exchanged it waits for nothing and may be captured.
 */
#ifndef OPS_KERNEL_CUH
#define OPS_KERNEL_CUH

#include "gpu/launch.cuh"

extern "C" {
#include "ops/kernel.h"
}

/* Runs the statements with T being the C++ type of an f32 or bf16 DType. */
#define BY_ACTIVATION(dtype, T, ...)                                                               \
    do {                                                                                           \
        if ((dtype) == DTYPE_BF16) {                                                               \
            using T = bf16;                                                                        \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            using T = float;                                                                       \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* Host: whether rows of T may be walked N elements at a time. */
static inline bool rows_align(const Rows *rows, int n)
{
    size_t bytes = (size_t)n * dtype_bytes(rows->dtype);
    return !rows->data ||
           (rows->width % n == 0 && rows->pitch % n == 0 && (uintptr_t)rows->data % bytes == 0);
}
/* Host: whether a vector may be read n floats at a time; NULL may. */
static inline bool vector_aligns(const float *x, int n)
{
    return (uintptr_t)x % ((size_t)n * sizeof *x) == 0;
}
template <class T> __host__ __device__ inline T *row_at(const Rows &rows, int64_t i)
{
    return (T *)(void *)rows.data + i * rows.pitch;
}

/* CUDA_KERNEL(name) = {.run = run}; at the end of the file, as CPU(name) in *_cpu.c. */
#define CUDA_KERNEL(name)                                                                          \
    extern "C" const Kernel cuda_##name;                                                           \
    const Kernel cuda_##name

#endif
