/* Opening what the user calls a model. */
#include "infer/infer.h"

#include <stdlib.h>
#include <string.h>

/* ---- which directory -------------------------------------------------------------------- */

static bool has(Arena *arena, const char *dir, const char *name)
{
    return file_exists(path_join(arena, dir, name));
}

static bool looks_like_run(Arena *arena, const char *ckpt_dir)
{
    DirEntries entries;
    if (has(arena, ckpt_dir, "latest")) return true;
    if (!dir_exists(ckpt_dir) || dir_list(arena, ckpt_dir, &entries) != OK) return false;
    for (int i = 0; i < entries.n; i++)
        if (!strncmp(entries.name[i], "step-", 5)) return true;
    return false;
}

static Status find_in_run(const char *ckpt_dir, const char *path, Ckpt **ckpt)
{
    TRY(ckpt_find(ckpt_dir, ckpt));
    return *ckpt ? OK : fail(ERR_IO, "%s has no checkpoint yet", path);
}

static Status open_run(const char *ckpt_dir, const char *path, Weights **weights)
{
    Ckpt *ckpt;
    TRY(find_in_run(ckpt_dir, path, &ckpt));
    return weights_open_ckpt(ckpt, weights);
}

/* A model directory has a config.json, or in Meta's layout a params.json; a run keeps its
 * checkpoints in ckpt/. */
static Status open_files(Arena *arena, const char *path, Weights **weights)
{
    const char *inside = path_join(arena, path, "ckpt");
    if (file_exists(path) && !dir_exists(path))
        return fail(ERR_FORMAT,
                    "%s is a file; a model is a directory with config.json and safetensors files",
                    path);
    if (!dir_exists(path)) return fail(ERR_IO, "there is no model at %s", path);
    if (has(arena, path, "config.json") || has(arena, path, "params.json"))
        return weights_open(path, CKPT_VERIFY_HASHES, weights);
    if (dir_exists(inside)) return open_run(inside, path, weights);
    if (looks_like_run(arena, path)) return open_run(path, path, weights);
    return fail(ERR_FORMAT,
                "%s is no model: it has no config.json or params.json, and no checkpoints in ckpt/",
                path);
}

/* ---- beside the weights ----------------------------------------------------------------- */

static Status open_tokenizer(InferModel *model)
{
    if (!tokenizer_exists(model->path)) return OK;
    TRY(tokenizer_load(model->path, &model->tokenizer));
    if (tokenizer_vocab_size(model->tokenizer) > model->config.vocab)
        log_warn("%s: the tokenizer has %d ids, but the model only %lld", model->path,
                 tokenizer_vocab_size(model->tokenizer), (long long)model->config.vocab);
    return OK;
}

static void add_stop(InferModel *model, int64_t id)
{
    if (id < 0 || id >= model->config.vocab || model->n_stop == INFER_MAX_STOPS) return;
    for (int i = 0; i < model->n_stop; i++)
        if (model->stop[i] == id) return;
    model->stop[model->n_stop++] = (int32_t)id;
}

static void collect_stops(InferModel *model, const json_t *generation)
{
    const json_t *eos = json_object_get(generation, "eos_token_id");
    if (json_is_integer(eos)) add_stop(model, json_integer_value(eos));
    for (size_t i = 0; i < json_array_size(eos); i++) {
        const json_t *id = json_array_get(eos, i);
        if (json_is_integer(id)) add_stop(model, json_integer_value(id));
    }
    for (int i = 0; i < model->config.n_eos; i++) add_stop(model, model->config.eos[i]);
    int n = 0;
    const int32_t *ids = model->tokenizer ? tokenizer_stops(model->tokenizer, &n) : NULL;
    for (int i = 0; i < n; i++) add_stop(model, ids[i]);
}

static void read_number(const json_t *json, const char *key, double *out)
{
    const json_t *value = json_object_get(json, key);
    if (json_is_number(value)) *out = json_number_value(value);
}

/* generation_config.json: advice on sampling, and more ids that end a text. Its absence is fine. */
static Status read_generation(Arena *arena, InferModel *model)
{
    model->sampler = (SamplerOptions){.temperature = 0.6, .top_p = 0.9};
    const char *path = path_join(arena, model->path, "generation_config.json");
    if (!file_exists(path)) {
        collect_stops(model, NULL);
        return OK;
    }
    Bytes text;
    json_error_t error;
    TRY(file_read(arena, path, 1 << 20, &text));
    json_t *json = json_loadb((const char *)text.at, text.n, JSON_REJECT_DUPLICATES, &error);
    if (!json) return fail(ERR_FORMAT, "%s:%d: %s", path, error.line, error.text);
    double top_k = 0;
    read_number(json, "temperature", &model->sampler.temperature);
    read_number(json, "top_p", &model->sampler.top_p);
    read_number(json, "min_p", &model->sampler.min_p);
    read_number(json, "top_k", &top_k);
    model->sampler.top_k = top_k >= 1 && top_k < 1e9 ? (int64_t)top_k : 0;
    if (json_is_false(json_object_get(json, "do_sample"))) model->sampler.temperature = 0;
    collect_stops(model, json);
    json_decref(json);
    Status status = sampler_check(&model->sampler);
    if (status != OK) fail_context("%s", path);
    return status == ERR_ARG ? ERR_FORMAT : status;
}

/* ---- entry ------------------------------------------------------------------------------ */

static Status open_all(Arena *arena, const char *path, InferModel *model)
{
    json_t *config;
    TRY(open_files(arena, path, &model->weights));
    model->ckpt = weights_ckpt(model->weights);
    model->path = xstrdup(weights_path(model->weights));
    TRY(weights_config(model->weights, &config));
    Status status = model_config_from_json(config, &model->config);
    json_decref(config);
    TRY_AS(status, "%s", model->path);
    TRY(open_tokenizer(model));
    return read_generation(arena, model);
}

Status infer_model_open(const char *path, InferModel *model)
{
    Arena arena = {0};
    InferModel opened = {0};
    Status status = open_all(&arena, path, &opened);
    arena_deinit(&arena);
    if (status == OK)
        *model = opened;
    else
        infer_model_deinit(&opened);
    return status;
}

Status infer_model_preset(const char *preset, uint64_t seed, InferModel *model)
{
    InferModel made = {.seed = seed, .sampler = {.temperature = 0.6, .top_p = 0.9}};
    TRY(model_config_preset(preset, &made.config));
    made.path = xstrdup(preset);
    collect_stops(&made, NULL);
    *model = made;
    return OK;
}

void infer_model_deinit(InferModel *model)
{
    if (model->config.json) model_config_deinit(&model->config);
    tokenizer_destroy(model->tokenizer);
    weights_close(model->weights);
    free(model->path);
    *model = (InferModel){0};
}

DType infer_model_dtype(const InferModel *model)
{
    if (!model->weights) return DTYPE_F32;
    uint64_t small = 0;
    for (int i = 0; i < weights_count(model->weights); i++) {
        const Weight *w = weights_at(model->weights, i);
        if (w->dtype != DTYPE_COUNT && dtype_bytes(w->dtype) <= 2) small += w->bytes;
    }
    return 2 * small > weights_bytes(model->weights) ? DTYPE_BF16 : DTYPE_F32;
}
