/* Whether attention by cuDNN (train.attention) can be had: known before the first step. */
#include "gpu/attention.h"
#include "ops/ops.h"
#include "train/trainer_internal.h"

#define REMEDY "; take train.attention=own"

/* What the nodes of a program say: attention itself must be the library's, its gradient need not.
 */
static Status check_program(const Program *p, const char **gradient)
{
    for (int i = 0; i < p->n_instr; i++) {
        AttentionLibrary l = op_attention_library(p->graph, p->instr[i].node);
        if (!l.asked || !l.refusal) continue;
        if (!l.gradient)
            return fail(ERR_REFUSED,
                        "train.attention cudnn cannot be had for this model: %s" REMEDY, l.refusal);
        *gradient = l.refusal;
    }
    return OK;
}

Status trainer_check_attention(const Trainer *t)
{
    const char *gradient = NULL;
    if (t->config->train.attention != RUN_ATTENTION_CUDNN) return OK;
    Gpu *gpu = device_gpu(t->device);
    if (!gpu)
        return fail(ERR_REFUSED,
                    "train.attention cudnn needs the cuda device, and steps run on %s" REMEDY,
                    device_text(t->device));
    if (gpu_attention_can(gpu) != OK)
        return fail(ERR_REFUSED, "train.attention cudnn: %s" REMEDY, status_message());
    for (int i = 0; i < t->programs.n; i++) TRY(check_program(t->programs.at[i], &gradient));
    if (t->rank > 0) return OK;
    log_info("attention: %s%s%s", gpu_attention_library(gpu),
             gradient ? "; its gradient by our own kernels: " : ", its gradient too",
             gradient ? gradient : "");
    return OK;
}
