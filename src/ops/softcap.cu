/* softcap and its gradient on the cuda device. */
#include "ops/map.cuh"

namespace
{

struct Cap {
    float cap, inverse;
    __device__ float operator()(float x) const { return cap * tanhf(x * inverse); }
};

/* of y and dy */
struct CapSlope {
    float inverse;
    __device__ float operator()(float y, float dy) const
    {
        float part = y * inverse;
        return dy * (1 - part * part);
    }
};

static Status run(KernelArgs *args)
{
    float cap = *(const float *)args->attr;
    return gpu_map(args->stream, &args->out[0], &args->in[0], Cap{cap, 1 / cap});
}

static Status run_grad(KernelArgs *args)
{
    float cap = *(const float *)args->attr;
    return gpu_map(args->stream, &args->out[0], &args->in[0], &args->in[1], CapSlope{1 / cap});
}

} // namespace

CUDA_KERNEL(softcap) = {.run = run};
CUDA_KERNEL(softcap_grad) = {.run = run_grad};
