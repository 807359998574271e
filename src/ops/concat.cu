/* concat on the cuda device: copies the parts that the memory plan has not already put in their
 * places. */
#include "ops/map.cuh"

namespace
{

static Status run(KernelArgs *args)
{
    const Tensor *y = &args->out[0];
    const int last = y->shape.rank - 1;
    char *place = (char *)y->data;
    for (int i = 0; i < args->n_in; i++) {
        Tensor part = *y;
        part.data = place;
        part.shape = args->in[i].shape;
        place += (size_t)part.shape.dim[last] * dtype_bytes(y->dtype);
        if (args->in[i].data != part.data)
            TRY(gpu_copy_elements(args->stream, &part, &args->in[i]));
    }
    return OK;
}

} // namespace

CUDA_KERNEL(concat) = {.run = run};
