/* expert_plan, expert_dispatch and expert_collect on the cuda device (expert_exchange.c says what
 * they are). On one rank they are copies.
 *
 * Between ranks rows are sent in exact counts, which the host must know to say them. So expert_plan
 * sends its results to the host too, and whoever sends rows by them waits for that copy: the first
 * one really, those behind it in the layer, and in its backward pass, no more. Arrived rows are by
 * rank, then expert, and are used by expert, then rank: a kernel moves them. */
#include "ops/expert_copy.cuh"

extern "C" {
#include "gpu/numbers.h"
#include "ops/collective.h"
#include "ops/expert_table.h"
}

#include <stdlib.h>

namespace
{

struct Prepared {
    Comm *comm;
    int64_t *counts; /* [4 n], for expert_counts_at */
};

Status prepare(KernelArgs *args)
{
    const ExchangeAttr *attr = (const ExchangeAttr *)args->attr;
    Prepared *p = (Prepared *)xcalloc(1, sizeof *p);
    args->state = p;
    p->counts = (int64_t *)xcalloc(4 * (size_t)attr->n, sizeof *p->counts);
    return attr->n > 1 ? collective_gpu_group(args, 1u << MESH_EP, &p->comm) : OK;
}

void release(KernelArgs *args)
{
    Prepared *p = (Prepared *)args->state;
    if (p) free(p->counts);
    free(p);
    args->state = NULL;
}

ExpertTable table_at(const int32_t *at, const Tensor *table, const KernelArgs *args)
{
    return expert_table(at, tensor_count(table), (const ExchangeAttr *)args->attr);
}

/* ---- plan --------------------------------------------------------------------------------- */

/* owned[i]: where the rows of own expert i begin, or with `apart` of expert i / n those of rank
 * i % n; the last: where all end. */
__global__ void __launch_bounds__(COPY_THREADS)
    owned_kernel(ExpertTable t, int apart, int64_t n_owned, int32_t *owned)
{
    int64_t i = (int64_t)blockIdx.x * COPY_THREADS + threadIdx.x;
    if (i >= n_owned) return;
    owned[i] = (int32_t)(apart ? expert_use(&t, (int)(i % t.n), i / t.n) : expert_use(&t, 0, i));
}

/* Beside the stream, so that the host has the results while the stream goes on to them. */
Status plan_ranks(KernelArgs *args)
{
    const Prepared *p = (const Prepared *)args->state;
    const Tensor *table = &args->out[0], *owned = &args->out[1];
    int64_t n_owned = tensor_count(owned);
    GpuStream *side;
    CommOp op = {};
    op.kind = COMM_ALL_GATHER;
    op.dtype = DTYPE_I32;
    op.send = args->in[0].data;
    op.recv = table->data;
    op.count = tensor_count(&args->in[0]);
    op.node = args->node;
    TRY(gpu_side_begin(args->stream, 0, &side));
    TRY(comm_enqueue(p->comm, &op, side));
    TRY(GPU_LAUNCH(side, grid_of(ceil_div(n_owned, COPY_THREADS)), COPY_THREADS, 0, (owned_kernel),
                   table_at((const int32_t *)table->data, table, args),
                   ((const ExchangeAttr *)args->attr)->apart, n_owned, (int32_t *)owned->data));
    TRY(gpu_numbers_fetch(args->stream, side, table->data, tensor_bytes(table), args));
    TRY(gpu_numbers_fetch(args->stream, side, owned->data, tensor_bytes(owned), args));
    TRY(gpu_side_end(args->stream, 0, args));
    return gpu_side_join(args->stream, args);
}

/* in: offsets; out: table, owned */
Status run_plan(KernelArgs *args)
{
    const Tensor *offsets = &args->in[0];
    if (((const ExchangeAttr *)args->attr)->n > 1) return plan_ranks(args);
    TRY(gpu_copy(args->stream, args->out[0].data, offsets->data, tensor_bytes(offsets)));
    return offsets_from_first(args->stream, (const int32_t *)offsets->data, tensor_count(offsets),
                              &args->out[1]);
}

void release_plan(KernelArgs *args)
{
    gpu_numbers_drop(args->stream, args);
    release(args);
}

/* ---- rows --------------------------------------------------------------------------------- */

/* A run of blocks for each rank's rows of each own expert; `arriving`: from arrived to used, else
 * back. */
template <class U>
__global__ void __launch_bounds__(COPY_THREADS)
    reorder_kernel(ExpertTable t, int64_t width, unsigned blocks_each, U *arrived, U *used,
                   bool arriving)
{
    int64_t e = blockIdx.x / blocks_each / t.n;
    int r = (int)(blockIdx.x / blocks_each % t.n);
    U *there = arrived + expert_arrival(&t, r, e) * width,
      *here = used + expert_use(&t, r, e) * width;
    int64_t count = expert_rows(&t, r, e) * width;
    for (int64_t i = (int64_t)(blockIdx.x % blocks_each) * COPY_THREADS + threadIdx.x; i < count;
         i += (int64_t)blocks_each * COPY_THREADS) {
        if (arriving)
            here[i] = there[i];
        else
            there[i] = here[i];
    }
}

template <class U>
Status reorder_by(const KernelArgs *args, int64_t rows, void *arrived, const Tensor *used,
                  bool arriving)
{
    const Tensor *table = &args->in[1];
    ExpertTable t = table_at((const int32_t *)table->data, table, args);
    int64_t width = used->shape.dim[1] * (int64_t)dtype_bytes(used->dtype) / (int64_t)sizeof(U),
            runs = t.each * t.n,
            blocks = min_i64(COPY_BLOCKS, ceil_div(rows * width, COPY_THREADS)),
            each = ceil_div(blocks, runs);
    if (!blocks) return OK;
    return GPU_LAUNCH(args->stream, (unsigned)(runs * each), COPY_THREADS, 0, (reorder_kernel<U>),
                      t, width, (unsigned)each, (U *)arrived, (U *)used->data, arriving);
}

/* Between the workspace, in the order of arrival, and `used`; so many rows. */
Status reorder(const KernelArgs *args, int64_t rows, const Tensor *used, bool arriving)
{
    void *arrived = args->workspace;
    int64_t row_bytes = used->shape.dim[1] * (int64_t)dtype_bytes(used->dtype);
    if (row_bytes % 16 == 0 && ((uintptr_t)arrived | (uintptr_t)used->data) % 16 == 0)
        return reorder_by<uint4>(args, rows, arrived, used, arriving);
    if (dtype_bytes(used->dtype) == 4)
        return reorder_by<uint32_t>(args, rows, arrived, used, arriving);
    return reorder_by<uint16_t>(args, rows, arrived, used, arriving);
}

/* in: rows, table */
Status run_ranks(KernelArgs *args, bool out)
{
    const Prepared *p = (const Prepared *)args->state;
    const Tensor *table = &args->in[1], *tokens = out ? &args->in[0] : &args->out[0],
                 *owned = out ? &args->out[0] : &args->in[0];
    const void *numbers;
    TRY(gpu_numbers_find(args->stream, table->data, &numbers));
    ExpertTable t = table_at((const int32_t *)numbers, table, args);
    ExpertCounts c = expert_counts_at(p->counts, t.n);
    TRY(expert_count(&t, tokens->shape.dim[1], tokens->shape.dim[0], owned->shape.dim[0], &c));
    CommOp op = {};
    op.kind = COMM_ALL_TO_ALL;
    op.dtype = tokens->dtype;
    op.send = out ? tokens->data : args->workspace;
    op.recv = out ? args->workspace : tokens->data;
    op.send_counts = out ? c.tokens : c.owned;
    op.send_offsets = out ? c.tokens_at : c.owned_at;
    op.recv_counts = out ? c.owned : c.tokens;
    op.recv_offsets = out ? c.owned_at : c.tokens_at;
    op.node = args->node;
    int64_t rows = expert_use(&t, 0, t.each);
    if (!out) TRY(reorder(args, rows, owned, false));
    TRY(collective_gpu_run(args, p->comm, &op));
    return out ? reorder(args, rows, owned, true) : OK;
}

Status run_rows(KernelArgs *args, bool out)
{
    if (((const ExchangeAttr *)args->attr)->n > 1) return run_ranks(args, out);
    return copy_rows_there(args->stream, &args->in[1], &args->in[0], &args->out[0]);
}

Status run_dispatch(KernelArgs *args) { return run_rows(args, true); }
Status run_collect(KernelArgs *args) { return run_rows(args, false); }

} // namespace

CUDA_KERNEL(expert_plan) = {.run = run_plan, .prepare = prepare, .release = release_plan};
CUDA_KERNEL(expert_dispatch) = {.run = run_dispatch, .prepare = prepare, .release = release};
CUDA_KERNEL(expert_collect) = {.run = run_collect, .prepare = prepare, .release = release};
