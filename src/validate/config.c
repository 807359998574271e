/* A published row as the run file that would do the same. */
#include "validate/validate.h"

#include <string.h>

/* ---- model ------------------------------------------------------------------------------ */

static const char *model_skip(const PublishedModel *m)
{
    if (m->mla) return "multi-head latent attention is not modelled";
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

static bool is_grok(const PublishedModel *m)
{
    return m->experts && !m->shared_ffn && !strncmp(m->key, "GROK1", 5);
}

/* Every other layer sees a window of keys. Chunks of twice its width let as many be seen on
 * average: the same work, though not the same keys. */
static const char *window_fields(Arena *arena, const PublishedModel *m)
{
    Str types = {0};
    for (int64_t i = 0; i < m->layers; i++)
        str_printf(&types, "%s%s_attention", i ? ", " : "", i % 2 ? "full" : "chunked");
    const char *fields = arena_printf(arena, "attention_chunk_size: %lld, layer_types: [%s]",
                                      (long long)(2 * m->window), types.at);
    str_deinit(&types);
    return fields;
}

/* Top-k experts in every layer and none that is shared: Llama 4's layers without theirs, with
 * positions everywhere and no chunks. Their router is a softmax, Llama 4's a sigmoid, which costs
 * as much. */
static const char *plain_experts(Arena *arena, const PublishedRow *r, const char *common)
{
    const PublishedModel *m = &r->model;
    const char *keys = m->window ? window_fields(arena, m)
                                 : arena_printf(arena, "attention_chunk_size: %lld",
                                                (long long)max_i64(r->seq, 8192));
    return arena_printf(
        arena,
        "model={model_type: llama4_text, %s, intermediate_size: %lld, intermediate_size_mlp: %lld, "
        "num_local_experts: %lld, num_experts_per_tok: %lld, interleave_moe_layer_step: %lld, "
        "drover_shared_expert: false, no_rope_layer_interval: 0, attn_temperature_tuning: false, "
        "use_qk_norm: %s, %s}",
        common, (long long)m->expert_ffn, (long long)max_i64(m->ffn, m->expert_ffn),
        (long long)m->experts, (long long)m->experts_per_token,
        (long long)max_i64(1, m->layers / m->moe_layers), *m->key == 'Q' ? "true" : "false", keys);
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
    if (!m->shared_ffn && !is_grok(m)) return plain_experts(arena, r, common);
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
    bool fold;
} Axes;

/* Their experts lie on data-parallel (and context-parallel) ranks; ours have an axis of the mesh
 * that cuts the batch too, and may be folded over the ranks of tensor parallelism. */
static const char *axes_of(const PublishedRow *r, Axes *a)
{
    const PublishedLayout *l = &r->layout;
    int64_t data = r->devices / (l->tp * l->pp * l->cp);
    *a = (Axes){.dp = data, .fsdp = 1, .ep = l->ep, .zero = l->zero};
    if (l->expert_tp > 1)
        return "experts cut along tensor-parallel ranks of their own are not modelled";
    if (l->ep > 1) {
        a->fold = data % l->ep != 0 && l->tp > 1 && l->ep % l->tp == 0;
        if (a->fold) a->ep = l->ep / l->tp;
        if (data % a->ep != 0) return "experts lie on ranks of context parallelism";
        a->dp = data / a->ep;
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
    return r->skip ? r->skip : model_skip(&r->model);
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
        r->precision == PUBLISHED_FP8 ? "train.precision=fp8" : "train.precision=bf16",
        "train.steps=10",
        "train.warmup=1",
        model_fields(arena, r),
        arena_printf(arena, "train.seq=%lld", (long long)r->seq),
        arena_printf(arena, "train.batch=%lld", (long long)r->batch),
        arena_printf(arena, "train.micro_batch=%lld", (long long)micro_batch),
        arena_printf(arena, "train.recompute=%s", recomputes[recompute]),
        arena_printf(
            arena,
            "parallel={dp: %lld, fsdp: %lld, tp: %lld, pp: %lld, cp: %lld, ep: %lld, "
            "zero: %lld, schedule: %s, virtual_stages: %lld, fold_experts: %s, overlap: %s}",
            (long long)axes.dp, (long long)axes.fsdp, (long long)l->tp, (long long)l->pp,
            (long long)l->cp, (long long)axes.ep, (long long)axes.zero,
            interleaved ? "interleaved" : "1f1b", (long long)(interleaved ? l->virtual_stages : 0),
            axes.fold ? "true" : "false", validate_overlaps(r) ? "true" : "false"),
    };
    return run_config_load(NULL, settings, COUNT_OF(settings), config);
}
