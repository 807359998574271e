/* An opened safetensors file: look-up, reading with conversion, hashing. The data are copied out of
 * the map by file_map_copy only, so that a file cut short under us is an error and not a signal. */
#include "ckpt/ckpt_internal.h"

#include <stdlib.h>
#include <string.h>

/* A piece stays in the cache between copying and converting or hashing. */
enum { LENGTH_BYTES = 8, PIECE_BYTES = 1 << 18 };

static Status read_length(const FileMap *map, size_t *header)
{
    uint8_t raw[LENGTH_BYTES];
    if (map->n < LENGTH_BYTES)
        return fail(ERR_FORMAT, "%s has %zu bytes, too few for a safetensors file", map->path,
                    map->n);
    TRY(file_map_copy(map, 0, raw, LENGTH_BYTES));
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | raw[i];
    if (length > SAFETENSORS_MAX_HEADER)
        return fail(ERR_FORMAT, "%s: a header of %llu bytes is announced, at most %d are accepted",
                    map->path, (unsigned long long)length, SAFETENSORS_MAX_HEADER);
    if (length > map->n - LENGTH_BYTES)
        return fail(ERR_FORMAT, "%s: a header of %llu bytes is announced, but the file has %zu",
                    map->path, (unsigned long long)length, map->n);
    *header = (size_t)length;
    return OK;
}

/* Takes the map over, also when it fails. */
static Status open_map(FileMap map, bool in_memory, Safetensors **out)
{
    Safetensors *file = xcalloc(1, sizeof *file);
    file->map = map;
    file->in_memory = in_memory;
    size_t n = 0;
    Status status;
    TRY_GOTO(read_length(&file->map, &n), close_file);
    file->text = xmalloc(n);
    file->header_bytes = LENGTH_BYTES + n;
    TRY_GOTO(file_map_copy(&file->map, LENGTH_BYTES, file->text, n), close_file);
    TRY_GOTO(safetensors_parse_header(file, n), close_file);
    *out = file;
    return OK;
close_file:
    safetensors_close(file);
    return status;
}

Status safetensors_open(const char *path, Safetensors **out)
{
    uint64_t bytes;
    TRY(file_size(path, &bytes)); /* says no to pipes and devices before open could wait for them */
    FileMap map;
    TRY(file_map(path, &map));
    return open_map(map, false, out);
}

Status safetensors_open_memory(Bytes bytes, const char *name, Safetensors **out)
{
    return open_map((FileMap){bytes.at, bytes.n, xstrdup(name)}, true, out);
}

void safetensors_close(Safetensors *file)
{
    if (!file) return;
    if (file->in_memory)
        free(file->map.path);
    else
        file_unmap(&file->map);
    free(file->text);
    free(file->entries);
    free(file->by_name);
    free(file);
}

const char *safetensors_path(const Safetensors *file) { return file->map.path; }
const FileMap *safetensors_map(const Safetensors *file) { return &file->map; }
int safetensors_count(const Safetensors *file) { return file->n; }

const SafetensorsEntry *safetensors_at(const Safetensors *file, int i)
{
    CHECK(i >= 0 && i < file->n);
    return &file->entries[i];
}

const SafetensorsEntry *safetensors_find(const Safetensors *file, const char *name)
{
    int low = 0, high = file->n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const SafetensorsEntry *entry = &file->entries[file->by_name[middle]];
        int order = strcmp(name, entry->name);
        if (order == 0) return entry;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* Through a small buffer that stays in the cache. */
static Status read_converted(const SafetensorsEntry *entry, int64_t first, int64_t n, DType to,
                             void *out)
{
    size_t from_size = dtype_bytes(entry->dtype), to_size = dtype_bytes(to);
    int64_t at_once = PIECE_BYTES / (int64_t)from_size;
    void *piece = xmalloc((size_t)min_i64(at_once, n) * from_size);
    Status status = OK;
    for (int64_t done = 0; done < n && status == OK; done += at_once) {
        int64_t count = min_i64(at_once, n - done);
        size_t offset = (size_t)entry->offset + (size_t)(first + done) * from_size;
        status = file_map_copy(&entry->file->map, offset, piece, (size_t)count * from_size);
        if (status == OK)
            status = dtype_convert(entry->dtype, piece, to, (char *)out + (size_t)done * to_size,
                                   count);
    }
    free(piece);
    return status;
}

Status safetensors_read(const SafetensorsEntry *entry, int64_t first, int64_t n, DType to,
                        void *out)
{
    const char *path = entry->file->map.path;
    int64_t count = shape_count(&entry->shape);
    if (entry->dtype == DTYPE_COUNT)
        return fail(ERR_UNSUPPORTED,
                    "%s: tensor %s has elements of type %s, which drover cannot read", path,
                    entry->name, entry->type_name);
    if (first < 0 || n < 0 || first > count || n > count - first)
        return fail(ERR_ARG, "%s: elements %lld to %lld of tensor %s, which has %lld", path,
                    (long long)first, (long long)first + n, entry->name, (long long)count);
    if (n == 0) return OK;
    size_t offset = (size_t)entry->offset + (size_t)first * dtype_bytes(entry->dtype);
    Status status = entry->dtype == to
                        ? file_map_copy(&entry->file->map, offset, out, (size_t)n * dtype_bytes(to))
                        : read_converted(entry, first, n, to, out);
    unsigned long long from = entry->offset, end = from + entry->bytes;
    if (status != OK) fail_context("tensor %s (bytes %llu to %llu)", entry->name, from, end);
    return status;
}

Status safetensors_hash(const Safetensors *file, const SafetensorsEntry *entry, Hash128 *hash)
{
    size_t at = entry ? (size_t)entry->offset : 0;
    size_t end = at + (entry ? (size_t)entry->bytes : file->header_bytes);
    HashStream *stream = hash_stream_create();
    void *piece = xmalloc(end - at < PIECE_BYTES ? end - at : PIECE_BYTES);
    Status status = OK;
    while (at < end && status == OK) {
        size_t n = end - at < PIECE_BYTES ? end - at : PIECE_BYTES;
        status = file_map_copy(&file->map, at, piece, n);
        if (status == OK) hash_stream_add(stream, piece, n);
        at += n;
    }
    if (status == OK) *hash = hash_stream_result(stream);
    free(piece);
    hash_stream_destroy(stream);
    return status;
}

Status safetensors_sum(const Safetensors *file, const SafetensorsEntry *entry, const SumKeys *keys,
                       Hash128 *sum)
{
    uint64_t total[2] = {0};
    size_t bytes = (size_t)entry->bytes;
    void *piece = xmalloc(bytes < PIECE_BYTES ? bytes : PIECE_BYTES);
    Status status = OK;
    for (size_t at = 0; at < bytes && status == OK;) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        status = file_map_copy(&file->map, (size_t)entry->offset + at, piece, n);
        if (status == OK) sum_add(keys, at, piece, n, total);
        at += n;
    }
    if (status == OK) *sum = (Hash128){total[0], total[1]};
    free(piece);
    return status;
}
