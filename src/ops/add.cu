/* add on the cuda device. */
#include "ops/elementwise.cuh"

template <class T> struct Add {
    template <int N> __device__ void run(const Places<3> &p, const int64_t *at) const
    {
        auto a = load_neighbours<N>((const T *)p.data[1] + at[1]);
        auto b = load_neighbours<N>((const T *)p.data[2] + at[2]);
        for (int i = 0; i < N; i++) a.at[i] = from_f32<T>(to_f32(a.at[i]) + to_f32(b.at[i]));
        store_neighbours((T *)p.data[0] + at[0], a);
    }
};

static Status run(KernelArgs *args)
{
    const Tensor *const operand[3] = {&args->out[0], &args->in[0], &args->in[1]};
    BY_ACTIVATION(args->out[0].dtype, T, return gpu_walk<WIDE<T>>(args->stream, operand, Add<T>{}));
}

CUDA_KERNEL(add) = {.run = run};
