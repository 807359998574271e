/* One function for each element of operands of equal shape. Included by .cu files only.
 *
 *     struct Scale {
 *         float factor;
 *         __device__ float operator()(float x) const { return x * factor; }
 *     };
 *     gpu_map(args->stream, y, x, Scale{2})
 */
#ifndef OPS_MAP_CUH
#define OPS_MAP_CUH

#include "ops/elementwise.cuh"

/* Elements at a time where operands are of two types: 16 bytes of the narrower. */
template <class A, class B> constexpr int WIDER = WIDE<A> > WIDE<B> ? WIDE<A> : WIDE<B>;

/* y = f(x) */
template <class Y, class X, class F> struct Map {
    F f;
    template <int N> __device__ void run(const Places<2> &p, const int64_t *at) const
    {
        auto x = load_neighbours<N>((const X *)p.data[1] + at[1]);
        Neighbours<Y, N> y;
        for (int i = 0; i < N; i++) y.at[i] = from_f32<Y>(f(to_f32(x.at[i])));
        store_neighbours((Y *)p.data[0] + at[0], y);
    }
};

/* y = f(a, b) */
template <class Y, class A, class B, class F> struct MapTwo {
    F f;
    template <int N> __device__ void run(const Places<3> &p, const int64_t *at) const
    {
        auto a = load_neighbours<N>((const A *)p.data[1] + at[1]);
        auto b = load_neighbours<N>((const B *)p.data[2] + at[2]);
        Neighbours<Y, N> y;
        for (int i = 0; i < N; i++) y.at[i] = from_f32<Y>(f(to_f32(a.at[i]), to_f32(b.at[i])));
        store_neighbours((Y *)p.data[0] + at[0], y);
    }
};

/* Bits as they are: T is a whole number of the elements' size. */
template <class T> struct CopyBits {
    template <int N> __device__ void run(const Places<2> &p, const int64_t *at) const
    {
        store_neighbours((T *)p.data[0] + at[0], load_neighbours<N>((const T *)p.data[1] + at[1]));
    }
};

/* All of one type. */
template <class F>
static inline Status gpu_map(GpuStream *stream, const Tensor *y, const Tensor *x, F f)
{
    const Tensor *const operand[2] = {y, x};
    BY_ACTIVATION(y->dtype, T, return gpu_walk<WIDE<T>>(stream, operand, Map<T, T, F>{f}));
}
template <class F>
static inline Status gpu_map(GpuStream *stream, const Tensor *y, const Tensor *a, const Tensor *b,
                             F f)
{
    const Tensor *const operand[3] = {y, a, b};
    BY_ACTIVATION(y->dtype, T, return gpu_walk<WIDE<T>>(stream, operand, MapTwo<T, T, T, F>{f}));
}

/* y = x, from any activation type to any. */
struct Same {
    __device__ float operator()(float x) const { return x; }
};
static inline Status gpu_convert(GpuStream *stream, const Tensor *y, const Tensor *x)
{
    const Tensor *const operand[2] = {y, x};
    BY_ACTIVATION(y->dtype, Y, BY_ACTIVATION(x->dtype, X, {
                      return gpu_walk<WIDER<Y, X>>(stream, operand, Map<Y, X, Same>{});
                  }));
}

/* y = x of one type, which may be i32. */
static inline Status gpu_copy_elements(GpuStream *stream, const Tensor *y, const Tensor *x)
{
    const Tensor *const operand[2] = {y, x};
    if (dtype_bytes(y->dtype) == 2) return gpu_walk<8>(stream, operand, CopyBits<uint16_t>{});
    return gpu_walk<4>(stream, operand, CopyBits<uint32_t>{});
}

#endif
