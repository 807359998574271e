/* The documents of a file: a JSON line each, or the whole text.
 *
 * Damage never ends the process and is never silent: a line that is too long is passed over and
 * counted as a bad record, a compressed file that breaks off gives one bad record at its end. */
#include "data/data_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    READ_BYTES = 1 << 16,
    ENDLESS = 16, /* a line of so many limits is given up together with the rest of its file */
    MAX_BLANKS = 1 << 20, /* blank lines on end: a file that unpacks to nothing else is given up */
};

struct Reader {
    const SourceFile *file;
    ByteStream *stream;
    size_t line_limit;
    uint8_t *buffer; /* [0, at) was given out, [at, n) is to come */
    size_t at, n, cap, checked;
    bool ended; /* the stream has no more */
    bool any;   /* of a text: a document was given out */
    int64_t line;
};

Status data_reader_open(const SourceFile *file, size_t line_limit, Reader **out)
{
    ByteStream *stream = NULL;
    TRY(data_stream_open(file, &stream));
    Reader *r = xcalloc(1, sizeof *r);
    r->file = file;
    r->stream = stream;
    r->line_limit = line_limit;
    *out = r;
    return OK;
}

void data_reader_close(Reader *r)
{
    if (!r) return;
    data_stream_close(r->stream);
    free(r->buffer);
    free(r);
}

uint64_t data_reader_done_bytes(const Reader *r) { return data_stream_done_bytes(r->stream); }

static void bad(Record *record, const char *why)
{
    record->bad = true;
    snprintf(record->why, sizeof record->why, "%s", why);
}

/* More bytes behind n. Damage ends the stream and becomes a bad record; what the operating system
 * refuses is an error of the run. */
static Status more(Reader *r, Record *record)
{
    if (r->at && r->buffer) {
        memmove(r->buffer, r->buffer + r->at, r->n - r->at);
        r->n -= r->at;
        r->checked -= r->at;
        r->at = 0;
    }
    if (r->cap - r->n < READ_BYTES) {
        r->cap = r->cap ? 2 * r->cap : (size_t)4 * READ_BYTES;
        r->buffer = xrealloc(r->buffer, r->cap);
    }
    size_t n = 0;
    Status status = data_stream_read(r->stream, r->buffer + r->n, READ_BYTES, &n);
    if (status == ERR_FORMAT) {
        bad(record, status_message());
        r->ended = true;
        r->n = r->at; /* a torn line is no record */
        return OK;
    }
    r->n += n;
    r->ended = status == OK && n == 0;
    return status;
}

/* Passes over a line that is too long, in bounded memory. */
static Status skip_line(Reader *r, Record *record)
{
    uint64_t skipped = r->n - r->at;
    for (;;) {
        const uint8_t *newline = memchr(r->buffer + r->at, '\n', r->n - r->at);
        if (newline || r->ended) {
            r->at = r->checked = newline ? (size_t)(newline - r->buffer) + 1 : r->n;
            bad(record, "longer than dataset.line_limit");
            return OK;
        }
        if (skipped > (uint64_t)r->line_limit * ENDLESS) {
            r->at = r->checked = r->n;
            r->ended = true;
            bad(record, "an endless line; the rest of the file was not read");
            return OK;
        }
        r->at = r->checked = r->n;
        TRY(more(r, record));
        if (record->bad) return OK;
        skipped += r->n;
    }
}

static bool is_blank(uint8_t c) { return c == ' ' || c == '\t' || c == '\r'; }

static Status next_line(Reader *r, Record *record)
{
    for (int64_t blanks = 0;; blanks++) {
        const uint8_t *newline;
        while (!(newline = memchr(r->buffer + r->checked, '\n', r->n - r->checked)) && !r->ended) {
            r->checked = r->n;
            if (r->n - r->at > r->line_limit) {
                record->line = ++r->line;
                return skip_line(r, record);
            }
            TRY(more(r, record));
            if (record->bad) {
                record->line = r->line + 1;
                return OK;
            }
        }
        size_t begin = r->at, end = newline ? (size_t)(newline - r->buffer) : r->n;
        if (!newline && begin == end) return OK; /* the end */
        r->at = r->checked = end + (newline != NULL);
        record->line = ++r->line;
        while (begin < end && is_blank(r->buffer[begin])) begin++;
        if (begin == end && blanks < MAX_BLANKS) continue;
        record->bytes = (Bytes){r->buffer + begin, end - begin};
        if (begin == end) {
            bad(record, "a million blank lines; the rest of the file was not read");
            r->ended = true;
            r->at = r->checked = r->n;
        } else if (end - begin > r->line_limit)
            bad(record, "longer than dataset.line_limit");
        return OK;
    }
}

/* Where to cut a text that is longer than the limit: after the last line end in its latter half,
 * else before a byte that begins a character. */
static size_t cut(const uint8_t *text, size_t limit)
{
    const uint8_t *newline = memrchr(text + limit / 2, '\n', limit - limit / 2);
    if (newline) return (size_t)(newline - text) + 1;
    size_t n = limit;
    while (n > limit - 4 && (text[n] & 0xc0) == 0x80) n--;
    return n;
}

static Status next_text(Reader *r, Record *record)
{
    while (!r->ended && r->n - r->at <= r->line_limit) {
        TRY(more(r, record));
        if (record->bad) return OK;
    }
    size_t n = r->n - r->at;
    if (n == 0) return OK;
    if (n > r->line_limit) n = cut(r->buffer + r->at, r->line_limit);
    record->bytes = (Bytes){r->buffer + r->at, n};
    r->at = r->checked = r->at + n;
    return OK;
}

Status data_reader_next(Reader *r, Record *record)
{
    *record = (Record){.json = r->file->json};
    if (r->ended && r->at == r->n) return OK;
    if (!r->buffer) { /* memchr must not see a null pointer */
        TRY(more(r, record));
        if (record->bad) return OK;
        CHECK(r->buffer);
    }
    return r->file->json ? next_line(r, record) : next_text(r, record);
}

/* ---- records ---------------------------------------------------------------------------- */

bool data_is_text(Bytes bytes)
{
    return !memchr(bytes.at, 0, bytes.n) && utf8_valid(bytes.at, bytes.n);
}

bool data_record_text(const Record *record, const char *key, TextHolder *holder, Bytes *text,
                      char why[MAX_WHY])
{
    holder->json = NULL;
    if (!record->json) {
        *text = record->bytes;
        return true;
    }
    json_error_t error;
    json_t *root = json_loadb((const char *)record->bytes.at, record->bytes.n,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) {
        snprintf(why, MAX_WHY, "not JSON: %.120s", error.text);
        return false;
    }
    json_t *value = json_is_object(root) ? json_object_get(root, key) : NULL;
    if (!json_is_string(value)) {
        if (!json_is_object(root))
            snprintf(why, MAX_WHY, "not a JSON object");
        else if (value)
            snprintf(why, MAX_WHY, "its field %.80s is no text", key);
        else
            snprintf(why, MAX_WHY, "it has no field %.80s", key);
        json_decref(root);
        return false;
    }
    *text = (Bytes){(const uint8_t *)json_string_value(value), json_string_length(value)};
    holder->json = root;
    return true;
}

void data_text_release(TextHolder *holder)
{
    json_decref(holder->json);
    holder->json = NULL;
}

double data_holdout_place(uint64_t text_hash)
{
    /* a key of its own and no seed: runs with other seeds are judged on the same documents */
    return rng_uniform(rng_key(0, "data/holdout"), text_hash);
}
