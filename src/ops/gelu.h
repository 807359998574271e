/* What activations and gated units share of GELU's tanh form. Included by *_cpu.c files only. */
#ifndef OPS_GELU_H
#define OPS_GELU_H

#include "ops/simd.h"

/* gelu(x) = x s: s, and where asked the slope of the argument of s (glu.c). Outside +-64 s is 0 or
 * 1 to the last bit; the clamp keeps powers finite (a NaN passes: it is the second operand). */
SIMD Vf gelu_logistic(Vf gate, Vf *slope)
{
    const float twice = 1.5957691216057308f; /* 2 sqrt(2/pi) */
    Vf x = vf_min(vf_set(64.0f), vf_max(vf_set(-64.0f), gate)), square = x * x;
    if (slope) *slope = vf_fma(square, vf_set(twice * 3 * 0.044715f), vf_set(twice));
    return vf_sigmoid(x * vf_fma(square, vf_set(twice * 0.044715f), vf_set(twice)));
}

#endif
