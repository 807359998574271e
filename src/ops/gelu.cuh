/* What activations and gated units share on the cuda device. Included by .cu files only. */
#ifndef OPS_GELU_CUH
#define OPS_GELU_CUH

#include "ops/kernel.cuh"

/* 1 / (1 + e^-x) */
__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* A NaN passes. */
__device__ inline float clamp_to(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

/* gelu(x) = x s, the tanh form: s, and the slope of its argument (glu.c). Outside +-64 s is 0 or 1
 * to the last bit; the clamp keeps powers finite. */
__device__ inline float gelu_logistic(float gate, float *slope)
{
    const float twice = 1.5957691216057308f; /* 2 sqrt(2/pi) */
    float x = clamp_to(gate, 64), square = x * x;
    *slope = fmaf(square, twice * 3 * 0.044715f, twice);
    return sigmoid(x * fmaf(square, twice * 0.044715f, twice));
}

#endif
