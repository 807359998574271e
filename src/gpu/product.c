/* What products of 8 bits ask for, the same on all devices: cuBLAS, "Narrow precision data types"
 * and cublasLtMatmul's table of FP8 kernels. */
#include "gpu/gpu.h"

Status gpu_check_8_bits(const Gpu *gpu)
{
    const GpuInfo *info = gpu_info(gpu);
    if (info->major == 9 && info->minor == 0) return OK;
    return fail(ERR_UNSUPPORTED,
                "%s has compute capability %d.%d; products of 8 bits with scales for rows and "
                "blocks are there for 9.0 (Hopper) only: take bf16",
                info->name, info->major, info->minor);
}

static bool is_8_bits(DType dtype) { return dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_E5M2; }

static bool scalings_fit(GpuScaling a, GpuScaling b)
{
    if (a == GPU_SCALE_NONE || b == GPU_SCALE_NONE) return false;
    if (a == GPU_SCALE_ROW || b == GPU_SCALE_ROW) return a == b;
    return a == GPU_SCALE_BLOCK || b == GPU_SCALE_BLOCK;
}

static bool sizes_fit(const GpuProduct *p)
{
    const size_t bytes = GPU_ALIGN_8_BITS, c_row = (size_t)p->c_pitch * dtype_bytes(p->c_dtype);
    bool whole = p->m % GPU_ALIGN_8_BITS == 0 && p->n % GPU_ALIGN_8_BITS == 0 &&
                 p->k % GPU_ALIGN_8_BITS == 0 && p->a_pitch % GPU_ALIGN_8_BITS == 0 &&
                 p->b_pitch % GPU_ALIGN_8_BITS == 0 && c_row % bytes == 0;
    return whole && (!p->alignment || p->alignment % bytes == 0);
}

Status gpu_product_check(const GpuProduct *p)
{
    if (!is_8_bits(p->dtype)) return OK;
    if (!is_8_bits(p->b_dtype) || (p->dtype == DTYPE_F8_E5M2 && p->b_dtype == DTYPE_F8_E5M2))
        return fail(ERR_ARG, "there is no product of %s with %s", dtype_name(p->dtype),
                    dtype_name(p->b_dtype));
    if (p->a_transposed || !p->b_transposed)
        return fail(ERR_ARG, "operands of 8 bits must both lie along the sum");
    if (!scalings_fit(p->a_scaling, p->b_scaling))
        return fail(ERR_ARG, "operands of 8 bits are scaled by rows, or by blocks and perhaps one "
                             "of them by squares");
    if (!sizes_fit(p))
        return fail(
            ERR_ARG,
            "a product of 8 bits of [%lld %lld] with [%lld %lld]: sizes, rows and addresses "
            "must be multiples of %d",
            (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n, GPU_ALIGN_8_BITS);
    return OK;
}
