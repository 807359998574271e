/* From a path to a tokenizer, and back: which files hold one. */
#include "text/text_internal.h"

static const char *const model_names[] = {"tokenizer.json", "tokenizer.model",
                                          "original/tokenizer.model"};

/* ---- loading ---------------------------------------------------------------------------- */

/* Keeps a file as it came, to be written back. */
static Bytes keep(Tokenizer *t, const char *name, Bytes text)
{
    CHECK(t->n_files < TOKENIZER_MAX_FILES);
    text.at = arena_copy(&t->arena, text.at, text.n + 1); /* with the zero byte behind it */
    t->file[t->n_files++] = (TokenizerFile){name, text};
    return text;
}

static Status read_template(Bytes file, const char *path, Tokenizer *t)
{
    if (memchr(file.at, 0, file.n) || !utf8_valid(file.at, file.n))
        return fail(ERR_FORMAT, "%s is not text in UTF-8", path);
    tokenizer_set_chat_template(t, (const char *)file.at);
    return OK;
}

/* What lies beside the tokenizer's file; a later one has the last word. Each may be absent. */
static Status read_beside(Arena *arena, const char *dir, Tokenizer *t)
{
    static const struct {
        const char *name;
        Status (*read)(Bytes file, const char *path, Tokenizer *t);
    } beside[] = {{"added_tokens.json", NULL}, /* kept, but its tokens are in tokenizer.json, too */
                  {"special_tokens_map.json", hf_parse_special_map},
                  {"tokenizer_config.json", hf_parse_config},
                  {"chat_template.jinja", read_template}};
    for (int i = 0; i < COUNT_OF(beside); i++) {
        Bytes file;
        const char *path = path_join(arena, dir, beside[i].name);
        if (!file_exists(path)) continue;
        TRY(file_read(arena, path, MAX_FILE_BYTES, &file));
        file = keep(t, beside[i].name, file);
        if (beside[i].read) TRY(beside[i].read(file, path, t));
    }
    build_finish(t);
    return OK;
}

/* A SentencePiece model begins with a piece: the byte 10, the length of the message, 10 again and
 * the length of the text in it, which is at least 2 less. */
static bool begins_with_piece(Bytes file)
{
    return file.n > 4 && file.at[0] == 0x0a && file.at[2] == 0x0a && file.at[3] + 2 <= file.at[1];
}

/* A tiktoken file is lines of base64, JSON begins with a brace, both perhaps after white space. */
static Status parse(Bytes file, const char *path, Tokenizer **out)
{
    size_t start = 0;
    while (start < file.n && strchr(" \n\r\t", file.at[start]) && file.at[start]) start++;
    if (start == file.n) return fail(ERR_FORMAT, "%s is empty", path);
    bool is_base64 = file.at[start] >= '+' && file.at[start] <= 'z';
    if (begins_with_piece(file) || (!is_base64 && file.at[start] != '{')) {
        TRY(sp_parse(file, path, out));
        keep(*out, "tokenizer.model", file);
        return OK;
    }
    if (file.at[start] != '{') return tiktoken_parse(file, path, false, out);
    TRY(hf_parse(file, path, out));
    keep(*out, "tokenizer.json", file);
    return OK;
}

static Status read_tokenizer(Arena *arena, const char *path, const char *dir, Tokenizer **out)
{
    Bytes file;
    TRY(file_read(arena, path, MAX_FILE_BYTES, &file));
    TRY(parse(file, path, out));
    Status status = read_beside(arena, dir, *out);
    if (status != OK) {
        tokenizer_destroy(*out);
        *out = NULL;
    }
    return status;
}

/* The file in a directory that a tokenizer is read from; NULL: none. */
static const char *model_file(Arena *arena, const char *dir)
{
    for (int i = 0; i < COUNT_OF(model_names); i++) {
        const char *path = path_join(arena, dir, model_names[i]);
        if (file_exists(path)) return path;
    }
    return NULL;
}

bool tokenizer_exists(const char *path)
{
    Arena arena = {0};
    bool exists = dir_exists(path) ? model_file(&arena, path) != NULL : file_exists(path);
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
    const char *file = model_file(arena, path);
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

/* ---- saving ----------------------------------------------------------------------------- */

static bool has(const TokenizerFile *files, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(files[i].name, name) == 0) return true;
    return false;
}

static TokenizerFile made(const Tokenizer *t, Arena *arena, const char *name,
                          void (*write)(const Tokenizer *, Str *))
{
    Str text = {0};
    write(t, &text);
    TokenizerFile file = {name, {arena_copy(arena, text.at, text.n), text.n}};
    str_deinit(&text);
    return file;
}

void tokenizer_files(const Tokenizer *t, Arena *arena, TokenizerFile files[TOKENIZER_MAX_FILES],
                     int *n_files)
{
    int n = t->n_files;
    memcpy(files, t->file, (size_t)n * sizeof *files);
    if (!has(files, n, "tokenizer.json") && !has(files, n, "tokenizer.model"))
        files[n++] = made(t, arena, "tokenizer.json", hf_write_tokenizer);
    if (!has(files, n, "tokenizer_config.json"))
        files[n++] = made(t, arena, "tokenizer_config.json", hf_write_config);
    *n_files = n;
}

static Status save(const Tokenizer *t, Arena *arena, const char *dir)
{
    TokenizerFile files[TOKENIZER_MAX_FILES];
    int n;
    tokenizer_files(t, arena, files, &n);
    TRY(dir_create(dir));
    for (int i = 0; i < n; i++)
        TRY(file_write_atomic(path_join(arena, dir, files[i].name), files[i].text.at,
                              files[i].text.n));
    for (int i = 0; i < COUNT_OF(model_names); i++) {
        const char *path = path_join(arena, dir, model_names[i]);
        if (!has(files, n, model_names[i]) && file_exists(path)) TRY(file_unlink(path));
    }
    return OK;
}

Status tokenizer_save(const Tokenizer *t, const char *dir)
{
    Arena arena = {0};
    Status status = save(t, &arena, dir);
    arena_deinit(&arena);
    return status;
}
