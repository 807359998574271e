/* A Hugging Face model directory, read: one file, or an index and its shards. Opening maps the
 * shards and reads their headers, nothing else. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

/* Generous: the index of a model with 100,000 tensors has some 10 MB. */
enum { MAX_INDEX_BYTES = 32 << 20 };

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

struct ModelDir {
    char *path;
    Safetensors **files;
    int n_files;
    const SafetensorsEntry **entries; /* of all files, sorted by name */
    int n;
    uint64_t bytes;
};

/* ---- the index -------------------------------------------------------------------------- */

static int by_tensor(const void *a, const void *b)
{
    return strcmp(((const IndexEntry *)a)->tensor, ((const IndexEntry *)b)->tensor);
}

/* Some writers put the size down as a float. */
static Status read_total(const json_t *root, const char *path, int64_t *total)
{
    const json_t *size = json_object_get(json_object_get(root, "metadata"), "total_size");
    *total = -1;
    if (!size) return OK;
    double value = json_number_value(size);
    if (!json_is_number(size) || value < 0 || value > 9e15)
        return fail(ERR_FORMAT, "%s: metadata.total_size is not a size in bytes", path);
    *total = json_is_integer(size) ? (int64_t)json_integer_value(size) : (int64_t)value;
    return OK;
}

static Status read_map(Arena *arena, const json_t *map, const char *path, ModelIndex *index)
{
    if (!json_is_object(map)) return fail(ERR_FORMAT, "%s has no weight_map", path);
    IndexEntry *entries = ARENA_ARRAY(arena, IndexEntry, json_object_size(map));
    int n = 0;
    const char *tensor;
    json_t *shard;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, shard)
    {
        const char *name = json_string_value(shard);
        if (!name) return fail(ERR_FORMAT, "%s: the file of tensor %s is not a text", path, tensor);
        if (!path_is_plain_name(name))
            return fail(ERR_FORMAT,
                        "%s: tensor %s is said to be in '%s', which is not a plain file name", path,
                        tensor, name);
        entries[n++] = (IndexEntry){arena_strdup(arena, tensor), arena_strdup(arena, name)};
    }
    if (n == 0) return fail(ERR_FORMAT, "%s lists no tensors", path);
    qsort(entries, (size_t)n, sizeof *entries, by_tensor);
    index->entries = entries;
    index->n = n;
    return OK;
}

Status model_index_parse(Arena *arena, const char *path, const char *text, size_t n,
                         ModelIndex *index)
{
    json_t *root;
    TRY(json_parse_object(text, n, path, &root));
    Status status = read_total(root, path, &index->total_bytes);
    if (status == OK) status = read_map(arena, json_object_get(root, "weight_map"), path, index);
    json_decref(root);
    return status;
}

/* ---- opening ---------------------------------------------------------------------------- */

static Status add_file(ModelDir *dir, const char *name)
{
    Arena arena = {0};
    Status status = safetensors_open(path_join(&arena, dir->path, name), &dir->files[dir->n_files]);
    if (status == OK) dir->n_files++;
    arena_deinit(&arena);
    return status;
}

static int by_entry_name(const void *a, const void *b)
{
    return strcmp((*(const SafetensorsEntry *const *)a)->name,
                  (*(const SafetensorsEntry *const *)b)->name);
}

static Status collect_entries(ModelDir *dir)
{
    size_t n = 0;
    for (int f = 0; f < dir->n_files; f++) n += (size_t)dir->files[f]->n;
    dir->entries = xmalloc(sizeof(SafetensorsEntry *) * n);
    for (int f = 0; f < dir->n_files; f++)
        for (int i = 0; i < dir->files[f]->n; i++) {
            dir->entries[dir->n++] = safetensors_at(dir->files[f], i);
            dir->bytes += safetensors_at(dir->files[f], i)->bytes;
        }
    qsort(dir->entries, n, sizeof *dir->entries, by_entry_name);
    for (int i = 1; i < dir->n; i++) {
        const SafetensorsEntry *a = dir->entries[i - 1], *b = dir->entries[i];
        if (!strcmp(a->name, b->name))
            return fail(ERR_FORMAT, "tensor %s is in %s and in %s", a->name,
                        safetensors_path(a->file), safetensors_path(b->file));
    }
    return OK;
}

/* Both lists are sorted by name: they must be the same, file by file. */
static Status check_index(const ModelDir *dir, const ModelIndex *index, const char *path)
{
    for (int i = 0, k = 0; i < index->n || k < dir->n;) {
        const SafetensorsEntry *entry = k < dir->n ? dir->entries[k] : NULL;
        const IndexEntry *listed = i < index->n ? &index->entries[i] : NULL;
        int order = !entry ? -1 : !listed ? 1 : strcmp(listed->tensor, entry->name);
        if (order < 0)
            return fail(ERR_FORMAT, "%s lists tensor %s in %s, which does not hold it", path,
                        listed->tensor, listed->shard);
        if (order > 0)
            return fail(ERR_FORMAT, "%s holds tensor %s, which %s does not list",
                        safetensors_path(entry->file), entry->name, path);
        if (strcmp(listed->shard, path_base(safetensors_path(entry->file))) != 0)
            return fail(ERR_FORMAT, "%s lists tensor %s in %s, but %s holds it", path,
                        listed->tensor, listed->shard, safetensors_path(entry->file));
        i++;
        k++;
    }
    if (index->total_bytes >= 0 && (uint64_t)index->total_bytes != dir->bytes)
        return fail(ERR_FORMAT,
                    "%s: metadata.total_size is %lld, but the tensors have %llu bytes; if the "
                    "shards are right, remove that key",
                    path, (long long)index->total_bytes, (unsigned long long)dir->bytes);
    return OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static Status open_shards(ModelDir *dir, Arena *arena, const char *path)
{
    Bytes text;
    ModelIndex index;
    uint64_t bytes;
    TRY(file_size(path, &bytes));
    TRY(file_read(arena, path, MAX_INDEX_BYTES, &text));
    TRY(model_index_parse(arena, path, (const char *)text.at, text.n, &index));
    const char **shards = ARENA_ARRAY(arena, const char *, index.n);
    for (int i = 0; i < index.n; i++) shards[i] = index.entries[i].shard;
    qsort(shards, (size_t)index.n, sizeof *shards, by_text);
    dir->files = xcalloc((size_t)index.n, sizeof *dir->files);
    for (int i = 0; i < index.n; i++)
        if (i == 0 || strcmp(shards[i], shards[i - 1]) != 0)
            TRY_AS(add_file(dir, shards[i]), "%s", path);
    TRY(collect_entries(dir));
    return check_index(dir, &index, path);
}

static Status open_files(ModelDir *dir, Arena *arena)
{
    const char *single = path_join(arena, dir->path, single_name);
    const char *index = path_join(arena, dir->path, index_name);
    if (file_exists(single)) { /* wins over an index, as in transformers */
        dir->files = xcalloc(1, sizeof *dir->files);
        TRY(add_file(dir, single_name));
        return collect_entries(dir);
    }
    if (!file_exists(index))
        return fail(ERR_FORMAT, "%s is not a model directory: it has neither %s nor %s", dir->path,
                    single_name, index_name);
    return open_shards(dir, arena, index);
}

Status modeldir_open(const char *path, ModelDir **out)
{
    Arena arena = {0};
    ModelDir *dir = xcalloc(1, sizeof *dir);
    dir->path = xstrdup(path);
    Status status = open_files(dir, &arena);
    arena_deinit(&arena);
    if (status == OK)
        *out = dir;
    else
        modeldir_close(dir);
    return status;
}

void modeldir_close(ModelDir *dir)
{
    if (!dir) return;
    for (int i = 0; i < dir->n_files; i++) safetensors_close(dir->files[i]);
    free(dir->files);
    free(dir->entries);
    free(dir->path);
    free(dir);
}

const char *modeldir_path(const ModelDir *dir) { return dir->path; }
int modeldir_file_count(const ModelDir *dir) { return dir->n_files; }
int modeldir_count(const ModelDir *dir) { return dir->n; }
uint64_t modeldir_bytes(const ModelDir *dir) { return dir->bytes; }

const SafetensorsEntry *modeldir_at(const ModelDir *dir, int i)
{
    CHECK(i >= 0 && i < dir->n);
    return dir->entries[i];
}

const SafetensorsEntry *modeldir_find(const ModelDir *dir, const char *name)
{
    SafetensorsEntry key = {.name = name};
    const SafetensorsEntry *wanted = &key;
    const SafetensorsEntry **found = dir->n ? bsearch(&wanted, dir->entries, (size_t)dir->n,
                                                      sizeof *dir->entries, by_entry_name)
                                            : NULL;
    return found ? *found : NULL;
}
