/* Products of rows by the library (gpu.h), planned from how the operands lie. Included by .cu files
 * only. */
#ifndef OPS_PRODUCT_CUH
#define OPS_PRODUCT_CUH

#include "ops/kernel.cuh"

extern "C" {
#include "gpu/tune.h"
}

/* c [m n] = a b. a lies as [m k], transposed as [k m]; b lies as [k n], transposed as [n k]. With
 * accumulate, c += a b. */
typedef struct RowsProduct {
    Rows a, b, c;
    bool a_transposed, b_transposed, accumulate;
    GpuScaling a_scaling, b_scaling; /* of 8 bits */
    const float *a_scale, *b_scale;
} RowsProduct;

/* Of what power of two the addresses of all rows are multiples, at most 64: that is what a
 * program's operands keep when they move from one micro-batch's place to another's. */
static inline size_t rows_alignment(const Rows *rows)
{
    size_t pitch = (size_t)rows->pitch * dtype_bytes(rows->dtype),
           bits = (uintptr_t)rows->data | pitch | 64;
    return bits & (~bits + 1);
}

/* Planned before anything is in the operands' memory: algorithms may be tried out on it, and on the
 * workspace. */
static inline Status product_plan(GpuStream *stream, const RowsProduct *p, void *workspace,
                                  GpuProductPlan **plan)
{
    GpuProduct product = {};
    product.m = p->a_transposed ? p->a.width : p->a.n;
    product.k = p->a_transposed ? p->a.n : p->a.width;
    product.n = p->b_transposed ? p->b.n : p->b.width;
    product.dtype = p->a.dtype;
    product.c_dtype = p->c.dtype;
    product.a_transposed = p->a_transposed;
    product.b_transposed = p->b_transposed;
    product.accumulate = p->accumulate;
    product.a_pitch = p->a.pitch;
    product.b_pitch = p->b.pitch;
    product.c_pitch = p->c.pitch;
    product.alignment = min(rows_alignment(&p->a),
                            min(rows_alignment(&p->b), rows_alignment(&p->c)));
    product.workspace_bytes = GPU_PRODUCT_WORKSPACE_BYTES;
    product.b_dtype = p->b.dtype;
    product.a_scaling = p->a_scaling;
    product.b_scaling = p->b_scaling;
    product.scale[0] = p->a_scale;
    product.scale[1] = p->b_scale;
    GpuProductTrial trial = {p->a.data, p->b.data, p->c.data, workspace};
    return gpu_product_try(stream, &product, &trial, plan);
}

#endif
