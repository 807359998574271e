/* expert_share, expert_pick and expert_put on the cuda device. */
#include "ops/expert_copy.cuh"

extern "C" {
#include "ops/expert_attr.h"
}

/* The offset of the first expert of this rank, and how many it has. */
static const int32_t *own_experts(const KernelArgs *args, const Tensor *offsets, int64_t *each)
{
    const FoldAttr *attr = (const FoldAttr *)args->attr;
    *each = (tensor_count(offsets) - 1) / attr->n;
    return (const int32_t *)offsets->data + attr->rank * *each;
}

static Status run_share(KernelArgs *args)
{
    int64_t each;
    const int32_t *first = own_experts(args, &args->in[0], &each);
    return offsets_from_first(args->stream, first, each + 1, &args->out[0]);
}

/* in: rows, offsets */
static Status run_rows(KernelArgs *args, bool put)
{
    const Tensor *offsets = &args->in[1];
    int64_t each;
    Stretch own = {};
    own.begin = own_experts(args, offsets, &each);
    own.end = own.begin + each;
    own.all = (const int32_t *)offsets->data + tensor_count(offsets) - 1;
    return copy_stretch(args->stream, own, &args->in[0], &args->out[0], put);
}

static Status run_pick(KernelArgs *args) { return run_rows(args, false); }
static Status run_put(KernelArgs *args) { return run_rows(args, true); }

CUDA_KERNEL(expert_share) = {.run = run_share};
CUDA_KERNEL(expert_pick) = {.run = run_pick};
CUDA_KERNEL(expert_put) = {.run = run_put};
