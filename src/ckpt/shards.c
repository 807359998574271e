/* Writing a list of tensors as shards, with the index that Hugging Face loaders read. Everything is
 * synced here; the caller syncs the directory. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

/* A strided tensor, packed a piece at a time on its way out. */
static Status fill_packed(void *context, uint64_t offset, void *out, size_t bytes)
{
    const Tensor *tensor = context;
    int64_t size = (int64_t)dtype_bytes(tensor->dtype);
    tensor_gather(tensor, (int64_t)offset / size, (int64_t)bytes / size, out);
    return OK;
}

static SafetensorsItem make_item(const NamedTensor *named)
{
    const Tensor *t = &named->tensor;
    SafetensorsItem item = {.name = named->name, .dtype = t->dtype, .shape = t->shape};
    if (stride_is_contiguous(&t->shape, t->stride)) {
        item.data = t->data;
    } else {
        item.fill = fill_packed;
        item.context = (void *)(uintptr_t)t;
    }
    return item;
}

int shard_end(const SafetensorsItem *items, int n, int first, uint64_t shard_bytes)
{
    uint64_t bytes = 0;
    int end = first;
    for (; end < n; end++) {
        bytes += safetensors_item_bytes(&items[end]);
        if (end > first && bytes > shard_bytes) break;
    }
    return end;
}

Status fileset_write_shard(FileSet *set, const char *name, const SafetensorsItem *items, int n)
{
    const char **names = ARENA_ARRAY(&set->arena, const char *, n);
    uint64_t bytes = 0;
    for (int i = 0; i < n; i++) {
        names[i] = arena_strdup(&set->arena, items[i].name);
        bytes += safetensors_item_bytes(&items[i]);
    }
    SafetensorsDigest digest = {0};
    TRY(safetensors_write(path_join(&set->arena, set->dir, name), items, n, &digest));
    WrittenFile file = {.name = arena_strdup(&set->arena, name),
                        .bytes = digest.bytes,
                        .tensor_bytes = bytes,
                        .hash = digest.file,
                        .n_tensors = n,
                        .tensor_names = names};
    VEC_PUSH(set, file);
    return OK;
}

int shard_count(const SafetensorsItem *items, int n, uint64_t shard_bytes)
{
    int count = 0;
    for (int first = 0; first < n; first = shard_end(items, n, first, shard_bytes)) count++;
    return count;
}

Status fileset_write_items(FileSet *set, const char *stem, const SafetensorsItem *items, int n,
                           uint64_t shard_bytes)
{
    int n_shards = shard_count(items, n, shard_bytes);
    for (int first = 0, shard = 1; first < n; shard++) {
        int end = shard_end(items, n, first, shard_bytes);
        char *name = arena_printf(&set->arena, "%s-%05d-of-%05d.safetensors", stem, shard,
                                  n_shards);
        TRY(fileset_write_shard(set, name, &items[first], end - first));
        first = end;
    }
    return OK;
}

Status fileset_write_shards(FileSet *set, const char *stem, const NamedTensor *tensors, int n,
                            uint64_t shard_bytes)
{
    if (shard_bytes == 0) shard_bytes = (uint64_t)DEFAULT_SHARD_BYTES_GB * 1000000000;
    SafetensorsItem *items = xcalloc((size_t)n + 1, sizeof *items);
    for (int i = 0; i < n; i++) items[i] = make_item(&tensors[i]);
    Status status = fileset_write_items(set, stem, items, n, shard_bytes);
    free(items);
    return status;
}

Status fileset_write_index(FileSet *set, size_t first)
{
    uint64_t total = 0;
    json_t *map = json_object();
    for (size_t f = first; f < set->n; f++) {
        const WrittenFile *file = &set->at[f];
        total += file->tensor_bytes;
        for (int i = 0; i < file->n_tensors; i++)
            json_object_set_new(map, file->tensor_names[i], json_string(file->name));
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total,
                             "weight_map", map);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(root);
    if (!text) return fail(ERR_ARG, "%s: the index cannot be written as JSON", set->dir);
    Bytes bytes = {(const uint8_t *)text, strlen(text)};
    Status status = fileset_write_file(set, "model.safetensors.index.json", bytes);
    free(text);
    return status;
}

Status fileset_write_file(FileSet *set, const char *name, Bytes bytes)
{
    const char *path = path_join(&set->arena, set->dir, name);
    int fd;
    TRY(file_create(path, &fd));
    Status status = file_write(fd, bytes.at, bytes.n, path);
    if (status == OK) status = file_sync(fd, path);
    if (status != OK) {
        close(fd); /* given up: its first error is the one that counts */
        return status;
    }
    TRY(file_close(fd, path));
    WrittenFile file = {.name = arena_strdup(&set->arena, name),
                        .bytes = bytes.n,
                        .hash = hash128_bytes(bytes.at, bytes.n)};
    VEC_PUSH(set, file);
    return OK;
}

void fileset_deinit(FileSet *set)
{
    free(set->at);
    arena_deinit(&set->arena);
    *set = (FileSet){0};
}

Status modeldir_write(const char *path, const NamedTensor *tensors, int n, uint64_t shard_bytes)
{
    if (n <= 0) return fail(ERR_ARG, "%s: a model needs at least one tensor", path);
    FileSet set = {.dir = path};
    Status status = dir_create(path);
    if (status == OK) status = fileset_write_shards(&set, "model", tensors, n, shard_bytes);
    if (status == OK) status = fileset_write_index(&set, 0);
    if (status == OK) status = dir_sync(path);
    fileset_deinit(&set);
    return status;
}
