/* A run's directory as text. */
#include "cli/show.h"

#include <stdlib.h>
#include <string.h>

enum { TAIL_BYTES = 1 << 16 };

/* The last whole line of a file that has one with this beginning of a key, such as "\"loss\"". */
static Status last_line_with(Arena *arena, const char *path, const char *key, const char **line)
{
    uint64_t bytes;
    int fd;
    *line = NULL;
    TRY(file_size(path, &bytes));
    uint64_t n = bytes < TAIL_BYTES ? bytes : TAIL_BYTES;
    char *text = arena_alloc(arena, (size_t)n + 1);
    TRY(file_open_read(path, &fd));
    Status status = file_pread(fd, text, (size_t)n, bytes - n, path);
    Status closed = file_close(fd, path);
    if (status != OK) return status;
    TRY(closed);
    for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        if (strstr(at, key)) *line = at;
    }
    return OK;
}

static void add_metrics(const char *line, Str *out)
{
    json_t *json = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    const char *key;
    json_t *value;
    json_object_foreach(json, key, value)
    {
        if (json_is_integer(value))
            str_printf(out, "  %-15s %lld\n", key, (long long)json_integer_value(value));
        else if (json_is_real(value))
            str_printf(out, "  %-15s %.6g\n", key, json_real_value(value));
    }
    json_decref(json);
}

static Status add_last_step(Arena *arena, const char *dir, Str *out)
{
    const char *path = path_join(arena, dir, "metrics.jsonl"), *line, *validation;
    if (!file_exists(path)) {
        str_add(out, "no step was done yet\n");
        return OK;
    }
    TRY(last_line_with(arena, path, "\"loss\"", &line));
    TRY(last_line_with(arena, path, "\"val_loss\"", &validation));
    if (line) {
        str_add(out, "last step:\n");
        add_metrics(line, out);
    }
    if (validation && (!line || strcmp(validation, line) != 0)) {
        str_add(out, "last validation:\n");
        add_metrics(validation, out);
    }
    return OK;
}

static Status add_checkpoints(Arena *arena, const char *dir, Str *out)
{
    const char *ckpt = path_join(arena, dir, "ckpt");
    DirEntries entries;
    int n = 0;
    if (dir_exists(ckpt)) {
        TRY(dir_list(arena, ckpt, &entries));
        for (int i = 0; i < entries.n; i++) {
            if (strncmp(entries.name[i], "step-", 5)) continue;
            str_printf(out, "%s%s", n++ ? ", " : "checkpoints: ", entries.name[i]);
        }
    }
    str_add(out, n ? "\n" : "no checkpoint yet\n");
    return OK;
}

Status show_run(const char *path, Str *out)
{
    Arena arena = {0};
    Bytes text = {0};
    const char *file = path_join(&arena, path, "run.yaml");
    Status status = OK;
    str_printf(out, "run: %s\n", path);
    if (status == OK) status = add_last_step(&arena, path, out);
    if (status == OK) status = add_checkpoints(&arena, path, out);
    if (status == OK && file_exists(file)) status = file_read(&arena, file, 1 << 20, &text);
    if (status == OK && text.n) str_printf(out, "run.yaml:\n%s", (const char *)text.at);
    arena_deinit(&arena);
    return status;
}
