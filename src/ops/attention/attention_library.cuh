/* attention and its gradient by the library (gpu.h), where the op asks for it and operands lie as
 * it wants them; else our own kernels compute. Both make and read the same statistics, so that one
 * may be the library's and the other ours. */
#ifndef OPS_ATTENTION_LIBRARY_CUH
#define OPS_ATTENTION_LIBRARY_CUH

#include "ops/attention/attention.cuh"

extern "C" {
#include "gpu/attention.h"
}

constexpr unsigned FIRST_THREADS = 256;

/* Where the keys begin that each token sees. */
__global__ static void __launch_bounds__(FIRST_THREADS)
    attention_first_kernel(AttentionJob job, int32_t *first)
{
    int i = (int)(blockIdx.x * FIRST_THREADS + threadIdx.x);
    if (i >= job.batch * job.tokens) return;
    first[i] = (int32_t)attention_token_range(job, i / job.tokens, i % job.tokens).first;
}

static inline int64_t library_pitch(const Tensor *t) { return tensor_as_rows(t, 2).pitch; }

/* All are there, and in steps of 16 bytes. */
static inline bool library_rows_fit(const Tensor *t, int n, int d)
{
    for (int i = 0; i < n; i++) {
        Rows rows = tensor_as_rows(&t[i], 2);
        if (!t[i].data || !attention_aligned(&rows, d)) return false;
    }
    return true;
}

static inline bool library_takes(const KernelArgs *args, bool gradient)
{
    const AttentionAttr *attr = (const AttentionAttr *)args->attr;
    const Tensor *in = args->in;
    AttentionShapes shapes = {in[ATTENTION_Q].dtype, &in[ATTENTION_Q].shape,
                              &in[ATTENTION_K].shape};
    int d = (int)in[ATTENTION_Q].shape.dim[3];
    if (!attr->library || attention_library_refusal(attr, &shapes, gradient)) return false;
    if (!library_rows_fit(in, ATTENTION_POS, d) ||
        !library_rows_fit(args->out, gradient ? 3 : 1, d))
        return false;
    return !gradient ||
           (library_rows_fit(&in[ATTENTION_O], 1, d) && library_rows_fit(&in[ATTENTION_DO], 1, d));
}

/* Sets args->state where the library takes it. */
static inline Status library_prepare(KernelArgs *args, bool gradient)
{
    const Tensor *in = args->in, *out = args->out;
    const int64_t *q = in[ATTENTION_Q].shape.dim;
    if (!library_takes(args, gradient)) return OK;
    GpuAttention a = {};
    a.batch = q[0];
    a.tokens = q[1];
    a.heads = q[2];
    a.kv_heads = in[ATTENTION_K].shape.dim[2];
    a.d = q[3];
    a.q_pitch = library_pitch(&in[ATTENTION_Q]);
    a.k_pitch = library_pitch(&in[ATTENTION_K]);
    a.v_pitch = library_pitch(&in[ATTENTION_V]);
    a.o_pitch = library_pitch(gradient ? &in[ATTENTION_O] : &out[0]);
    if (gradient) {
        a.dout_pitch = library_pitch(&in[ATTENTION_DO]);
        a.dq_pitch = library_pitch(&out[0]);
        a.dk_pitch = library_pitch(&out[1]);
        a.dv_pitch = library_pitch(&out[2]);
    }
    a.scale = ((const AttentionAttr *)args->attr)->scale;
    a.gradient = gradient;
    a.statistics = gradient || out[1].data;
    a.workspace_bytes = args->workspace_bytes - attention_library_first_bytes(&in[0].shape);
    GpuAttentionPlan *plan;
    TRY(gpu_attention_plan(args->stream, &a, &plan));
    args->state = plan;
    return OK;
}

static inline Status library_run(KernelArgs *args, bool gradient)
{
    const Tensor *in = args->in, *out = args->out;
    AttentionJob job = attention_job(args, false);
    char *space = (char *)args->workspace;
    GpuAttentionOperands x = {};
    x.q = in[ATTENTION_Q].data;
    x.k = in[ATTENTION_K].data;
    x.v = in[ATTENTION_V].data;
    x.first = (const int32_t *)(const void *)space;
    x.o = gradient ? in[ATTENTION_O].data : out[0].data;
    x.lse = (float *)(gradient ? in[ATTENTION_LSE].data : out[1].data);
    if (gradient) {
        x.dout = in[ATTENTION_DO].data;
        x.dq = out[0].data;
        x.dk = out[1].data;
        x.dv = out[2].data;
    }
    unsigned blocks = (unsigned)ceil_div(job.batch * job.tokens, FIRST_THREADS);
    TRY(GPU_LAUNCH(args->stream, blocks, FIRST_THREADS, 0, (attention_first_kernel), job,
                   (int32_t *)(void *)space));
    return gpu_attention_run((GpuAttentionPlan *)args->state, &x,
                             space + attention_library_first_bytes(&in[0].shape));
}

static inline void library_release(KernelArgs *args)
{
    gpu_attention_plan_destroy((GpuAttentionPlan *)args->state);
    args->state = NULL;
}

#endif
