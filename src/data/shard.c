/* A shard: token ids on disk, mapped for reading.
 *
 *     header, 64 bytes    as ShardHeader, little-endian
 *     offsets             u64 [n_docs + 1]: where each document begins, and n_tokens
 *     ids                 u16 or u32 [n_tokens]
 *
 * A shard is checked when it is opened (sizes, hash of the header, offsets that rise), and every id
 * when it is read, so that a damaged file is a sentence and never an index out of range. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct ShardHeader {
    char magic[8];
    uint32_t version, width;
    uint64_t n_docs, n_tokens, text_bytes;
    uint64_t hash; /* of offsets and ids, see fold */
    uint64_t reserved;
    uint64_t header_hash; /* of the 56 bytes before */
} ShardHeader;

_Static_assert(sizeof(ShardHeader) == 64, "the header has no padding");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are little-endian");

static const char shard_magic[8] = {'D', 'R', 'O', 'V', 'E', 'R', 'T', 'K'};
enum { SHARD_VERSION = 1, HASH_BLOCK = 1 << 20, ID_BLOCK = 4096 };

/* The hash of a stream of blocks of HASH_BLOCK bytes, so that a check needs no more memory than
 * one. */
static uint64_t fold(uint64_t hash, const void *block, size_t n)
{
    uint64_t pair[2] = {hash, hash_bytes(block, n)};
    return hash_bytes(pair, sizeof pair);
}

static uint64_t header_hash(const ShardHeader *h)
{
    return hash_bytes(h, offsetof(ShardHeader, header_hash));
}

/* ---- writing ---------------------------------------------------------------------------- */

typedef struct Writer {
    int fd;
    const char *path;
    uint64_t hash;
    size_t n;
    uint8_t *block;
} Writer;

static Status flush_block(Writer *w)
{
    if (!w->n) return OK;
    w->hash = fold(w->hash, w->block, w->n);
    Status status = file_write(w->fd, w->block, w->n, w->path);
    w->n = 0;
    return status;
}

static Status put(Writer *w, const void *data, size_t n)
{
    for (const uint8_t *at = data; n > 0;) {
        size_t part = HASH_BLOCK - w->n < n ? HASH_BLOCK - w->n : n;
        memcpy(w->block + w->n, at, part);
        w->n += part;
        at += part;
        n -= part;
        if (w->n == HASH_BLOCK) TRY(flush_block(w));
    }
    return OK;
}

static Status put_ids(Writer *w, const int32_t *ids, size_t n, int width)
{
    if (width == 4) return put(w, ids, 4 * n);
    uint16_t narrow[ID_BLOCK];
    for (size_t i = 0; i < n; i += ID_BLOCK) {
        size_t part = n - i < ID_BLOCK ? n - i : ID_BLOCK;
        for (size_t k = 0; k < part; k++) narrow[k] = (uint16_t)ids[i + k];
        TRY(put(w, narrow, 2 * part));
    }
    return OK;
}

static Status write_payload(Writer *w, const ShardText *text, ShardHeader *h)
{
    uint64_t offset = 0;
    TRY(put(w, &offset, sizeof offset));
    for (int64_t i = 0; i < text->n_docs; i++) {
        offset += text->docs[i].n;
        h->text_bytes += text->docs[i].text_bytes;
        TRY(put(w, &offset, sizeof offset));
    }
    h->n_tokens = offset;
    for (int64_t i = 0; i < text->n_docs; i++)
        TRY(put_ids(w, text->ids + text->docs[i].begin, text->docs[i].n, (int)h->width));
    return flush_block(w);
}

static Status write_shard(Writer *w, const ShardText *text, ShardHeader *h)
{
    TRY(file_write(w->fd, h, sizeof *h, w->path)); /* its place; the true one follows */
    TRY(write_payload(w, text, h));
    h->hash = w->hash;
    h->header_hash = header_hash(h);
    if (lseek(w->fd, 0, SEEK_SET) < 0) return fail(ERR_IO, "cannot seek in %s", w->path);
    TRY(file_write(w->fd, h, sizeof *h, w->path));
    return file_sync(w->fd, w->path);
}

Status data_shard_write(const char *path, const ShardText *text, int width, ShardInfo *info)
{
    ShardHeader h = {
        .version = SHARD_VERSION, .width = (uint32_t)width, .n_docs = (uint64_t)text->n_docs};
    memcpy(h.magic, shard_magic, sizeof h.magic);
    Writer w = {.path = path};
    TRY(file_create(path, &w.fd));
    w.block = xmalloc(HASH_BLOCK);
    Status status = write_shard(&w, text, &h);
    free(w.block);
    if (status != OK) {
        close(w.fd);
        return status;
    }
    TRY(file_close(w.fd, path));
    *info = (ShardInfo){text->n_docs, (int64_t)h.n_tokens, h.text_bytes, h.hash, width};
    return OK;
}

/* ---- reading ---------------------------------------------------------------------------- */

static Status check_header(const FileMap *map, const ShardHeader *h)
{
    const char *path = map->path;
    if (memcmp(h->magic, shard_magic, sizeof h->magic) != 0)
        return fail(ERR_FORMAT, "%s is no shard of tokens", path);
    if (h->version != SHARD_VERSION)
        return fail(ERR_FORMAT, "%s has version %u of the shard format; this program reads %d",
                    path, h->version, SHARD_VERSION);
    if (h->header_hash != header_hash(h))
        return fail(ERR_FORMAT, "%s: its header is damaged (hash)", path);
    size_t offsets, ids, total;
    bool fits = (h->width == 2 || h->width == 4) && size_add(h->n_docs, 1, &offsets) &&
                size_mul(offsets, 8, &offsets) && size_mul(h->n_tokens, h->width, &ids) &&
                size_add(offsets, ids, &total) && size_add(total, sizeof *h, &total);
    if (!fits || total != map->n)
        return fail(
            ERR_FORMAT,
            "%s has %zu bytes, not what its header says (%llu documents, %llu tokens of %u bytes)",
            path, map->n, (unsigned long long)h->n_docs, (unsigned long long)h->n_tokens, h->width);
    return OK;
}

/* Offsets begin at 0, rise, and end at n_tokens: no document is empty. */
static Status check_offsets(const Shard *shard)
{
    enum { BLOCK = 1024 };
    uint64_t block[BLOCK], before = 0;
    for (int64_t i = 0; i <= shard->info.n_docs; i += BLOCK) {
        int64_t n = min_i64(BLOCK, shard->info.n_docs + 1 - i);
        TRY(file_map_copy(&shard->map, sizeof(ShardHeader) + (size_t)i * 8, block, (size_t)n * 8));
        for (int64_t k = 0; k < n; k++) {
            if (i + k ? block[k] <= before : block[k] != 0)
                return fail(ERR_FORMAT, "%s is damaged: offset %lld does not rise", shard->map.path,
                            (long long)(i + k));
            before = block[k];
        }
    }
    if (before != (uint64_t)shard->info.n_tokens)
        return fail(ERR_FORMAT, "%s is damaged: its last offset is not its number of tokens",
                    shard->map.path);
    return OK;
}

Status data_shard_open(const char *path, Shard *shard)
{
    Shard opened = {0};
    TRY(file_map(path, &opened.map));
    ShardHeader h;
    Status status = file_map_copy(&opened.map, 0, &h, sizeof h);
    if (status == OK) status = check_header(&opened.map, &h);
    if (status == OK) {
        opened.info = (ShardInfo){(int64_t)h.n_docs, (int64_t)h.n_tokens, h.text_bytes, h.hash,
                                  (int)h.width};
        status = check_offsets(&opened);
    }
    if (status != OK)
        data_shard_close(&opened);
    else
        *shard = opened;
    return status;
}

void data_shard_close(Shard *shard)
{
    if (shard->map.path) file_unmap(&shard->map);
    *shard = (Shard){0};
}

Status data_shard_verify(const Shard *shard)
{
    uint8_t *block = xmalloc(HASH_BLOCK);
    uint64_t hash = 0;
    Status status = OK;
    for (size_t at = sizeof(ShardHeader); at < shard->map.n && status == OK; at += HASH_BLOCK) {
        size_t n = shard->map.n - at < HASH_BLOCK ? shard->map.n - at : HASH_BLOCK;
        status = file_map_copy(&shard->map, at, block, n);
        if (status == OK) hash = fold(hash, block, n);
    }
    free(block);
    if (status == OK && hash != shard->info.hash)
        return fail(ERR_FORMAT, "%s is damaged: its contents do not match the hash in its header",
                    shard->map.path);
    return status;
}

static Status check_ids(const Shard *shard, int64_t first, const int32_t *ids, int64_t n,
                        int32_t vocab_size)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return fail(ERR_FORMAT,
                        "%s is damaged: token %lld is %d in a vocabulary of %d; remove it and it "
                        "is built again",
                        shard->map.path, (long long)(first + i), ids[i], vocab_size);
    return OK;
}

Status data_shard_read(const Shard *shard, int64_t first, int64_t n, int32_t vocab_size,
                       int32_t *out)
{
    CHECK(first >= 0 && n >= 0 && first + n <= shard->info.n_tokens);
    size_t at = sizeof(ShardHeader) + ((size_t)shard->info.n_docs + 1) * 8 +
                (size_t)first * (size_t)shard->info.width;
    if (shard->info.width == 4) TRY(file_map_copy(&shard->map, at, out, (size_t)n * 4));
    uint16_t narrow[ID_BLOCK];
    for (int64_t i = 0; shard->info.width == 2 && i < n; i += ID_BLOCK) {
        int64_t part = min_i64(ID_BLOCK, n - i);
        TRY(file_map_copy(&shard->map, at + (size_t)i * 2, narrow, (size_t)part * 2));
        for (int64_t k = 0; k < part; k++) out[i + k] = narrow[k];
    }
    return check_ids(shard, first, out, n, vocab_size);
}

Status data_shard_offset(const Shard *shard, int64_t i, int64_t *offset)
{
    CHECK(i >= 0 && i <= shard->info.n_docs);
    uint64_t value;
    TRY(file_map_copy(&shard->map, sizeof(ShardHeader) + (size_t)i * 8, &value, sizeof value));
    /* the file may have been changed since it was checked */
    *offset = (int64_t)(value <= (uint64_t)shard->info.n_tokens ? value
                                                                : (uint64_t)shard->info.n_tokens);
    return OK;
}

Status data_shard_ended(const Shard *shard, int64_t token, int64_t *n_ended)
{
    int64_t low = 0,
            high = shard->info.n_docs; /* document `low` - 1 has ended, document `high` has not */
    while (low < high) {
        int64_t middle = low + (high - low) / 2, end;
        TRY(data_shard_offset(shard, middle + 1, &end));
        if (end <= token)
            low = middle + 1;
        else
            high = middle;
    }
    *n_ended = low;
    return OK;
}
