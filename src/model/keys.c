/* The names of the fields of a config.json: so that a misspelt one in a run file is told from one
 * that is merely not needed here. */
#include "model/model.h"

#include <string.h>

static const char *const keys[] = {
    /* read by config.c */
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "drover_expert_bias",
    /* read by families */
    "intermediate_size_mlp",
    "num_local_experts",
    "num_experts_per_tok",
    "interleave_moe_layer_step",
    "moe_layers",
    "no_rope_layer_interval",
    "no_rope_layers",
    "layer_types",
    "attention_chunk_size",
    "use_qk_norm",
    "attn_temperature_tuning",
    "attn_scale",
    "floor_scale",
    "num_experts",
    "attn_output_multiplier",
    "max_attn_value",
    "embedding_multiplier_scale",
    "output_multiplier_scale",
    "router_logit_softcapping",
    /* published, of no effect here */
    "architectures",
    "attention_dropout",
    "cache_implementation",
    "dtype",
    "for_llm_compressor",
    "output_router_logits",
    "pretraining_tp",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "use_cache",
};

const char *model_config_key(const char *name)
{
    for (int i = 0; i < COUNT_OF(keys); i++)
        if (!strcmp(name, keys[i])) return keys[i];
    return name_nearest(name, keys, COUNT_OF(keys));
}
