/* Writing a safetensors file. The order of the tensors and the text of the header are those of the
 * reference writer: wide types first, then by name; no white space; padded with spaces to 8 bytes.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/ckpt_internal.h"

enum { PIECE_BYTES = 4 << 20 };

/* The reference sorts by its list of types, last first: wider types come first, so that every
 * tensor is aligned to its element. */
static int type_order(DType dtype)
{
    static const DType last_first[] = {DTYPE_I64,  DTYPE_F64, DTYPE_F32,     DTYPE_I32,
                                       DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3, DTYPE_F8_E5M2,
                                       DTYPE_I8,   DTYPE_U8};
    for (int i = 0; i < COUNT_OF(last_first); i++)
        if (last_first[i] == dtype) return i;
    return COUNT_OF(last_first);
}

static int by_type_and_name(const void *a, const void *b, void *items)
{
    const SafetensorsItem *all = items;
    const SafetensorsItem *x = &all[*(const int *)a], *y = &all[*(const int *)b];
    int order = type_order(x->dtype) - type_order(y->dtype);
    return order ? order : strcmp(x->name, y->name);
}

static int by_item_name(const void *a, const void *b, void *items)
{
    const SafetensorsItem *all = items;
    return strcmp(all[*(const int *)a].name, all[*(const int *)b].name);
}

uint64_t safetensors_item_bytes(const SafetensorsItem *item)
{
    return (uint64_t)shape_count(&item->shape) * dtype_bytes(item->dtype);
}

/* As serde_json does it: other characters stay as they are. */
static void print_json_string(Str *s, const char *text)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    str_add(s, "\"");
    for (const char *c = text; *c; c++) {
        const char *special = strchr(from, *c);
        if (special)
            str_printf(s, "\\%c", to[special - from]);
        else if ((unsigned char)*c < 0x20)
            str_printf(s, "\\u%04x", (unsigned)(unsigned char)*c);
        else
            str_add_n(s, c, 1);
    }
    str_add(s, "\"");
}

/* order comes sorted by name. */
static Status check_items(const SafetensorsItem *items, const int *order, int n, const char *path)
{
    for (int i = 0; i < n; i++) {
        const SafetensorsItem *item = &items[order[i]];
        const char *name = item->name;
        if (!utf8_valid((const uint8_t *)name, strlen(name)) || !strcmp(name, "__metadata__"))
            return fail(ERR_ARG, "%s: a tensor cannot be called '%s'", path, name);
        if (i > 0 && !strcmp(name, items[order[i - 1]].name))
            return fail(ERR_ARG, "%s: two tensors are called %s", path, name);
    }
    return OK;
}

/* The length field and the JSON text, padded. */
static Status print_header(const SafetensorsItem *items, const int *order, int n, const char *path,
                           Str *s)
{
    str_add_n(s, "\0\0\0\0\0\0\0\0", 8);                 /* the length, set below */
    str_add(s, "{\"__metadata__\":{\"format\":\"pt\"}"); /* transformers refuses files without it */
    size_t offset = 0;
    for (int i = 0; i < n; i++) {
        const SafetensorsItem *item = &items[order[i]];
        str_add(s, ",");
        print_json_string(s, item->name);
        str_printf(s, ":{\"dtype\":\"%s\",\"shape\":[", dtype_safetensors_name(item->dtype));
        for (int d = 0; d < item->shape.rank; d++)
            str_printf(s, "%s%lld", d ? "," : "", (long long)item->shape.dim[d]);
        size_t end = offset + (size_t)safetensors_item_bytes(item);
        str_printf(s, "],\"data_offsets\":[%zu,%zu]}", offset, end);
        offset = end;
    }
    str_add(s, "}");
    while (s->n % 8 != 0) str_add(s, " ");
    uint64_t length = s->n - 8;
    if (length > SAFETENSORS_MAX_HEADER)
        return fail(ERR_ARG,
                    "%s: the header of %d tensors would have %llu bytes, at most %d are allowed",
                    path, n, (unsigned long long)length, SAFETENSORS_MAX_HEADER);
    for (int i = 0; i < 8; i++) s->at[i] = (char)(length >> (8 * i));
    return OK;
}

typedef struct Output {
    int fd;
    const char *path;
    HashStream *file, *part;
    void *piece; /* for items that fill; NULL until the first */
    uint64_t bytes;
} Output;

/* Hashes each piece just before it goes to the kernel, while it is in the cache. */
static Status put(Output *out, const void *data, size_t n)
{
    hash_stream_add(out->file, data, n);
    hash_stream_add(out->part, data, n);
    out->bytes += n;
    return file_write(out->fd, data, n, out->path);
}

static Status put_item(Output *out, const SafetensorsItem *item)
{
    size_t bytes = (size_t)safetensors_item_bytes(item);
    CHECK(item->data || item->fill || bytes == 0);
    if (!item->data && !out->piece) out->piece = xmalloc(PIECE_BYTES);
    for (size_t done = 0; done < bytes;) {
        size_t n = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
        const void *from = item->data ? (const char *)item->data + done : out->piece;
        if (!item->data) TRY(item->fill(item->context, done, out->piece, n));
        TRY(put(out, from, n));
        done += n;
    }
    return OK;
}

static Status put_all(Output *out, const Str *header, const SafetensorsItem *items,
                      const int *order, int n, SafetensorsDigest *digest)
{
    hash_stream_reset(out->part);
    TRY(put(out, header->at, header->n));
    digest->header = hash_stream_result(out->part);
    for (int i = 0; i < n; i++) {
        hash_stream_reset(out->part);
        TRY_AS(put_item(out, &items[order[i]]), "tensor %s", items[order[i]].name);
        if (digest->tensors) digest->tensors[order[i]] = hash_stream_result(out->part);
    }
    digest->file = hash_stream_result(out->file);
    digest->bytes = out->bytes;
    return file_sync(out->fd, out->path);
}

static Status write_file(const char *path, const Str *header, const SafetensorsItem *items,
                         const int *order, int n, SafetensorsDigest *digest)
{
    Output out = {.path = path};
    TRY(file_create(path, &out.fd));
    out.file = hash_stream_create();
    out.part = hash_stream_create();
    Status status = put_all(&out, header, items, order, n, digest);
    if (status == OK)
        status = file_close(out.fd, path);
    else
        close(out.fd); /* the file is given up; its first error is the one that counts */
    free(out.piece);
    hash_stream_destroy(out.part);
    hash_stream_destroy(out.file);
    return status;
}

Status safetensors_header(const SafetensorsItem *items, int n, const char *path, int *order,
                          Str *header)
{
    for (int i = 0; i < n; i++) order[i] = i;
    void *context = (void *)(uintptr_t)items;
    qsort_r(order, (size_t)n, sizeof *order, by_item_name, context);
    TRY(check_items(items, order, n, path));
    qsort_r(order, (size_t)n, sizeof *order, by_type_and_name, context);
    return print_header(items, order, n, path, header);
}

Status safetensors_write(const char *path, const SafetensorsItem *items, int n,
                         SafetensorsDigest *digest)
{
    SafetensorsDigest ignored = {0};
    int *order = xmalloc(sizeof *order * ((size_t)n + 1));
    Str header = {0};
    Status status = safetensors_header(items, n, path, order, &header);
    if (status == OK)
        status = write_file(path, &header, items, order, n, digest ? digest : &ignored);
    str_deinit(&header);
    free(order);
    return status;
}
