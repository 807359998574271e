/* Which files a path names: one file, everything below a directory, or what a glob matches.
 *
 * ** stands for any number of directories. Hidden names are matched only by a pattern that begins
 * with a dot; links to directories are not followed below a **, so that a loop ends. */
#include "data/data_internal.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_PARTS = 64, MAX_WALK_DEPTH = 128 };

typedef struct Walk {
    Arena *arena;
    VEC(SourceFile) files;
    char *part[MAX_PARTS];
    int n_parts;
    int64_t n_unreadable;
} Walk;

static bool ends_with(const char *text, size_t n, const char *end)
{
    size_t m = strlen(end);
    return n >= m && !strncmp(text + n - m, end, m);
}

/* Regular files only: a pipe or device never ends, or never begins. */
static void add_file(Walk *w, const char *path, const struct stat *st)
{
    if (!S_ISREG(st->st_mode)) return;
    size_t n = strlen(path);
    SourceFile file = {.path = arena_strdup(w->arena, path), .bytes = (uint64_t)st->st_size};
    file.mtime_ns = (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
    if (ends_with(path, n, ".gz")) {
        file.packing = PACKING_GZIP;
        n -= 3;
    } else if (ends_with(path, n, ".zst")) {
        file.packing = PACKING_ZSTD;
        n -= 4;
    }
    file.json = ends_with(path, n, ".jsonl");
    VEC_PUSH(&w->files, file);
}

static bool has_magic(const char *part) { return strpbrk(part, "*?[") != NULL; }

static Status walk(Walk *w, const char *dir, int part, int depth);

/* `path` matched up to part `next`: a file at the end of the pattern, a directory to go on in. */
static Status enter(Walk *w, const char *path, int next, int depth)
{
    struct stat st;
    if (stat(path, &st) < 0) return OK; /* a dangling link, or gone since it was listed */
    if (S_ISDIR(st.st_mode)) return walk(w, path, next, depth + 1);
    if (next == w->n_parts) add_file(w, path, &st);
    return OK;
}

static bool is_real_dir(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The entries of dir: those that match part `at`; below a ** or past the pattern's end, all. */
static Status walk_entries(Walk *w, const char *dir, int at, int depth)
{
    Arena arena = {0};
    DirEntries entries = {0};
    Status status = dir_list(&arena, dir, &entries);
    if (status != OK && depth > 0) {
        w->n_unreadable++; /* one closed directory does not spoil the rest */
        status = OK;
    }
    bool everything = at == w->n_parts, any = !everything && !strcmp(w->part[at], "**");
    for (int i = 0; i < entries.n && status == OK; i++) {
        const char *name = entries.name[i];
        if (name[0] == '.' && (everything || any || w->part[at][0] != '.')) continue;
        char *path = path_join(&arena, dir, name);
        if (everything || any) {
            bool sub = is_real_dir(path);
            struct stat st;
            if (sub)
                status = walk(w, path, at, depth + 1);
            else if (everything && stat(path, &st) == 0)
                add_file(w, path, &st);
        } else if (fnmatch(w->part[at], name, FNM_PERIOD) == 0)
            status = enter(w, path, at + 1, depth);
    }
    arena_deinit(&arena);
    return status;
}

static Status walk(Walk *w, const char *dir, int part, int depth)
{
    if (depth > MAX_WALK_DEPTH)
        return fail(ERR_IO, "%s is more than %d directories deep", dir, MAX_WALK_DEPTH);
    if (part == w->n_parts) return walk_entries(w, dir, part, depth);
    if (!strcmp(w->part[part], "**")) {
        TRY(walk(w, dir, part + 1, depth + 1)); /* no directory at all */
        if (part + 1 == w->n_parts) return OK;  /* the line above took everything below */
        return walk_entries(w, dir, part, depth);
    }
    if (has_magic(w->part[part])) return walk_entries(w, dir, part, depth);
    Arena arena = {0};
    Status status = enter(w, path_join(&arena, dir, w->part[part]), part + 1, depth);
    arena_deinit(&arena);
    return status;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const SourceFile *)a)->path, ((const SourceFile *)b)->path);
}

static Status split_pattern(Walk *w, const char *pattern)
{
    for (const char *at = pattern; *at;) {
        size_t n = strcspn(at, "/");
        bool again = n == 2 && w->n_parts && !strncmp(at, "**", 2) &&
                     !strcmp(w->part[w->n_parts - 1], "**");
        if (n && !again && !(n == 1 && *at == '.')) {
            if (w->n_parts == MAX_PARTS)
                return fail(ERR_ARG, "data: %s has more than %d parts", pattern, MAX_PARTS);
            w->part[w->n_parts++] = arena_strndup(w->arena, at, n);
        }
        at += n + (at[n] == '/');
    }
    return OK;
}

static Status take_files(Walk *w, const char *pattern, SourceFiles *out)
{
    if (!w->files.n)
        return fail(ERR_IO, "data: no file matches %s%s", pattern,
                    w->n_unreadable ? "; some directories could not be read" : "");
    qsort(w->files.at, w->files.n, sizeof *w->files.at, by_path);
    SourceFiles files = {.at = ARENA_ARRAY(w->arena, SourceFile, w->files.n)};
    for (size_t i = 0; i < w->files.n; i++) {
        if (i && !by_path(&w->files.at[i], &w->files.at[i - 1])) continue; /* two ways to match */
        files.at[files.n++] = w->files.at[i];
        files.total_bytes += w->files.at[i].bytes;
    }
    if (!files.total_bytes)
        return fail(ERR_IO, "data: what %s names is empty (files: %zu)", pattern, files.n);
    if (w->n_unreadable)
        log_warn("data: below %s, %lld directories could not be read", pattern,
                 (long long)w->n_unreadable);
    *out = files;
    return OK;
}

Status data_files_find(Arena *arena, const char *pattern, SourceFiles *files)
{
    Walk w = {.arena = arena};
    if (!*pattern) return fail(ERR_ARG, "data: a source's path is empty");
    struct stat st;
    Status status = OK;
    if (stat(pattern, &st) == 0 && !S_ISDIR(st.st_mode))
        add_file(&w, pattern, &st); /* [] in a name is no glob */
    else {
        status = split_pattern(&w, stat(pattern, &st) == 0 ? "" : pattern);
        const char *root = stat(pattern, &st) == 0 ? pattern : pattern[0] == '/' ? "/" : ".";
        if (status == OK) status = walk(&w, root, 0, 0);
    }
    if (status == OK) status = take_files(&w, pattern, files);
    VEC_FREE(&w.files);
    return status;
}
