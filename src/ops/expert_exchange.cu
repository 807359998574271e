/* expert_plan, expert_dispatch and expert_collect on the cuda device, where one rank has all
 * experts: copies. */
#include "ops/expert_copy.cuh"

extern "C" {
#include "ops/expert_attr.h"
}

static Status prepare(KernelArgs *args)
{
    return refuse_ranks("experts' rows", "ep", ((const ExchangeAttr *)args->attr)->n);
}

/* in: offsets; out: table, owned */
static Status run_plan(KernelArgs *args)
{
    const Tensor *offsets = &args->in[0];
    TRY(gpu_copy(args->stream, args->out[0].data, offsets->data, tensor_bytes(offsets)));
    return offsets_from_first(args->stream, (const int32_t *)offsets->data, tensor_count(offsets),
                              &args->out[1]);
}

/* in: rows, table */
static Status run_rows(KernelArgs *args)
{
    return copy_rows_there(args->stream, &args->in[1], &args->in[0], &args->out[0]);
}

CUDA_KERNEL(expert_plan) = {.run = run_plan, .prepare = prepare};
CUDA_KERNEL(expert_dispatch) = {.run = run_rows, .prepare = prepare};
CUDA_KERNEL(expert_collect) = {.run = run_rows, .prepare = prepare};
