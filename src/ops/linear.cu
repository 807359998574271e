/* linear, linear_dx, linear_dw and linear_dw_accumulate on the cuda device: one product each by the
 * library. Operands are seen as rows: x [n I], dy [n O], w [O I]. */
#include "ops/product.cuh"

typedef RowsProduct (*ProductOf)(Rows first, Rows second, Rows out);

/* y = x w^T */
static RowsProduct product_y(Rows x, Rows w, Rows y)
{
    RowsProduct p = {x, w, y};
    p.b_transposed = true;
    return p;
}

/* dx = dy w */
static RowsProduct product_dx(Rows dy, Rows w, Rows dx)
{
    RowsProduct p = {dy, w, dx};
    return p;
}

/* dw = dy^T x, summed over rows */
static RowsProduct product_dw(Rows dy, Rows x, Rows dw)
{
    RowsProduct p = {dy, x, dw};
    p.a_transposed = true;
    return p;
}

static RowsProduct product_dw_accumulate(Rows dy, Rows x, Rows dw)
{
    RowsProduct p = product_dw(dy, x, dw);
    p.accumulate = true;
    return p;
}

template <ProductOf product_of> static Status prepare(KernelArgs *args)
{
    RowsProduct p = product_of(tensor_as_rows(&args->in[0], 1), tensor_as_rows(&args->in[1], 1),
                               tensor_as_rows(&args->out[0], 1));
    GpuProductPlan *plan;
    TRY(product_plan(args->stream, &p, args->workspace, &plan));
    args->state = plan;
    return OK;
}

static Status run(KernelArgs *args)
{
    return gpu_product_run((GpuProductPlan *)args->state, args->in[0].data, args->in[1].data,
                           args->out[0].data, args->workspace);
}

static void release(KernelArgs *args)
{
    gpu_product_plan_destroy((GpuProductPlan *)args->state);
    args->state = NULL;
}

CUDA_KERNEL(linear) = {.run = run, .prepare = prepare<product_y>, .release = release};
CUDA_KERNEL(linear_dx) = {.run = run, .prepare = prepare<product_dx>, .release = release};
CUDA_KERNEL(linear_dw) = {.run = run, .prepare = prepare<product_dw>, .release = release};
CUDA_KERNEL(linear_dw_accumulate) = {
    .run = run, .prepare = prepare<product_dw_accumulate>, .release = release};
