/* Llama 3 (and 2): dense decoder, grouped-query attention, rotary positions by halves, SwiGLU
 * (models.md section 1). */
#include "model/model_internal.h"

static Status read_llama(ModelConfig *config, const json_t *json)
{
    (void)json;
    for (int64_t i = 0; i < config->n_layers; i++) config->layer[i] = (LayerConfig){.rope = true};
    return OK;
}

static Status layer(ModelBuilder *b, ValueId h, ValueId *out)
{
    ValueId a, o, m;
    graph_set_scope(b->g, "input_layernorm");
    TRY(model_norm(b, "input_layernorm", h, &a));
    TRY(model_attention(b, "self_attn", a, model_rotate, &o));
    TRY(op_add(b->g, h, o, &h));
    graph_set_scope(b->g, "post_attention_layernorm");
    TRY(model_norm(b, "post_attention_layernorm", h, &a));
    TRY(model_swiglu(b, "mlp", a, b->config->ffn_dense, &m));
    return op_add(b->g, h, m, out);
}

const ModelDef model_def_llama = {
    .model_type = "llama",
    .architecture = "LlamaForCausalLM",
    .activations = (const char *const[]){"silu", "swish", NULL},
    .norm_suffix = "weight",
    .names = &model_names_llama,
    .read = read_llama,
    .layer = layer,
    .rope_interleaved = false,
    .norm_eps = 1e-6,
    .rope_theta = 10000,
    .max_positions = 2048,
};
