/* linear_8 and linear_8_accumulate on the cuda device: one product by the library. */
#include "ops/product.cuh"

extern "C" {
#include "ops/quantise.h"
}

namespace
{

GpuScaling scaling_of(ScalingUnit scaling)
{
    switch (scaling) {
    case SCALING_ROW: return GPU_SCALE_ROW;
    case SCALING_BLOCK: return GPU_SCALE_BLOCK;
    default: return GPU_SCALE_SQUARE;
    }
}

Status prepare_of(KernelArgs *args, bool accumulate)
{
    const Linear8Attr *attr = (const Linear8Attr *)args->attr;
    RowsProduct p = {tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[2], 1),
                     tensor_as_rows(&args->out[0], 1)};
    p.b_transposed = true;
    p.accumulate = accumulate;
    p.a_scaling = scaling_of(attr->a);
    p.b_scaling = scaling_of(attr->b);
    p.a_scale = (const float *)args->in[1].data;
    p.b_scale = (const float *)args->in[3].data;
    GpuProductPlan *plan;
    TRY(product_plan(args->stream, &p, args->workspace, &plan));
    args->state = plan;
    return OK;
}

Status prepare(KernelArgs *args) { return prepare_of(args, false); }
Status prepare_accumulate(KernelArgs *args) { return prepare_of(args, true); }

Status run(KernelArgs *args)
{
    const void *const operand[2] = {args->in[0].data, args->in[2].data};
    const float *const scale[2] = {(const float *)args->in[1].data,
                                   (const float *)args->in[3].data};
    return gpu_product_run_scaled((GpuProductPlan *)args->state, operand, scale, args->out[0].data,
                                  args->workspace);
}

void release(KernelArgs *args)
{
    gpu_product_plan_destroy((GpuProductPlan *)args->state);
    args->state = NULL;
}

} // namespace

CUDA_KERNEL(linear_8) = {.run = run, .prepare = prepare, .release = release};
CUDA_KERNEL(linear_8_accumulate) = {.run = run, .prepare = prepare_accumulate, .release = release};
