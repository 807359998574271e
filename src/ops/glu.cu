/* Gated linear units and their gradients on the cuda device. */
#include "ops/elementwise.cuh"
#include "ops/gelu.cuh"

namespace
{

enum { SILU, GELU };

/* f(gate) = gate s: s and the slope of its argument (glu.c). */
template <int KIND> __device__ static float logistic(float gate, float *slope)
{
    if (KIND == GELU) return gelu_logistic(gate, slope);
    *slope = 1;
    return sigmoid(gate);
}

/* Operands: y, gate, up. */
template <class T, int KIND> struct Glu {
    template <int N> __device__ void run(const Places<3> &p, const int64_t *at) const
    {
        auto gate = load_neighbours<N>((const T *)p.data[1] + at[1]);
        auto up = load_neighbours<N>((const T *)p.data[2] + at[2]);
        for (int i = 0; i < N; i++) {
            float x = to_f32(gate.at[i]), slope;
            up.at[i] = from_f32<T>(x * logistic<KIND>(x, &slope) * to_f32(up.at[i]));
        }
        store_neighbours((T *)p.data[0] + at[0], up);
    }
};

/* Operands: gate, up, dy, dgate, dup; either of the last two may be left out. */
template <class T, int KIND> struct GluGrad {
    template <int N> __device__ void run(const Places<5> &p, const int64_t *at) const
    {
        auto gate = load_neighbours<N>((const T *)p.data[0] + at[0]);
        auto up = load_neighbours<N>((const T *)p.data[1] + at[1]);
        auto dy = load_neighbours<N>((const T *)p.data[2] + at[2]);
        for (int i = 0; i < N; i++) {
            float x = to_f32(gate.at[i]), d = to_f32(dy.at[i]), slope;
            float s = logistic<KIND>(x, &slope), f = x * s, rest = 1 - s;
            float inner = fmaf(f * rest, slope, s);
            gate.at[i] = from_f32<T>(d * to_f32(up.at[i]) * inner);
            up.at[i] = from_f32<T>(d * f);
        }
        if (p.data[3]) store_neighbours((T *)p.data[3] + at[3], gate);
        if (p.data[4]) store_neighbours((T *)p.data[4] + at[4], up);
    }
};

/* The operand that says how many rows there are; NULL: all are. */
static const Tensor *offsets_of(const KernelArgs *args, int k)
{
    return args->n_in > k ? &args->in[k] : NULL;
}

template <int KIND> static Status run(KernelArgs *args)
{
    const Tensor *const operand[3] = {&args->out[0], &args->in[0], &args->in[1]};
    BY_ACTIVATION(
        args->out[0].dtype, T,
        return gpu_walk<WIDE<T>>(args->stream, operand, Glu<T, KIND>{}, offsets_of(args, 2)));
}

template <int KIND> static Status run_grad(KernelArgs *args)
{
    const Tensor *const operand[5] = {&args->in[0], &args->in[1], &args->in[2], &args->out[0],
                                      &args->out[1]};
    BY_ACTIVATION(
        args->in[0].dtype, T,
        return gpu_walk<WIDE<T>>(args->stream, operand, GluGrad<T, KIND>{}, offsets_of(args, 3)));
}

} // namespace

CUDA_KERNEL(swiglu) = {.run = run<SILU>};
CUDA_KERNEL(geglu) = {.run = run<GELU>};
CUDA_KERNEL(swiglu_grad) = {.run = run_grad<SILU>};
CUDA_KERNEL(geglu_grad) = {.run = run_grad<GELU>};
