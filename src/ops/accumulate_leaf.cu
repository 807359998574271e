/* accumulate_leaf on the cuda device: which levels wait is read there, as the number of the
 * micro-batch is. */
#include "ops/elementwise.cuh"

extern "C" {
#include "ops/ops.h"
}

namespace
{

enum { LEVELS = NODE_MAX_OUT, X_AT = LEVELS, WALKED = LEVELS + 1 };

/* Operands: the state of each level, then x. */
template <class X> struct Leaf {
    const int32_t *micro;
    int levels;
    template <int N> __device__ void run(const Places<WALKED> &p, const int64_t *at) const
    {
        const uint32_t m = (uint32_t)*micro;
        auto x = load_neighbours<N>((const X *)p.data[X_AT] + at[X_AT]);
        Neighbours<float, N> sum;
        for (int i = 0; i < N; i++) sum.at[i] = to_f32(x.at[i]);
        bool waits = true; /* all levels so far do */
#pragma unroll
        for (int l = 0; l < LEVELS; l++) {
            if (!waits || l >= levels) continue;
            float *state = (float *)p.data[l] + at[l];
            waits = m >> l & 1;
            if (waits) {
                auto more = load_neighbours<N>((const float *)state);
                for (int i = 0; i < N; i++) sum.at[i] = more.at[i] + sum.at[i];
            }
            if (!waits || l == levels - 1) store_neighbours(state, sum);
        }
    }
};

static Status run(KernelArgs *args)
{
    const Tensor none = {}, *operand[WALKED];
    int levels = args->n_in - ACCUMULATE_FIRST_PART + 1;
    for (int l = 0; l < LEVELS; l++)
        operand[l] = l < levels - 1    ? &args->in[ACCUMULATE_FIRST_PART + l]
                     : l == levels - 1 ? &args->in[0]
                                       : &none;
    operand[X_AT] = &args->in[1];
    const int32_t *micro = (const int32_t *)args->in[2].data;
    BY_ACTIVATION(args->in[1].dtype, X,
                  return gpu_walk<WIDE<X>>(args->stream, operand, Leaf<X>{micro, levels}));
}

} // namespace

CUDA_KERNEL(accumulate_leaf) = {.run = run};
