/* GPT blocks: LayerNorm in front of attention and of a feed-forward of two matrices. What varies
 * over what was published is said by the configuration: positions are learned (Radford 2019),
 * slopes of scores (ALiBi, Press 2021) or rotary; products have biases or not; the activation is
 * GELU, its tanh form or a squared ReLU; key heads may be fewer; the head is the embedding or not.
 *
 * The family `gpt`, here, names its weights as Llama does and says all of this in fields of its
 * own. gpt2.c and mpt.c are families that Hugging Face has files of. */
#include "model/model_internal.h"

#include <string.h>

/* ---- configuration ---------------------------------------------------------------------- */

void model_gpt_begin(ModelConfig *c)
{
    c->gated = false;
    c->layer_norm = true;
    for (int64_t i = 0; i < c->n_layers; i++) c->layer[i] = (LayerConfig){0};
}

Status model_gpt_activation(ModelConfig *c, const json_t *json)
{
    static const struct {
        const char *name;
        ActivationKind kind;
    } known[] = {{"gelu", ACTIVATION_GELU},
                 {"gelu_new", ACTIVATION_GELU_TANH},
                 {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH},
                 {"relu2", ACTIVATION_RELU2}};
    const char *key = config_key(c, "hidden_act");
    const char *name = key ? json_string_value(json_object_get(json, key)) : NULL;
    if (!name) name = c->def->activations[0];
    for (int i = 0; i < COUNT_OF(known); i++)
        if (!strcmp(name, known[i].name)) c->activation = known[i].kind;
    return OK; /* others were refused when the family's were looked up */
}

Status model_gpt_check_heads(const ModelConfig *c)
{
    if (c->embed % c->n_heads == 0) return OK;
    return fail(ERR_REFUSED, "config: %s %lld is not a multiple of %s %lld",
                config_key(c, "hidden_size"), (long long)c->embed,
                config_key(c, "num_attention_heads"), (long long)c->n_heads);
}

static Status read_positions(ModelConfig *c, const json_t *json)
{
    static const char *const names[] = {
        [POSITIONS_ROTARY] = "rope", [POSITIONS_LEARNED] = "learned", [POSITIONS_ALIBI] = "alibi"};
    const json_t *value = json_object_get(json, "position_embedding_type");
    const char *name = value && !json_is_null(value) ? json_string_value(value) : "learned";
    for (int i = 0; name && i < COUNT_OF(names); i++)
        if (!strcmp(name, names[i])) {
            c->positions = (PositionKind)i;
            return OK;
        }
    return fail(ERR_FORMAT, "config: position_embedding_type is learned, alibi or rope, not %s",
                name ? name : "what it says");
}

static Status read_gpt(ModelConfig *c, const json_t *json)
{
    model_gpt_begin(c);
    c->tied = c->bias = true;
    TRY(config_bool(json, "tie_word_embeddings", &c->tied));
    TRY(config_bool(json, "use_bias", &c->bias));
    c->norm_bias = c->bias;
    c->alibi = 8;
    TRY(config_number(json, "alibi_bias_max", 1e-3, 1e3, &c->alibi));
    TRY(read_positions(c, json));
    for (int64_t i = 0; i < c->n_layers; i++) c->layer[i].rope = c->positions == POSITIONS_ROTARY;
    return model_gpt_activation(c, json);
}

static void write_gpt(const ModelConfig *c, json_t *json)
{
    config_complete(json, "use_bias", json_boolean(c->bias));
    config_complete(json, "position_embedding_type", json_string("learned"));
    if (c->positions == POSITIONS_ALIBI)
        config_complete(json, "alibi_bias_max", json_real(c->alibi));
}

/* ---- layer ------------------------------------------------------------------------------ */

/* One product makes q, k and v below one another: each is cut by heads of its own. */
static Status fused_qkv(ModelBuilder *b, const char *name, ValueId x, ValueId qkv[3])
{
    const ModelConfig *c = b->config;
    int64_t width = c->n_heads * c->head_dim, widths[3] = {width, width, width};
    Axis axes[3] = {AXIS_HEADS, AXIS_KV_HEADS, AXIS_KV_HEADS};
    WeightInit init = model_init(b);
    ValueId all;
    init.halves = 3;
    CHECK(c->n_kv_heads == c->n_heads);
    TRY(model_linear(b, name, x, 3 * width, AXIS_HEADS, init, &all));
    TRY(op_split(b->g, all, 3, widths, axes, qkv));
    for (int i = 0; i < 3; i++) TRY(model_as_heads(b, qkv[i], c->n_heads, axes[i], &qkv[i]));
    return OK;
}

static Status attention(ModelBuilder *b, const GptForm *form, ValueId x, ValueId *y)
{
    QkStep step = b->config->positions == POSITIONS_ROTARY ? model_rotate : NULL;
    ValueId qkv[3];
    if (!form->qkv) return model_attention(b, form->attention, x, step, y);
    graph_set_scope(b->g, form->attention);
    TRY(fused_qkv(b, form->qkv, x, qkv));
    if (step) TRY(step(b, &qkv[0], &qkv[1]));
    return model_attend(b, qkv, form->attention_out, y);
}

static Status feed_forward(ModelBuilder *b, const GptForm *form, ValueId x, ValueId *y)
{
    const ModelConfig *c = b->config;
    graph_set_scope(b->g, "mlp");
    TRY(model_linear(b, form->up, x, c->ffn_dense, AXIS_FFN, model_init(b), y));
    TRY(op_activation(b->g, *y, c->activation, y));
    return model_linear(b, form->down, *y, c->embed, AXIS_EMBED, model_init_residual(b), y);
}

Status model_gpt_layer(ModelBuilder *b, ValueId h, ValueId *out)
{
    const GptForm *form = b->config->def->gpt;
    ValueId a;
    graph_set_scope(b->g, form->attention_norm);
    TRY(model_norm(b, form->attention_norm, h, &a));
    TRY(attention(b, form, a, &a));
    TRY(op_add(b->g, h, a, &h));
    graph_set_scope(b->g, form->mlp_norm);
    TRY(model_norm(b, form->mlp_norm, h, &a));
    TRY(feed_forward(b, form, a, &a));
    return op_add(b->g, h, a, out);
}

const ModelDef model_def_gpt = {
    .model_type = "gpt",
    .activations = (const char *const[]){"gelu", "gelu_new", "gelu_pytorch_tanh", "relu2", NULL},
    .norm_suffix = "weight",
    .names = &(const ModelNames){.layer = "model.layers",
                                 .embedding = "model.embed_tokens",
                                 .positions = "model.embed_positions",
                                 .norm = "model.norm"},
    .keys = (const char *const[][2]){{"rms_norm_eps", "layer_norm_eps"}, {NULL, NULL}},
    .gpt = &(const GptForm){.attention_norm = "input_layernorm",
                            .attention = "self_attn",
                            .mlp_norm = "post_attention_layernorm",
                            .up = "mlp.up_proj",
                            .down = "mlp.down_proj"},
    .read = read_gpt,
    .write = write_gpt,
    .layer = model_gpt_layer,
    .ffn_ratio = 4,
    .norm_eps = 1e-5,
    .rope_theta = 10000,
    .max_positions = 2048,
};
