/* expert_bias_update on the cuda device: one warp. */
#include "ops/wide_sums.cuh"

extern "C" {
#include "ops/ops.h"
}

namespace
{

/* -1, 0 or 1 */
__device__ static int direction(double mean, float load)
{
    return (mean > (double)load) - (mean < (double)load);
}

__global__ void __launch_bounds__(WARP)
    bias_update_kernel(float *bias, const float *load, const float *hyper, int64_t n)
{
    const double rate = (double)hyper[HYPER_BIAS_RATE];
    double mean = 0;
    int64_t directions = 0;
    for (int64_t i = threadIdx.x; i < n; i += WARP)
        mean += (double)load[i]; /* whole numbers: exact before the division */
    mean = wide_warp_sum(mean) / (double)n;
    for (int64_t i = threadIdx.x; i < n; i += WARP) directions += direction(mean, load[i]);
    double mean_direction = (double)wide_warp_sum(directions) / (double)n;
    for (int64_t i = threadIdx.x; i < n; i += WARP)
        bias[i] += (float)(rate * ((double)direction(mean, load[i]) - mean_direction));
}

static Status run(KernelArgs *args)
{
    const int64_t n = tensor_count(&args->in[0]);
    return GPU_LAUNCH(args->stream, 1, WARP, 0, (bias_update_kernel), (float *)args->in[0].data,
                      (const float *)args->in[1].data, (const float *)args->in[2].data, n);
}

} // namespace

CUDA_KERNEL(expert_bias_update) = {.run = run};
