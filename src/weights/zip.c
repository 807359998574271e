/* The container of torch.save: a zip file whose entries are stored as they are. What counts is the
 * central directory at its end; the header before each entry must agree with it. Sizes of 4 GB and
 * more are in zip64 fields. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "weights/weights_internal.h"

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    MAX_COMMENT = 65535,
    MAX_DIRECTORY = 64 << 20,
    MAX_WALK = 1 << 20, /* headers looked at to say where a file was cut */
    FLAG_ENCRYPTED = 1,
    EXTRA_ZIP64 = 1,
};

static const uint32_t end_mark = 0x06054b50, end64_mark = 0x06064b50, locator_mark = 0x07064b50,
                      central_mark = 0x02014b50, local_mark = 0x04034b50;

static uint64_t little(const uint8_t *at, int n)
{
    uint64_t value = 0;
    while (n-- > 0) value = value << 8 | at[n];
    return value;
}
static uint16_t u16(const uint8_t *at) { return (uint16_t)little(at, 2); }
static uint32_t u32(const uint8_t *at) { return (uint32_t)little(at, 4); }
static uint64_t u64(const uint8_t *at) { return little(at, 8); }

/* ---- the end of the file ---------------------------------------------------------------- */

typedef struct Directory {
    uint64_t offset, bytes, n;
    uint64_t end; /* where it must end */
} Directory;

/* How far the entries reach, told from their own headers: where a copy was cut short. */
static Status fail_cut(const FileMap *map)
{
    uint64_t at = 0;
    uint8_t head[LOCAL_BYTES];
    char name[128] = "";
    for (int i = 0; i < MAX_WALK && map->n >= LOCAL_BYTES && at <= map->n - LOCAL_BYTES; i++) {
        TRY(file_map_copy(map, (size_t)at, head, LOCAL_BYTES));
        size_t length = u16(head + 26), shown = length < sizeof name - 1 ? length : sizeof name - 1;
        if (u32(head) != local_mark || at + LOCAL_BYTES + length > map->n) break;
        TRY(file_map_copy(map, (size_t)at + LOCAL_BYTES, name, shown));
        name[shown] = 0;
        for (size_t k = 0; k < shown; k++)
            if ((unsigned char)name[k] < 0x20) name[k] = '?';
        uint64_t data = at + LOCAL_BYTES + length + u16(head + 28), bytes = u32(head + 18);
        if (bytes == UINT32_MAX || data + bytes > map->n || bytes == 0)
            return fail(ERR_FORMAT,
                        "%s is cut short: it ends at byte %zu, within or soon after its entry %s, "
                        "which begins at byte %" PRIu64,
                        map->path, map->n, name, data);
        at = data + bytes;
    }
    if (at == 0)
        return fail(ERR_FORMAT, "%s is no file of torch.save: it does not begin like a zip file",
                    map->path);
    return fail(ERR_FORMAT,
                "%s is cut short or damaged: after its entry %s, from byte %" PRIu64
                " on, there is no directory at the end (byte %zu)",
                map->path, name, at, map->n);
}

/* The end record: the last that its comment joins to the end of the file. */
static Status find_end(Arena *arena, const FileMap *map, const uint8_t **end, uint64_t *at)
{
    size_t n = map->n < END_BYTES + MAX_COMMENT ? map->n : END_BYTES + MAX_COMMENT;
    uint8_t *tail = arena_alloc(arena, n + 1);
    TRY(file_map_copy(map, map->n - n, tail, n));
    for (size_t i = n < END_BYTES ? 0 : n - END_BYTES + 1; i-- > 0;) {
        if (u32(tail + i) != end_mark || i + END_BYTES + u16(tail + i + 20) != n) continue;
        *end = tail + i;
        *at = map->n - n + i;
        return OK;
    }
    return fail_cut(map);
}

static Status fail_end(const FileMap *map, uint64_t at)
{
    return fail(ERR_FORMAT, "%s: the zip end record at byte %" PRIu64 " does not fit the file",
                map->path, at);
}

static Status read_end64(const FileMap *map, uint64_t end_at, Directory *d)
{
    uint8_t locator[LOCATOR_BYTES], end[END64_BYTES];
    if (end_at < LOCATOR_BYTES) return fail_end(map, end_at);
    TRY(file_map_copy(map, (size_t)(end_at - LOCATOR_BYTES), locator, LOCATOR_BYTES));
    uint64_t at = u64(locator + 8);
    if (u32(locator) != locator_mark || at > end_at - LOCATOR_BYTES ||
        end_at - LOCATOR_BYTES - at < END64_BYTES)
        return fail_end(map, end_at);
    TRY(file_map_copy(map, (size_t)at, end, END64_BYTES));
    if (u32(end) != end64_mark || u64(end + 24) != u64(end + 32) ||
        u64(end + 4) != end_at - LOCATOR_BYTES - at - 12)
        return fail_end(map, at);
    *d = (Directory){
        .n = u64(end + 32), .bytes = u64(end + 40), .offset = u64(end + 48), .end = at};
    return OK;
}

static Status find_directory(Arena *arena, const FileMap *map, Directory *d)
{
    const uint8_t *end = NULL;
    uint64_t at = 0;
    TRY(find_end(arena, map, &end, &at));
    if (u16(end + 8) == UINT16_MAX || u32(end + 12) == UINT32_MAX || u32(end + 16) == UINT32_MAX) {
        TRY(read_end64(map, at, d));
    } else {
        *d = (Directory){
            .n = u16(end + 10), .bytes = u32(end + 12), .offset = u32(end + 16), .end = at};
        uint8_t mark[4] = {0}; /* a zip64 record may stand there all the same */
        if (at >= LOCATOR_BYTES)
            TRY(file_map_copy(map, (size_t)at - LOCATOR_BYTES, mark, sizeof mark));
        Directory wide;
        if (u32(mark) == locator_mark) {
            TRY(read_end64(map, at, &wide));
            d->end = wide.end;
        }
    }
    bool fits = d->offset <= d->end && d->bytes == d->end - d->offset &&
                d->bytes <= MAX_DIRECTORY && d->n <= d->bytes / CENTRAL_BYTES;
    return fits ? OK : fail_end(map, at);
}

/* ---- entries ---------------------------------------------------------------------------- */

typedef struct Raw {
    ZipEntry entry;
    uint64_t header; /* of its own */
} Raw;

static Status fail_entry(const FileMap *map, const char *name, const char *what)
{
    return fail(ERR_FORMAT, "%s: entry %s %s", map->path, name, what);
}

/* Fields that are all ones are in the extra field of zip64, in this order. */
static bool widen(const uint8_t *extra, size_t n, uint64_t *fields[3])
{
    for (size_t i = 0; n - i >= 4;) {
        size_t id = u16(extra + i), length = u16(extra + i + 2);
        if (length > n - i - 4) return false;
        const uint8_t *at = extra + i + 4, *end = at + length;
        for (int k = 0; id == EXTRA_ZIP64 && k < 3; k++) {
            if (*fields[k] != UINT32_MAX) continue;
            if (end - at < 8) return false;
            *fields[k] = u64(at);
            at += 8;
        }
        i += 4 + length;
    }
    return true;
}

/* The header before the data: it says where they begin. */
static Status read_local(const FileMap *map, const Directory *d, Raw *raw, Arena *arena)
{
    uint8_t head[LOCAL_BYTES];
    const char *name = raw->entry.name;
    size_t length = strlen(name);
    if (raw->header > d->offset || d->offset - raw->header < LOCAL_BYTES + length)
        return fail_entry(map, name, "begins behind the directory");
    TRY(file_map_copy(map, (size_t)raw->header, head, LOCAL_BYTES));
    if (u32(head) != local_mark || u16(head + 26) != length || u16(head + 8) != 0)
        return fail(ERR_FORMAT, "%s: at byte %" PRIu64 " there is no header of entry %s", map->path,
                    raw->header, name);
    char *again = arena_alloc(arena, length + 1);
    TRY(file_map_copy(map, (size_t)raw->header + LOCAL_BYTES, again, length));
    if (memcmp(again, name, length) != 0)
        return fail(ERR_FORMAT, "%s: the header at byte %" PRIu64 " is not that of entry %s",
                    map->path, raw->header, name);
    raw->entry.offset = raw->header + LOCAL_BYTES + length + u16(head + 28);
    if (raw->entry.offset > d->offset || raw->entry.bytes > d->offset - raw->entry.offset)
        return fail(ERR_FORMAT,
                    "%s: entry %s has %" PRIu64 " bytes from byte %" PRIu64
                    " on, beyond the directory at %" PRIu64,
                    map->path, name, raw->entry.bytes, raw->entry.offset, d->offset);
    return OK;
}

/* One record of the directory at text[0..n): *used bytes of it. */
static Status read_central(Arena *arena, const FileMap *map, const uint8_t *text, size_t n,
                           Raw *raw, size_t *used)
{
    if (n < CENTRAL_BYTES || u32(text) != central_mark)
        return fail(ERR_FORMAT, "%s: the zip directory is damaged %zu bytes before its end",
                    map->path, n);
    size_t name = u16(text + 28), extra = u16(text + 30),
           all = CENTRAL_BYTES + name + extra + u16(text + 32);
    if (all > n)
        return fail(ERR_FORMAT, "%s: the zip directory is damaged %zu bytes before its end",
                    map->path, n);
    const uint8_t *at = text + CENTRAL_BYTES;
    if (!utf8_valid(at, name) || memchr(at, 0, name))
        return fail(ERR_FORMAT, "%s: an entry's name is no text", map->path);
    *raw = (Raw){
        .entry = {.name = arena_strndup(arena, (const char *)at, name), .crc = u32(text + 16)}};
    uint64_t plain = u32(text + 24), packed = u32(text + 20), header = u32(text + 42);
    if (!widen(at + name, extra, (uint64_t *[3]){&plain, &packed, &header}))
        return fail_entry(map, raw->entry.name, "has a damaged extra field");
    if (u16(text + 10) != 0 || plain != packed)
        return fail_entry(map, raw->entry.name, "is compressed, which torch.save does not do");
    if (u16(text + 8) & FLAG_ENCRYPTED) return fail_entry(map, raw->entry.name, "is encrypted");
    raw->entry.bytes = plain;
    raw->header = header;
    *used = all;
    return OK;
}

static int by_header(const void *a, const void *b)
{
    const Raw *x = a, *y = b;
    return (x->header > y->header) - (x->header < y->header);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const ZipEntry *)a)->name, ((const ZipEntry *)b)->name);
}

static Status check_apart(const FileMap *map, Raw *raw, int n)
{
    if (n) qsort(raw, (size_t)n, sizeof *raw, by_header);
    for (int i = 1; i < n; i++)
        if (raw[i].header < raw[i - 1].entry.offset + raw[i - 1].entry.bytes)
            return fail(ERR_FORMAT, "%s: entries %s and %s overlap at byte %" PRIu64, map->path,
                        raw[i - 1].entry.name, raw[i].entry.name, raw[i].header);
    return OK;
}

Status zip_read(Arena *arena, const FileMap *map, Zip *zip)
{
    Directory d;
    TRY(find_directory(arena, map, &d));
    uint8_t *text = arena_alloc(arena, (size_t)d.bytes + 1);
    Raw *raw = ARENA_ARRAY(arena, Raw, d.n + 1);
    TRY(file_map_copy(map, (size_t)d.offset, text, (size_t)d.bytes));
    size_t at = 0, used = 0;
    for (uint64_t i = 0; i < d.n; i++, at += used) {
        TRY(read_central(arena, map, text + at, (size_t)d.bytes - at, &raw[i], &used));
        TRY(read_local(map, &d, &raw[i], arena));
    }
    if (at != d.bytes)
        return fail(ERR_FORMAT, "%s: %zu bytes of the zip directory are left over", map->path,
                    (size_t)d.bytes - at);
    TRY(check_apart(map, raw, (int)d.n));
    zip->entry = ARENA_ARRAY(arena, ZipEntry, d.n + 1);
    zip->n = (int)d.n;
    for (int i = 0; i < zip->n; i++) zip->entry[i] = raw[i].entry;
    if (zip->n) qsort(zip->entry, (size_t)zip->n, sizeof *zip->entry, by_name);
    for (int i = 1; i < zip->n; i++)
        if (!strcmp(zip->entry[i - 1].name, zip->entry[i].name))
            return fail_entry(map, zip->entry[i].name, "is there twice");
    return OK;
}

const ZipEntry *zip_find(const Zip *zip, const char *name)
{
    ZipEntry key = {.name = name};
    return zip->n ? bsearch(&key, zip->entry, (size_t)zip->n, sizeof *zip->entry, by_name) : NULL;
}
