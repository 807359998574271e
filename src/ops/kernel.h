/* What a *_cpu.c file needs: the naming of its instruction-set variants, vectors, row access.
 *
 * A *_cpu.c file is compiled once for each instruction-set level (generic, avx2, avx512,
 * avx512bf16), with ISA set to its name. Everything in it is static but one constant per kernel:
 *
 *     const Kernel CPU(rmsnorm) = {.run = run};
 *
 * and the op's own file ties them: .cpu = CPU_KERNELS(rmsnorm), after CPU_DECLARE(rmsnorm).
 * A kernel that is the same at every level (because a library chooses) stands in the op's own file:
 * .cpu = CPU_KERNEL_ANY(&linear_kernel).
 *
 * Work is split over threads by shapes only, never by their number, and sums have a fixed order, so
 * that results are the same bits whatever the number of threads.
 */
#ifndef OPS_KERNEL_H
#define OPS_KERNEL_H

#include "graph/graph.h"

#define CPU_PASTE2(name, isa) name##_##isa
#define CPU_PASTE(name, isa)  CPU_PASTE2(name, isa)
#define CPU(name)             CPU_PASTE(cpu_##name, ISA)

#if defined(__x86_64__)
#define CPU_DECLARE(name)                                                                          \
    extern const Kernel cpu_##name##_generic, cpu_##name##_avx2, cpu_##name##_avx512,              \
        cpu_##name##_avx512bf16
#define CPU_KERNELS(name)                                                                          \
    {                                                                                              \
        &cpu_##name##_generic, &cpu_##name##_avx2, &cpu_##name##_avx512, &cpu_##name##_avx512bf16  \
    }
#else
#define CPU_DECLARE(name) extern const Kernel cpu_##name##_generic
#define CPU_KERNELS(name)                                                                          \
    {                                                                                              \
        &cpu_##name##_generic                                                                      \
    }
#endif
#define CPU_KERNEL_ANY(kernel)                                                                     \
    {                                                                                              \
        kernel, kernel, kernel, kernel                                                             \
    }

/* The cuda device's kernel stands in the op's .cu file, as CUDA_KERNEL(name) = {.run = run}; the
 * op's own file ties it: .cuda = &cuda_name after CUDA_DECLARE(name). Where the program is linked
 * without CUDA the address is NULL. Its run puts work on args->stream and waits for nothing but
 * numbers that the host must know (gpu/numbers.h). Memory that it needs is told by the op itself
 * (OpDef.gpu_workspace): plans for GPUs are made where there are none. */
#define CUDA_DECLARE(name) extern const Kernel cuda_##name __attribute__((weak))

/* A tensor as rows of its last axis. Operands marked strided in the OpDef have one stride between
 * rows of the axis before the last "row axis": for [batch seq heads head_dim] that were split from
 * a fused product, a token is heads*head_dim contiguous elements and tokens are `pitch` apart.
 * `token rows` means all leading axes up to the given number of trailing ones collapsed. */
typedef struct Rows {
    char *data;
    DType dtype;
    int64_t n;     /* rows */
    int64_t width; /* elements in a row, contiguous */
    int64_t pitch; /* elements from row to row */
} Rows;

/* The last `trailing` axes are one row, and must be contiguous among themselves; the axes before
 * them collapse into n rows with one pitch. The verifier and the planner guarantee that every
 * strided operand they make has this form for trailing = 1 or 2. */
static inline Rows tensor_as_rows(const Tensor *t, int trailing)
{
    Rows r = {.data = (char *)t->data, .dtype = t->dtype, .n = 1, .width = 1, .pitch = 0};
    int first = t->shape.rank - trailing;
    if (first < 0) first = 0;
    for (int i = first; i < t->shape.rank; i++) r.width *= t->shape.dim[i];
    for (int i = 0; i < first; i++) r.n *= t->shape.dim[i];
    r.pitch = first > 0 ? t->stride[first - 1] : r.width;
    return r;
}
/* A value as its tensor will be seen: for workspace(), which has no data yet. */
static inline Rows value_as_rows(const Value *value, int trailing)
{
    Tensor t = {.dtype = value->dtype, .shape = value->shape};
    for (int i = 0; i < MAX_RANK; i++) t.stride[i] = value->stride[i];
    return tensor_as_rows(&t, trailing);
}
static inline float *row_f32(const Rows *r, int64_t i)
{
    return (float *)(void *)r->data + i * r->pitch;
}
static inline uint16_t *row_bf16(const Rows *r, int64_t i)
{
    return (uint16_t *)(void *)r->data + i * r->pitch;
}

#endif
