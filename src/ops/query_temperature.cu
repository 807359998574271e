/* query_temperature on the cuda device: a block of threads a token. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/rope_internal.h"
}

namespace
{

enum { TOKEN_THREADS = 256 };

template <class T, int N>
__global__ void __launch_bounds__(TOKEN_THREADS)
    temperature_kernel(QueryTemperatureAttr attr, Rows x, const int32_t *pos, Rows y)
{
    __shared__ float shared_factor;
    for (int64_t token = blockIdx.x; token < x.n; token += gridDim.x) {
        if (threadIdx.x == 0) {
            double steps = floor(((double)pos[token] + 1) / (double)attr.floor_scale);
            shared_factor = (float)(1 + (double)attr.scale * log1p(fmax(steps, 0.0)));
        }
        __syncthreads();
        const float factor = shared_factor;
        for (int64_t i = threadIdx.x * N; i < x.width; i += (int64_t)blockDim.x * N) {
            auto v = load_neighbours<N>(row_at<const T>(x, token) + i);
            for (int k = 0; k < N; k++) v.at[k] = from_f32<T>(to_f32(v.at[k]) * factor);
            store_neighbours(row_at<T>(y, token) + i, v);
        }
        __syncthreads(); /* before the factor is written again */
    }
}

static Status run(KernelArgs *args)
{
    const QueryTemperatureAttr attr = *(const QueryTemperatureAttr *)args->attr;
    Rows x = tensor_as_rows(&args->in[0], 2), y = tensor_as_rows(&args->out[0], 2);
    const int32_t *pos = (const int32_t *)args->in[1].data;
    unsigned grid = grid_of(x.n);
    if (!x.n) return OK;
    BY_ACTIVATION(x.dtype, T, {
        constexpr int N = 16 / (int)sizeof(T);
        if (rows_align(&x, N) && rows_align(&y, N))
            return GPU_LAUNCH(args->stream, grid, TOKEN_THREADS, 0, (temperature_kernel<T, N>),
                              attr, x, pos, y);
        return GPU_LAUNCH(args->stream, grid, TOKEN_THREADS, 0, (temperature_kernel<T, 1>), attr, x,
                          pos, y);
    });
}

} // namespace

CUDA_KERNEL(query_temperature) = {.run = run};
