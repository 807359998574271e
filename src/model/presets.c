/* Presets: every published shape of Llama 3, Llama 4 and Grok-1, those of GPT-2, GPT-3 and MPT that
 * people compare with, and small ones that train on a laptop. Each is a config.json, read like any
 * other (models.md 1.1, 2.1 and 5.1; Radford 2019, Brown 2020, MosaicML 2023). */
#include "model/model_internal.h"

#include <stdlib.h>
#include <string.h>

static const ModelPreset presets[] = {
    {.name = "llama3.2-1b",
     .about = "Llama 3.2 1B, tied head",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 2048, "
             "\"num_hidden_layers\": 16, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
             "\"head_dim\": 64, \"intermediate_size\": 8192, \"max_position_embeddings\": 131072, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, "
             "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": "
             "1.0, "
             "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, "
             "\"bos_token_id\": 128000, \"eos_token_id\": 128001}"},
    {.name = "llama3.2-3b",
     .about = "Llama 3.2 3B, tied head",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 3072, "
             "\"num_hidden_layers\": 28, \"num_attention_heads\": 24, \"num_key_value_heads\": 8, "
             "\"head_dim\": 128, \"intermediate_size\": 8192, \"max_position_embeddings\": 131072, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, "
             "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": "
             "1.0, "
             "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, "
             "\"bos_token_id\": 128000, \"eos_token_id\": 128001}"},
    {.name = "llama3-8b",
     .about = "Llama 3 8B, 8,192 positions",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 4096, "
             "\"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
             "\"head_dim\": 128, \"intermediate_size\": 14336, \"max_position_embeddings\": 8192, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": false, "
             "\"bos_token_id\": 128000, \"eos_token_id\": 128001}"},
    {.name = "llama3.1-8b",
     .about = "Llama 3.1 8B",
     .json =
         "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 4096, "
         "\"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
         "\"head_dim\": 128, \"intermediate_size\": 14336, \"max_position_embeddings\": 131072, "
         "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "
         "\"initializer_range\": 0.02, \"tie_word_embeddings\": false, "
         "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, "
         "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, "
         "\"bos_token_id\": 128000, \"eos_token_id\": 128001}"},
    {.name = "llama3.1-70b",
     .about = "Llama 3.1 and 3.3 70B",
     .json =
         "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 8192, "
         "\"num_hidden_layers\": 80, \"num_attention_heads\": 64, \"num_key_value_heads\": 8, "
         "\"head_dim\": 128, \"intermediate_size\": 28672, \"max_position_embeddings\": 131072, "
         "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "
         "\"initializer_range\": 0.02, \"tie_word_embeddings\": false, "
         "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, "
         "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, "
         "\"bos_token_id\": 128000, \"eos_token_id\": 128001}"},
    {.name = "llama3.1-405b",
     .about = "Llama 3.1 405B",
     .json =
         "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 16384, "
         "\"num_hidden_layers\": 126, \"num_attention_heads\": 128, \"num_key_value_heads\": 8, "
         "\"head_dim\": 128, \"intermediate_size\": 53248, \"max_position_embeddings\": 131072, "
         "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "
         "\"initializer_range\": 0.02, \"tie_word_embeddings\": false, "
         "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, "
         "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, "
         "\"bos_token_id\": 128000, \"eos_token_id\": 128001}"},
    {.name = "llama4-scout",
     .about = "Llama 4 Scout's text model: 17B active of 109B, 16 experts in every layer",
     .json = "{\"model_type\": \"llama4_text\", \"vocab_size\": 202048, \"hidden_size\": 5120, "
             "\"num_hidden_layers\": 48, \"num_attention_heads\": 40, \"num_key_value_heads\": 8, "
             "\"head_dim\": 128, \"intermediate_size\": 8192, \"intermediate_size_mlp\": 16384, "
             "\"num_local_experts\": 16, \"num_experts_per_tok\": 1, "
             "\"interleave_moe_layer_step\": 1, \"no_rope_layer_interval\": 4, "
             "\"attention_chunk_size\": 8192, \"use_qk_norm\": true, "
             "\"attn_temperature_tuning\": true, \"floor_scale\": 8192, \"attn_scale\": 0.1, "
             "\"max_position_embeddings\": 262144, \"rms_norm_eps\": 1e-05, "
             "\"rope_theta\": 500000.0, \"hidden_act\": \"silu\", \"initializer_range\": 0.02, "
             "\"tie_word_embeddings\": false, \"rope_scaling\": {\"rope_type\": \"llama3\", "
             "\"factor\": 16.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 1.0, "
             "\"original_max_position_embeddings\": 8192}, \"bos_token_id\": 200000, "
             "\"eos_token_id\": 200001, \"pad_token_id\": 200018}"},
    {.name = "llama4-maverick",
     .about =
         "Llama 4 Maverick's text model: 17B active of 400B, 128 experts in every second layer",
     .json = "{\"model_type\": \"llama4_text\", \"vocab_size\": 202048, \"hidden_size\": 5120, "
             "\"num_hidden_layers\": 48, \"num_attention_heads\": 40, \"num_key_value_heads\": 8, "
             "\"head_dim\": 128, \"intermediate_size\": 8192, \"intermediate_size_mlp\": 16384, "
             "\"num_local_experts\": 128, \"num_experts_per_tok\": 1, "
             "\"interleave_moe_layer_step\": 2, \"no_rope_layer_interval\": 4, "
             "\"attention_chunk_size\": 8192, \"use_qk_norm\": false, "
             "\"attn_temperature_tuning\": true, \"floor_scale\": 8192, \"attn_scale\": 0.1, "
             "\"max_position_embeddings\": 262144, \"rms_norm_eps\": 1e-05, "
             "\"rope_theta\": 500000.0, \"hidden_act\": \"silu\", \"initializer_range\": 0.02, "
             "\"tie_word_embeddings\": false, \"bos_token_id\": 200000, \"eos_token_id\": 200001, "
             "\"pad_token_id\": 200018}"},
    {.name = "llama4-behemoth",
     .about = "Llama 4 Behemoth: 16 experts, 288B active of nearly 2T are published; every "
              "dimension here is our estimate",
     .estimate = true,
     .json = "{\"model_type\": \"llama4_text\", \"vocab_size\": 202048, \"hidden_size\": 18432, "
             "\"num_hidden_layers\": 80, \"num_attention_heads\": 144, \"num_key_value_heads\": 8, "
             "\"head_dim\": 128, \"intermediate_size\": 25088, \"intermediate_size_mlp\": 50176, "
             "\"num_local_experts\": 16, \"num_experts_per_tok\": 1, "
             "\"interleave_moe_layer_step\": 1, \"no_rope_layer_interval\": 4, "
             "\"attention_chunk_size\": 8192, \"use_qk_norm\": true, "
             "\"attn_temperature_tuning\": true, \"floor_scale\": 8192, \"attn_scale\": 0.1, "
             "\"max_position_embeddings\": 262144, \"rms_norm_eps\": 1e-05, "
             "\"rope_theta\": 500000.0, \"hidden_act\": \"silu\", \"initializer_range\": 0.02, "
             "\"tie_word_embeddings\": false, \"bos_token_id\": 200000, \"eos_token_id\": 200001, "
             "\"pad_token_id\": 200018}"},
    {.name = "gpt2",
     .about = "GPT-2, 124M: learned positions, LayerNorm, GELU, tied head",
     .json = "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 768, "
             "\"n_layer\": 12, \"n_head\": 12, \"n_positions\": 1024, "
             "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, \"bos_token_id\": "
             "50256, \"eos_token_id\": 50256}"},
    {.name = "gpt2-medium",
     .about = "GPT-2 medium, 355M",
     .json = "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 1024, "
             "\"n_layer\": 24, \"n_head\": 16, \"n_positions\": 1024, "
             "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, \"bos_token_id\": "
             "50256, \"eos_token_id\": 50256}"},
    {.name = "gpt2-large",
     .about = "GPT-2 large, 774M",
     .json = "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 1280, "
             "\"n_layer\": 36, \"n_head\": 20, \"n_positions\": 1024, "
             "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, \"bos_token_id\": "
             "50256, \"eos_token_id\": 50256}"},
    {.name = "gpt2-xl",
     .about = "GPT-2 XL, 1.6B",
     .json = "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_embd\": 1600, "
             "\"n_layer\": 48, \"n_head\": 25, \"n_positions\": 1024, "
             "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, \"bos_token_id\": "
             "50256, \"eos_token_id\": 50256}"},
    {.name = "gpt3-175b",
     .about = "GPT-3 175B, all of its attention dense; vocabulary padded to 51,200, which ranks "
              "can share",
     .json = "{\"model_type\": \"gpt2\", \"vocab_size\": 51200, \"n_embd\": 12288, "
             "\"n_layer\": 96, \"n_head\": 96, \"n_positions\": 2048, "
             "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, \"bos_token_id\": "
             "50256, \"eos_token_id\": 50256}"},
    {.name = "mpt-7b",
     .about = "MPT 7B: ALiBi, no biases, tied head",
     .json = "{\"model_type\": \"mpt\", \"vocab_size\": 50432, \"d_model\": 4096, "
             "\"n_layers\": 32, \"n_heads\": 32, \"expansion_ratio\": 4, \"max_seq_len\": "
             "2048, \"layer_norm_epsilon\": 1e-05, \"initializer_range\": 0.02, "
             "\"no_bias\": true, \"attn_config\": {\"alibi\": true, \"alibi_bias_max\": 8}}"},
    {.name = "mpt-30b",
     .about = "MPT 30B, 8,192 positions",
     .json = "{\"model_type\": \"mpt\", \"vocab_size\": 50432, \"d_model\": 7168, "
             "\"n_layers\": 48, \"n_heads\": 64, \"expansion_ratio\": 4, \"max_seq_len\": "
             "8192, \"layer_norm_epsilon\": 1e-05, \"initializer_range\": 0.02, "
             "\"no_bias\": true, \"attn_config\": {\"alibi\": true, \"alibi_bias_max\": 8}}"},
    {.name = "llama3-nano",
     .about = "a small Llama 3 for minutes on two cores",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 4096, \"hidden_size\": 128, "
             "\"num_hidden_layers\": 4, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
             "\"head_dim\": 64, \"intermediate_size\": 352, \"max_position_embeddings\": 2048, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
    {.name = "llama3-micro",
     .about = "a larger small Llama 3, for an hour on two cores",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 16384, \"hidden_size\": 256, "
             "\"num_hidden_layers\": 6, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
             "\"head_dim\": 64, \"intermediate_size\": 704, \"max_position_embeddings\": 4096, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
    {.name = "llama4-nano",
     .about = "a small Llama 4 for minutes on two cores: 8 experts in every second layer, chunked "
              "attention",
     .json =
         "{\"model_type\": \"llama4_text\", \"vocab_size\": 4096, \"hidden_size\": 128, "
         "\"num_hidden_layers\": 4, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
         "\"head_dim\": 64, \"intermediate_size\": 256, \"intermediate_size_mlp\": 352, "
         "\"num_local_experts\": 8, \"num_experts_per_tok\": 1, "
         "\"interleave_moe_layer_step\": 2, \"no_rope_layer_interval\": 4, "
         "\"attention_chunk_size\": 128, \"use_qk_norm\": true, "
         "\"attn_temperature_tuning\": true, \"floor_scale\": 512, \"attn_scale\": 0.1, "
         "\"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
         "\"hidden_act\": \"silu\", \"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
    {.name = "llama4-micro",
     .about = "a larger small Llama 4, for an hour on two cores: 16 experts in every second layer",
     .json =
         "{\"model_type\": \"llama4_text\", \"vocab_size\": 16384, \"hidden_size\": 256, "
         "\"num_hidden_layers\": 6, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
         "\"head_dim\": 64, \"intermediate_size\": 512, \"intermediate_size_mlp\": 704, "
         "\"num_local_experts\": 16, \"num_experts_per_tok\": 1, "
         "\"interleave_moe_layer_step\": 2, \"no_rope_layer_interval\": 4, "
         "\"attention_chunk_size\": 256, \"use_qk_norm\": true, "
         "\"attn_temperature_tuning\": true, \"floor_scale\": 1024, \"attn_scale\": 0.1, "
         "\"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
         "\"hidden_act\": \"silu\", \"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
    {.name = "grok-1",
     .about = "Grok-1: 84B active of 316B, 2 of 8 experts in every layer, tied head",
     .json = "{\"model_type\": \"grok-1\", \"vocab_size\": 131072, \"hidden_size\": 6144, "
             "\"num_hidden_layers\": 64, "
             "\"num_attention_heads\": 48, \"num_key_value_heads\": 8, \"head_dim\": 128, "
             "\"intermediate_size\": 32768, "
             "\"num_experts\": 8, \"num_experts_per_tok\": 2, \"max_attn_value\": 30.0, "
             "\"attn_output_multiplier\": 0.08838834764831845, \"embedding_multiplier_scale\": "
             "78.38367176906169, "
             "\"output_multiplier_scale\": 0.5773502691896257, \"max_position_embeddings\": 8192, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true, \"pad_token_id\": 0, "
             "\"bos_token_id\": 1, "
             "\"eos_token_id\": 2}"},
    {.name = "grok1-nano",
     .about = "a small Grok-1 for minutes on two cores: 2 of 8 experts in every layer",
     .json =
         "{\"model_type\": \"grok-1\", \"vocab_size\": 4096, \"hidden_size\": 128, "
         "\"num_hidden_layers\": 4, "
         "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 64, "
         "\"intermediate_size\": 176, "
         "\"num_experts\": 8, \"num_experts_per_tok\": 2, \"max_attn_value\": 30.0, "
         "\"attn_output_multiplier\": 0.125, \"embedding_multiplier_scale\": 11.313708498984761, "
         "\"output_multiplier_scale\": 0.5773502691896257, \"max_position_embeddings\": 2048, "
         "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
         "\"initializer_range\": 0.02, \"tie_word_embeddings\": true}"},
    {.name = "grok1-micro",
     .about = "a larger small Grok-1, for an hour on two cores: 2 of 8 experts in every layer",
     .json = "{\"model_type\": \"grok-1\", \"vocab_size\": 16384, \"hidden_size\": 256, "
             "\"num_hidden_layers\": 6, "
             "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 64, "
             "\"intermediate_size\": 352, "
             "\"num_experts\": 8, \"num_experts_per_tok\": 2, \"max_attn_value\": 30.0, "
             "\"attn_output_multiplier\": 0.125, \"embedding_multiplier_scale\": 16.0, "
             "\"output_multiplier_scale\": 0.5773502691896257, \"max_position_embeddings\": 4096, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true}"},
    {.name = "gpt-nano",
     .about = "a small GPT-2 for minutes on two cores",
     .json = "{\"model_type\": \"gpt2\", \"vocab_size\": 4096, \"n_embd\": 128, "
             "\"n_layer\": 4, \"n_head\": 2, \"n_positions\": 1024, "
             "\"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": true}"},
    {.name = "bench-small",
     .about = "the benchmark's small dense model",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 4096, \"hidden_size\": 384, "
             "\"num_hidden_layers\": 6, \"num_attention_heads\": 6, \"num_key_value_heads\": 2, "
             "\"head_dim\": 64, \"intermediate_size\": 1024, \"max_position_embeddings\": 2048, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
    {.name = "bench-medium",
     .about = "the benchmark's medium dense model",
     .json = "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 768, "
             "\"num_hidden_layers\": 12, \"num_attention_heads\": 12, \"num_key_value_heads\": 4, "
             "\"head_dim\": 64, \"intermediate_size\": 2048, \"max_position_embeddings\": 2048, "
             "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
             "\"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
    {.name = "bench-moe",
     .about = "the benchmark's small mixture of experts: 8 experts and a shared one in every layer",
     .json =
         "{\"model_type\": \"llama4_text\", \"vocab_size\": 4096, \"hidden_size\": 384, "
         "\"num_hidden_layers\": 6, "
         "\"num_attention_heads\": 6, \"num_key_value_heads\": 2, \"head_dim\": 64, "
         "\"intermediate_size\": 1024, \"intermediate_size_mlp\": 1024, \"num_local_experts\": 8, "
         "\"num_experts_per_tok\": 1, \"interleave_moe_layer_step\": 1, "
         "\"no_rope_layer_interval\": 0, "
         "\"use_qk_norm\": false, \"attn_temperature_tuning\": false, \"max_position_embeddings\": "
         "2048, "
         "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
         "\"initializer_range\": 0.02, \"tie_word_embeddings\": false}"},
};

const ModelPreset *model_preset(int index)
{
    return index >= 0 && index < COUNT_OF(presets) ? &presets[index] : NULL;
}

Status model_config_preset(const char *name, ModelConfig *config)
{
    const char *names[COUNT_OF(presets)];
    for (int i = 0; i < COUNT_OF(presets); i++) {
        names[i] = presets[i].name;
        if (strcmp(name, names[i])) continue;
        json_t *json = json_loads(presets[i].json, JSON_REJECT_DUPLICATES, NULL);
        CHECK(json);
        Status status = model_config_from_json(json, config);
        json_decref(json);
        return status;
    }
    const char *near = name_nearest(name, names, COUNT_OF(presets));
    return fail(ERR_ARG, "model: no preset is called %s%s%s", name, near ? "; did you mean " : "",
                near ? near : "");
}
