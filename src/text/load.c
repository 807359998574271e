/* From a path to a tokenizer: which of the known files it is. */
#include "text/text_internal.h"

/* tokenizer_config.json beside the tokenizer's file names its bos, eos and pad; it may be absent. */
static Status read_config(Arena *arena, const char *dir, Tokenizer *t)
{
    const char *path = path_join(arena, dir, "tokenizer_config.json");
    if (!file_exists(path)) return OK;
    Bytes file;
    TRY(file_read(arena, path, MAX_FILE_BYTES, &file));
    return hf_parse_config(file, path, t);
}

/* Newer model directories keep the chat template in a file of its own; it goes before the one in
 * tokenizer_config.json, as in transformers. */
static Status read_template(Arena *arena, const char *dir, Tokenizer *t)
{
    const char *path = path_join(arena, dir, "chat_template.jinja");
    if (!file_exists(path)) return OK;
    Bytes file;
    TRY(file_read(arena, path, MAX_TEMPLATE_BYTES, &file));
    tokenizer_set_chat_template(t, (const char *)file.at);
    return OK;
}

static Status read_parts(Arena *arena, const char *path, const char *dir, Tokenizer **out)
{
    Bytes file;
    TRY(file_read(arena, path, MAX_FILE_BYTES, &file));
    size_t start = 0;
    while (start < file.n && strchr(" \n\r\t", file.at[start]) && file.at[start]) start++;
    if (start == file.n) return fail(ERR_FORMAT, "%s is empty", path);
    if (file.at[start] < 0x20)
        return fail(
            ERR_UNSUPPORTED,
            "%s looks like a SentencePiece model; tokenizer.json and tiktoken files are read",
            path);
    if (file.at[start] != '{') return tiktoken_parse(file, path, false, out);
    TRY(hf_parse(file, path, out));
    TRY(read_config(arena, dir, *out));
    build_finish(*out);
    return OK;
}

static Status read_tokenizer(Arena *arena, const char *path, const char *dir, Tokenizer **out)
{
    Tokenizer *t = NULL;
    Status status = read_parts(arena, path, dir, &t);
    if (status == OK) status = read_template(arena, dir, t);
    if (status == OK) *out = t;
    else tokenizer_destroy(t);
    return status;
}

/* The file of a directory that is its tokenizer, or NULL. */
static const char *file_of(Arena *arena, const char *dir)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model",
                                        "original/tokenizer.model"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        const char *file = path_join(arena, dir, names[i]);
        if (file_exists(file)) return file;
    }
    return NULL;
}

bool tokenizer_exists(const char *path)
{
    Arena arena = {0};
    bool exists = dir_exists(path) ? file_of(&arena, path) != NULL : file_exists(path);
    arena_deinit(&arena);
    return exists;
}

static Status load(Arena *arena, const char *path, Tokenizer **out)
{
    if (!dir_exists(path)) {
        size_t stem = (size_t)(path_base(path) - path);
        const char *dir = stem ? arena_strndup(arena, path, stem) : ".";
        return read_tokenizer(arena, path, dir, out);
    }
    const char *file = file_of(arena, path);
    if (file) return read_tokenizer(arena, file, path, out);
    return fail(ERR_IO, "%s holds neither tokenizer.json nor tokenizer.model", path);
}

Status tokenizer_load(const char *path, Tokenizer **out)
{
    Arena arena = {0};
    Tokenizer *t = NULL;
    Status status = load(&arena, path, &t);
    arena_deinit(&arena);
    if (status == OK) *out = t;
    return status;
}
