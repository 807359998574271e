/* attention, attention_part and attention_cached on the cuda device. bf16 goes by tensor cores,
 * on Hopper by its own instructions where they fit, all else without; attention also by the
 * library, where that is asked for. Over caches the keys of a block of queries are split among
 * several blocks of threads, so that one token fills the device; a second kernel joins the splits
 * in their order. */
#include "ops/attention/attention_forward_hopper.cuh"
#include "ops/attention/attention_forward_plain.cuh"
#include "ops/attention/attention_library.cuh"

/* ---- joining splits ----------------------------------------------------------------------- */

enum { JOIN_THREADS = 128 };

/* A block of threads a row. */
__global__ static void __launch_bounds__(JOIN_THREADS) attention_join_kernel(AttentionForward f)
{
    int64_t rows = (int64_t)f.of.batch * f.of.tokens * f.of.heads, row = blockIdx.x;
    int d = f.of.d;
    float top = -INFINITY, sum = 0;
    for (int s = 0; s < f.splits; s++) top = fmaxf(top, f.split_state[2 * (s * rows + row)]);
    float shift = top == -INFINITY ? 0 : top;
    for (int s = 0; s < f.splits; s++) {
        const float *state = f.split_state + 2 * (s * rows + row);
        sum = fmaf(exp2f(state[0] - shift), state[1], sum);
    }
    float share = sum == 0 ? 0 : 1 / sum;
    int64_t at = row / f.of.heads * f.o.pitch + row % f.of.heads * d;
    for (int c = (int)threadIdx.x; c < d; c += JOIN_THREADS) {
        float o = 0;
        for (int s = 0; s < f.splits; s++) {
            const float *state = f.split_state + 2 * (s * rows + row);
            o = fmaf(exp2f(state[0] - shift) * state[1], f.split_o[(s * rows + row) * d + c], o);
        }
        plain_write(f.o, at + c, o * share);
    }
}

/* ---- the kernels -------------------------------------------------------------------------- */

template <int D> static Status forward_of(GpuStream *stream, const AttentionForward &f)
{
    constexpr int M = D > 128 ? 1 : 2, KEYS = D > 128 ? 32 : 64;
    if (!f.of.cache_rows)
        return attention_forward_mma<AttentionForwardShape<D, M, 4, KEYS, false>>(stream, f);
    if (f.of.tokens * f.of.group <= 16) /* decoding: a warp has all rows there are */
        return attention_forward_mma<AttentionForwardShape<D, 1, 1, 32, true>>(stream, f);
    return attention_forward_mma<AttentionForwardShape<D, M, 4, KEYS, true>>(stream, f);
}

static Status forward(GpuStream *stream, AttentionForward *f)
{
    const AttentionJob *job = &f->of;
    if (!job->batch || !job->tokens || !job->heads || !job->d) return OK;
    f->aligned = attention_aligned(&job->q, job->d) && attention_aligned(&job->k, job->d) &&
                 attention_aligned(&job->v, job->d);
    bool bf16s = job->q.dtype == DTYPE_BF16 && job->k.dtype == DTYPE_BF16 &&
                 job->v.dtype == DTYPE_BF16;
    if (!bf16s || job->d > 256) return attention_forward_plain(stream, *f);
    if (f->aligned && attention_hopper_takes(stream, *job))
        return job->d == 64 ? attention_forward_hopper<64>(stream, *f)
                            : attention_forward_hopper<128>(stream, *f);
    if (job->d > 128) return forward_of<256>(stream, *f);
    if (job->d > 64) return forward_of<128>(stream, *f);
    if (job->d > 32) return forward_of<64>(stream, *f);
    return forward_of<32>(stream, *f);
}

static Status prepare(KernelArgs *args) { return library_prepare(args, false); }

static Status run(KernelArgs *args)
{
    if (args->state) return library_run(args, false);
    AttentionForward f = {};
    f.of = attention_job(args, false);
    f.o = tensor_as_rows(&args->out[0], 2);
    f.lse = (float *)args->out[1].data;
    f.splits = 1;
    return forward(args->stream, &f);
}

static Status run_part(KernelArgs *args)
{
    AttentionForward f = {};
    f.of = attention_job(args, false);
    f.of.keys = ((const AttentionPart *)args->attr)->keys;
    f.o = tensor_as_rows(&args->out[0], 2);
    f.lse = (float *)args->out[1].data;
    if (args->in[ATTENTION_O].data) f.before = tensor_as_rows(&args->in[ATTENTION_O], 2);
    f.lse_before = (const float *)args->in[ATTENTION_LSE].data;
    f.splits = 1;
    return forward(args->stream, &f);
}

static Status run_cached(KernelArgs *args)
{
    const Shape *q = &args->in[ATTENTION_Q].shape, *k = &args->in[ATTENTION_K].shape;
    int64_t rows = q->dim[0] * q->dim[1] * q->dim[2],
            context = attention_positions((const AttentionAttr *)args->attr,
                                          args->in[ATTENTION_TABLE].shape.dim[1], k->dim[1]);
    AttentionForward f = {};
    f.of = attention_job(args, true);
    f.o = tensor_as_rows(&args->out[0], 2);
    f.splits = (int)attention_splits(q, k, context);
    f.split_o = (float *)args->workspace;
    f.split_state = f.split_o + f.splits * rows * q->dim[3];
    TRY(forward(args->stream, &f));
    if (f.splits == 1 || !rows || !q->dim[3]) return OK;
    return GPU_LAUNCH(args->stream, (unsigned)rows, JOIN_THREADS, 0, (attention_join_kernel), f);
}

CUDA_KERNEL(attention) = {.run = run, .prepare = prepare, .release = library_release};
CUDA_KERNEL(attention_part) = {.run = run_part};
CUDA_KERNEL(attention_cached) = {.run = run_cached};
