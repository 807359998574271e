/* config.json: reading with checks, both generations of spellings, writing back. */
#include "model/model_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MODEL(name) extern const ModelDef model_def_##name;
#include "model/list.h"
#undef MODEL

static const ModelDef *const families[] = {
#define MODEL(name) &model_def_##name,
#include "model/list.h"
#undef MODEL
};

/* ---- fields ----------------------------------------------------------------------------- */

Status config_int(const json_t *json, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const json_t *v = json_object_get(json, key);
    if (!v || json_is_null(v)) return OK;
    if (!json_is_integer(v)) return fail(ERR_FORMAT, "config: %s is not an integer", key);
    int64_t value = json_integer_value(v);
    if (value < min || value > max)
        return fail(ERR_FORMAT, "config: %s is %lld, allowed are %lld to %lld", key,
                    (long long)value, (long long)min, (long long)max);
    *out = value;
    return OK;
}

Status config_number(const json_t *json, const char *key, double min, double max, double *out)
{
    const json_t *v = json_object_get(json, key);
    if (!v || json_is_null(v)) return OK;
    if (!json_is_number(v)) return fail(ERR_FORMAT, "config: %s is not a number", key);
    double value = json_number_value(v);
    if (!(value >= min && value <= max))
        return fail(ERR_FORMAT, "config: %s is %g, allowed are %g to %g", key, value, min, max);
    *out = value;
    return OK;
}

Status config_bool(const json_t *json, const char *key, bool *out)
{
    const json_t *v = json_object_get(json, key);
    if (!v || json_is_null(v)) return OK;
    if (json_is_integer(v))
        *out = json_integer_value(v) != 0;
    else if (json_is_boolean(v))
        *out = json_is_true(v);
    else
        return fail(ERR_FORMAT, "config: %s is not true or false", key);
    return OK;
}

Status config_int_list(const json_t *json, const char *key, int64_t n, int64_t max, int64_t *out,
                       bool *found)
{
    const json_t *v = json_object_get(json, key);
    *found = false;
    if (!v || json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0)) return OK;
    if (!json_is_array(v))
        return fail(ERR_FORMAT, "config: %s is not a list of %lld numbers", key, (long long)n);
    if ((int64_t)json_array_size(v) != n)
        return fail(ERR_REFUSED, "config: %s has %zu numbers for %lld layers", key,
                    json_array_size(v), (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(v, (size_t)i);
        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) > max)
            return fail(ERR_FORMAT, "config: %s[%lld] is not an integer from 0 to %lld", key,
                        (long long)i, (long long)max);
        out[i] = json_integer_value(item);
    }
    *found = true;
    return OK;
}

const char *config_key(const ModelConfig *c, const char *usual)
{
    for (const char *const(*pair)[2] = c->def->keys; pair && (*pair)[0]; pair++)
        if (!strcmp((*pair)[0], usual)) return (*pair)[1];
    return usual;
}

/* A field by its usual name; nothing where the family has none. */
typedef struct Field {
    const ModelConfig *config;
    const json_t *json;
} Field;

static Status field_int(const Field *f, const char *usual, int64_t min, int64_t max, int64_t *out)
{
    const char *key = config_key(f->config, usual);
    return key ? config_int(f->json, key, min, max, out) : OK;
}

static Status field_number(const Field *f, const char *usual, double min, double max, double *out)
{
    const char *key = config_key(f->config, usual);
    return key ? config_number(f->json, key, min, max, out) : OK;
}

/* ---- positions: rope_theta and rope_scaling, or rope_parameters with both --------------- */

static Status read_rope(ModelConfig *c, const json_t *json)
{
    TRY(config_number(json, "rope_theta", 1, 1e12, &c->rope_theta));
    const json_t *scaling = json_object_get(json, "rope_parameters");
    if (!json_is_object(scaling)) scaling = json_object_get(json, "rope_scaling");
    if (!scaling || json_is_null(scaling)) return OK;
    if (!json_is_object(scaling)) return fail(ERR_FORMAT, "config: rope_scaling is not an object");
    TRY(config_number(scaling, "rope_theta", 1, 1e12, &c->rope_theta));
    const char *kind = json_string_value(json_object_get(scaling, "rope_type"));
    if (!kind) kind = json_string_value(json_object_get(scaling, "type"));
    if (!kind || !strcmp(kind, "default")) return OK;
    bool linear = !strcmp(kind, "linear");
    if (!linear && strcmp(kind, "llama3"))
        return fail(ERR_UNSUPPORTED,
                    "config: rope scaling of type %s; known are default, linear and llama3", kind);
    double factor = NAN, low = NAN, high = NAN, original = (double)c->max_positions;
    TRY(config_number(scaling, "factor", 1, 1e6, &factor));
    TRY(config_number(scaling, "low_freq_factor", 1e-6, 1e6, &low));
    TRY(config_number(scaling, "high_freq_factor", 1e-6, 1e6, &high));
    TRY(config_number(scaling, "original_max_position_embeddings", 1, 1e12, &original));
    if (linear) { /* every wavelength is longer than zero: all frequencies are divided */
        low = high = 1;
        original = 0;
    }
    const char *missing = isnan(factor) ? "factor"
                          : isnan(low)  ? "low_freq_factor"
                          : isnan(high) ? "high_freq_factor"
                                        : NULL;
    if (missing)
        return fail(ERR_FORMAT, "config: rope scaling of type %s without %s", kind, missing);
    c->rope_scaling = (RopeScaling){(float)factor, (float)low, (float)high, (float)original};
    return OK;
}

static Status read_special_ids(ModelConfig *c, const json_t *json)
{
    c->bos = c->pad = -1;
    TRY(config_int(json, "bos_token_id", -1, INT32_MAX, &c->bos));
    TRY(config_int(json, "pad_token_id", -1, INT32_MAX, &c->pad));
    const json_t *eos = json_object_get(json, "eos_token_id");
    if (!json_is_array(eos)) {
        int64_t one = -1;
        TRY(config_int(json, "eos_token_id", -1, INT32_MAX, &one));
        if (one >= 0) c->eos[c->n_eos++] = one;
        return OK;
    }
    if (json_array_size(eos) > COUNT_OF(c->eos))
        return fail(ERR_FORMAT, "config: eos_token_id lists more than %d ids", COUNT_OF(c->eos));
    for (size_t i = 0; i < json_array_size(eos); i++) {
        const json_t *id = json_array_get(eos, i);
        if (!json_is_integer(id))
            return fail(ERR_FORMAT, "config: eos_token_id[%zu] is not an integer", i);
        c->eos[c->n_eos++] = json_integer_value(id);
    }
    return OK;
}

enum { MOST_HEAD_DIM = 65536 };

/* What all families share. */
static Status read_common(ModelConfig *c, const json_t *json)
{
    const int64_t big = 1 << 24;
    const Field f = {c, json};
    c->max_positions = c->def->max_positions;
    c->rope_theta = c->def->rope_theta;
    c->norm_eps = c->def->norm_eps;
    c->init_deviation = 0.02;
    c->norms_per_layer = 2;
    c->gated = true;
    c->embedding_multiplier = c->output_multiplier = 1;
    TRY(field_int(&f, "vocab_size", 1, big, &c->vocab));
    TRY(field_int(&f, "hidden_size", 1, big, &c->embed));
    TRY(field_int(&f, "num_hidden_layers", 1, 4096, &c->n_layers));
    TRY(field_int(&f, "num_attention_heads", 1, 65536, &c->n_heads));
    c->n_kv_heads = c->n_heads;
    TRY(field_int(&f, "num_key_value_heads", 1, 65536, &c->n_kv_heads));
    c->ffn_dense = c->def->ffn_ratio * c->embed;
    TRY(field_int(&f, "intermediate_size", 1, big, &c->ffn_dense));
    const char *missing = !c->vocab       ? "vocab_size"
                          : !c->embed     ? "hidden_size"
                          : !c->n_layers  ? "num_hidden_layers"
                          : !c->n_heads   ? "num_attention_heads"
                          : !c->ffn_dense ? "intermediate_size"
                                          : NULL;
    if (missing) return fail(ERR_FORMAT, "config: %s is missing", config_key(c, missing));
    c->head_dim = c->embed / c->n_heads;
    TRY(field_int(&f, "head_dim", 1, MOST_HEAD_DIM, &c->head_dim));
    c->attention_scale = 1 / sqrt((double)c->head_dim);
    TRY(field_int(&f, "max_position_embeddings", 1, (int64_t)1 << 40, &c->max_positions));
    TRY(field_number(&f, "rms_norm_eps", 0, 1, &c->norm_eps));
    TRY(field_number(&f, "initializer_range", 0, 10, &c->init_deviation));
    TRY(config_bool(json, "tie_word_embeddings", &c->tied));
    TRY(config_bool(json, "drover_expert_bias", &c->expert_bias));
    if (config_key(c, "rope_theta")) TRY(read_rope(c, json));
    return read_special_ids(c, json);
}

static Status check(const ModelConfig *c, const json_t *json)
{
    if (c->n_heads % c->n_kv_heads)
        return fail(
            ERR_REFUSED,
            "config: num_attention_heads %lld is not a multiple of num_key_value_heads %lld",
            (long long)c->n_heads, (long long)c->n_kv_heads);
    for (const char *const *key = (const char *const[]){"attention_bias", "mlp_bias", NULL}; *key;
         key++) {
        bool bias = false;
        TRY(config_bool(json, *key, &bias));
        if (bias)
            return fail(ERR_UNSUPPORTED,
                        "config: %s is true; biases are not part of these families", *key);
    }
    const char *key = config_key(c, "hidden_act");
    const char *act = key ? json_string_value(json_object_get(json, key)) : NULL;
    for (const char *const *known = c->def->activations; act && *known; known++)
        if (!strcmp(act, *known)) return OK;
    return act ? fail(ERR_UNSUPPORTED, "config: %s is %s, only %s is known here", key, act,
                      c->def->activations[0])
               : OK;
}

/* Rotary positions turn pairs; learned ones are rows of a matrix. */
static Status check_positions(const ModelConfig *c)
{
    enum { MOST_LEARNED = 1 << 24 };
    if (c->positions == POSITIONS_LEARNED && c->max_positions > MOST_LEARNED)
        return fail(ERR_REFUSED, "config: %s is %lld, at most %d can be learned",
                    config_key(c, "max_position_embeddings"), (long long)c->max_positions,
                    MOST_LEARNED);
    bool even = c->positions != POSITIONS_ROTARY || c->head_dim % 2 == 0;
    if (c->head_dim >= 1 && c->head_dim <= MOST_HEAD_DIM && even) return OK;
    return fail(ERR_REFUSED,
                "config: head_dim %lld is not %s1 to %d (hidden_size %lld / num_attention_heads "
                "%lld)",
                (long long)c->head_dim, even ? "" : "even, of ", MOST_HEAD_DIM, (long long)c->embed,
                (long long)c->n_heads);
}

static Status find_family(const char *type, const ModelDef **def)
{
    const char *names[COUNT_OF(families)];
    for (int i = 0; i < COUNT_OF(families); i++) {
        names[i] = families[i]->model_type;
        *def = families[i];
        if (!strcmp(type, names[i])) return OK;
    }
    const char *near = name_nearest(type, names, COUNT_OF(names));
    return fail(ERR_UNSUPPORTED, "config: model_type %s is not known%s%s", type,
                near ? "; did you mean " : "", near ? near : "");
}

/* A model that sees images too (model_type llama4) keeps the language model's configuration in
 * text_config. */
static Status find_text(const json_t *json, const json_t **text, const char **type)
{
    *type = json_string_value(json_object_get(json, "model_type"));
    *text = model_config_text_part(json);
    if (!*type) return fail(ERR_FORMAT, "config: model_type is missing");
    if (*text == json) return OK;
    if (strcmp(*type, "llama4") != 0)
        return fail(ERR_UNSUPPORTED,
                    "config: model_type %s with a text_config is not known; llama4 is", *type);
    const char *inner = json_string_value(json_object_get(*text, "model_type"));
    *type = inner ? inner : "llama4_text";
    return OK;
}

const json_t *model_config_text_part(const json_t *json)
{
    const json_t *inside = json_object_get(json, "text_config");
    return json_is_object(inside) ? inside : json;
}

Status model_config_from_json(const json_t *json, ModelConfig *config)
{
    const json_t *text;
    const char *type;
    if (!json_is_object(json)) return fail(ERR_FORMAT, "config: not a JSON object");
    TRY(find_text(json, &text, &type));
    *config = (ModelConfig){.weight_prefix = text == json ? "" : "language_model."};
    TRY(find_family(type, &config->def));
    config->json = json_deep_copy(json);
    Status status = read_common(config, text);
    if (status == OK) status = check(config, text);
    if (status == OK) {
        config->layer = xcalloc((size_t)config->n_layers, sizeof *config->layer);
        status = config->def->read(config, text);
        if (status == OK) status = check_positions(config);
    }
    if (status != OK) model_config_deinit(config);
    return status;
}

Status model_config_load(const char *path, ModelConfig *config)
{
    Arena arena = {0};
    Bytes text;
    Status status = file_read(&arena, path, 16 << 20, &text);
    if (status == OK) {
        json_error_t error;
        json_t *json = json_loadb((const char *)text.at, text.n, JSON_REJECT_DUPLICATES, &error);
        if (!json)
            status = fail(ERR_FORMAT, "%s:%d: %s", path, error.line, error.text);
        else if ((status = model_config_from_json(json, config)) != OK)
            fail_context("%s", path);
        json_decref(json);
    }
    arena_deinit(&arena);
    return status;
}

void model_config_deinit(ModelConfig *config)
{
    json_decref(config->json);
    free(config->layer);
    *config = (ModelConfig){0};
}

/* ---- writing ---------------------------------------------------------------------------- */

void config_complete(json_t *json, const char *key, json_t *value)
{
    const json_t *there = json_object_get(json, key);
    if (there && !json_is_null(there))
        json_decref(value);
    else
        json_object_set_new(json, key, value);
}

/* Both spellings are in use; the one that is there stays. */
static void write_dtype(json_t *json, DType stored)
{
    const char *name = stored == DTYPE_F32    ? "float32"
                       : stored == DTYPE_BF16 ? "bfloat16"
                       : stored == DTYPE_F16  ? "float16"
                                              : NULL;
    bool old = json_object_get(json, "torch_dtype") != NULL,
         new = json_object_get(json, "dtype") != NULL;
    if (!name) return; /* no type of a whole model */
    if (old) json_object_set_new(json, "torch_dtype", json_string(name));
    if (new || !old) json_object_set_new(json, "dtype", json_string(name));
}

/* By its usual name; takes the value. */
static void complete_field(const ModelConfig *c, json_t *json, const char *usual, json_t *value)
{
    const char *key = config_key(c, usual);
    if (key)
        config_complete(json, key, value);
    else
        json_decref(value);
}

static void write_common(const ModelConfig *c, json_t *json)
{
    complete_field(c, json, "num_key_value_heads", json_integer(c->n_kv_heads));
    complete_field(c, json, "head_dim", json_integer(c->head_dim));
    complete_field(c, json, "hidden_act", json_string(c->def->activations[0]));
    complete_field(c, json, "max_position_embeddings", json_integer(c->max_positions));
    complete_field(c, json, "rms_norm_eps", json_real(c->norm_eps));
    complete_field(c, json, "initializer_range", json_real(c->init_deviation));
    complete_field(c, json, "tie_word_embeddings", json_boolean(c->tied));
    if (!json_is_object(json_object_get(json, "rope_parameters")))
        complete_field(c, json, "rope_theta", json_real(c->rope_theta));
}

char *model_config_text(const ModelConfig *config, DType stored)
{
    json_t *json = json_deep_copy(config->json);
    json_t *part = (json_t *)(uintptr_t)model_config_text_part(json);
    if (config->def->architecture)
        config_complete(json, "architectures", json_pack("[s]", config->def->architecture));
    write_common(config, part);
    if (config->def->write) config->def->write(config, part);
    write_dtype(json, stored);
    if (part != json) write_dtype(part, stored);
    json_object_set_new(part, "vocab_size", json_integer(config->vocab));
    if (config->expert_bias) json_object_set_new(part, "drover_expert_bias", json_true());
    if (config->bos >= 0) json_object_set_new(part, "bos_token_id", json_integer(config->bos));
    if (config->n_eos == 1) json_object_set_new(part, "eos_token_id", json_integer(config->eos[0]));
    if (config->pad >= 0) json_object_set_new(part, "pad_token_id", json_integer(config->pad));
    /* what is written with it is plain numbers, whatever was read */
    static const char *const undone[] = {"quantization_config", "compression_config"};
    for (int i = 0; i < COUNT_OF(undone); i++) {
        json_object_del(json, undone[i]);
        json_object_del(part, undone[i]);
    }
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17));
    json_decref(json);
    return text;
}

Status model_config_set_vocab(ModelConfig *config, int64_t vocab, int64_t bos, int64_t eos,
                              int64_t pad)
{
    if (vocab < 1) return fail(ERR_ARG, "a vocabulary of %lld tokens", (long long)vocab);
    config->vocab = vocab;
    config->bos = bos;
    config->pad = pad;
    config->n_eos = eos >= 0;
    config->eos[0] = eos;
    return OK;
}
