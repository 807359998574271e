/* CSV as in RFC 4180: quoted fields, doubled quotes, lines ended by LF or CR LF. */
#include "published/published.h"

#include <stdlib.h>
#include <string.h>

typedef struct Reader {
    Arena *arena;
    const char *path;
    const char *at, *end;
    int line;
} Reader;

typedef VEC(char *) Fields;

/* Up to the closing quote, which must be followed by a comma or the line's end. */
static Status read_quoted(Reader *r, char **field)
{
    Str text = {0};
    int first = r->line;
    Status status = OK;
    for (r->at++;; r->at++) {
        if (r->at == r->end) {
            status = fail(ERR_FORMAT, "%s:%d: a quote is never closed", r->path, first);
            break;
        }
        if (*r->at == '\n') r->line++;
        if (*r->at == '"') {
            if (r->at + 1 == r->end || r->at[1] != '"') break;
            r->at++;
        }
        str_add_n(&text, r->at, 1);
    }
    if (status == OK) {
        r->at++;
        if (r->at < r->end && !strchr(",\r\n", *r->at))
            status = fail(ERR_FORMAT, "%s:%d: behind a closing quote a comma is wanted", r->path,
                          r->line);
    }
    if (status == OK) *field = arena_strndup(r->arena, text.at ? text.at : "", text.n);
    str_deinit(&text);
    return status;
}

static void read_plain(Reader *r, char **field)
{
    const char *begin = r->at;
    while (r->at < r->end && !strchr(",\n", *r->at)) r->at++;
    size_t n = (size_t)(r->at - begin);
    if (n && begin[n - 1] == '\r') n--;
    *field = arena_strndup(r->arena, begin, n);
}

/* One line, its end included. */
static Status read_line(Reader *r, Fields *fields)
{
    for (fields->n = 0;;) {
        char *field;
        if (r->at < r->end && *r->at == '"')
            TRY(read_quoted(r, &field));
        else
            read_plain(r, &field);
        if (fields->n == CSV_MAX_COLUMNS)
            return fail(ERR_FORMAT, "%s:%d: more than %d columns", r->path, r->line,
                        CSV_MAX_COLUMNS);
        VEC_PUSH(fields, field);
        if (r->at < r->end && *r->at == ',') {
            r->at++;
            continue;
        }
        if (r->at < r->end && *r->at == '\r') r->at++;
        if (r->at < r->end && *r->at == '\n') r->at++;
        r->line++;
        return OK;
    }
}

static Status read_rows(Reader *r, Fields *fields, Csv *csv)
{
    VEC(char **) rows = {0};
    VEC(int) lines = {0};
    Status status = read_line(r, fields);
    csv->columns = (int)fields->n;
    csv->name = arena_copy(r->arena, fields->at, fields->n * sizeof *fields->at);
    while (status == OK && r->at < r->end) {
        int line = r->line;
        status = read_line(r, fields);
        if (status == OK && fields->n == 1 && !*fields->at[0]) continue; /* an empty line */
        if (status == OK && (int)fields->n != csv->columns)
            status = fail(ERR_FORMAT, "%s:%d: %zu fields; the first line names %d", r->path, line,
                          fields->n, csv->columns);
        if (status != OK) break;
        char **row = arena_copy(r->arena, fields->at, fields->n * sizeof *fields->at);
        VEC_PUSH(&rows, row);
        VEC_PUSH(&lines, line);
    }
    csv->rows = (int)rows.n;
    csv->field = arena_copy(r->arena, rows.at, rows.n * sizeof *rows.at);
    csv->line = arena_copy(r->arena, lines.at, lines.n * sizeof *lines.at);
    VEC_FREE(&rows);
    VEC_FREE(&lines);
    return status;
}

Status csv_parse(Arena *arena, Bytes text, const char *path, Csv *csv)
{
    Reader r = {arena, path, (const char *)text.at, (const char *)text.at + text.n, 1};
    Fields fields = {0};
    Csv read = {.path = path};
    if (text.n > CSV_MAX_BYTES)
        return fail(ERR_FORMAT, "%s has %zu bytes; at most %d are read", path, text.n,
                    CSV_MAX_BYTES);
    if (memchr(text.at, 0, text.n)) return fail(ERR_FORMAT, "%s contains a zero byte", path);
    if (!utf8_valid(text.at, text.n)) return fail(ERR_FORMAT, "%s is not UTF-8", path);
    if (text.n == 0)
        return fail(ERR_FORMAT, "%s is empty; a first line with the names of columns is wanted",
                    path);
    Status status = read_rows(&r, &fields, &read);
    VEC_FREE(&fields);
    if (status == OK) *csv = read;
    return status;
}

int csv_column(const Csv *csv, const char *name)
{
    for (int i = 0; i < csv->columns; i++)
        if (!strcmp(csv->name[i], name)) return i;
    return -1;
}
