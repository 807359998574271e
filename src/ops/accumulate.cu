/* accumulate, assign and clear on the cuda device, in place on the state. */
#include "ops/map.cuh"

namespace
{

struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};

static Status run(KernelArgs *args)
{
    const Tensor *state = &args->in[0], *x = &args->in[1], *const operand[3] = {state, state, x};
    BY_ACTIVATION(x->dtype, X,
                  return gpu_walk<WIDE<X>>(args->stream, operand, MapTwo<float, float, X, Sum>{}));
}

static Status run_assign(KernelArgs *args)
{
    const Tensor *state = &args->in[0], *x = &args->in[1];
    if (state->dtype == x->dtype) return gpu_copy_elements(args->stream, state, x);
    return gpu_convert(args->stream, state, x);
}

static Status run_clear(KernelArgs *args)
{
    return gpu_fill(args->stream, args->in[0].data, 0, tensor_bytes(&args->in[0]));
}

} // namespace

CUDA_KERNEL(accumulate) = {.run = run};
CUDA_KERNEL(assign) = {.run = run_assign};
CUDA_KERNEL(clear) = {.run = run_clear};
