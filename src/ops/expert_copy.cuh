/* Copies of rows of experts on the device, which alone knows how many there are. Included by .cu
 * files only. */
#ifndef OPS_EXPERT_COPY_CUH
#define OPS_EXPERT_COPY_CUH

#include "ops/kernel.cuh"

enum { COPY_THREADS = 256, COPY_BLOCKS = 2048 };

/* Rows begin .. end - 1 of a buffer, as the device's memory says. */
typedef struct Stretch {
    const int32_t *begin, *end; /* begin NULL: 0 */
    const int32_t *all;         /* rows in the whole buffer */
    int64_t room;               /* that there can be */
    int64_t width;              /* of a row, in what is moved at a time */
} Stretch;

/* pick: the stretch to the begin of `to`. put: from there into the stretch, zeros in the other
 * rows.
 */
template <class U>
__global__ static void __launch_bounds__(COPY_THREADS)
    copy_stretch_kernel(Stretch s, const U *from, U *to, bool put)
{
    int64_t begin = (s.begin ? *s.begin : 0) * s.width,
            own = min((int64_t)*s.end, s.room) * s.width - begin;
    int64_t count = put ? min((int64_t)*s.all, s.room) * s.width : own;
    for (int64_t i = (int64_t)blockIdx.x * COPY_THREADS + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * COPY_THREADS) {
        int64_t at = put ? i - begin : i + begin;
        U none = {};
        to[i] = !put || (at >= 0 && at < own) ? from[at] : none;
    }
}

template <class U>
static Status copy_stretch_by(GpuStream *stream, Stretch s, const Tensor *from, const Tensor *to,
                              bool put)
{
    s.width = from->shape.dim[1] * (int64_t)dtype_bytes(from->dtype) / (int64_t)sizeof(U);
    int64_t blocks = min_i64(COPY_BLOCKS, ceil_div(s.room * s.width, COPY_THREADS));
    if (!blocks) return OK;
    return GPU_LAUNCH(stream, (unsigned)blocks, COPY_THREADS, 0, (copy_stretch_kernel<U>), s,
                      (const U *)from->data, (U *)to->data, put);
}

/* Between tensors [rows width] of one dtype; s->width is set here. */
static inline Status copy_stretch(GpuStream *stream, Stretch s, const Tensor *from,
                                  const Tensor *to, bool put)
{
    int64_t row_bytes = from->shape.dim[1] * (int64_t)dtype_bytes(from->dtype);
    s.room = min_i64(from->shape.dim[0], to->shape.dim[0]);
    if (row_bytes % 16 == 0 && ((uintptr_t)from->data | (uintptr_t)to->data) % 16 == 0)
        return copy_stretch_by<uint4>(stream, s, from, to, put);
    if (dtype_bytes(from->dtype) == 4) return copy_stretch_by<uint32_t>(stream, s, from, to, put);
    return copy_stretch_by<uint16_t>(stream, s, from, to, put);
}

/* All rows in front of the last of `offsets`. */
static inline Status copy_rows_there(GpuStream *stream, const Tensor *offsets, const Tensor *from,
                                     const Tensor *to)
{
    Stretch s = {};
    s.all = s.end = (const int32_t *)offsets->data + tensor_count(offsets) - 1;
    return copy_stretch(stream, s, from, to, false);
}

/* owned[e] = offsets[e] - offsets[0], for e = 0 .. n - 1 */
__global__ static void __launch_bounds__(COPY_THREADS)
    from_first_kernel(const int32_t *offsets, int64_t n, int32_t *owned)
{
    int64_t e = (int64_t)blockIdx.x * COPY_THREADS + threadIdx.x;
    if (e < n) owned[e] = offsets[e] - offsets[0];
}

static inline Status offsets_from_first(GpuStream *stream, const int32_t *offsets, int64_t n,
                                        const Tensor *owned)
{
    return GPU_LAUNCH(stream, grid_of(ceil_div(n, COPY_THREADS)), COPY_THREADS, 0,
                      from_first_kernel, offsets, n, (int32_t *)owned->data);
}

#endif
