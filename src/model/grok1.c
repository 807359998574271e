/* Grok-1: attention with capped scores, a mixture of experts with GeGLU in every layer, a norm
 * before and one behind each of them, multipliers at both ends (models.md section 5; the released
 * code is xai-org/grok-1).
 *
 * That code also hides keys whose token is 0, its padding. Here rows are packed with documents and
 * prompts are not padded, so a 0 is a token like any other and stays visible; without zeros both
 * are the same. */
#include "model/model_internal.h"
#include "ops/router.h"

/* ---- configuration ---------------------------------------------------------------------- */

/* What has no harmless default: a missing multiplier would give another model without a word. */
static Status need_number(const json_t *json, const char *key, double *out)
{
    *out = 0;
    TRY(config_number(json, key, 1e-9, 1e9, out));
    return *out > 0 ? OK : fail(ERR_FORMAT, "config: %s is missing", key);
}

static Status read_grok1(ModelConfig *c, const json_t *json)
{
    c->ffn_expert = c->ffn_dense;
    c->norms_per_layer = 4;
    c->tied = true; /* config.json leaves out what is transformers' default */
    TRY(config_bool(json, "tie_word_embeddings", &c->tied));
    TRY(config_int(json, "num_experts", 1, 65536, &c->n_experts));
    c->n_experts_per_token = 2;
    TRY(config_int(json, "num_experts_per_tok", 1, 64, &c->n_experts_per_token));
    if (c->n_experts < 1) return fail(ERR_FORMAT, "config: num_experts is missing");
    if (c->n_experts > ROUTER_MAX_EXPERTS)
        return fail(ERR_REFUSED, "config: num_experts is %lld, at most %d are possible here",
                    (long long)c->n_experts, ROUTER_MAX_EXPERTS);
    if (c->n_experts_per_token > c->n_experts)
        return fail(ERR_REFUSED, "config: num_experts_per_tok is %lld of num_experts %lld",
                    (long long)c->n_experts_per_token, (long long)c->n_experts);
    TRY(need_number(json, "attn_output_multiplier", &c->attention_scale));
    TRY(need_number(json, "max_attn_value", &c->attention_softcap));
    TRY(need_number(json, "embedding_multiplier_scale", &c->embedding_multiplier));
    TRY(need_number(json, "output_multiplier_scale", &c->output_multiplier));
    TRY(config_number(json, "router_logit_softcapping", 0, 1e9,
                      &c->router_softcap)); /* the released code has none */
    for (int64_t i = 0; i < c->n_layers; i++)
        c->layer[i] = (LayerConfig){.moe = true, .rope = true};
    return OK;
}

static void write_grok1(const ModelConfig *c, json_t *json)
{
    config_complete(json, "num_experts_per_tok", json_integer(c->n_experts_per_token));
}

/* ---- layer ------------------------------------------------------------------------------ */

/* Scores scale what the experts give, and are not normalised over the chosen. */
static Status experts(ModelBuilder *b, ValueId x, ValueId *y)
{
    const ModelConfig *c = b->config;
    int64_t f = c->ffn_expert, halves[2] = {f, f};
    Axis axes[2] = {AXIS_FFN, AXIS_FFN};
    ExpertMatrices in = {.prefix = "moe_block.experts",
                         .name = {"linear.weight", "linear_v.weight"},
                         .n_names = 2,
                         .out = f,
                         .in = c->embed,
                         .out_axis = AXIS_FFN,
                         .in_axis = AXIS_EMBED,
                         .init = model_init(b)};
    ExpertMatrices out = {.prefix = "moe_block.experts",
                          .name = {"linear_1.weight"},
                          .n_names = 1,
                          .out = c->embed,
                          .in = f,
                          .out_axis = AXIS_EMBED,
                          .in_axis = AXIS_FFN,
                          .init = model_init_residual(b)};
    Dispatch d;
    ValueId rows, both, part[2], act;
    TRY(model_route(b, "moe_block.gate", ROUTER_SOFTMAX, x, &d));
    graph_set_scope(b->g, "moe_block.experts");
    TRY(op_expert_gather(b->g, x, NO_VALUE, d.source, d.place, &rows));
    TRY(op_grouped_linear(b->g, rows, model_expert_matrices(b, &in), d.offsets, EXPERTS_OUT_IN,
                          &both));
    TRY(op_split(b->g, both, 2, halves, axes, part));
    TRY(op_geglu_rows(b->g, part[0], part[1], d.offsets, &act));
    TRY(op_grouped_linear(b->g, act, model_expert_matrices(b, &out), d.offsets, EXPERTS_OUT_IN,
                          &rows));
    Shape tokens = graph_value(b->g, x)->shape;
    return op_expert_combine(b->g, rows, d.source, d.place, d.score, NO_VALUE, tokens, y);
}

static Status norm(ModelBuilder *b, const char *name, ValueId x, ValueId *y)
{
    graph_set_scope(b->g, name);
    return model_norm(b, name, x, y);
}

static Status layer(ModelBuilder *b, ValueId h, ValueId *out)
{
    ValueId a;
    TRY(norm(b, "pre_attn_norm", h, &a));
    TRY(model_attention(b, "attn", a, model_rotate, &a));
    TRY(norm(b, "post_attn_norm", a, &a));
    TRY(op_add(b->g, h, a, &h));
    TRY(norm(b, "pre_moe_norm", h, &a));
    TRY(experts(b, a, &a));
    TRY(norm(b, "post_moe_norm", a, &a));
    return op_add(b->g, h, a, out);
}

const ModelDef model_def_grok1 = {
    .model_type = "grok-1",
    .architecture = "Grok1ModelForCausalLM",
    .activations = (const char *const[]){"gelu", "gelu_new", "gelu_pytorch_tanh", NULL},
    .norm_suffix = "scale",
    .names = &model_names_llama,
    .read = read_grok1,
    .layer = layer,
    .write = write_grok1,
    .rope_interleaved = false,
    .norm_eps = 1e-5,
    .rope_theta = 10000,
    .max_positions = 8192,
};
