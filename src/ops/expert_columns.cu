/* expert_unite and expert_divide on the cuda device (expert_columns.c says what they are). On one
 * rank they are copies. Between ranks as many rows go as expert_plan has told the host
 * (expert_exchange.cu). */
#include "ops/expert_copy.cuh"

extern "C" {
#include "gpu/numbers.h"
#include "ops/collective.h"
#include "ops/expert_attr.h"
}

namespace
{

int ranks_of(const KernelArgs *args) { return ((const ColumnsAttr *)args->attr)->n; }

Status prepare(KernelArgs *args)
{
    if (ranks_of(args) == 1) return OK;
    return collective_gpu_group(args, 1u << MESH_TP, (Comm **)&args->state);
}

void release(KernelArgs *args) { args->state = NULL; /* the group is the device's */ }

/* in: rows, owned */
Status rows_there(const KernelArgs *args, int64_t *rows)
{
    const void *owned;
    TRY(gpu_numbers_find(args->stream, args->in[1].data, &owned));
    *rows = ((const int32_t *)owned)[tensor_count(&args->in[1]) - 1];
    if (*rows < 0 || *rows > args->in[0].shape.dim[0])
        return fail(ERR_ARG, "%lld rows for experts in a buffer of %lld", (long long)*rows,
                    (long long)args->in[0].shape.dim[0]);
    return OK;
}

/* Between whole rows and the ranks' parts of them, `bytes` of each, in the workspace one rank's
 * behind the other's. */
Status reorder(const KernelArgs *args, int64_t rows, size_t bytes, const Tensor *whole,
               bool uniting)
{
    size_t n = (size_t)ranks_of(args);
    for (size_t k = 0; k < n; k++) {
        char *there = (char *)whole->data + k * bytes,
             *here = (char *)args->workspace + k * (size_t)rows * bytes;
        GpuRows part = {here, bytes, there, n * bytes, bytes, (size_t)rows};
        if (uniting) part = {there, n * bytes, here, bytes, bytes, (size_t)rows};
        TRY(gpu_copy_rows(args->stream, &part));
    }
    return OK;
}

Status exchange(const KernelArgs *args, CommKind kind, const void *send, void *recv, int64_t count)
{
    CommOp op = {};
    op.kind = kind;
    op.dtype = args->in[0].dtype;
    op.send = send;
    op.recv = recv;
    op.count = count;
    op.node = args->node;
    return collective_gpu_run(args, (Comm *)args->state, &op);
}

Status run(KernelArgs *args, bool uniting)
{
    const Tensor *whole = uniting ? &args->out[0] : &args->in[0],
                 *part = uniting ? &args->in[0] : &args->out[0];
    int64_t rows, width = part->shape.dim[1];
    size_t bytes = (size_t)width * dtype_bytes(part->dtype);
    if (ranks_of(args) == 1)
        return copy_rows_there(args->stream, &args->in[1], &args->in[0], &args->out[0]);
    TRY(rows_there(args, &rows));
    if (!rows) return OK;
    if (!uniting) {
        TRY(reorder(args, rows, bytes, whole, false));
        return exchange(args, COMM_REDUCE_SCATTER, args->workspace, part->data, rows * width);
    }
    TRY(exchange(args, COMM_ALL_GATHER, part->data, args->workspace, rows * width));
    return reorder(args, rows, bytes, whole, true);
}

Status run_unite(KernelArgs *args) { return run(args, true); }
Status run_divide(KernelArgs *args) { return run(args, false); }

} // namespace

CUDA_KERNEL(expert_unite) = {.run = run_unite, .prepare = prepare, .release = release};
CUDA_KERNEL(expert_divide) = {.run = run_divide, .prepare = prepare, .release = release};
