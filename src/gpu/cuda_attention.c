/* Attention by cuDNN on the devices that are here. The library is loaded when it is first asked
 * for; it compiles every plan anew, for a second or two, so layers of one shape share theirs. */
#include "gpu/cuda_internal.h"
#include "gpu/cudnn.h"

#include <stdlib.h>
#include <string.h>

/* Only on Hopper is it known how cuDNN's gradient is had in one order (cudnn_attention.c). */
enum { MAJOR = 9 };

typedef struct Made {
    GpuAttention of;
    CudnnPlan *plan;
} Made;

typedef struct Library {
    Cudnn *cudnn;
    VEC(Made) made; /* kept until the device is closed */
} Library;

struct GpuAttentionPlan {
    GpuStream *stream;
    CudnnPlan *plan; /* the library's */
};

static Status library_of(Gpu *gpu, Library **out)
{
    if (!gpu->cudnn) {
        Cudnn *cudnn;
        TRY(cudnn_open(&cudnn));
        Status status = cudnn_begin(cudnn);
        if (status != OK) {
            cudnn_close(cudnn);
            return status;
        }
        Library *l = xcalloc(1, sizeof *l);
        l->cudnn = cudnn;
        gpu->cudnn = l;
    }
    *out = gpu->cudnn;
    return OK;
}

void cuda_attention_close(Gpu *gpu)
{
    Library *l = gpu->cudnn;
    if (!l) return;
    for (size_t i = 0; i < l->made.n; i++) cudnn_plan_destroy(l->made.at[i].plan);
    VEC_FREE(&l->made);
    cudnn_close(l->cudnn);
    free(l);
    gpu->cudnn = NULL;
}

const char *gpu_attention_library(Gpu *gpu)
{
    Library *l;
    return library_of(gpu, &l) == OK ? cudnn_text(l->cudnn) : status_message();
}

Status gpu_attention_can(Gpu *gpu)
{
    Library *l;
    if (gpu->info.major != MAJOR)
        return fail(ERR_UNSUPPORTED,
                    "attention by cuDNN is for compute capability %d, where it is known how its "
                    "gradient is the same every time; %s has %d.%d",
                    MAJOR, gpu->info.name, gpu->info.major, gpu->info.minor);
    return library_of(gpu, &l);
}

/* Lengths and distances come first in the struct, in one run. */
static bool same(const GpuAttention *a, const GpuAttention *b)
{
    return !memcmp(a, b, offsetof(GpuAttention, scale)) && a->scale == b->scale &&
           a->gradient == b->gradient && a->statistics == b->statistics &&
           a->workspace_bytes == b->workspace_bytes;
}

static Status plan_of(Library *l, const GpuAttention *attention, CudnnPlan **out)
{
    for (size_t i = 0; i < l->made.n; i++)
        if (same(&l->made.at[i].of, attention)) {
            *out = l->made.at[i].plan;
            return OK;
        }
    TRY(cudnn_attention_plan(l->cudnn, attention, out));
    VEC_PUSH(&l->made, ((Made){*attention, *out}));
    return OK;
}

Status gpu_attention_plan(GpuStream *stream, const GpuAttention *attention, GpuAttentionPlan **out)
{
    Library *l;
    CudnnPlan *made;
    TRY(gpu_attention_can(stream->gpu));
    TRY(library_of(stream->gpu, &l));
    TRY(plan_of(l, attention, &made));
    GpuAttentionPlan *plan = xmalloc(sizeof *plan);
    *plan = (GpuAttentionPlan){stream, made};
    *out = plan;
    return OK;
}

void gpu_attention_plan_destroy(GpuAttentionPlan *plan) { free(plan); }

Status gpu_attention_run(GpuAttentionPlan *plan, const GpuAttentionOperands *operands,
                         void *workspace)
{
    return cudnn_attention_run(plan->plan, plan->stream->cuda, operands, workspace);
}
