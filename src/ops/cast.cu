/* cast on the cuda device. */
#include "ops/map.cuh"

namespace
{

static Status run(KernelArgs *args)
{
    return gpu_convert(args->stream, &args->out[0], &args->in[0]);
}

} // namespace

CUDA_KERNEL(cast) = {.run = run};
