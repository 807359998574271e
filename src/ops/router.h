/* What the router's ops share: the limit on experts and probabilities over them. The functions are
 * for
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
static inline int64_t router_blocks(int64_t tokens)
{
    return (tokens + ROUTER_BLOCK - 1) / ROUTER_BLOCK;
}

#ifdef OPS_SIMD_H
/* n lanes of p, `rest` in the lanes past them. */
SIMD Vf router_load(const float *p, int64_t n, float rest)
{
    float t[VL];
    if (n >= VL) return vf_load(p);
    vf_store(t, vf_set(rest));
    memcpy(t, p, (size_t)n * sizeof *t);
    return vf_load(t);
}
SIMD void router_store(float *p, Vf v, int64_t n)
{
    if (n >= VL)
        vf_store(p, v);
    else
        vf_store_n(p, v, n);
}

/* p = softmax(x); returns log sum exp(x). Lanes past the end are -inf and weigh nothing. */
SIMD float router_softmax(const float *x, int64_t n, float *p)
{
    Vf highest = vf_set(-INFINITY), sums = vf_zero();
    for (int64_t i = 0; i < n; i += VL)
        highest = vf_max(highest, router_load(x + i, n - i, -INFINITY));
    float shift = vf_max_lane(highest);
    for (int64_t i = 0; i < n; i += VL) {
        Vf e = vf_exp(router_load(x + i, n - i, -INFINITY) - vf_set(shift));
        sums += e;
        router_store(p + i, e, n - i);
    }
    float sum = vf_sum(sums);
    for (int64_t i = 0; i < n; i++) p[i] /= sum;
    return shift + logf(sum);
}

/* s = sigmoid(x); returns their sum. */
SIMD float router_sigmoid(const float *x, int64_t n, float *s)
{
    Vf sums = vf_zero();
    for (int64_t i = 0; i < n; i += VL) {
        Vf v = vf_sigmoid(router_load(x + i, n - i, -INFINITY));
        sums += v;
        router_store(s + i, v, n - i);
    }
    return vf_sum(sums);
}

SIMD float router_dot(const float *a, const float *b, int64_t n)
{
    Vf sums = vf_zero();
    for (int64_t i = 0; i < n; i += VL)
        sums = vf_fma(router_load(a + i, n - i, 0), router_load(b + i, n - i, 0), sums);
    return vf_sum(sums);
}
#endif

#endif
