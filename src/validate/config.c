/* A published row as the run file that would do the same. */
#include "validate/validate.h"

#include <string.h>

/* ---- model ------------------------------------------------------------------------------ */

static const char *model_skip(const PublishedModel *m)
{
    if (m->mla) return "multi-head latent attention is not modelled";
    if (m->window) return "attention of alternating windows is not modelled";
    if (m->experts && !m->shared_ffn && strncmp(m->key, "GROK1", 5) != 0)
        return "experts without a shared one are not modelled";
    if (m->experts && m->shared_ffn && m->shared_ffn != m->expert_ffn)
        return "a shared expert of another width is not modelled";
    return NULL;
}

/* Megatron-LM pads a vocabulary to what its ranks can share: a multiple of 128 each. */
static int64_t padded_vocab(const PublishedRow *r)
{
    int64_t multiple = 128 * r->layout.tp;
    if (r->model.vocab % r->layout.tp == 0) return r->model.vocab;
    return (r->model.vocab + multiple - 1) / multiple * multiple;
}

static const char *common_fields(Arena *arena, const PublishedRow *r)
{
    const PublishedModel *m = &r->model;
    return arena_printf(arena,
                        "vocab_size: %lld, hidden_size: %lld, num_hidden_layers: %lld, "
                        "num_attention_heads: %lld, num_key_value_heads: %lld, "
                        "head_dim: %lld, max_position_embeddings: %lld",
                        (long long)padded_vocab(r), (long long)m->hidden, (long long)m->layers,
                        (long long)m->heads, (long long)m->kv_heads, (long long)m->head_dim,
                        (long long)(m->gated ? max_i64(r->seq, 8192) : r->seq));
}

static const char *gpt_fields(Arena *arena, const PublishedRow *r)
{
    const PublishedModel *m = &r->model;
    return arena_printf(arena,
                        "model={model_type: gpt, %s, intermediate_size: %lld, hidden_act: %s, "
                        "position_embedding_type: %s, use_bias: %s, tie_word_embeddings: %s}",
                        common_fields(arena, r), (long long)m->ffn, m->activation, m->positions,
                        m->bias ? "true" : "false", m->tied ? "true" : "false");
}

static const char *model_fields(Arena *arena, const PublishedRow *r)
{
    const PublishedModel *m = &r->model;
    const char *common = common_fields(arena, r);
    if (!m->gated) return gpt_fields(arena, r);
    if (!m->experts)
        return arena_printf(arena,
                            "model={model_type: llama, %s, intermediate_size: %lld, rms_norm_eps: "
                            "1e-5, rope_theta: 500000.0, tie_word_embeddings: %s}",
                            common, (long long)m->ffn, m->tied ? "true" : "false");
    if (!m->shared_ffn)
        return arena_printf(arena,
                            "model={model_type: grok-1, %s, intermediate_size: %lld, num_experts: "
                            "%lld, num_experts_per_tok: %lld, tie_word_embeddings: true, "
                            "rms_norm_eps: 1e-5, max_attn_value: 30.0, attn_output_multiplier: "
                            "0.08838834764831845, embedding_multiplier_scale: 78.38367176906169, "
                            "output_multiplier_scale: 0.5773502691896257}",
                            common, (long long)m->expert_ffn, (long long)m->experts,
                            (long long)m->experts_per_token);
    return arena_printf(arena,
                        "model={model_type: llama4_text, %s, intermediate_size: %lld, "
                        "intermediate_size_mlp: %lld, num_local_experts: %lld, "
                        "num_experts_per_tok: %lld, interleave_moe_layer_step: %lld, "
                        "no_rope_layer_interval: 4, attention_chunk_size: 8192}",
                        common, (long long)m->expert_ffn, (long long)max_i64(m->ffn, m->expert_ffn),
                        (long long)m->experts, (long long)m->experts_per_token,
                        (long long)max_i64(1, m->layers / m->moe_layers));
}

/* ---- layout ----------------------------------------------------------------------------- */

typedef struct Axes {
    int64_t dp, fsdp, ep, zero;
} Axes;

/* Their experts lie on data-parallel (and context-parallel) ranks; ours have an axis of the mesh
 * that cuts the batch too. */
static const char *axes_of(const PublishedRow *r, Axes *a)
{
    const PublishedLayout *l = &r->layout;
    int64_t data = r->devices / (l->tp * l->pp * l->cp);
    *a = (Axes){.dp = data, .fsdp = 1, .ep = l->ep, .zero = l->zero};
    if (l->expert_tp > 1)
        return "experts cut along tensor-parallel ranks of their own are not modelled";
    if (l->ep > 1) {
        if (data % l->ep != 0) return "experts lie on ranks of tensor or context parallelism";
        a->dp = data / l->ep;
    }
    if (l->zero == 3 || l->fsdp > 1) {
        a->fsdp = l->fsdp > 1 ? min_i64(l->fsdp, a->dp) : a->dp;
        if (a->dp % a->fsdp != 0)
            return "the sharded group does not divide the data-parallel ranks";
        a->dp /= a->fsdp;
        a->zero = 0;
    }
    if (a->dp == 1) a->zero = 0;
    return NULL;
}

static const char *row_skip(const PublishedRow *r)
{
    if (r->skip) return r->skip;
    if (r->precision == PUBLISHED_FP8) return "FP8 is not modelled";
    return model_skip(&r->model);
}

Status validate_config(Arena *arena, const PublishedRow *r, int64_t micro_batch,
                       PublishedRecompute recompute, const char **skip, RunConfig *config)
{
    static const char *const recomputes[] = {"none", "selective", "full", "none"};
    Axes axes;
    *skip = row_skip(r);
    if (!*skip) *skip = axes_of(r, &axes);
    if (*skip) return OK;
    const PublishedLayout *l = &r->layout;
    bool interleaved = l->virtual_stages > 1 && l->pp > 1;
    const char *settings[] = {
        "name=row",
        "data=[{synthetic: uniform}]",
        "train.precision=bf16",
        "train.steps=10",
        "train.warmup=1",
        model_fields(arena, r),
        arena_printf(arena, "train.seq=%lld", (long long)r->seq),
        arena_printf(arena, "train.batch=%lld", (long long)r->batch),
        arena_printf(arena, "train.micro_batch=%lld", (long long)micro_batch),
        arena_printf(arena, "train.recompute=%s", recomputes[recompute]),
        arena_printf(arena,
                     "parallel={dp: %lld, fsdp: %lld, tp: %lld, pp: %lld, cp: %lld, ep: %lld, "
                     "zero: %lld, schedule: %s, virtual_stages: %lld}",
                     (long long)axes.dp, (long long)axes.fsdp, (long long)l->tp, (long long)l->pp,
                     (long long)l->cp, (long long)axes.ep, (long long)axes.zero,
                     interleaved ? "interleaved" : "1f1b",
                     (long long)(interleaved ? l->virtual_stages : 0)),
    };
    return run_config_load(NULL, settings, COUNT_OF(settings), config);
}
