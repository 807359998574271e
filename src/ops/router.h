/* What the router's ops share: the limit on experts and probabilities over them. The functions are for
 * *_cpu.c files, which include ops/simd.h before. */
#ifndef OPS_ROUTER_H
#define OPS_ROUTER_H

#include "ops/ops.h"

enum { ROUTER_MAX_EXPERTS = 1024 }; /* keys of a token live on the stack */

typedef struct RouteAttr {
    int k;
    RouterScore kind;
} RouteAttr;

typedef struct RouterLossAttr {
    float aux, z;
    RouterScore kind;
} RouterLossAttr;

/* Which (token, slot) pairs a token block holds: fixed by the shape, for sums in a fixed order. */
enum { ROUTER_BLOCK = 128 };
static inline int64_t router_blocks(int64_t tokens) { return (tokens + ROUTER_BLOCK - 1) / ROUTER_BLOCK; }

#ifdef OPS_SIMD_H
/* p = softmax(x); returns log sum exp(x). */
SIMD float router_softmax(const float *x, int64_t n, float *p)
{
    float highest = x[0];
    for (int64_t i = 1; i < n; i++) highest = x[i] > highest ? x[i] : highest;
    Vf sums = vf_zero(), shift = vf_set(highest);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        Vf e = vf_exp(vf_load(x + i) - shift);
        sums += e;
        vf_store(p + i, e);
    }
    if (i < n) { /* lanes past the end hold exp(-highest), which must not be counted */
        float tail[VL] = {0};
        vf_store_n(p + i, vf_exp(vf_load_n(x + i, n - i) - shift), n - i);
        memcpy(tail, p + i, (size_t)(n - i) * sizeof *tail);
        sums += vf_load(tail);
    }
    float sum = vf_sum(sums);
    for (int64_t j = 0; j < n; j++) p[j] /= sum;
    return highest + logf(sum);
}

/* s = sigmoid(x); returns their sum. */
SIMD float router_sigmoid(const float *x, int64_t n, float *s)
{
    Vf sums = vf_zero();
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        Vf v = vf_sigmoid(vf_load(x + i));
        sums += v;
        vf_store(s + i, v);
    }
    if (i < n) {
        float tail[VL] = {0};
        vf_store_n(s + i, vf_sigmoid(vf_load_n(x + i, n - i)), n - i);
        memcpy(tail, s + i, (size_t)(n - i) * sizeof *tail);
        sums += vf_load(tail);
    }
    return vf_sum(sums);
}
#endif

#endif
