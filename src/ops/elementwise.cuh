/* Walks operands of equal shape side by side on the device, 16 bytes of the narrowest at a time
 * where all of them are aligned for it. Included by .cu files only.
 *
 *     template <class T> struct Add {
 *         template <int N> __device__ void run(const Places<3> &p, const int64_t *at) const
 *         {
 *             auto a = load_neighbours<N>((const T *)p.data[1] + at[1]);  ...
 *         }
 *     };
 *     gpu_walk<8>(args->stream, (const Tensor *[3]){...}, Add<bf16>{})
 *
 * run is given N neighbours at a time: `at` their first element in each operand. */
#ifndef OPS_ELEMENTWISE_CUH
#define OPS_ELEMENTWISE_CUH

#include "ops/kernel.cuh"

/* K operands: rows of `width` contiguous elements, `pitch` apart. */
template <int K> struct Places {
    void *data[K]; /* NULL where the operand is left out */
    int64_t pitch[K];
    int64_t width, count;
    const int32_t *rows; /* where it stands how many rows of row_width there are; NULL: all */
    int64_t row_width;
};

enum { WALK_THREADS = 256 };

/* 32-bit division takes a fraction of the time. */
template <int K> __device__ inline int64_t row_of_element(const Places<K> &p, int64_t element)
{
    if (p.width == p.count) return 0;
    if (p.count <= UINT32_MAX) return (uint32_t)element / (uint32_t)p.width;
    return element / p.width;
}

template <int N, int K, class F>
__global__ void __launch_bounds__(WALK_THREADS) walk_kernel(Places<K> p, F f)
{
    int64_t count = p.rows ? min(p.count, *p.rows * p.row_width) : p.count;
    int64_t steps = count / N, each = (int64_t)gridDim.x * WALK_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * WALK_THREADS + threadIdx.x; i < steps; i += each) {
        int64_t element = i * N, row = row_of_element(p, element), column = element - row * p.width,
                at[K];
        for (int k = 0; k < K; k++) at[k] = row * p.pitch[k] + column;
        f.template run<N>(p, at);
    }
}

/* Elements at the end of t that lie one behind the other. */
static inline int64_t contiguous_elements(const Tensor *t)
{
    int64_t width = 1;
    for (int i = t->shape.rank - 1; i >= 0; i--) {
        if (t->shape.dim[i] != 1 && t->stride[i] != width) break;
        width *= t->shape.dim[i];
    }
    return width;
}

/* Elements from row to row of `width`: the stride of the innermost axis outside it that moves. */
static inline int64_t pitch_of_rows(const Tensor *t, int64_t width)
{
    int64_t inside = 1;
    for (int i = t->shape.rank - 1; i >= 0; i--) {
        if (inside >= width && t->shape.dim[i] != 1) return t->stride[i];
        inside *= t->shape.dim[i];
    }
    return width;
}

/* The first operand is there and gives the shape. N: elements at a time where all are aligned.
 * offsets, where there are some, end with the number of rows of the last axis that are walked. */
template <int N, int K, class F>
static Status gpu_walk(GpuStream *stream, const Tensor *const (&tensor)[K], F f,
                       const Tensor *offsets = NULL)
{
    Places<K> p = {};
    p.count = p.width = tensor_count(tensor[0]);
    if (!p.count) return OK;
    for (int k = 0; k < K; k++)
        if (tensor[k]->data) p.width = min_i64(p.width, contiguous_elements(tensor[k]));
    p.row_width = tensor[0]->shape.rank ? tensor[0]->shape.dim[tensor[0]->shape.rank - 1] : 1;
    if (offsets) p.rows = (const int32_t *)offsets->data + tensor_count(offsets) - 1;
    bool aligned = p.width % N == 0 && (!offsets || p.row_width % N == 0);
    for (int k = 0; k < K; k++) {
        p.data[k] = tensor[k]->data;
        if (!p.data[k]) continue;
        p.pitch[k] = pitch_of_rows(tensor[k], p.width);
        aligned = aligned && p.pitch[k] % N == 0 &&
                  (uintptr_t)p.data[k] % (N * dtype_bytes(tensor[k]->dtype)) == 0;
    }
    unsigned blocks = grid_of(ceil_div(p.count, (int64_t)WALK_THREADS * (aligned ? N : 1)));
    if (aligned) return GPU_LAUNCH(stream, blocks, WALK_THREADS, 0, (walk_kernel<N, K, F>), p, f);
    return GPU_LAUNCH(stream, blocks, WALK_THREADS, 0, (walk_kernel<1, K, F>), p, f);
}

/* How many elements of T are 16 bytes. */
template <class T> constexpr int WIDE = 16 / (int)sizeof(T);

#endif
