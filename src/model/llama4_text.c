/* Llama 4 text: rotary layers with chunked attention and QK norm, layers without positions with a
 * query temperature, mixture of experts with a shared expert (models.md section 2). */
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"
#include "ops/router.h"

enum { DEFAULT_CHUNK = 8192 };

/* ---- configuration ---------------------------------------------------------------------- */

static Status read_experts(ModelConfig *c, const json_t *json)
{
    c->ffn_expert =
        c->ffn_dense; /* intermediate_size is the experts' width; _mlp that of dense layers */
    TRY(config_int(json, "intermediate_size_mlp", 1, 1 << 24, &c->ffn_dense));
    TRY(config_int(json, "num_local_experts", 0, 65536, &c->n_experts));
    if (c->n_experts > ROUTER_MAX_EXPERTS)
        return fail(ERR_REFUSED, "config: num_local_experts is %lld, at most %d are possible here",
                    (long long)c->n_experts, ROUTER_MAX_EXPERTS);
    c->n_experts_per_token = 1;
    TRY(config_int(json, "num_experts_per_tok", 0, 64, &c->n_experts_per_token));
    int64_t step = 1;
    TRY(config_int(json, "interleave_moe_layer_step", 0, 4096, &step));
    const json_t *list = json_object_get(json, "moe_layers");
    if (json_is_array(list)) {
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *at = json_array_get(list, i);
            if (!json_is_integer(at) || json_integer_value(at) < 0 ||
                json_integer_value(at) >= c->n_layers)
                return fail(json_is_integer(at) ? ERR_REFUSED : ERR_FORMAT,
                            "config: moe_layers[%zu] is not a layer from 0 to %lld", i,
                            (long long)c->n_layers - 1);
            c->layer[json_integer_value(at)].moe = true;
        }
    } else if (step > 0 && c->n_experts > 0) {
        for (int64_t i = 0; i < c->n_layers; i++) c->layer[i].moe = (i + 1) % step == 0;
    }
    for (int64_t i = 0; i < c->n_layers; i++)
        if (c->layer[i].moe && (c->n_experts < 1 || c->n_experts_per_token < 1 ||
                                c->n_experts_per_token > c->n_experts))
            return fail(ERR_REFUSED,
                        "config: layer %lld has experts, but num_experts_per_tok is %lld of "
                        "num_local_experts %lld",
                        (long long)i, (long long)c->n_experts_per_token, (long long)c->n_experts);
    return OK;
}

/* The list counts layers WITH positions as 1, whatever its name says (models.md section 8). */
static Status read_positions(ModelConfig *c, const json_t *json)
{
    int64_t interval = 4, *list = xcalloc((size_t)c->n_layers, sizeof *list);
    bool found = false;
    Status status = config_int(json, "no_rope_layer_interval", 0, 4096, &interval);
    if (status == OK)
        status = config_int_list(json, "no_rope_layers", c->n_layers, 1, list, &found);
    for (int64_t i = 0; i < c->n_layers; i++)
        c->layer[i].rope = found ? list[i] : interval == 0 || (i + 1) % interval != 0;
    free(list);
    return status;
}

static Status read_chunks(ModelConfig *c, const json_t *json)
{
    int64_t chunk = json_is_null(json_object_get(json, "attention_chunk_size")) ? 0 : DEFAULT_CHUNK;
    TRY(config_int(json, "attention_chunk_size", 1, (int64_t)1 << 40, &chunk));
    const json_t *types = json_object_get(json, "layer_types");
    if (types && !json_is_null(types) && !json_is_array(types))
        return fail(ERR_FORMAT, "config: layer_types is not a list of %lld names",
                    (long long)c->n_layers);
    if (json_is_array(types) && (int64_t)json_array_size(types) != c->n_layers)
        return fail(ERR_REFUSED, "config: layer_types has %zu names for %lld layers",
                    json_array_size(types), (long long)c->n_layers);
    for (int64_t i = 0; i < c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (types && !json_is_null(types) &&
            (!type || (strcmp(type, "chunked_attention") && strcmp(type, "full_attention"))))
            return fail(ERR_FORMAT,
                        "config: layer_types[%lld] is neither chunked_attention nor full_attention",
                        (long long)i);
        bool chunked = type ? !strcmp(type, "chunked_attention") : c->layer[i].rope;
        c->layer[i].chunk = chunked && chunk < c->max_positions ? chunk : 0;
    }
    return OK;
}

static Status read_llama4(ModelConfig *c, const json_t *json)
{
    c->shared_expert = true;
    TRY(config_bool(json, "drover_shared_expert", &c->shared_expert));
    c->qk_norm = true;
    c->temperature_tuning = true;
    c->temperature_scale = 0.1;
    c->temperature_floor = 8192;
    TRY(read_experts(c, json));
    TRY(read_positions(c, json));
    TRY(read_chunks(c, json));
    TRY(config_bool(json, "use_qk_norm", &c->qk_norm));
    TRY(config_bool(json, "attn_temperature_tuning", &c->temperature_tuning));
    TRY(config_number(json, "attn_scale", 0, 1e6, &c->temperature_scale));
    return config_number(json, "floor_scale", 1, 1e12, &c->temperature_floor);
}

/* transformers counts layers by the intervals before it looks at the lists, and cannot divide by
 * zero; without a chunk size it fails at the first token, chunked layers or not. */
static void write_llama4(const ModelConfig *c, json_t *json)
{
    json_t *rope = json_array(), *moe = json_array(), *types = json_array();
    for (int64_t i = 0; i < c->n_layers; i++) {
        json_array_append_new(rope, json_integer(c->layer[i].rope));
        if (c->layer[i].moe) json_array_append_new(moe, json_integer(i));
        json_array_append_new(
            types, json_string(c->layer[i].chunk ? "chunked_attention" : "full_attention"));
    }
    if (json_array_size(json_object_get(json, "no_rope_layers")) == 0)
        json_object_set(json, "no_rope_layers", rope);
    if (json_integer_value(json_object_get(json, "no_rope_layer_interval")) < 1)
        json_object_set_new(json, "no_rope_layer_interval",
                            json_integer(4)); /* the lists say it all */
    if (json_integer_value(json_object_get(json, "interleave_moe_layer_step")) < 1)
        json_object_set_new(json, "interleave_moe_layer_step", json_integer(1));
    config_complete(json, "moe_layers", json_incref(moe));
    config_complete(json, "layer_types", json_incref(types));
    config_complete(json, "attention_chunk_size",
                    json_integer(min_i64(DEFAULT_CHUNK, c->max_positions)));
    config_complete(json, "intermediate_size_mlp", json_integer(c->ffn_dense));
    config_complete(json, "num_local_experts", json_integer(c->n_experts));
    config_complete(json, "num_experts_per_tok", json_integer(c->n_experts_per_token));
    config_complete(json, "use_qk_norm", json_boolean(c->qk_norm));
    config_complete(json, "attn_scale", json_real(c->temperature_scale));
    json_object_set_new(
        json, "floor_scale",
        json_integer((json_int_t)c->temperature_floor)); /* a real number is refused */
    json_object_set_new(json, "attn_temperature_tuning",
                        json_boolean(c->temperature_tuning)); /* early files have 4 */
    json_decref(rope);
    json_decref(moe);
    json_decref(types);
}

/* ---- layer ------------------------------------------------------------------------------ */

static Status position_step(ModelBuilder *b, ValueId *q, ValueId *k)
{
    const ModelConfig *c = b->config;
    if (!c->layer[b->layer].rope) {
        if (!c->temperature_tuning) return OK;
        return op_query_temperature(b->g, *q, b->pos, (float)c->temperature_scale,
                                    (float)c->temperature_floor, q);
    }
    TRY(model_rotate(b, q, k));
    if (!c->qk_norm) return OK;
    TRY(op_l2norm(b->g, *q, (float)c->norm_eps, q));
    return op_l2norm(b->g, *k, (float)c->norm_eps, k);
}

/* gate_up_proj [E embed 2f], or down_proj [E f embed], which writes into the residual. */
static ValueId expert_weight(ModelBuilder *b, const char *name, int64_t in, int64_t out, bool down)
{
    Axis from = down ? AXIS_FFN : AXIS_EMBED, to = down ? AXIS_EMBED : AXIS_FFN;
    Shape shape = shape_make(3, (int64_t[]){b->config->n_experts, in, out},
                             (Axis[]){AXIS_EXPERTS, from, to});
    WeightInit init = down ? model_init_residual(b) : model_init(b);
    if (!down) init.halves = 2; /* gate and up */
    return model_weight(b, name, shape, init);
}

static Status experts(ModelBuilder *b, ValueId x, ValueId *y)
{
    const ModelConfig *c = b->config;
    int64_t f = c->ffn_expert, halves[2] = {f, f};
    Axis axes[2] = {AXIS_FFN, AXIS_FFN};
    Dispatch d;
    ValueId rows, both, part[2], act, shared = NO_VALUE;
    if (c->shared_expert) TRY(model_swiglu(b, "feed_forward.shared_expert", x, f, &shared));
    TRY(model_route(b, "feed_forward.router", ROUTER_SIGMOID, x, &d));
    graph_set_scope(b->g, "feed_forward.experts");
    TRY(op_expert_gather(b->g, x, d.score, d.source, d.place, &rows));
    TRY(op_grouped_linear(
        b->g, rows, expert_weight(b, "feed_forward.experts.gate_up_proj", c->embed, 2 * f, false),
        d.offsets, EXPERTS_IN_OUT, &both));
    TRY(op_split(b->g, both, 2, halves, axes, part));
    TRY(op_swiglu_rows(b->g, part[0], part[1], d.offsets, &act));
    TRY(op_grouped_linear(b->g, act,
                          expert_weight(b, "feed_forward.experts.down_proj", f, c->embed, true),
                          d.offsets, EXPERTS_IN_OUT, &rows));
    Shape tokens = graph_value(b->g, x)->shape;
    return op_expert_combine(b->g, rows, d.source, d.place, NO_VALUE, shared, tokens, y);
}

static Status layer(ModelBuilder *b, ValueId h, ValueId *out)
{
    ValueId a, o, m;
    graph_set_scope(b->g, "input_layernorm");
    TRY(model_norm(b, "input_layernorm", h, &a));
    TRY(model_attention(b, "self_attn", a, position_step, &o));
    TRY(op_add(b->g, h, o, &h));
    graph_set_scope(b->g, "post_attention_layernorm");
    TRY(model_norm(b, "post_attention_layernorm", h, &a));
    if (b->config->layer[b->layer].moe)
        TRY(experts(b, a, &m));
    else
        TRY(model_swiglu(b, "feed_forward", a, b->config->ffn_dense, &m));
    return op_add(b->g, h, m, out);
}

const ModelDef model_def_llama4_text = {
    .model_type = "llama4_text",
    .architecture = "Llama4ForCausalLM",
    .activations = (const char *const[]){"silu", "swish", NULL},
    .norm_suffix = "weight",
    .names = &model_names_llama,
    .read = read_llama4,
    .layer = layer,
    .write = write_llama4,
    .rope_interleaved = true,
    .norm_eps = 1e-5,
    .rope_theta = 500000,
    .max_positions = 131072,
};
