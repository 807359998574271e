/* The files beside the tensors that make a checkpoint a Hugging Face model directory. What came from such a
 * directory goes on as it was, to the byte; only config.json says what has changed. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

static bool has(Arena *arena, const char *dir, const char *name) { return file_exists(path_join(arena, dir, name)); }

static Status add_copy(Arena *arena, const char *dir, const char *name, CkptFile *files, int *n)
{
    Bytes text;
    TRY(file_read(arena, path_join(arena, dir, name), MAX_TEXT_BYTES, &text));
    files[(*n)++] = (CkptFile){name, text};
    return OK;
}

/* Those of a tiktoken file or a trained one are made once: a published vocabulary is 20 MB of JSON. */
static void add_tokenizer(Trainer *t, CkptFile *files, int *n)
{
    if (t->n_tokenizer_files == 0)
        tokenizer_files(t->tokenizer, &t->arena, t->tokenizer_file, &t->n_tokenizer_files);
    for (int i = 0; i < t->n_tokenizer_files; i++)
        files[(*n)++] = (CkptFile){t->tokenizer_file[i].name, t->tokenizer_file[i].text};
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
    if (t->tokenizer) add_tokenizer(t, files, n);
    return OK;
}
