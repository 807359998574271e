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
/* With blocked launches the host sleeps until each kernel is through: about 8 us to wake up (from
 * memory, unverified), after each of the three or so that Megatron has for one of ours. */
static const double return_blocked_s = 24e-6;
/* Products and exchanges along tp in pieces beside each other hide 40 to 80%: PyTorch's took 9% off
 * the step of one layout (TTN-25 and -26); Transformer Engine's are tuned for each model. */
static const double tp_hidden_pieces = 0.5, tp_hidden_engine = 0.6;
/* Megatron's loss over a cut vocabulary makes of each logit an f32, finds the largest, subtracts
 * it, exponentiates, sums, divides; then scales and makes 16 bits of it again: reads and writes of
 * 4 and 2 bytes, counted line by line in its source. The fused form does about half of them;
 * Transformer Engine's kernel reads twice and writes once, in 16 bits. */
static const double logit_bytes_megatron = 52, logit_bytes_megatron_fused = 26,
                    logit_bytes_engine = 8;
/* PyTorch's: f32, log-softmax, its gradient with the loss's, 16 bits. */
static const double logit_bytes_torch = 40;
/* torchtitan's selective checkpoints make every second product of a layer again: wk, wo and w3, of
 * Llama's 36% of the work. */
static const double torchtitan_again = 0.36;
/* fms-fsdp's make a share of the blocks again; which, is not said: half is our estimate. */
static const double fms_again = 0.5;

/* What ZeRO-3 of 2021 lost did not grow with the work but with the weights and the devices: 27 s
 * for 175e9 weights on 384 devices, 36 s on 768, 91 s for 530e9 on 640. Its gatherings took four
 * times as long as rings over all NICs: the one constant of that framework, whose factor is 1. */
static const double deepspeed_gathers = 4;

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
 * runs in bf16 and BLOOM's last ones sum them in f32. So do llm-foundry's (mixed_precision: PURE)
 * and fms-fsdp's (reduce_dtype: bfloat16). */
static bool gradients_16(const PublishedRow *r, const SimStack *s)
{
    if (r->framework == FRAMEWORK_COMPOSER || begins(r->id, "FMS")) return true;
    if (s->plain_attention) return r->precision == PUBLISHED_FP16 && !r->f32_grads;
    return s->dp_beside && !begins(r->id, "MC");
}

/* Exchanges of that Megatron stand between kernels. Where launches block, nothing runs beside
 * another. With sequence parallelism came products that gather and scatter beside others
 * (Korthikanti 2022). */
bool validate_overlaps(const PublishedRow *r) { return !before_flash(r) || r->layout.sequence; }

static double attention_share(const PublishedRow *r)
{
    if (r->framework == FRAMEWORK_COMPOSER)
        return is_a100(r) ? share_triton : share_flash2 * share_triton;
    if (is_a100(r)) return 0;
    return published_is_megatron(r->framework) ? share_cudnn
           : r->framework == FRAMEWORK_FSDP    ? share_flash2
                                               : 0;
}

/* NeMo 2 fuses what Megatron's loss does (cross_entropy_loss_fusion is on by default),
 * Megatron-Bridge takes Transformer Engine's kernel, NeMo 24.07 and Megatron's own runs fuse
 * nothing. MosaicML's loss (flash-attention's) and MaxText's compiled one are fused. */
static double logit_bytes(const PublishedRow *r)
{
    bool early = begins(r->id, "NMO") || begins(r->id, "LSQ") || begins(r->id, "MC");
    if (r->framework == FRAMEWORK_MEGATRON_CORE && !early)
        return begins(r->id, "MBR") ? logit_bytes_engine : logit_bytes_megatron_fused;
    if (published_is_megatron(r->framework) || r->framework == FRAMEWORK_DEEPSPEED)
        return logit_bytes_megatron;
    return r->framework == FRAMEWORK_FSDP ? logit_bytes_torch : 0;
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
    SimStack s = {.fp8 = r->precision == PUBLISHED_FP8,
                  .plain_attention = before_flash(r),
                  .attention = attention_share(r)};
    s.whole_sequences = !validate_has_sequence(r);
    s.messages_wait = s.plain_attention; /* Megatron's first schedules */
    /* scatter and gather of Megatron's pipeline, partitioned activations of DeepSpeed's */
    s.messages_cut = s.plain_attention && s.whole_sequences;
    if (s.plain_attention) s.host_s = host_eager_s;
    s.blocking = launches_block(r);
    if (s.blocking) s.return_s = return_blocked_s;
    s.attention_again = s.plain_attention && recompute == RECOMPUTED_SELECTIVE;
    /* NeMo's recipes for H100 and later, and PyTorch's where it is said */
    bool pieces = published_is_megatron(r->framework) && !is_a100(r) && validate_has_sequence(r);
    if (pieces || r->layout.async_tp) s.tp_hidden = pieces ? tp_hidden_engine : tp_hidden_pieces;
    s.gathers_8 = pieces && r->precision == PUBLISHED_FP8; /* Transformer Engine casts first */
    s.dp_beside = (published_is_megatron(r->framework) &&
                   !is_a100(r)) ||                     /* its overlap flags are on */
                  r->framework == FRAMEWORK_INTERNEVO; /* overlap_sync_grad; weights are shared
                                                          inside a node (zero1 size 8), quickly */
    s.fetch_late = r->framework == FRAMEWORK_COMPOSER; /* backward_prefetch: BACKWARD_POST */
    s.rings = is_a100(r);                              /* published before NCCL 2.23 */
    if (r->framework == FRAMEWORK_DEEPSPEED) s.sharded_times = deepspeed_gathers;
    s.logit_bytes = logit_bytes(r);
    if (r->framework == FRAMEWORK_FSDP && recompute == RECOMPUTED_SELECTIVE)
        s.products_again = begins(r->id, "FMS") ? fms_again : torchtitan_again;
    /* Automodel's layers are fused, fms-fsdp's compiled */
    bool eager = r->framework == FRAMEWORK_COMPOSER || begins(r->id, "TTN");
    if (s.plain_attention || (eager && !r->compiled)) s.traffic = traffic_eager;
    s.rows_sent = rows_sent(r);
    s.gradients_16 = gradients_16(r, &s);
    return s;
}
