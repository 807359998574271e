/* What the software of published runs does otherwise than our programs. Each is a fact of the
 * stack. Sizes are of published kernel measurements, but for the Triton kernel's share and the
 * traffic of eager frameworks, which are our estimates; all were chosen with the rows in view, so
 * that only rows kept aside can judge them. */
#include <math.h>
#include <string.h>

#include "validate/validate.h"

/* Of the rate of FlashAttention-3, which the sheets of Hopper and later have; forward and backward
 * together. */
static const double share_flash2 = 0.6; /* 163 to 328 TFLOP/s on H100, causal, heads of 128 */
static const double share_cudnn = 0.88; /* 315 to 539, forward */
/* Of that of FlashAttention-2, which A100's has: the Triton kernel that came before. */
static const double share_triton = 0.6;
/* What memory limits takes 10 to 15% of a dense layer where nothing is compiled, 5 to 9% where
 * kernels are fused. */
static const double traffic_eager = 1.8;
/* For each of our kernels, of Megatron of that time, which Python runs line by line: fitted to 160
 * of vTrain's 1,440 runs on one node of A100, which are no rows here (27.8% median error without
 * it and with no factor, 8% with it). */
static const double host_eager_s = 57e-6;
/* Products and exchanges along tp in pieces beside each other hide 40 to 80%. */
static const double tp_hidden = 0.5;

static bool begins(const char *id, const char *prefix)
{
    return !strncmp(id, prefix, strlen(prefix));
}

static bool is_a100(const PublishedRow *r) { return !strcmp(r->device, "a100"); }

/* Megatron of 2021 and 2022, and what was built on it. */
static bool before_flash(const PublishedRow *r)
{
    static const char *const ids[] = {"NAR", "PTD", "KOR", "MTN", "BLM", "VTR", "OTH-02"};
    for (int i = 0; i < COUNT_OF(ids); i++)
        if (begins(r->id, ids[i])) return true;
    return false;
}

/* Sequence parallelism came with Korthikanti's paper and is said where its rows have it. */
bool validate_has_sequence(const PublishedRow *r)
{
    return r->layout.sequence || !(r->layout.no_sequence || before_flash(r));
}

/* BLOOM was benchmarked and trained with CUDA_LAUNCH_BLOCKING=1, against hangs (bigscience,
 * tr11-176B-ml: chronicles and tr11-176B-ml.slurm). */
static bool launches_block(const PublishedRow *r)
{
    return begins(r->id, "BLM") || begins(r->id, "OTH-02");
}

/* In fp16 Megatron and DeepSpeed sum gradients in 16 bits, as NeMo does on H100; Megatron-LM's own
 * runs in bf16 and BLOOM's last ones sum them in f32. */
static bool gradients_16(const PublishedRow *r, const SimStack *s)
{
    if (s->plain_attention) return r->precision == PUBLISHED_FP16 && !r->f32_grads;
    return s->dp_beside && !begins(r->id, "MC");
}

/* Exchanges of that Megatron stand between kernels. Where launches block, nothing runs beside
 * another. */
bool validate_overlaps(const PublishedRow *r) { return !before_flash(r); }

static double attention_share(const PublishedRow *r)
{
    if (r->framework == FRAMEWORK_COMPOSER)
        return is_a100(r) ? share_triton : share_flash2 * share_triton;
    if (is_a100(r)) return 0;
    return published_is_megatron(r->framework) ? share_cudnn
           : r->framework == FRAMEWORK_FSDP    ? share_flash2
                                               : 0;
}

/* Megatron-Bridge's dispatcher (DeepEP) sends a row to a node once; of k experts drawn from n nodes
 * n (1 - (1 - 1/n)^k) nodes have one. */
static double rows_sent(const PublishedRow *r)
{
    double nodes = (double)(r->layout.ep * r->layout.expert_tp) / 8,
           k = (double)r->model.experts_per_token;
    if (!begins(r->id, "MBR") || nodes <= 1) return 0;
    return nodes * (1 - pow(1 - 1 / nodes, k)) / k;
}

SimStack validate_stack(const PublishedRow *r, PublishedRecompute recompute)
{
    SimStack s = {.plain_attention = before_flash(r), .attention = attention_share(r)};
    s.whole_sequences = !validate_has_sequence(r);
    s.messages_wait = s.plain_attention; /* Megatron's first schedules */
    /* scatter and gather of Megatron's pipeline, partitioned activations of DeepSpeed's */
    s.messages_cut = s.plain_attention && s.whole_sequences;
    if (s.plain_attention) s.host_s = host_eager_s;
    s.blocking = launches_block(r);
    s.attention_again = s.plain_attention && recompute == RECOMPUTED_SELECTIVE;
    /* NeMo's recipes for H100 and later, and PyTorch's where it is said */
    bool pieces = published_is_megatron(r->framework) && !is_a100(r) && validate_has_sequence(r);
    if (pieces || r->layout.async_tp) s.tp_hidden = tp_hidden;
    s.dp_beside = published_is_megatron(r->framework) && !is_a100(r); /* its overlap flags are on */
    bool eager = r->framework == FRAMEWORK_COMPOSER ||
                 (r->framework == FRAMEWORK_FSDP && !begins(r->id, "AUT")); /* fused layers */
    if (s.plain_attention || (eager && !r->compiled)) s.traffic = traffic_eager;
    s.rows_sent = rows_sent(r);
    s.gradients_16 = gradients_16(r, &s);
    return s;
}
