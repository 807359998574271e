/* cache_append on the cuda device: a block of threads for each sequence that has a page of its own
 * now copies what it needs of the shared one; then a block for each new token writes its row. */
#include "ops/kernel.cuh"

extern "C" {
#include "ops/attention/cache_append.h"
}

enum { APPEND_THREADS = 128 };

namespace
{

struct CacheAppend {
    const char *from[2];
    char *to[2];
    int64_t from_pitch[2], to_pitch[2]; /* bytes */
    const int32_t *pos, *table, *copy;
    int n, width, shift; /* n: new tokens of a sequence; width: of its table */
};

/* T: what is moved at a time, `count` of them a row */
template <class T>
__global__ void __launch_bounds__(APPEND_THREADS) cache_copy_kernel(CacheAppend a, int count)
{
    int64_t b = blockIdx.x, pos = cache_first_position(a.pos + b * a.n, a.n);
    int page = a.copy[b], rows = (int)pos & ((1 << a.shift) - 1);
    if (page < 0 || pos < 0) return;
    int64_t first = attention_page_row(a.table + b * a.width, a.shift, (int)pos) - rows;
    for (int k = 0; k < 2; k++) {
        const char *from = a.to[k] + ((int64_t)page << a.shift) * a.to_pitch[k];
        char *to = a.to[k] + first * a.to_pitch[k];
        for (int i = (int)threadIdx.x; i < rows * count; i += APPEND_THREADS) {
            int64_t at = i / count * a.to_pitch[k] + i % count * (int64_t)sizeof(T);
            *(T *)(void *)(to + at) = *(const T *)(const void *)(from + at);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(APPEND_THREADS) cache_append_kernel(CacheAppend a, int count)
{
    int64_t t = blockIdx.x;
    if (a.pos[t] < 0) return;
    int64_t row = attention_page_row(a.table + t / a.n * a.width, a.shift, a.pos[t]);
    for (int k = 0; k < 2; k++) {
        const T *from = (const T *)(const void *)(a.from[k] + t * a.from_pitch[k]);
        T *to = (T *)(void *)(a.to[k] + row * a.to_pitch[k]);
        for (int i = (int)threadIdx.x; i < count; i += APPEND_THREADS) to[i] = from[i];
    }
}

template <class T>
Status append(GpuStream *stream, const CacheAppend &a, int64_t batch, int64_t row_bytes)
{
    int count = (int)(row_bytes / (int64_t)sizeof(T));
    TRY(GPU_LAUNCH(stream, (unsigned)batch, APPEND_THREADS, 0, (cache_copy_kernel<T>), a, count));
    return GPU_LAUNCH(stream, (unsigned)(batch * a.n), APPEND_THREADS, 0, (cache_append_kernel<T>),
                      a, count);
}

} // namespace

static Status run(KernelArgs *args)
{
    const int64_t *dim = args->in[APPEND_K].shape.dim;
    CacheAppend a = {};
    int64_t bytes = dim[2] * dim[3] * (int64_t)dtype_bytes(args->in[APPEND_K].dtype);
    bool wide = bytes % sizeof(uint4) == 0;
    for (int k = 0; k < 2; k++) {
        Rows x = tensor_as_rows(&args->in[APPEND_K + k], 2),
             pool = tensor_as_rows(&args->in[APPEND_K_POOL + k], 2);
        int64_t element = (int64_t)dtype_bytes(x.dtype);
        a.from[k] = x.data;
        a.to[k] = pool.data;
        a.from_pitch[k] = x.pitch * element;
        a.to_pitch[k] = pool.pitch * element;
        wide = wide && ((uintptr_t)x.data | (uintptr_t)pool.data | (uintptr_t)a.from_pitch[k] |
                        (uintptr_t)a.to_pitch[k]) %
                               sizeof(uint4) ==
                           0;
    }
    a.pos = (const int32_t *)args->in[APPEND_POS].data;
    a.table = (const int32_t *)args->in[APPEND_TABLE].data;
    a.copy = (const int32_t *)args->in[APPEND_COPY].data;
    a.n = (int)dim[1];
    a.width = (int)args->in[APPEND_TABLE].shape.dim[1];
    a.shift = attention_page_shift(&args->in[APPEND_K_POOL].shape);
    if (!dim[0] || !dim[1] || !bytes) return OK;
    return wide ? append<uint4>(args->stream, a, dim[0], bytes)
                : append<uint16_t>(args->stream, a, dim[0], bytes);
}

CUDA_KERNEL(cache_append) = {.run = run};
