/* A file of torch.save: the container, the pickle in it, and where in the file each tensor lies.
 * Opening reads the directory and the pickle; the tensors stay where they are. */
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "weights/weights_internal.h"

enum { PIECE_BYTES = 1 << 20 };

struct Pth {
    Arena arena;
    FileMap map;
    bool in_memory; /* map.at is the caller's */
    Zip zip;
    PthTensor *tensor; /* sorted by name */
    int n;
};

/* ---- opening ---------------------------------------------------------------------------- */

static const char pickle_name[] = "data.pkl";

/* All entries are in one folder, called as the file was: "consolidated/data.pkl". */
static Status find_pickle(const Pth *f, const ZipEntry **entry, size_t *folder)
{
    *entry = NULL;
    for (int i = 0; i < f->zip.n; i++) {
        const char *name = f->zip.entry[i].name, *base = path_base(name);
        if (strcmp(base, pickle_name) != 0 || (*entry && base - name >= (ptrdiff_t)*folder))
            continue;
        *entry = &f->zip.entry[i];
        *folder = (size_t)(base - name);
    }
    if (*entry) return OK;
    return fail(ERR_FORMAT, "%s is a zip file, but none of torch.save: it has no %s", f->map.path,
                pickle_name);
}

static Status check_crc(const Pth *f, const ZipEntry *entry)
{
    uint8_t *piece = xmalloc(PIECE_BYTES);
    uLong crc = crc32(0, NULL, 0);
    Status status = OK;
    for (uint64_t at = 0; at < entry->bytes && status == OK; at += PIECE_BYTES) {
        size_t n = entry->bytes - at < PIECE_BYTES ? (size_t)(entry->bytes - at) : PIECE_BYTES;
        status = file_map_copy(&f->map, (size_t)(entry->offset + at), piece, n);
        if (status == OK) crc = crc32(crc, piece, (uInt)n);
    }
    free(piece);
    if (status == OK && (uint32_t)crc != entry->crc)
        status = fail(ERR_FORMAT,
                      "%s is damaged: entry %s, bytes %llu to %llu, does not match its checksum",
                      f->map.path, entry->name, (unsigned long long)entry->offset,
                      (unsigned long long)(entry->offset + entry->bytes));
    return status;
}

/* Only machines of the other byte order write something else here. */
static Status check_byte_order(Pth *f, const char *folder)
{
    const ZipEntry *entry = zip_find(&f->zip, arena_printf(&f->arena, "%sbyteorder", folder));
    char text[8] = "";
    if (!entry) return OK;
    size_t n = entry->bytes < sizeof text - 1 ? (size_t)entry->bytes : sizeof text - 1;
    TRY(file_map_copy(&f->map, (size_t)entry->offset, text, n));
    if (!strcmp(text, "little")) return OK;
    return fail(ERR_UNSUPPORTED, "%s: its numbers are big-endian", f->map.path);
}

/* The bytes from the first to behind the last element that sizes and strides reach; false when they
 * overflow. */
static bool tensor_extent(const PickleTensor *t, uint64_t *begin, uint64_t *end)
{
    size_t last = t->first, reach;
    bool empty = shape_count(&t->shape) == 0;
    for (int d = 0; d < t->shape.rank && !empty; d++)
        if (!size_mul((size_t)(t->shape.dim[d] - 1), (size_t)t->stride[d], &reach) ||
            !size_add(last, reach, &last))
            return false;
    size_t first_byte, last_byte;
    if (!size_mul(t->first, t->element_bytes, &first_byte) ||
        !size_mul(last, t->element_bytes, &last_byte))
        return false;
    *begin = first_byte;
    if (empty) {
        *end = first_byte;
        return true;
    }
    return size_add(last_byte, t->element_bytes, &last_byte) ? (*end = last_byte, true) : false;
}

static Status place_tensor(Pth *f, const char *folder, const PickleTensor *from, PthTensor *to)
{
    const ZipEntry *entry = zip_find(&f->zip,
                                     arena_printf(&f->arena, "%sdata/%s", folder, from->key));
    size_t storage;
    uint64_t begin, end;
    if (!entry)
        return fail(ERR_FORMAT, "%s: tensor %s is in entry %sdata/%s, which is not there",
                    f->map.path, from->name, folder, from->key);
    bool fits = size_mul(from->storage_count, from->storage_size, &storage) &&
                storage == entry->bytes && tensor_extent(from, &begin, &end) &&
                end <= entry->bytes &&
                (uint64_t)shape_count(&from->shape) <=
                    entry->bytes / from->element_bytes; /* no element twice */
    if (!fits)
        return fail(ERR_FORMAT,
                    "%s: tensor %s does not lie within its entry %s, bytes %llu to %llu",
                    f->map.path, from->name, entry->name, (unsigned long long)entry->offset,
                    (unsigned long long)(entry->offset + entry->bytes));
    *to = (PthTensor){.name = from->name,
                      .dtype = from->dtype,
                      .type_name = from->type_name,
                      .shape = from->shape,
                      .entry = entry->name,
                      .offset = entry->offset + begin,
                      .bytes = (uint64_t)shape_count(&from->shape) * from->element_bytes};
    memcpy(to->stride, from->stride, sizeof to->stride);
    return OK;
}

static Status read_tensors(Pth *f)
{
    const ZipEntry *entry = NULL;
    size_t folder = 0;
    Pickle pickle;
    TRY(zip_read(&f->arena, &f->map, &f->zip));
    TRY(find_pickle(f, &entry, &folder));
    const char *prefix = arena_strndup(&f->arena, entry->name, folder);
    TRY(check_byte_order(f, prefix));
    if (entry->bytes > PICKLE_MAX_BYTES)
        return fail(ERR_FORMAT, "%s: entry %s has %llu bytes; at most %d are accepted", f->map.path,
                    entry->name, (unsigned long long)entry->bytes, PICKLE_MAX_BYTES);
    TRY(check_crc(f, entry));
    uint8_t *text = arena_alloc(&f->arena, (size_t)entry->bytes + 1);
    TRY(file_map_copy(&f->map, (size_t)entry->offset, text, (size_t)entry->bytes));
    TRY(pickle_read(&f->arena, f->map.path, (Bytes){text, (size_t)entry->bytes}, &pickle));
    f->tensor = ARENA_ARRAY(&f->arena, PthTensor, pickle.n + 1);
    f->n = pickle.n;
    for (int i = 0; i < pickle.n; i++)
        TRY(place_tensor(f, prefix, &pickle.tensor[i], &f->tensor[i]));
    return OK;
}

/* Takes the map over, also when it fails. */
static Status open_map(FileMap map, bool in_memory, Pth **out)
{
    Pth *f = xcalloc(1, sizeof *f);
    f->map = map;
    f->in_memory = in_memory;
    Status status = read_tensors(f);
    if (status == OK)
        *out = f;
    else
        pth_close(f);
    return status;
}

Status pth_open(const char *path, Pth **out)
{
    uint64_t bytes;
    FileMap map;
    TRY(file_size(path, &bytes)); /* says no to pipes and devices before open could wait for them */
    TRY(file_map(path, &map));
    return open_map(map, false, out);
}

Status pth_open_memory(Bytes bytes, const char *name, Pth **out)
{
    return open_map((FileMap){bytes.at, bytes.n, xstrdup(name)}, true, out);
}

void pth_close(Pth *f)
{
    if (!f) return;
    if (f->in_memory)
        free(f->map.path);
    else
        file_unmap(&f->map);
    arena_deinit(&f->arena);
    free(f);
}

/* ---- reading ---------------------------------------------------------------------------- */

const FileMap *pth_map(const Pth *f) { return &f->map; }
int pth_count(const Pth *f) { return f->n; }

const PthTensor *pth_at(const Pth *f, int i)
{
    CHECK(i >= 0 && i < f->n);
    return &f->tensor[i];
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const PthTensor *)a)->name, ((const PthTensor *)b)->name);
}

const PthTensor *pth_find(const Pth *f, const char *name)
{
    PthTensor key = {.name = name};
    return f->n ? bsearch(&key, f->tensor, (size_t)f->n, sizeof *f->tensor, by_name) : NULL;
}

static Status check_entry(void *context, int i)
{
    const Pth *f = context;
    return check_crc(f, &f->zip.entry[i]);
}

Status pth_verify(const Pth *f)
{
    return parallel_each(f->zip.n, parallel_threads(f->map.n), check_entry, (void *)(uintptr_t)f);
}
