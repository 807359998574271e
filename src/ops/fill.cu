/* fill on the cuda device: the bits of the constant, in words of the elements' size. */
#include "ops/elementwise.cuh"

extern "C" {
#include "ops/fill.h"
}

namespace
{

template <class T> struct Fill {
    T bits;
    template <int N> __device__ void run(const Places<1> &p, const int64_t *at) const
    {
        Neighbours<T, N> y;
        for (int i = 0; i < N; i++) y.at[i] = bits;
        store_neighbours((T *)p.data[0] + at[0], y);
    }
};

static Status run(KernelArgs *args)
{
    const FillAttr *attr = (const FillAttr *)args->attr;
    const Tensor *const y[1] = {&args->out[0]};
    if (attr->dtype == DTYPE_BF16)
        return gpu_walk<8>(args->stream, y, Fill<uint16_t>{bf16_from_f32(attr->value)});
    uint32_t bits;
    memcpy(&bits, &attr->value, sizeof bits);
    if (attr->dtype == DTYPE_I32) bits = (uint32_t)(int32_t)attr->value;
    return gpu_walk<4>(args->stream, y, Fill<uint32_t>{bits});
}

} // namespace

CUDA_KERNEL(fill) = {.run = run};
