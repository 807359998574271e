/* Between strided tensors in memory and the packed, row-major order of files. */
#include <string.h>

#include "ckpt/ckpt_internal.h"

/* Copies the run of elements first .. first+n-1, walking the index of every axis. A run along the
 * last axis is one memcpy when that axis is contiguous. */
static void copy_elements(const Tensor *t, int64_t first, int64_t n, char *packed, bool gather)
{
    const Shape *shape = &t->shape;
    size_t size = dtype_bytes(t->dtype);
    int last = shape->rank - 1;
    int64_t index[MAX_RANK] = {0}, rest = first;
    for (int d = last; d >= 0; d--) {
        index[d] = rest % shape->dim[d];
        rest /= shape->dim[d];
    }
    while (n > 0) {
        int64_t at = 0, run = 1;
        for (int d = 0; d <= last; d++) at += index[d] * t->stride[d];
        if (last >= 0 && t->stride[last] == 1) run = min_i64(n, shape->dim[last] - index[last]);
        char *memory = (char *)t->data + (size_t)at * size;
        if (gather)
            memcpy(packed, memory, (size_t)run * size);
        else
            memcpy(memory, packed, (size_t)run * size);
        packed += (size_t)run * size;
        n -= run;
        if (last < 0) break;
        index[last] += run;
        for (int d = last; d > 0 && index[d] == shape->dim[d]; d--) {
            index[d] = 0;
            index[d - 1]++;
        }
    }
}

void tensor_gather(const Tensor *tensor, int64_t first, int64_t n, void *packed)
{
    if (n <= 0) return;
    if (stride_is_contiguous(&tensor->shape, tensor->stride)) {
        size_t size = dtype_bytes(tensor->dtype);
        memcpy(packed, (const char *)tensor->data + (size_t)first * size, (size_t)n * size);
        return;
    }
    copy_elements(tensor, first, n, packed, true);
}

void tensor_scatter(const void *packed, const Tensor *tensor, int64_t first, int64_t n)
{
    if (n <= 0) return;
    copy_elements(tensor, first, n, (char *)(uintptr_t)packed, false);
}
