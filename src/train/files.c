/* The files beside the tensors that make a checkpoint a Hugging Face model directory. What came
 * from such a directory goes on as it was, to the byte; only config.json says what has changed. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

static bool has(Arena *arena, const char *dir, const char *name)
{
    return file_exists(path_join(arena, dir, name));
}

static Status add_copy(Arena *arena, const char *dir, const char *name, CkptFile *files, int *n)
{
    Bytes text;
    TRY(file_read(arena, path_join(arena, dir, name), MAX_TEXT_BYTES, &text));
    files[(*n)++] = (CkptFile){name, text};
    return OK;
}

/* Those of a tiktoken file or a trained one are made once: a published vocabulary is 20 MB of JSON.
 */
static void add_tokenizer(Trainer *t, CkptFile *files, int *n)
{
    if (t->n_tokenizer_files == 0)
        tokenizer_files(t->tokenizer, &t->arena, t->tokenizer_file, &t->n_tokenizer_files);
    for (int i = 0; i < t->n_tokenizer_files; i++)
        files[(*n)++] = (CkptFile){t->tokenizer_file[i].name, t->tokenizer_file[i].text};
}

/* ---- configurations --------------------------------------------------------------------- */

static void add_text(Arena *arena, const char *name, char *text, CkptFile *files, int *n)
{
    files[(*n)++] = (CkptFile){name, {arena_copy(arena, text, strlen(text)), strlen(text)}};
    free(text);
}

Status trainer_model_files(Trainer *t, Arena *arena, CkptFile *files, int *n)
{
    /* the masters are what is saved, whatever the products' type */
    add_text(arena, "config.json", model_config_text(&t->model, DTYPE_F32), files, n);
    const char *from = t->config->model.from;
    if (*from && has(arena, from, "generation_config.json"))
        TRY(add_copy(arena, from, "generation_config.json", files, n));
    else
        add_text(arena, "generation_config.json", model_generation_text(&t->model), files, n);
    if (t->tokenizer) add_tokenizer(t, files, n);
    if (t->chat_template)
        files[(*n)++] = (CkptFile){"chat_template.jinja",
                                   {(const uint8_t *)t->chat_template, strlen(t->chat_template)}};
    return OK;
}
