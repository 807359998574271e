/* The bytes of a file, unpacked as they are read: memory stays bounded whatever the file claims. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum {
    INPUT_BYTES = 1 << 17,
    MAX_WINDOW_LOG = 27, /* 128 MiB: what zstd's own tool accepts; larger ones are refused */
};

struct ByteStream {
    const SourceFile *file;
    int fd;
    uint64_t done_bytes; /* read from the file */
    size_t at, n;        /* what of input is still to be unpacked */
    bool inside;         /* a gzip member or zstd frame has begun and not ended */
    z_stream gzip;
    ZSTD_DStream *zstd;
    uint8_t input[INPUT_BYTES];
};

Status data_stream_open(const SourceFile *file, ByteStream **out)
{
    ByteStream *s = xcalloc(1, sizeof *s);
    s->file = file;
    Status status = file_open_read(file->path, &s->fd);
    if (status != OK) {
        free(s);
        return status;
    }
    if (file->packing == PACKING_GZIP && inflateInit2(&s->gzip, 15 + 16) != Z_OK)
        status = fail(ERR_MEMORY, "%s: no memory to unpack gzip", file->path);
    if (file->packing == PACKING_ZSTD) {
        s->zstd = ZSTD_createDStream();
        if (!s->zstd)
            status = fail(ERR_MEMORY, "%s: no memory to unpack zstd", file->path);
        else
            ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, MAX_WINDOW_LOG);
    }
    if (status != OK)
        data_stream_close(s);
    else
        *out = s;
    return status;
}

void data_stream_close(ByteStream *s)
{
    if (!s) return;
    if (s->file->packing == PACKING_GZIP) inflateEnd(&s->gzip);
    ZSTD_freeDStream(s->zstd);
    close(s->fd); /* only read from */
    free(s);
}

uint64_t data_stream_done_bytes(const ByteStream *s) { return s->done_bytes; }

/* The file ends where it ended when it was listed: what is appended meanwhile belongs to a later
 * run. */
static Status read_file(ByteStream *s, void *out, size_t cap, size_t *n)
{
    uint64_t left = s->file->bytes - s->done_bytes;
    *n = left < cap ? (size_t)left : cap;
    if (*n) TRY(file_pread(s->fd, out, *n, s->done_bytes, s->file->path));
    s->done_bytes += *n;
    return OK;
}

static Status refill(ByteStream *s)
{
    if (s->at < s->n) return OK;
    s->at = s->n = 0;
    return read_file(s, s->input, INPUT_BYTES, &s->n);
}

static Status truncated(const ByteStream *s)
{
    return fail(ERR_FORMAT, "%s ends in the middle of its compressed data", s->file->path);
}

static Status read_gzip(ByteStream *s, void *out, size_t cap, size_t *n)
{
    s->gzip.next_out = out;
    s->gzip.avail_out = (unsigned)(cap < INPUT_BYTES ? cap : INPUT_BYTES);
    unsigned wanted = s->gzip.avail_out;
    while (s->gzip.avail_out == wanted) { /* until something came out */
        TRY(refill(s));
        if (s->at == s->n) {
            if (s->inside || !s->done_bytes) return truncated(s);
            break;
        }
        if (!s->inside) inflateReset(&s->gzip); /* members may follow one another */
        s->inside = true;
        s->gzip.next_in = s->input + s->at;
        s->gzip.avail_in = (unsigned)(s->n - s->at);
        int result = inflate(&s->gzip, Z_NO_FLUSH);
        s->at = s->n - s->gzip.avail_in;
        if (result == Z_STREAM_END)
            s->inside = false;
        else if (result != Z_OK && result != Z_BUF_ERROR)
            return fail(ERR_FORMAT, "%s: damaged gzip data before byte %llu (%s)", s->file->path,
                        (unsigned long long)s->done_bytes, s->gzip.msg ? s->gzip.msg : "not gzip");
    }
    *n = wanted - s->gzip.avail_out;
    return OK;
}

static Status read_zstd(ByteStream *s, void *out, size_t cap, size_t *n)
{
    ZSTD_outBuffer output = {out, cap, 0};
    while (output.pos == 0) {
        TRY(refill(s));
        /* with no input left, zstd may still hold output of a frame that has not ended */
        bool ended = s->at == s->n;
        if (ended && !s->inside) break;
        ZSTD_inBuffer input = {s->input, s->n, s->at};
        size_t result = ZSTD_decompressStream(s->zstd, &output, &input);
        if (ZSTD_isError(result))
            return fail(ERR_FORMAT, "%s: damaged zstd data before byte %llu (%s)", s->file->path,
                        (unsigned long long)s->done_bytes, ZSTD_getErrorName(result));
        s->at = input.pos;
        s->inside = result != 0;
        if (ended && s->inside && output.pos == 0) return truncated(s);
    }
    *n = output.pos;
    return OK;
}

Status data_stream_read(ByteStream *s, void *out, size_t cap, size_t *n)
{
    switch (s->file->packing) {
    case PACKING_NONE: return read_file(s, out, cap, n);
    case PACKING_GZIP: return read_gzip(s, out, cap, n);
    case PACKING_ZSTD: return read_zstd(s, out, cap, n);
    }
    return OK;
}
