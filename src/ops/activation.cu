/* Activations without a gate and their gradients on the cuda device. */
#include "ops/gelu.cuh"
#include "ops/map.cuh"

extern "C" {
#include "ops/ops.h"
}

namespace
{

/* P(x) of activation.c */
__device__ static float normal_share(float x) { return 0.5f * erfcf(-0.70710678f * x); }

/* y = f(x) */
template <int KIND> struct Curve {
    __device__ float operator()(float x) const
    {
        float slope, above = x < 0 ? 0 : x; /* a NaN passes */
        if (KIND == ACTIVATION_RELU2) return above * above;
        return x * (KIND == ACTIVATION_GELU ? normal_share(x) : gelu_logistic(x, &slope));
    }
};

/* dx = dy f'(x) */
template <int KIND> struct CurveSlope {
    __device__ float operator()(float x, float dy) const
    {
        if (KIND == ACTIVATION_RELU2) return dy * 2 * (x < 0 ? 0 : x);
        if (KIND == ACTIVATION_GELU) {
            float near = clamp_to(x, 14), bell = expf(-0.5f * near * near);
            return dy * fmaf(near * bell, 0.398942280401f, normal_share(x)); /* 1 / sqrt(2 pi) */
        }
        float slope, s = gelu_logistic(x, &slope);
        return dy * fmaf(clamp_to(x, 64) * s * (1 - s), slope, s);
    }
};

template <int KIND> static Status run_kind(KernelArgs *args)
{
    return gpu_map(args->stream, &args->out[0], &args->in[0], Curve<KIND>{});
}
template <int KIND> static Status run_grad_kind(KernelArgs *args)
{
    return gpu_map(args->stream, &args->out[0], &args->in[0], &args->in[1], CurveSlope<KIND>{});
}

static Status run(KernelArgs *args)
{
    switch (*(const int32_t *)args->attr) {
    case ACTIVATION_GELU: return run_kind<ACTIVATION_GELU>(args);
    case ACTIVATION_GELU_TANH: return run_kind<ACTIVATION_GELU_TANH>(args);
    default: return run_kind<ACTIVATION_RELU2>(args);
    }
}

static Status run_grad(KernelArgs *args)
{
    switch (*(const int32_t *)args->attr) {
    case ACTIVATION_GELU: return run_grad_kind<ACTIVATION_GELU>(args);
    case ACTIVATION_GELU_TANH: return run_grad_kind<ACTIVATION_GELU_TANH>(args);
    default: return run_grad_kind<ACTIVATION_RELU2>(args);
    }
}

} // namespace

CUDA_KERNEL(activation) = {.run = run};
CUDA_KERNEL(activation_grad) = {.run = run_grad};
