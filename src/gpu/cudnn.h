/* Attention by cuDNN's graphs, for cuda_attention.c and for tests, which choose engines where there
 * is no GPU. Internal to gpu/.
 *
 * cuDNN 9 has two ways to say attention: one operation of its own (CUDNN_BACKEND_OPERATION_SDPA_*),
 * or the formula written out as products, reductions and pointwise operations, in which its engines
 * know attention again. In the headers of 9.19 the operation has no attribute for any mask, and no
 * word on determinism; so the formula is written out. That also says which mask it is: comparisons
 * of generated row and column numbers with each other and with a tensor.
 */
#ifndef GPU_CUDNN_H
#define GPU_CUDNN_H

#include "gpu/attention.h"

typedef struct Cudnn Cudnn;         /* the library */
typedef struct CudnnPlan CudnnPlan; /* a graph with the engine that computes it */

/* ERR_UNSUPPORTED: not found, or too old, with the remedy. */
Status cudnn_open(Cudnn **out);
void cudnn_close(Cudnn *cudnn);
const char *cudnn_text(const Cudnn *cudnn); /* "cuDNN 9.19.0" */
/* For the thread's present CUDA device; or for one that is not here, described as cuDNN's device
 * properties in JSON: its plans can be made and asked for their workspace, not run. */
Status cudnn_begin(Cudnn *cudnn);
Status cudnn_begin_absent(Cudnn *cudnn, const char *properties);

Status cudnn_attention_plan(Cudnn *cudnn, const GpuAttention *attention, CudnnPlan **out);
void cudnn_plan_destroy(CudnnPlan *plan);
/* Of a run's workspace: what is used. */
size_t cudnn_plan_bytes(const CudnnPlan *plan);
/* stream: a cudaStream_t. */
Status cudnn_attention_run(CudnnPlan *plan, void *stream, const GpuAttentionOperands *operands,
                           void *workspace);

/* Of gpu_attention_bytes, in front: a number for every query [batch heads tokens], f32. The
 * gradient's are sum do o; attention's the log-sum-exp, where nobody else wants it. */
size_t gpu_attention_front_bytes(const GpuAttention *attention);

#endif
