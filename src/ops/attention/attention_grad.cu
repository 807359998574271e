/* attention_grad and attention_grad_part on the cuda device: formulas in attention_grad.c. bf16
 * goes by tensor cores, on Hopper by its own instructions where they fit, all else without;
 * attention_grad also by the library, where that is asked for. */
#include "ops/attention/attention_backward_hopper.cuh"
#include "ops/attention/attention_backward_plain.cuh"
#include "ops/attention/attention_library.cuh"

/* D: columns of tiles; keys of a block of threads: 16 a warp, but of half the columns if HALVES. */
template <int D> static Status backward_mma(GpuStream *stream, const AttentionBackward &f)
{
    constexpr bool wide = D > 128;
    if (f.dq.data && f.of.tokens)
        TRY((attention_queries_mma<AttentionQueriesShape<D, wide ? 1 : 2, 4, 32>>(stream, f)));
    if ((!f.dk.data && !f.dv.data) || !f.of.n_keys) return OK;
    return attention_keys_mma<AttentionKeysShape<D, 8, wide ? 2 : 1>>(stream, f);
}

static Status backward(GpuStream *stream, const AttentionBackward &f)
{
    const AttentionJob *job = &f.of;
    if (!job->batch || !job->heads || !job->d) return OK;
    if (job->tokens) TRY(attention_tell(stream, f));
    if (job->q.dtype != DTYPE_BF16 || job->d > 256) return attention_backward_plain(stream, f);
    if (f.aligned && attention_hopper_takes(stream, *job))
        return job->d == 64 ? attention_backward_hopper<64>(stream, f)
                            : attention_backward_hopper<128>(stream, f);
    if (job->d > 128) return backward_mma<256>(stream, f);
    if (job->d > 64) return backward_mma<128>(stream, f);
    if (job->d > 32) return backward_mma<64>(stream, f);
    return backward_mma<32>(stream, f);
}

static Rows rows_or_none(const Tensor *t)
{
    Rows none = {};
    return t->data ? tensor_as_rows(t, 2) : none;
}

static AttentionBackward backward_of(const KernelArgs *args)
{
    const Tensor *in = args->in;
    AttentionBackward f = {};
    f.of = attention_job(args, false);
    f.o = tensor_as_rows(&in[ATTENTION_O], 2);
    f.dout = tensor_as_rows(&in[ATTENTION_DO], 2);
    f.dq = rows_or_none(&args->out[0]);
    f.dk = rows_or_none(&args->out[1]);
    f.dv = rows_or_none(&args->out[2]);
    f.lse = (const float *)in[ATTENTION_LSE].data;
    AttentionGradSpace space = attention_grad_space(&in[ATTENTION_Q].shape);
    char *at = (char *)args->workspace;
    f.tile = (AttentionTile *)(void *)at;
    f.range = (AttentionRange *)(void *)(at + space.ranges_at);
    f.stat = (AttentionStat *)(void *)(at + space.stats_at);
    f.tiles = (int)space.tiles;
    f.aligned = attention_aligned(&f.of.q, f.of.d) && attention_aligned(&f.of.k, f.of.d) &&
                attention_aligned(&f.of.v, f.of.d) && attention_aligned(&f.dout, f.of.d);
    return f;
}

static Status prepare(KernelArgs *args) { return library_prepare(args, true); }

static Status run(KernelArgs *args)
{
    if (args->state) return library_run(args, true);
    return backward(args->stream, backward_of(args));
}

static Status run_part(KernelArgs *args)
{
    AttentionBackward f = backward_of(args);
    f.of.keys = ((const AttentionPart *)args->attr)->keys;
    if (args->in[ATTENTION_DQ].data) f.dq_before = tensor_as_rows(&args->in[ATTENTION_DQ], 2);
    return backward(args->stream, f);
}

CUDA_KERNEL(attention_grad) = {.run = run, .prepare = prepare, .release = library_release};
CUDA_KERNEL(attention_grad_part) = {.run = run_part};
