/* GPT-2 (Radford 2019) as Hugging Face has it: learned positions, biases everywhere, q, k and v in
 * one matrix, matrices as [in, out], tied head. GPT-3's shapes (Brown 2020) fit too, but for the
 * local attention of its every second layer. */
#include "model/model_internal.h"

static Status refuse_true(const json_t *json, const char *key)
{
    bool set = false;
    TRY(config_bool(json, key, &set));
    return set ? fail(ERR_UNSUPPORTED, "config: %s is true, which is not supported here", key) : OK;
}

static Status read_gpt2(ModelConfig *c, const json_t *json)
{
    bool scaled = true;
    model_gpt_begin(c);
    c->positions = POSITIONS_LEARNED;
    c->tied = c->bias = c->norm_bias = true;
    TRY(config_bool(json, "tie_word_embeddings", &c->tied));
    TRY(config_bool(json, "scale_attn_weights", &scaled));
    if (!scaled) c->attention_scale = 1;
    TRY(refuse_true(json, "scale_attn_by_inverse_layer_idx"));
    TRY(refuse_true(json, "add_cross_attention"));
    TRY(model_gpt_check_heads(c));
    return model_gpt_activation(c, json);
}

const ModelDef model_def_gpt2 = {
    .model_type = "gpt2",
    .architecture = "GPT2LMHeadModel",
    .activations = (const char *const[]){"gelu_new", "gelu_pytorch_tanh", "gelu", NULL},
    .norm_suffix = "weight",
    .names = &(const ModelNames){.layer = "transformer.h",
                                 .embedding = "transformer.wte",
                                 .positions = "transformer.wpe",
                                 .norm = "transformer.ln_f"},
    .keys = (const char *const[][2]){{"hidden_size", "n_embd"},
                                     {"num_hidden_layers", "n_layer"},
                                     {"num_attention_heads", "n_head"},
                                     {"num_key_value_heads", NULL},
                                     {"head_dim", NULL},
                                     {"intermediate_size", "n_inner"},
                                     {"max_position_embeddings", "n_positions"},
                                     {"hidden_act", "activation_function"},
                                     {"rms_norm_eps", "layer_norm_epsilon"},
                                     {"rope_theta", NULL},
                                     {NULL, NULL}},
    .in_out = true,
    .gpt = &(const GptForm){.attention_norm = "ln_1",
                            .attention = "attn",
                            .qkv = "attn.c_attn",
                            .attention_out = "attn.c_proj",
                            .mlp_norm = "ln_2",
                            .up = "mlp.c_fc",
                            .down = "mlp.c_proj"},
    .read = read_gpt2,
    .layer = model_gpt_layer,
    .ffn_ratio = 4,
    .norm_eps = 1e-5,
    .max_positions = 1024,
};
