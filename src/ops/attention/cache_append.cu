/* cache_append on the cuda device: a block of threads for each new token, which does nothing where
 * a later token of its sequence falls into the same row. */
#include "ops/kernel.cuh"

enum { APPEND_THREADS = 128 };
enum { IN_K, IN_V, IN_POS, IN_K_CACHE, IN_V_CACHE };

struct CacheAppend {
    const char *from[2];
    char *to[2];
    int64_t from_pitch[2], to_pitch[2]; /* bytes */
    const int32_t *pos;
    int n, rows; /* of a sequence: new tokens, rows of its cache */
};

/* T: what is moved at a time, `width` of them a row */
template <class T>
__global__ void __launch_bounds__(APPEND_THREADS) cache_append_kernel(CacheAppend a, int width)
{
    __shared__ float scratch[WARP];
    int64_t t = blockIdx.x, b = t / a.n, end = (b + 1) * a.n;
    float later = 0;
    if (a.pos[t] < 0) return;
    int row = a.pos[t] % a.rows;
    for (int64_t i = t + 1 + threadIdx.x; i < end; i += APPEND_THREADS)
        if (a.pos[i] >= 0 && a.pos[i] % a.rows == row) later = 1;
    if (block_max(later, scratch) > 0) return;
    for (int k = 0; k < 2; k++) {
        const T *from = (const T *)(const void *)(a.from[k] + t * a.from_pitch[k]);
        T *to = (T *)(void *)(a.to[k] + (b * a.rows + row) * a.to_pitch[k]);
        for (int i = (int)threadIdx.x; i < width; i += APPEND_THREADS) to[i] = from[i];
    }
}

static Status run(KernelArgs *args)
{
    const int64_t *dim = args->in[IN_K].shape.dim;
    CacheAppend a = {};
    int64_t tokens = dim[0] * dim[1], bytes = dim[2] * dim[3];
    bytes *= (int64_t)dtype_bytes(args->in[IN_K].dtype);
    bool wide = bytes % sizeof(uint4) == 0;
    for (int k = 0; k < 2; k++) {
        Rows x = tensor_as_rows(&args->in[k], 2),
             cache = tensor_as_rows(&args->in[IN_K_CACHE + k], 2);
        int64_t element = (int64_t)dtype_bytes(x.dtype);
        a.from[k] = x.data;
        a.to[k] = cache.data;
        a.from_pitch[k] = x.pitch * element;
        a.to_pitch[k] = cache.pitch * element;
        wide = wide && ((uintptr_t)x.data | (uintptr_t)cache.data | (uintptr_t)a.from_pitch[k] |
                        (uintptr_t)a.to_pitch[k]) %
                               sizeof(uint4) ==
                           0;
    }
    a.pos = (const int32_t *)args->in[IN_POS].data;
    a.n = (int)dim[1];
    a.rows = (int)args->in[IN_K_CACHE].shape.dim[1];
    if (!tokens || !bytes) return OK;
    unsigned grid = (unsigned)tokens;
    if (wide)
        return GPU_LAUNCH(args->stream, grid, APPEND_THREADS, 0, (cache_append_kernel<uint4>), a,
                          (int)(bytes / (int64_t)sizeof(uint4)));
    return GPU_LAUNCH(args->stream, grid, APPEND_THREADS, 0, (cache_append_kernel<uint16_t>), a,
                      (int)(bytes / 2));
}

CUDA_KERNEL(cache_append) = {.run = run};
