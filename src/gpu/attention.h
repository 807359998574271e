/* Attention by a GPU's library (cuDNN), or its gradient. */
#ifndef GPU_ATTENTION_H
#define GPU_ATTENTION_H

#include "gpu/gpu.h"

/* In bf16 with statistics in f32: of q [batch
 * tokens heads d], k and v [batch tokens kv_heads d], token t of a sequence sees keys first[t] to t
 * of it. Rows of a token are `pitch` elements apart, sequences `tokens` rows. */
typedef struct GpuAttention {
    int64_t batch, tokens, heads, kv_heads, d;
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    int64_t dout_pitch, dq_pitch, dk_pitch, dv_pitch; /* of the gradient */
    float scale;
    bool gradient;
    bool statistics;        /* attention makes the log-sum-exp; its gradient always reads it */
    size_t workspace_bytes; /* of the buffer that runs get: what the library may have at most */
} GpuAttention;

/* All aligned to 16 bytes. attention: q k v first -> o lse; the gradient: q k v first o lse dout ->
 * dq dk dv. */
typedef struct GpuAttentionOperands {
    const void *q, *k, *v;
    const int32_t *first; /* [batch tokens], never more than t */
    void *o;              /* [batch tokens heads d] */
    float *lse;           /* [batch heads tokens], natural logarithm */
    const void *dout;
    void *dq, *dk, *dv;
} GpuAttentionOperands;

typedef struct GpuAttentionPlan GpuAttentionPlan;

/* ERR_UNSUPPORTED with the reason and the remedy: no library, an old one, a device that is not its.
 */
Status gpu_attention_can(Gpu *gpu);
/* "cuDNN 9.19.0", or what is missing and where to get it: for reports. */
const char *gpu_attention_library(Gpu *gpu);
/* Workspace that is enough, by shapes alone: plans are made where there is no GPU. The gradient in
 * one order wants two bytes for each pair of tokens of each head. */
size_t gpu_attention_bytes(const GpuAttention *attention);
/* ERR_UNSUPPORTED: the library has none for this, or none that is content with the workspace. */
Status gpu_attention_plan(GpuStream *stream, const GpuAttention *attention,
                          GpuAttentionPlan **plan);
void gpu_attention_plan_destroy(GpuAttentionPlan *plan);
Status gpu_attention_run(GpuAttentionPlan *plan, const GpuAttentionOperands *operands,
                         void *workspace);

#endif
