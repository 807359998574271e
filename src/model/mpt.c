/* MPT (MosaicML 2023) as Hugging Face has it: ALiBi, no biases, q, k and v in one matrix, tied
 * head. What transformers would read over (caps of q, k and v, a factor of the logits) is refused:
 * the model would be another one. */
#include "model/model_internal.h"

#include <string.h>

/* Absent, null, false, zero, or `usual`. */
static bool is_unset(const json_t *value, const char *usual)
{
    const char *text = json_string_value(value);
    if (!value || json_is_null(value) || json_is_false(value)) return true;
    if (json_is_number(value)) return json_number_value(value) == 0;
    return text && usual && !strcmp(text, usual);
}

static Status refuse_set(const json_t *json, const char *key, const char *usual)
{
    return is_unset(json_object_get(json, key), usual)
               ? OK
               : fail(ERR_UNSUPPORTED, "config: %s is set, which is not supported here", key);
}

static Status read_attention(ModelConfig *c, const json_t *json)
{
    bool alibi = true;
    double scale = 0;
    TRY(config_bool(json, "alibi", &alibi));
    if (!alibi) return fail(ERR_UNSUPPORTED, "config: attn_config.alibi is false; MPT has ALiBi");
    TRY(config_number(json, "alibi_bias_max", 1e-3, 1e3, &c->alibi));
    TRY(config_number(json, "softmax_scale", 0, 1e6, &scale));
    if (scale > 0) c->attention_scale = scale;
    TRY(refuse_set(json, "clip_qkv", NULL));
    TRY(refuse_set(json, "qk_ln", NULL));
    TRY(refuse_set(json, "prefix_lm", NULL));
    return refuse_set(json, "attn_type", "multihead_attention");
}

static Status read_mpt(ModelConfig *c, const json_t *json)
{
    bool no_bias = true;
    int64_t ratio = c->def->ffn_ratio;
    model_gpt_begin(c);
    c->positions = POSITIONS_ALIBI;
    c->alibi = 8;
    c->tied = true;
    TRY(config_bool(json, "tie_word_embeddings", &c->tied));
    TRY(config_bool(json, "no_bias", &no_bias));
    if (!no_bias)
        return fail(ERR_UNSUPPORTED, "config: no_bias is false; MPT's files have no biases");
    TRY(config_int(json, "expansion_ratio", 1, 1024, &ratio));
    c->ffn_dense = ratio * c->embed;
    TRY(refuse_set(json, "logit_scale", NULL));
    const char *norm = json_string_value(json_object_get(json, "norm_type"));
    if (norm && strcmp(norm, "low_precision_layernorm") != 0 && strcmp(norm, "layernorm") != 0)
        return fail(ERR_UNSUPPORTED, "config: norm_type is %s, only layernorm is known here", norm);
    TRY(model_gpt_check_heads(c));
    TRY(model_gpt_activation(c, json));
    const json_t *attention = json_object_get(json, "attn_config");
    return json_is_object(attention) ? read_attention(c, attention) : OK;
}

const ModelDef model_def_mpt = {
    .model_type = "mpt",
    .architecture = "MptForCausalLM",
    .activations = (const char *const[]){"gelu", NULL},
    .norm_suffix = "weight",
    .names = &(const ModelNames){.layer = "transformer.blocks",
                                 .embedding = "transformer.wte",
                                 .norm = "transformer.norm_f"},
    .keys = (const char *const[][2]){{"hidden_size", "d_model"},
                                     {"num_hidden_layers", "n_layers"},
                                     {"num_attention_heads", "n_heads"},
                                     {"num_key_value_heads", NULL},
                                     {"head_dim", NULL},
                                     {"intermediate_size", NULL},
                                     {"max_position_embeddings", "max_seq_len"},
                                     {"hidden_act", NULL},
                                     {"rms_norm_eps", "layer_norm_epsilon"},
                                     {"rope_theta", NULL},
                                     {NULL, NULL}},
    .gpt = &(const GptForm){.attention_norm = "norm_1",
                            .attention = "attn",
                            .qkv = "attn.Wqkv",
                            .attention_out = "attn.out_proj",
                            .mlp_norm = "norm_2",
                            .up = "ffn.up_proj",
                            .down = "ffn.down_proj"},
    .read = read_mpt,
    .layer = model_gpt_layer,
    .ffn_ratio = 4,
    .norm_eps = 1e-5,
    .max_positions = 2048,
};
