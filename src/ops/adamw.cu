/* adamw on the cuda device. Its factor and hyper-parameters are read there: nothing waits for them.
 */
#include "ops/elementwise.cuh"

extern "C" {
#include "ops/ops.h"
}

namespace
{

enum { W, M, V, GRAD, COPY, N_WALKED };

template <class G, class C> struct Update {
    const float *factor, *hyper;
    bool decay, zero_grad;

    template <int N> __device__ void zero(const Places<N_WALKED> &p, const int64_t *at) const
    {
        Neighbours<G, N> none;
        for (int i = 0; i < N; i++) none.at[i] = from_f32<G>(0);
        store_neighbours((G *)p.data[GRAD] + at[GRAD], none);
    }

    template <int N> __device__ void run(const Places<N_WALKED> &p, const int64_t *at) const
    {
        const float f = *factor, beta1 = hyper[HYPER_BETA1], beta2 = hyper[HYPER_BETA2];
        if (isfinite(f)) {
            const float step = hyper[HYPER_LR] / hyper[HYPER_BIAS1], eps = hyper[HYPER_EPS];
            const float inverse_bias2 = 1 / hyper[HYPER_BIAS2];
            const float keep = decay ? 1 - hyper[HYPER_LR] * hyper[HYPER_DECAY] : 1;
            float *wp = (float *)p.data[W] + at[W], *mp = (float *)p.data[M] + at[M],
                  *vp = (float *)p.data[V] + at[V];
            auto w = load_neighbours<N>((const float *)wp),
                 m = load_neighbours<N>((const float *)mp),
                 v = load_neighbours<N>((const float *)vp);
            auto grad = load_neighbours<N>((const G *)p.data[GRAD] + at[GRAD]);
            Neighbours<C, N> copy;
            for (int i = 0; i < N; i++) {
                float g = to_f32(grad.at[i]) * f;
                m.at[i] = fmaf(beta1, m.at[i] - g, g);
                v.at[i] = fmaf(beta2, v.at[i] - g * g, g * g);
                float root = sqrtf(v.at[i] * inverse_bias2) + eps;
                w.at[i] = fmaf(w.at[i], keep, -step * m.at[i] / root);
                copy.at[i] = from_f32<C>(w.at[i]);
            }
            store_neighbours(wp, w);
            store_neighbours(mp, m);
            store_neighbours(vp, v);
            if (p.data[COPY]) store_neighbours((C *)p.data[COPY] + at[COPY], copy);
        }
        if (zero_grad) zero<N>(p, at);
    }
};

static Status run(KernelArgs *args)
{
    const AdamWAttr *attr = (const AdamWAttr *)args->attr;
    const float *factor = (const float *)args->in[5].data, *hyper = (const float *)args->in[6].data;
    const Tensor *operand[N_WALKED];
    for (int k = 0; k < N_WALKED; k++) operand[k] = &args->in[k];
    BY_ACTIVATION(args->in[GRAD].dtype, G, BY_ACTIVATION(args->in[COPY].dtype, C, {
                      return gpu_walk<4>(args->stream, operand,
                                         Update<G, C>{factor, hyper, attr->decay, attr->zero_grad});
                  }));
}

} // namespace

CUDA_KERNEL(adamw) = {.run = run};
