/* scale on the cuda device. */
#include "ops/map.cuh"

namespace
{

struct Scale {
    float factor;
    __device__ float operator()(float x) const { return x * factor; }
};

static Status run(KernelArgs *args)
{
    return gpu_map(args->stream, &args->out[0], &args->in[0], Scale{*(const float *)args->attr});
}

} // namespace

CUDA_KERNEL(scale) = {.run = run};
