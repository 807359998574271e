/* The files beside the tensors that make a checkpoint a Hugging Face model directory. What came from such a
 * directory goes on as it was, to the byte; only config.json says what has changed. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

/* ---- tokenizer ------------------------------------------------------------------------------------------ */

static bool has(Arena *arena, const char *dir, const char *name) { return file_exists(path_join(arena, dir, name)); }

/* The directory that holds tokenizer.json in the form that transformers reads. What came as a tiktoken file is written
 * into the run's own directory first; what lies there may be another run's, so once by each process. */
static Status tokenizer_dir(Trainer *t, const char **dir)
{
    const RunConfig *c = t->config;
    const char *path = *c->tokenizer.path ? c->tokenizer.path : c->model.from;
    if (*path && has(&t->arena, path, "tokenizer.json")) {
        *dir = path;
        return OK;
    }
    *dir = path_join(&t->arena, t->dir, "tokenizer");
    if (t->tokenizer_kept) return OK;
    TRY(dir_create(*dir));
    TRY(tokenizer_save(t->tokenizer, *dir));
    t->tokenizer_kept = true;
    return OK;
}

static Status add_copy(Arena *arena, const char *dir, const char *name, CkptFile *files, int *n)
{
    Bytes text;
    if (!has(arena, dir, name)) return OK;
    TRY(file_read(arena, path_join(arena, dir, name), MAX_TEXT_BYTES, &text));
    files[(*n)++] = (CkptFile){name, text};
    return OK;
}

static Status add_tokenizer(Trainer *t, Arena *arena, CkptFile *files, int *n)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json", "chat_template.jinja"};
    if (!t->tokenizer_dir) TRY(tokenizer_dir(t, &t->tokenizer_dir));
    for (int i = 0; i < COUNT_OF(names); i++) TRY(add_copy(arena, t->tokenizer_dir, names[i], files, n));
    return OK;
}

/* ---- configurations --------------------------------------------------------------------------------------- */

static void add_text(Arena *arena, const char *name, char *text, CkptFile *files, int *n)
{
    files[(*n)++] = (CkptFile){name, {arena_copy(arena, text, strlen(text)), strlen(text)}};
    free(text);
}

static char *generation_config(const Trainer *t)
{
    json_t *json = json_object(), *eos = json_array();
    if (t->model.bos >= 0) json_object_set_new(json, "bos_token_id", json_integer(t->model.bos));
    for (int i = 0; i < t->model.n_eos; i++) json_array_append_new(eos, json_integer(t->model.eos[i]));
    if (t->model.n_eos > 0) json_object_set(json, "eos_token_id", eos);
    json_decref(eos);
    if (t->model.pad >= 0) json_object_set_new(json, "pad_token_id", json_integer(t->model.pad));
    json_object_set_new(json, "do_sample", json_true());
    json_object_set_new(json, "temperature", json_real(0.6));
    json_object_set_new(json, "top_p", json_real(0.9));
    char *text = json_dumps(json, JSON_INDENT(2));
    json_decref(json);
    return text;
}

Status trainer_model_files(Trainer *t, Arena *arena, CkptFile *files, int *n)
{
    /* the masters are what is saved, whatever the products' type */
    add_text(arena, "config.json", model_config_text(&t->model, DTYPE_F32), files, n);
    const char *from = t->config->model.from;
    if (*from && has(arena, from, "generation_config.json"))
        TRY(add_copy(arena, from, "generation_config.json", files, n));
    else
        add_text(arena, "generation_config.json", generation_config(t), files, n);
    return t->tokenizer ? add_tokenizer(t, arena, files, n) : OK;
}
