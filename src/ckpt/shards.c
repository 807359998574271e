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

/* The end of the shard that begins at `first`: as many as fit, at least one. */
static int shard_end(const NamedTensor *tensors, int n, int first, uint64_t shard_bytes)
{
    uint64_t bytes = 0;
    int end = first;
    for (; end < n; end++) {
        bytes += tensor_bytes(&tensors[end].tensor);
        if (end > first && bytes > shard_bytes) break;
    }
    return end;
}

static Status write_shard(Arena *arena, const char *dir, const char *name,
                          const NamedTensor *tensors, int n, WrittenFiles *written)
{
    SafetensorsItem *items = xmalloc(sizeof *items * (size_t)n);
    const char **names = ARENA_ARRAY(arena, const char *, n);
    for (int i = 0; i < n; i++) {
        items[i] = make_item(&tensors[i]);
        names[i] = arena_strdup(arena, tensors[i].name);
    }
    SafetensorsDigest digest = {.tensors = ARENA_ARRAY(arena, Hash128, n)};
    Status status = safetensors_write(path_join(arena, dir, name), items, n, &digest);
    free(items);
    TRY(status);
    WrittenFile file = {.name = arena_strdup(arena, name),
                        .bytes = digest.bytes,
                        .hash = digest.file,
                        .header = digest.header,
                        .n_tensors = n,
                        .tensor_names = names,
                        .tensors = digest.tensors};
    VEC_PUSH(written, file);
    return OK;
}

Status shards_write(Arena *arena, const char *dir, const char *stem, const NamedTensor *tensors,
                    int n, uint64_t shard_bytes, WrittenFiles *written)
{
    if (shard_bytes == 0) shard_bytes = (uint64_t)DEFAULT_SHARD_BYTES_GB * 1000000000;
    int n_shards = 0;
    for (int first = 0; first < n; first = shard_end(tensors, n, first, shard_bytes)) n_shards++;
    for (int first = 0, shard = 1; first < n; shard++) {
        int end = shard_end(tensors, n, first, shard_bytes);
        char *name = arena_printf(arena, "%s-%05d-of-%05d.safetensors", stem, shard, n_shards);
        TRY(write_shard(arena, dir, name, &tensors[first], end - first, written));
        first = end;
    }
    return OK;
}

/* ---- the index ------------------------------------------------------------------------- */

Status index_write(Arena *arena, const char *dir, const NamedTensor *tensors, int n, size_t first,
                   WrittenFiles *written)
{
    uint64_t total = 0;
    for (int i = 0; i < n; i++) total += tensor_bytes(&tensors[i].tensor);
    json_t *map = json_object(), *root;
    for (size_t f = first; f < written->n; f++)
        for (int i = 0; i < written->at[f].n_tensors; i++)
            json_object_set_new(map, written->at[f].tensor_names[i],
                                json_string(written->at[f].name));
    root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map",
                     map);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
    CHECK(text != NULL);
    json_decref(root);
    Bytes bytes = {(const uint8_t *)text, strlen(text)};
    Status status = plain_file_write(arena, dir, "model.safetensors.index.json", bytes, written);
    free(text);
    return status;
}

Status plain_file_write(Arena *arena, const char *dir, const char *name, Bytes bytes,
                        WrittenFiles *written)
{
    const char *path = path_join(arena, dir, name);
    int fd;
    TRY(file_create(path, &fd));
    Status status = file_write(fd, bytes.at, bytes.n, path);
    if (status == OK) status = file_sync(fd, path);
    if (status != OK) {
        close(fd); /* given up: its first error is the one that counts */
        return status;
    }
    TRY(file_close(fd, path));
    WrittenFile file = {.name = arena_strdup(arena, name),
                        .bytes = bytes.n,
                        .hash = hash128_bytes(bytes.at, bytes.n)};
    VEC_PUSH(written, file);
    return OK;
}

Status modeldir_write(const char *path, const NamedTensor *tensors, int n, uint64_t shard_bytes)
{
    if (n <= 0) return fail(ERR_ARG, "%s: a model needs at least one tensor", path);
    Arena arena = {0};
    WrittenFiles written = {0};
    Status status = dir_create(path);
    if (status == OK)
        status = shards_write(&arena, path, "model", tensors, n, shard_bytes, &written);
    if (status == OK) status = index_write(&arena, path, tensors, n, 0, &written);
    if (status == OK) status = dir_sync(path);
    VEC_FREE(&written);
    arena_deinit(&arena);
    return status;
}
