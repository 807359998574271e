/* Attention and its gradient as graphs for cuDNN (Dao 2022 has the formulas):
 *
 *   z = scale q k^T, where the key is seen, else -inf;  lse = log sum exp z;  o = exp(z - lse) v
 *   delta = sum do o;  p = exp(z - lse);  dv = p^T do;  dz = p (do v^T - delta) scale
 *   dq = dz k;  dk = dz^T q
 *
 * Heads are an axis before tokens, as cuDNN has it: [batch heads tokens d], by strides. Of grouped
 * heads k and v have fewer; their gradients are made for every query head and added.
 *
 * Determinism is in the gradient's last product. Written to dq itself, as here, cuDNN keeps dz in
 * memory and makes dq from it in one order; written to sums in f32 it would spare that memory and
 * add with atomics. (Its frontend decides so too, where determinism is asked for on Hopper; engines
 * say of themselves nothing that could be relied on.)
 */
#include "gpu/cudnn_graph.h"

#ifdef HAS_CUDNN

#include <math.h>
#include <stdlib.h>

/* The numbers of tensors. */
enum {
    Q = 1,
    K,
    V,
    FIRST,
    O,
    LSE,
    DOUT,
    DQ,
    DK,
    DV,
    DELTA,
    SCALE,
    HIDDEN, /* the score of a key that is not seen */
    ONE,
    TENSORS
};

struct CudnnPlan {
    GpuAttention of;
    CudnnGraph graph;
    float scale, hidden, one; /* given by address */
};

/* While its graph is described. */
typedef struct Describe {
    CudnnGraph *g;
    const GpuAttention *a;
} Describe;

static const cudnnDataType_t f32 = CUDNN_DATA_FLOAT, bf16 = CUDNN_DATA_BFLOAT16,
                             i32 = CUDNN_DATA_INT32, truth = CUDNN_DATA_BOOLEAN;

/* ---- tensors ------------------------------------------------------------------------------ */

/* [batch heads tokens d] in memory as [batch tokens heads d], rows `pitch` apart. */
static CudnnTensor rows(const Describe *d, int64_t number, int64_t heads, int64_t pitch)
{
    const GpuAttention *a = d->a;
    return cudnn_tensor(d->g, number,
                        &(CudnnShape){bf16,
                                      {a->batch, heads, a->tokens, a->d},
                                      {a->tokens * pitch, a->d, pitch, 1}});
}

/* The same as [batch heads d tokens]. */
static CudnnTensor columns(const Describe *d, int64_t number, int64_t heads, int64_t pitch)
{
    const GpuAttention *a = d->a;
    return cudnn_tensor(d->g, number,
                        &(CudnnShape){bf16,
                                      {a->batch, heads, a->d, a->tokens},
                                      {a->tokens * pitch, a->d, 1, pitch}});
}

/* [batch heads tokens tokens], queries by keys; turned: keys by queries. */
static CudnnTensor pairs(const Describe *d, cudnnDataType_t type, bool turned)
{
    const GpuAttention *a = d->a;
    int64_t n = a->tokens, down = turned ? 1 : n;
    return cudnn_tensor(
        d->g, 0,
        &(CudnnShape){type, {a->batch, a->heads, n, n}, {a->heads * n * n, n * n, down, n / down}});
}

/* One number for each query of each head. */
static CudnnTensor queries(const Describe *d, int64_t number)
{
    const GpuAttention *a = d->a;
    return cudnn_tensor(d->g, number,
                        &(CudnnShape){f32,
                                      {a->batch, a->heads, a->tokens, 1},
                                      {a->heads * a->tokens, a->tokens, 1, 1}});
}

/* One for each query, all heads. */
static CudnnTensor tokens(const Describe *d, int64_t number)
{
    const GpuAttention *a = d->a;
    return cudnn_tensor(
        d->g, number,
        &(CudnnShape){i32, {a->batch, 1, a->tokens, 1}, {a->tokens, a->tokens, 1, 1}});
}

/* [batch heads tokens d], in no memory of ours. */
static CudnnTensor all_heads(const Describe *d, cudnnDataType_t type)
{
    const GpuAttention *a = d->a;
    int64_t n = a->tokens * a->d;
    return cudnn_tensor(
        d->g, 0,
        &(CudnnShape){type, {a->batch, a->heads, a->tokens, a->d}, {a->heads * n, n, a->d, 1}});
}

/* ---- operations --------------------------------------------------------------------------- */

static void pointwise(const Describe *d, cudnnPointwiseMode_t how, CudnnTensor x, CudnnTensor b,
                      CudnnTensor y)
{
    cudnn_pointwise(d->g, &(CudnnPointwise){.how = how, .in = f32, .x = x, .b = b, .y = y});
}

/* The same between queries and keys. */
static CudnnTensor of_pairs(const Describe *d, cudnnPointwiseMode_t how, CudnnTensor x,
                            CudnnTensor b)
{
    CudnnTensor y = pairs(d, f32, false);
    pointwise(d, how, x, b, y);
    return y;
}

enum { OF_QUERY = 2, OF_KEY = 3 }; /* axes */

/* Which number each element of x has along an axis. */
static CudnnTensor numbers(const Describe *d, CudnnTensor x, int64_t axis)
{
    CudnnTensor y = pairs(d, i32, false);
    cudnn_pointwise(d->g,
                    &(CudnnPointwise){
                        .how = CUDNN_POINTWISE_GEN_INDEX, .in = f32, .axis = axis, .x = x, .y = y});
    return y;
}

/* x where high >= low, else the score of what is not seen. */
static CudnnTensor where(const Describe *d, CudnnTensor x, CudnnTensor high, CudnnTensor low,
                         CudnnTensor hidden)
{
    CudnnTensor seen = pairs(d, truth, false), y = pairs(d, f32, false);
    cudnn_pointwise(
        d->g, &(CudnnPointwise){
                  .how = CUDNN_POINTWISE_CMP_GE, .in = truth, .x = high, .b = low, .y = seen});
    cudnn_pointwise(d->g, &(CudnnPointwise){.how = CUDNN_POINTWISE_BINARY_SELECT,
                                            .in = f32,
                                            .x = x,
                                            .b = hidden,
                                            .choice = seen,
                                            .y = y});
    return y;
}

/* Keys up to the query itself, in the pattern by which engines know that they may skip what lies
 * behind; then those from its first key on. */
static CudnnTensor masked(const Describe *d, CudnnTensor x)
{
    CudnnTensor hidden = cudnn_scalar(d->g, HIDDEN);
    x = where(d, x, numbers(d, x, OF_QUERY), numbers(d, x, OF_KEY), hidden);
    return where(d, x, numbers(d, x, OF_KEY), tokens(d, FIRST), hidden);
}

static CudnnTensor scores(const Describe *d, CudnnTensor q, CudnnTensor k, CudnnTensor scale)
{
    CudnnTensor z = pairs(d, f32, false);
    cudnn_product(d->g, q, k, z);
    return of_pairs(d, CUDNN_POINTWISE_MUL, z, scale);
}

/* ---- attention ---------------------------------------------------------------------------- */

/* With statistics in any case: engines do not know the mask again in a graph without. */
static void describe_attention(const Describe *d)
{
    const GpuAttention *a = d->a;
    CudnnTensor z = scores(d, rows(d, Q, a->heads, a->q_pitch),
                           columns(d, K, a->kv_heads, a->k_pitch), cudnn_scalar(d->g, SCALE));
    CudnnTensor top = queries(d, 0), sum = queries(d, 0), p = pairs(d, bf16, false);
    z = masked(d, z);
    cudnn_reduction(d->g, CUDNN_REDUCE_TENSOR_MAX, z, top);
    z = of_pairs(d, CUDNN_POINTWISE_SUB, z, top);
    z = of_pairs(d, CUDNN_POINTWISE_EXP, z, NULL);
    cudnn_reduction(d->g, CUDNN_REDUCE_TENSOR_ADD, z, sum);
    CudnnTensor log_sum = queries(d, 0);
    pointwise(d, CUDNN_POINTWISE_LOG, sum, NULL, log_sum);
    pointwise(d, CUDNN_POINTWISE_ADD, top, log_sum, queries(d, LSE));
    pointwise(d, CUDNN_POINTWISE_DIV, z, sum, p);
    cudnn_product(d->g, p, rows(d, V, a->kv_heads, a->v_pitch), rows(d, O, a->heads, a->o_pitch));
}

/* to [batch kv_heads tokens d] = x^T y for every query head, added over those of a key head. */
static void product_of_group(const Describe *d, CudnnTensor x, CudnnTensor y, CudnnTensor to)
{
    CudnnTensor turned = pairs(d, bf16, true), every = to;
    cudnn_reshape(d->g, x, turned);
    if (d->a->heads != d->a->kv_heads) every = all_heads(d, bf16);
    cudnn_product(d->g, turned, y, every);
    if (every != to) cudnn_reduction(d->g, CUDNN_REDUCE_TENSOR_ADD, every, to);
}

/* sum do o; cuDNN's engines want to see it multiplied by something: the place of dropout's scale.
 */
static CudnnTensor delta(const Describe *d, CudnnTensor dout)
{
    CudnnTensor both = all_heads(d, f32), sum = queries(d, 0), to = queries(d, DELTA);
    pointwise(d, CUDNN_POINTWISE_MUL, dout, rows(d, O, d->a->heads, d->a->o_pitch), both);
    cudnn_reduction(d->g, CUDNN_REDUCE_TENSOR_ADD, both, sum);
    pointwise(d, CUDNN_POINTWISE_MUL, sum, cudnn_scalar(d->g, ONE), to);
    return to;
}

static void describe_gradient(const Describe *d)
{
    const GpuAttention *a = d->a;
    CudnnTensor q = rows(d, Q, a->heads, a->q_pitch), k = columns(d, K, a->kv_heads, a->k_pitch),
                v = columns(d, V, a->kv_heads, a->v_pitch), scale = cudnn_scalar(d->g, SCALE),
                dout = rows(d, DOUT, a->heads, a->dout_pitch), sum = delta(d, dout);
    CudnnTensor z = scores(d, q, k, scale);
    z = of_pairs(d, CUDNN_POINTWISE_SUB, z, queries(d, LSE));
    CudnnTensor p = of_pairs(d, CUDNN_POINTWISE_EXP, masked(d, z), NULL);
    product_of_group(d, p, dout, rows(d, DV, a->kv_heads, a->dv_pitch));
    CudnnTensor dp = pairs(d, f32, false), dz = pairs(d, bf16, false);
    cudnn_product(d->g, dout, v, dp);
    dp = of_pairs(d, CUDNN_POINTWISE_SUB, dp, sum);
    dp = of_pairs(d, CUDNN_POINTWISE_MUL, dp, p);
    pointwise(d, CUDNN_POINTWISE_MUL, dp, scale, dz);
    product_of_group(d, dz, q, rows(d, DK, a->kv_heads, a->dk_pitch));
    CudnnTensor k_rows = rows(d, 0, a->kv_heads, a->k_pitch);
    cudnn_reshape(d->g, k, k_rows);
    cudnn_product(d->g, dz, k_rows, rows(d, DQ, a->heads, a->dq_pitch));
}

Status cudnn_attention_plan(Cudnn *cudnn, const GpuAttention *a, CudnnPlan **out)
{
    CudnnPlan *plan = xcalloc(1, sizeof *plan);
    *plan = (CudnnPlan){.of = *a, .graph = {.library = cudnn}, .scale = a->scale, .one = 1};
    plan->hidden = -INFINITY;
    Describe d = {&plan->graph, a};
    char what[128];
    snprintf(what, sizeof what, "%s of %lld sequences of %lld tokens, %lld of %lld heads of %lld",
             a->gradient ? "attention's gradient" : "attention", (long long)a->batch,
             (long long)a->tokens, (long long)a->kv_heads, (long long)a->heads, (long long)a->d);
    if (a->gradient)
        describe_gradient(&d);
    else
        describe_attention(&d);
    size_t front = gpu_attention_front_bytes(a);
    size_t most = a->workspace_bytes > front ? a->workspace_bytes - front : 0;
    Status status = cudnn_graph_finish(&plan->graph, what, most);
    if (status != OK) {
        cudnn_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return OK;
}

void cudnn_plan_destroy(CudnnPlan *plan)
{
    if (!plan) return;
    cudnn_graph_deinit(&plan->graph);
    free(plan);
}

size_t cudnn_plan_bytes(const CudnnPlan *plan)
{
    return gpu_attention_front_bytes(&plan->of) + plan->graph.bytes;
}

/* cuDNN takes all pointers as those of what may be written. */
static void *given(const void *data) { return (void *)(uintptr_t)data; }

Status cudnn_attention_run(CudnnPlan *plan, void *stream, const GpuAttentionOperands *x,
                           void *workspace)
{
    bool gradient = plan->of.gradient;
    void *pointer[TENSORS] = {[Q] = given(x->q),
                              [K] = given(x->k),
                              [V] = given(x->v),
                              [FIRST] = given(x->first),
                              [O] = x->o,
                              [LSE] = gradient || plan->of.statistics ? x->lse : workspace,
                              [SCALE] = &plan->scale,
                              [HIDDEN] = &plan->hidden};
    if (gradient) {
        pointer[DOUT] = given(x->dout);
        pointer[DQ] = x->dq;
        pointer[DK] = x->dk;
        pointer[DV] = x->dv;
        pointer[DELTA] = workspace;
        pointer[ONE] = &plan->one;
    }
    return cudnn_graph_run(&plan->graph, stream, pointer, TENSORS,
                           (char *)workspace + gpu_attention_front_bytes(&plan->of));
}

#endif
