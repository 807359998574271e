/* Meta's params.json as a config.json: Llama 3 and Llama 4 say fewer things there and compute the
 * rest.
 *
 * Widths: h = int(2 x 4 dim / 3), x ffn_dim_multiplier, for experts divided by (capacity_factor +
 * 1), rounded up to multiple_of. Positions: use_scaled_rope means the llama3 rule with low 1, high
 * 4, original 8192 and factor 8, as Meta's code of Llama 3.1 has it; the two small models of
 * Llama 3.2, known by their dim and n_layers, were published with factor
 * 32. Llama 4 says its own factor, 16 where it does not, and high 1. */
#include <math.h>
#include <string.h>

#include "weights/weights_internal.h"

typedef struct Params {
    const json_t *json;
    const char *path;
    bool llama4;
    int64_t dim, n_layers, n_heads, n_kv_heads, multiple_of, vocab;
    double multiplier, eps, theta;
    int64_t n_experts, top_k, moe_step;
    double capacity;
    bool auto_scale;
} Params;

/* ---- fields ----------------------------------------------------------------------------- */

static Status number(const Params *p, const json_t *json, const char *key, double min, double max,
                     double *out)
{
    const json_t *v = json_object_get(json, key);
    if (!v || json_is_null(v)) return OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= min && x <= max))
        return fail(ERR_FORMAT, "%s: %s is not a number from %g to %g", p->path, key, min, max);
    *out = x;
    return OK;
}

static Status integer(const Params *p, const json_t *json, const char *key, int64_t min,
                      int64_t max, int64_t *out)
{
    double x = (double)*out;
    TRY(number(p, json, key, (double)min, (double)max, &x));
    if (x != floor(x)) return fail(ERR_FORMAT, "%s: %s is not a whole number", p->path, key);
    *out = (int64_t)x;
    return OK;
}

static bool truth(const json_t *json, const char *key, bool otherwise)
{
    const json_t *v = json_object_get(json, key);
    if (json_is_boolean(v)) return json_is_true(v);
    return json_is_number(v) ? json_number_value(v) != 0 : otherwise;
}

static bool is_llama4(const json_t *json)
{
    static const char *const keys[] = {"moe_args", "nope_layer_interval", "use_qk_norm",
                                       "attention_chunk_size"};
    for (int i = 0; i < COUNT_OF(keys); i++)
        if (json_object_get(json, keys[i])) return true;
    return false;
}

static Status read_moe(Params *p)
{
    const json_t *moe = json_object_get(p->json, "moe_args");
    p->top_k = p->moe_step = 1;
    p->capacity = 1;
    if (!json_is_object(moe)) return OK;
    p->n_experts = 8; /* where Meta's code begins */
    TRY(integer(p, moe, "num_experts", 0, 65536, &p->n_experts));
    TRY(integer(p, moe, "top_k", 1, 64, &p->top_k));
    TRY(integer(p, moe, "interleave_moe_layer_step", 1, 4096, &p->moe_step));
    TRY(number(p, moe, "capacity_factor", 0, 1024, &p->capacity));
    p->auto_scale = truth(moe, "auto_scale_F", true);
    return OK;
}

static Status read_params(const json_t *json, const char *path, Params *p)
{
    *p = (Params){.json = json,
                  .path = path,
                  .multiple_of = 256,
                  .multiplier = 1,
                  .eps = 1e-5,
                  .theta = 500000};
    if (!json_is_object(json)) return fail(ERR_FORMAT, "%s is not a JSON object", path);
    p->llama4 = is_llama4(json);
    TRY(integer(p, json, "dim", 1, 1 << 24, &p->dim));
    TRY(integer(p, json, "n_layers", 1, 4096, &p->n_layers));
    TRY(integer(p, json, "n_heads", 1, 65536, &p->n_heads));
    const char *missing = !p->dim        ? "dim"
                          : !p->n_layers ? "n_layers"
                          : !p->n_heads  ? "n_heads"
                                         : NULL;
    if (missing) return fail(ERR_FORMAT, "%s: %s is missing", path, missing);
    p->n_kv_heads = p->n_heads;
    TRY(integer(p, json, "n_kv_heads", 1, 65536, &p->n_kv_heads));
    TRY(integer(p, json, "multiple_of", 1, 1 << 24, &p->multiple_of));
    TRY(integer(p, json, "vocab_size", -1, 1 << 24, &p->vocab));
    TRY(number(p, json, "ffn_dim_multiplier", 1e-3, 1e3, &p->multiplier));
    TRY(number(p, json, "norm_eps", 0, 1, &p->eps));
    TRY(number(p, json, "rope_theta", 1, 1e12, &p->theta));
    if (p->dim % p->n_heads || p->dim / p->n_heads % 2)
        return fail(ERR_FORMAT, "%s: dim %lld is not n_heads %lld times an even number", path,
                    (long long)p->dim, (long long)p->n_heads);
    return read_moe(p);
}

/* ---- what follows from them ------------------------------------------------------------- */

/* Meta's code cuts to whole numbers after each factor. */
static int64_t ffn_width(const Params *p, double divisor)
{
    int64_t width = 2 * (4 * p->dim) / 3;
    width = (int64_t)(p->multiplier * (double)width);
    width = (int64_t)((double)width / divisor);
    return (width + p->multiple_of - 1) / p->multiple_of * p->multiple_of;
}

static bool is_small_llama32(const Params *p)
{
    return (p->dim == 2048 && p->n_layers == 16) || (p->dim == 3072 && p->n_layers == 28);
}

static Status rope_scaling(const Params *p, json_t *config)
{
    if (!truth(p->json, "use_scaled_rope", false)) return OK;
    double factor = p->llama4 ? 16 : is_small_llama32(p) ? 32 : 8, high = p->llama4 ? 1 : 4;
    TRY(number(p, p->json, "rope_scaling_factor", 1, 1e6, &factor));
    TRY(number(p, p->json, "rope_high_freq_factor", 1e-6, 1e6, &high));
    json_object_set_new(config, "rope_scaling",
                        json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor",
                                  factor, "low_freq_factor", 1.0, "high_freq_factor", high,
                                  "original_max_position_embeddings", 8192));
    return OK;
}

/* The ids that the two published vocabularies begin and end texts with. */
static void special_ids(json_t *config, int64_t vocab)
{
    if (vocab == 128256) {
        json_object_set_new(config, "bos_token_id", json_integer(128000));
        json_object_set_new(config, "eos_token_id", json_pack("[i, i, i]", 128001, 128008, 128009));
    } else if (vocab == 202048) {
        json_object_set_new(config, "bos_token_id", json_integer(200000));
        json_object_set_new(config, "eos_token_id", json_pack("[i, i, i]", 200001, 200007, 200008));
        json_object_set_new(config, "pad_token_id", json_integer(200018));
    }
}

static json_t *common(const Params *p, int64_t vocab, bool tied)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:b, s:s, s:b, s:b}", "vocab_size",
                     (json_int_t)vocab, "hidden_size", (json_int_t)p->dim, "num_hidden_layers",
                     (json_int_t)p->n_layers, "num_attention_heads", (json_int_t)p->n_heads,
                     "num_key_value_heads", (json_int_t)p->n_kv_heads, "head_dim",
                     (json_int_t)(p->dim / p->n_heads), "rms_norm_eps", p->eps, "rope_theta",
                     p->theta, "tie_word_embeddings", tied, "hidden_act", "silu", "attention_bias",
                     0, "mlp_bias", 0);
}

/* params.json does not say how far a model can count: 8192 for Llama 3, 131072 since 3.1, and for
 * Llama 4 what its instruction models were published with. */
static int64_t max_positions(const Params *p)
{
    bool scaled = truth(p->json, "use_scaled_rope", false);
    if (p->llama4) return scaled ? 10485760 : 1048576;
    return scaled ? 131072 : 8192;
}

static Status llama3_config(const Params *p, json_t *config)
{
    json_object_set_new(config, "model_type", json_string("llama"));
    json_object_set_new(config, "architectures", json_pack("[s]", "LlamaForCausalLM"));
    json_object_set_new(config, "intermediate_size", json_integer(ffn_width(p, 1)));
    return OK;
}

static Status llama4_config(const Params *p, json_t *config)
{
    int64_t interval = 0, chunk = 0;
    double scale = 0.1, floor_scale = 8192;
    TRY(integer(p, p->json, "nope_layer_interval", 0, 4096, &interval));
    TRY(integer(p, p->json, "attention_chunk_size", 0, (int64_t)1 << 40, &chunk));
    TRY(number(p, p->json, "attn_scale", 0, 1e6, &scale));
    TRY(number(p, p->json, "floor_scale", 1, 1e12, &floor_scale));
    int64_t expert = ffn_width(p, p->auto_scale ? p->capacity + 1 : 1);
    json_object_set_new(config, "model_type", json_string("llama4_text"));
    json_object_set_new(config, "architectures", json_pack("[s]", "Llama4ForCausalLM"));
    json_object_set_new(config, "intermediate_size",
                        json_integer(p->n_experts ? expert : ffn_width(p, 1)));
    json_object_set_new(config, "intermediate_size_mlp", json_integer(ffn_width(p, 1)));
    json_object_set_new(config, "num_local_experts", json_integer(p->n_experts));
    json_object_set_new(config, "num_experts_per_tok", json_integer(p->n_experts ? p->top_k : 0));
    json_object_set_new(config, "interleave_moe_layer_step",
                        json_integer(p->n_experts ? p->moe_step : 0));
    if (!p->n_experts) json_object_set_new(config, "moe_layers", json_array());
    json_object_set_new(config, "no_rope_layer_interval", json_integer(interval));
    json_object_set_new(config, "attention_chunk_size", chunk ? json_integer(chunk) : json_null());
    json_object_set_new(config, "use_qk_norm", json_boolean(truth(p->json, "use_qk_norm", false)));
    json_object_set_new(config, "attn_temperature_tuning",
                        json_boolean(truth(p->json, "attn_temperature_tuning", interval > 0)));
    json_object_set_new(config, "attn_scale", json_real(scale));
    json_object_set_new(config, "floor_scale",
                        json_integer((json_int_t)floor_scale)); /* as transformers wants it */
    return OK;
}

/* ---- entry ------------------------------------------------------------------------------ */

Status params_shape(const json_t *params, const char *path, MetaShape *shape)
{
    Params p;
    TRY(read_params(params, path, &p));
    *shape = (MetaShape){.llama4 = p.llama4,
                         .embed = p.dim,
                         .n_layers = p.n_layers,
                         .n_heads = p.n_heads,
                         .n_kv_heads = p.n_kv_heads,
                         .head_dim = p.dim / p.n_heads,
                         .n_experts = p.n_experts};
    return OK;
}

Status params_config(const json_t *params, const char *path, int64_t vocab, bool tied,
                     json_t **config)
{
    Params p;
    TRY(read_params(params, path, &p));
    if (p.vocab > 0 && p.vocab != vocab)
        return fail(ERR_FORMAT, "%s: vocab_size is %lld, but the embedding has %lld rows", path,
                    (long long)p.vocab, (long long)vocab);
    json_t *made = common(&p, vocab, tied);
    json_object_set_new(made, "max_position_embeddings", json_integer(max_positions(&p)));
    special_ids(made, vocab);
    Status status = rope_scaling(&p, made);
    if (status == OK) status = p.llama4 ? llama4_config(&p, made) : llama3_config(&p, made);
    if (status == OK)
        *config = made;
    else
        json_decref(made);
    return status;
}
