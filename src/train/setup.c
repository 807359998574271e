/* From a run file to a tokenizer, a model's configuration and its data. */
#include <stdlib.h>
#include <string.h>

#include "chat/chat.h"
#include "train/trainer_internal.h"

/* ---- model ------------------------------------------------------------------------------ */

/* The directory's own configuration, which must be right as it is. */
static Status from_json(const char *dir, json_t **out)
{
    Weights *from;
    ModelConfig config;
    json_t *json;
    TRY(weights_open(dir, CKPT_VERIFY_SIZES, &from));
    Status status = weights_config(from, &json);
    weights_close(from);
    TRY(status);
    status = model_config_from_json(json, &config);
    if (status != OK) {
        json_decref(json);
        return status;
    }
    model_config_deinit(&config);
    *out = json;
    return OK;
}

static Status base_json(const RunModel *m, json_t **out)
{
    ModelConfig config;
    if (*m->from) {
        TRY_AS(from_json(m->from, out), "model.from");
        return OK;
    } else if (*m->preset) {
        TRY(model_config_preset(m->preset, &config));
    } else {
        *out = json_object();
        return OK;
    }
    *out = json_deep_copy(config.json);
    model_config_deinit(&config);
    return OK;
}

/* A field that is nearly that of a config.json is a slip of the pen; one that is nothing like it is
 * kept, as in a directory's config.json. */
static Status check_fields(json_t *base, json_t *fields)
{
    const char *name;
    json_t *ignored;
    json_object_foreach(fields, name, ignored)
    {
        const char *key = model_config_key(name);
        if (json_object_get(base, name) || (key && !strcmp(key, name))) continue;
        if (key) return fail(ERR_ARG, "model: there is no field '%s'; did you mean %s?", name, key);
        log_warn("model.%s is no field that drover reads; it is kept in config.json", name);
    }
    return OK;
}

/* The directory's or the preset's config.json was read well before: what is wrong now stands in the
 * run file. */
static Status read_fields(json_t *base, json_t *fields, ModelConfig *model)
{
    json_t *part = (json_t *)(uintptr_t)model_config_text_part(base);
    TRY(check_fields(part, fields));
    json_object_update(part, fields);
    Status status = model_config_from_json(base, model);
    if (status == ERR_FORMAT) return fail(ERR_ARG, "%s", status_message());
    return status == ERR_UNSUPPORTED ? fail(ERR_REFUSED, "%s", status_message()) : status;
}

/* The preset or directory, with the run file's own fields laid over. */
Status train_read_model(const RunConfig *config, ModelConfig *model)
{
    const RunModel *m = &config->model;
    json_error_t error;
    json_t *json, *fields = json_loads(m->fields_json, JSON_REJECT_DUPLICATES, &error);
    if (!fields) return fail(ERR_FORMAT, "model: %s", error.text);
    if (!*m->preset && !*m->from && json_object_size(fields) == 0) {
        json_decref(fields);
        return fail(ERR_ARG, "model: nothing is chosen; for instance `model: llama4-nano`");
    }
    Status status = base_json(m, &json);
    if (status == OK) {
        status = read_fields(json, fields, model);
        json_decref(json);
    }
    json_decref(fields);
    return status;
}

static bool needs_text(const RunConfig *c)
{
    for (int i = 0; i < c->n_sources; i++)
        if (c->sources[i].synthetic == RUN_SYNTHETIC_NONE) return true;
    return false;
}

Status train_expect_model(const RunConfig *c, ModelConfig *model)
{
    TRY(train_read_model(c, model));
    if (!needs_text(c) || *c->model.from) return OK;
    int64_t vocab = c->tokenizer.vocab_size;
    Tokenizer *tokenizer = NULL;
    Status status = *c->tokenizer.path ? tokenizer_load(c->tokenizer.path, &tokenizer) : OK;
    if (tokenizer) vocab = tokenizer_vocab_size(tokenizer);
    tokenizer_destroy(tokenizer);
    if (status == OK) status = model_config_set_vocab(model, vocab, -1, -1, -1);
    if (status != OK) model_config_deinit(model);
    return status;
}

bool train_expects_validation(const RunConfig *c)
{
    return needs_text(c) && c->dataset.holdout > 0;
}

/* ---- tokenizer -------------------------------------------------------------------------- */

static DataSource *sources(Trainer *t)
{
    const RunConfig *c = t->config;
    DataSource *list = ARENA_ARRAY(&t->arena, DataSource, c->n_sources);
    for (int i = 0; i < c->n_sources; i++) {
        const RunSource *s = &c->sources[i];
        list[i] = (DataSource){.path = s->synthetic == RUN_SYNTHETIC_NONE ? s->path : NULL,
                               .weight = s->weight,
                               .key = s->key};
    }
    return list;
}

static Status show_data_progress(void *context, const DataProgress *p)
{
    Trainer *t = context;
    if (trainer_stop_requested()) return fail(ERR_CANCELLED, "stopped while reading data");
    char done[32], total[32];
    progress_status(&t->progress, "tokenising: %s of %s, %lld documents, %lld tokens, %s",
                    format_bytes((double)p->done_bytes, done),
                    format_bytes((double)p->total_bytes, total), (long long)p->n_documents,
                    (long long)p->n_tokens, p->path);
    return OK;
}

static DataOptions data_options(Trainer *t)
{
    const RunDataset *d = &t->config->dataset;
    const char *cache = *d->cache ? d->cache : path_join(&t->arena, t->dir, "data");
    return (DataOptions){.sources = sources(t),
                         .n_sources = t->config->n_sources,
                         .tokenizer = t->tokenizer,
                         .vocab_size = (int32_t)t->model.vocab,
                         .cache_dir = cache,
                         .holdout = d->holdout,
                         .bad_share = d->bad_share,
                         .line_limit = (size_t)d->line_limit,
                         .bos = d->bos,
                         .eos = d->eos,
                         .shuffle = d->shuffle,
                         .threads = (int)t->config->train.threads,
                         .progress = show_data_progress,
                         .progress_context = t};
}

static Status show_training(void *context, const TrainProgress *p)
{
    Trainer *t = context;
    if (trainer_stop_requested())
        return fail(ERR_CANCELLED, "stopped while training the tokenizer");
    char read[32];
    progress_status(&t->progress, "training the tokenizer: %s read, %lld of %lld merges",
                    format_bytes((double)p->read_bytes, read), (long long)p->n_merges,
                    (long long)p->max_merges);
    return OK;
}

static Status train_tokenizer(Trainer *t, const char *dir)
{
    DataOptions options = data_options(t);
    DataTexts *texts;
    double start = clock_s();
    TRY(data_texts_open(&options, (uint64_t)t->config->tokenizer.train_limit, &texts));
    TokenizerTrainOptions how = {.vocab_size = (int32_t)t->config->tokenizer.vocab_size,
                                 .threads = (int)t->config->train.threads,
                                 .progress = show_training,
                                 .progress_context = t};
    Status status = tokenizer_train(&how, &(TextSource){data_texts_next, texts}, &t->tokenizer);
    data_texts_close(texts);
    progress_clear(&t->progress);
    TRY_AS(status, "training the tokenizer");
    char took[32];
    log_info("tokenizer: %d tokens learnt in %s", tokenizer_vocab_size(t->tokenizer),
             format_duration(clock_s() - start, took));
    TRY(dir_create(dir));
    return tokenizer_save(t->tokenizer, dir);
}

/* Weights mean the ids of the tokenizer they were trained with: beside model.from another one must
 * be asked for. */
static Status read_tokenizer(Trainer *t)
{
    const RunConfig *c = t->config;
    if (*c->tokenizer.path) return tokenizer_load(c->tokenizer.path, &t->tokenizer);
    if (*c->model.from && !c->tokenizer.train) {
        if (tokenizer_exists(c->model.from)) return tokenizer_load(c->model.from, &t->tokenizer);
        return fail(ERR_REFUSED,
                    "model.from: %s has neither tokenizer.json nor tokenizer.model; name the "
                    "tokenizer it was trained with "
                    "(tokenizer: PATH), or have a new one learnt from the data (tokenizer: {train: "
                    "{vocab_size: N}})",
                    c->model.from);
    }
    const char *dir = path_join(&t->arena, t->dir, "tokenizer");
    if (!tokenizer_exists(dir)) return train_tokenizer(t, dir);
    TRY(tokenizer_load(dir, &t->tokenizer));
    if (tokenizer_vocab_size(t->tokenizer) != c->tokenizer.vocab_size)
        return fail(ERR_REFUSED,
                    "%s has %d tokens, but tokenizer.train.vocab_size is %lld; remove the "
                    "directory, or give the run another name",
                    dir, tokenizer_vocab_size(t->tokenizer), (long long)c->tokenizer.vocab_size);
    return OK;
}

/* A template that the tokenizer has already says what the model was taught: it stays. */
static Status choose_chat_template(Trainer *t)
{
    if (t->config->tokenizer.chat_template == RUN_CHAT_TEMPLATE_NONE) return OK;
    if (tokenizer_chat_template(t->tokenizer))
        return fail(ERR_REFUSED, "tokenizer.chat_template: the tokenizer has a chat template "
                                 "already, which checkpoints keep; leave the setting out");
    t->chat_template = chat_template_own(t->tokenizer, &t->arena);
    return t->chat_template
               ? OK
               : fail(ERR_REFUSED,
                      "tokenizer.chat_template: the vocabulary has no tokens for turns, "
                      "such as <|header_start|>; leave the setting out, or train a tokenizer here");
}

Status trainer_setup_model(Trainer *t)
{
    TRY(train_read_model(t->config, &t->model));
    if (!needs_text(t->config)) return OK;
    TRY(read_tokenizer(t));
    TRY(choose_chat_template(t));
    int64_t vocab = tokenizer_vocab_size(t->tokenizer);
    if (*t->config->model.from) {
        if (vocab > t->model.vocab)
            return fail(ERR_REFUSED, "the tokenizer has %lld tokens, the model of %s only %lld",
                        (long long)vocab, t->config->model.from, (long long)t->model.vocab);
        return OK;
    }
    return model_config_set_vocab(&t->model, vocab, tokenizer_bos(t->tokenizer),
                                  tokenizer_eos(t->tokenizer), tokenizer_pad(t->tokenizer));
}

/* ---- data ------------------------------------------------------------------------------- */

Status trainer_setup_data(Trainer *t)
{
    const RunTrain *r = &t->config->train;
    if (t->config->n_sources == 0)
        return fail(ERR_ARG,
                    "data: no source; for instance `data: [{path: \"/usr/include/**/*.h\"}]`");
    DataOptions options = data_options(t);
    Status status = data_open(&options, &t->data);
    progress_clear(&t->progress);
    TRY(status);
    DataPlan plan = {.split = DATA_TRAIN,
                     .seed = (uint64_t)r->seed,
                     .batch = r->batch,
                     .micro_batch = t->micro_batch,
                     .seq = r->seq,
                     .part = mesh_data_rank(&t->layout.mesh),
                     .parts = mesh_data_ranks(&t->layout.mesh)};
    if (t->n_leaves) {
        plan.part = layout_leaf(&t->layout, t->n_micro, 0);
        plan.stride = layout_leaf(&t->layout, t->n_micro, 1) - plan.part;
    }
    TRY(data_loader_create(t->data, &plan, &t->loader));
    TRY(data_prefetch_bytes(&plan, PREFETCH_DEPTH, &t->prefetch_bytes));
    DataPlan held = {.split = DATA_HOLDOUT,
                     .batch = t->micro_batch * (t->n_leaves ? 1 : plan.parts),
                     .micro_batch = t->micro_batch,
                     .seq = r->seq};
    if (t->tokenizer) {
        TRY(data_loader_create(t->data, &held, &t->val_loader));
        t->val_steps = data_loader_steps(t->val_loader);
        /* batches of the run file, whatever a rank takes at once: every layout looks at the same
         * text */
        if (r->val_batches > 0)
            t->val_steps = min_i64(t->val_steps,
                                   (r->val_batches * r->batch + held.batch - 1) / held.batch);
    }
    DataStats s = data_stats(t->data, DATA_TRAIN), v = data_stats(t->data, DATA_HOLDOUT);
    if (t->tokenizer)
        log_info("data: %lld documents, %lld tokens; held out: %lld documents, %lld tokens",
                 (long long)s.n_documents, (long long)s.n_tokens, (long long)v.n_documents,
                 (long long)v.n_tokens);
    return OK;
}
