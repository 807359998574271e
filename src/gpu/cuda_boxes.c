/* Tensor maps, which the driver encodes. It is asked for the function by name, so that the program
 * starts without one. */
#include "gpu/cuda_internal.h"

#include <cuda.h>
#include <cudaTypedefs.h>

enum { ENCODES_SINCE = 12000 };

static Status encoder(PFN_cuTensorMapEncodeTiled_v12000 *encode)
{
    void *found = NULL;
    enum cudaDriverEntryPointQueryResult result;
    TRY(cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, ENCODES_SINCE,
                                                    cudaEnableDefault, &result),
                   "looking for the driver's tensor maps"));
    if (result != cudaDriverEntryPointSuccess || !found)
        return fail(ERR_UNSUPPORTED, "this NVIDIA driver has no tensor maps: install a newer one");
    *(void **)encode = found;
    return OK;
}

static CUtensorMapSwizzle swizzle_of(int line_bytes)
{
    return line_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
           : line_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                              : CU_TENSOR_MAP_SWIZZLE_32B;
}

Status gpu_boxes_make(GpuStream *stream, const GpuTiling *tiling, GpuBoxes *boxes)
{
    (void)stream;
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    TRY(encoder(&encode));
    cuuint64_t size[GPU_BOX_AXES], pitch[GPU_BOX_AXES];
    cuuint32_t box[GPU_BOX_AXES], step[GPU_BOX_AXES];
    for (int a = 0; a < tiling->axes; a++) {
        size[a] = (cuuint64_t)tiling->size[a];
        box[a] = (cuuint32_t)tiling->box[a];
        step[a] = 1;
        if (a) pitch[a - 1] = (cuuint64_t)tiling->pitch_bytes[a];
    }
    _Static_assert(sizeof(CUtensorMap) == sizeof(GpuBoxes), "kernels are given tensor maps");
    /* reads of the second-level cache go by twice a line of it */
    CUresult result = encode((CUtensorMap *)(void *)boxes, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                             (cuuint32_t)tiling->axes, (void *)(uintptr_t)tiling->data, size, pitch,
                             box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                             swizzle_of(2 * tiling->box[0]), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS
               ? OK
               : fail(ERR_DEVICE, "the driver refuses a tensor map (CUresult %d)", (int)result);
}
