/* What attention by the library needs, by shapes alone. */
#include "gpu/cudnn.h"

/* What cuDNN's engines ask for beside their matrices: 256 bytes were seen. */
enum { SMALL = 4096, BLOCK = 128 };

/* All that cuDNN 9.19 was seen to ask for on Hopper (cudnn_test.c asks it anew). Its gradient sums
 * dq with atomics unless dS = [batch heads tokens tokens] lies in memory whole, in bf16 and in
 * whole blocks; of grouped heads dk and dv lie there for every query head before they are added. */
size_t gpu_attention_bytes(const GpuAttention *a)
{
    size_t rows, blocks, pairs, heads = 0, sum;
    if (!a->gradient) return gpu_attention_front_bytes(a) + SMALL;
    size_t up = round_up((size_t)a->tokens, BLOCK);
    bool fits = size_mul((size_t)a->batch * (size_t)a->heads, (size_t)a->tokens, &rows) &&
                size_mul((size_t)a->batch * (size_t)a->heads, up, &blocks) &&
                size_mul(blocks, 2 * up, &pairs);
    if (fits && a->heads != a->kv_heads) fits = size_mul(rows, 4 * (size_t)a->d, &heads);
    fits = fits && size_add(pairs, heads, &sum) &&
           size_add(sum, gpu_attention_front_bytes(a) + SMALL, &sum);
    return fits ? sum : SIZE_MAX;
}

size_t gpu_attention_front_bytes(const GpuAttention *a)
{
    if (!a->gradient && a->statistics) return 0;
    return round_up((size_t)(a->batch * a->heads * a->tokens) * sizeof(float), 256);
}
