/* expert_unite and expert_divide on the cuda device, where one rank has all columns: copies. */
#include "ops/expert_copy.cuh"

extern "C" {
#include "ops/expert_attr.h"
}

static Status prepare(KernelArgs *args)
{
    return refuse_ranks("columns of experts' rows", "tp", ((const ColumnsAttr *)args->attr)->n);
}

/* in: rows, owned */
static Status run(KernelArgs *args)
{
    return copy_rows_there(args->stream, &args->in[1], &args->in[0], &args->out[0]);
}

CUDA_KERNEL(expert_unite) = {.run = run, .prepare = prepare};
CUDA_KERNEL(expert_divide) = {.run = run, .prepare = prepare};
