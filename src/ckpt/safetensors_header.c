/* The header of a safetensors file: read in one pass, and checked completely before anything of the
 * file is used.
 *
 * The grammar is fixed ({name: {dtype, shape, data_offsets}}, and string pairs under __metadata__),
 * so it is scanned by hand here and not by jansson: no recursion, strings decoded in place, memory
 * below four times the header however it was made up. A tree of JSON values would need ten times
 * that.
 *
 * What must hold: known types, shapes whose byte count does not overflow and equals the extent,
 * extents that tile the data from 0 to the end of the file without hole or overlap, every name
 * once. */
#include <stdlib.h>
#include <string.h>

#include "ckpt/ckpt_internal.h"

/* name in the file, bits per element, our element type; in the reference writer's order of types */
static const struct {
    const char *name;
    int bits;
    DType dtype;
} types[] = {
    {"BOOL", 8, DTYPE_COUNT},
    {"F4", 4, DTYPE_COUNT},
    {"F6_E2M3", 6, DTYPE_COUNT},
    {"F6_E3M2", 6, DTYPE_COUNT},
    {"U8", 8, DTYPE_U8},
    {"I8", 8, DTYPE_I8},
    {"F8_E5M2", 8, DTYPE_F8_E5M2},
    {"F8_E4M3", 8, DTYPE_F8_E4M3},
    {"F8_E8M0", 8, DTYPE_COUNT},
    {"F8_E4M3FNUZ", 8, DTYPE_COUNT},
    {"F8_E5M2FNUZ", 8, DTYPE_COUNT},
    {"I16", 16, DTYPE_COUNT},
    {"U16", 16, DTYPE_COUNT},
    {"F16", 16, DTYPE_F16},
    {"BF16", 16, DTYPE_BF16},
    {"I32", 32, DTYPE_I32},
    {"U32", 32, DTYPE_COUNT},
    {"F32", 32, DTYPE_F32},
    {"C64", 64, DTYPE_COUNT},
    {"F64", 64, DTYPE_F64},
    {"I64", 64, DTYPE_I64},
    {"U64", 64, DTYPE_COUNT},
};

bool safetensors_type(const char *name, DType *dtype, int *bits)
{
    for (int i = 0; i < COUNT_OF(types); i++) {
        if (strcmp(types[i].name, name) != 0) continue;
        *dtype = types[i].dtype;
        *bits = types[i].bits;
        return true;
    }
    return false;
}

/* ---- scanning --------------------------------------------------------------------------- */

typedef struct Scan {
    const char *path;
    char *text;
    size_t n, i; /* text[i] is next */
} Scan;

static Status expected(const Scan *s, const char *what)
{
    if (s->i >= s->n)
        return fail(ERR_FORMAT, "%s: the header ends where %s should be", s->path, what);
    unsigned char c = (unsigned char)s->text[s->i];
    char shown[8];
    snprintf(shown, sizeof shown, c >= 0x20 && c < 0x7f ? "'%c'" : "0x%02x", c);
    return fail(ERR_FORMAT, "%s: header byte %zu is %s where %s should be", s->path, s->i, shown,
                what);
}

static void skip_space(Scan *s)
{
    while (s->i < s->n && s->text[s->i] && strchr(" \t\r\n", s->text[s->i])) s->i++;
}

/* Takes the character if it is next, after white space. */
static bool take(Scan *s, char c)
{
    skip_space(s);
    if (s->i >= s->n || s->text[s->i] != c) return false;
    s->i++;
    return true;
}

static Status need(Scan *s, char c)
{
    if (take(s, c)) return OK;
    return expected(s, (char[]){'\'', c, '\'', 0});
}

static bool hex4(const Scan *s, size_t at, uint32_t *value)
{
    if (s->n - at < 4) return false;
    uint32_t v = 0;
    for (size_t k = 0; k < 4; k++) {
        char c = s->text[at + k];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return false;
        v = v << 4 | digit;
    }
    *value = v;
    return true;
}

/* text[i] follows "\u". Writes UTF-8 at *to. Surrogates must come in pairs; a zero would end the
 * name early and is refused. */
static Status unicode_escape(Scan *s, size_t *to)
{
    uint32_t code, low;
    if (!hex4(s, s->i, &code)) return expected(s, "four hexadecimal digits");
    s->i += 4;
    if (code >= 0xd800 && code < 0xdc00) {
        bool pair = s->n - s->i >= 6 && s->text[s->i] == '\\' && s->text[s->i + 1] == 'u' &&
                    hex4(s, s->i + 2, &low) && low >= 0xdc00 && low < 0xe000;
        if (!pair) return expected(s, "the second half of a surrogate pair");
        s->i += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code == 0 || (code >= 0xdc00 && code < 0xe000)) {
        return fail(ERR_FORMAT, "%s: the escape before header byte %zu is no character", s->path,
                    s->i);
    }
    uint8_t bytes[4];
    int length = utf8_encode(code, bytes);
    memcpy(s->text + *to, bytes, (size_t)length);
    *to += (size_t)length;
    return OK;
}

/* A string, decoded in place (that never makes it longer) and ended by a zero byte. */
static Status scan_string(Scan *s, char **out)
{
    if (!take(s, '"')) return expected(s, "a string");
    size_t start = s->i, to = start;
    for (;;) {
        if (s->i >= s->n) return expected(s, "the end of a string");
        char c = s->text[s->i];
        if ((unsigned char)c < 0x20) return expected(s, "no control character");
        s->i++;
        if (c == '"') break;
        if (c != '\\') {
            s->text[to++] = c;
            continue;
        }
        if (s->i >= s->n) return expected(s, "an escaped character");
        static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
        const char *letter = s->text[s->i] ? strchr(letters, s->text[s->i]) : NULL;
        if (letter) {
            s->i++;
            s->text[to++] = values[letter - letters];
        } else if (s->text[s->i] == 'u') {
            s->i++;
            TRY(unicode_escape(s, &to));
        } else {
            return expected(s, "a JSON escape");
        }
    }
    s->text[to] = 0; /* at most where the closing quote was */
    *out = s->text + start;
    return OK;
}

static Status scan_count(Scan *s, uint64_t *out)
{
    skip_space(s);
    size_t start = s->i;
    uint64_t value = 0;
    for (; s->i < s->n && s->text[s->i] >= '0' && s->text[s->i] <= '9'; s->i++)
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(s->text[s->i] - '0'), &value))
            return fail(ERR_FORMAT, "%s: the number at header byte %zu is too large", s->path,
                        start);
    bool leading_zero = s->i - start > 1 && s->text[start] == '0';
    bool fraction = s->i < s->n && s->text[s->i] && strchr(".eE", s->text[s->i]);
    if (s->i == start || leading_zero || fraction)
        return expected(s, "a whole number, not negative");
    *out = value;
    return OK;
}

/* ---- one tensor ------------------------------------------------------------------------- */

static Status scan_shape(Scan *s, SafetensorsEntry *entry)
{
    TRY(need(s, '['));
    Shape shape = {0};
    if (!take(s, ']')) {
        do {
            uint64_t dim = 0;
            TRY(scan_count(s, &dim));
            if (dim > INT64_MAX)
                return fail(ERR_FORMAT, "%s: tensor %s has a dimension of %llu", s->path,
                            entry->name, (unsigned long long)dim);
            if (shape.rank == MAX_RANK)
                return fail(ERR_UNSUPPORTED, "%s: tensor %s has more than %d dimensions", s->path,
                            entry->name, MAX_RANK);
            shape.axis[shape.rank] = AXIS_ANY;
            shape.dim[shape.rank++] = (int64_t)dim;
        } while (take(s, ','));
        TRY(need(s, ']'));
    }
    entry->shape = shape;
    return OK;
}

/* data_offsets count from the end of the header; entry->offset from the start of the file. */
static Status scan_extent(Scan *s, SafetensorsEntry *entry, uint64_t data_bytes)
{
    uint64_t begin, end;
    TRY(need(s, '['));
    TRY(scan_count(s, &begin));
    TRY(need(s, ','));
    TRY(scan_count(s, &end));
    TRY(need(s, ']'));
    if (begin > end || end > data_bytes)
        return fail(ERR_FORMAT, "%s: tensor %s lies at bytes %llu to %llu of %llu bytes of data",
                    s->path, entry->name, (unsigned long long)begin, (unsigned long long)end,
                    (unsigned long long)data_bytes);
    entry->offset = begin;
    entry->bytes = end - begin;
    return OK;
}

static Status scan_type(Scan *s, SafetensorsEntry *entry, int *bits)
{
    char *name = NULL;
    TRY(scan_string(s, &name));
    CHECK(name);
    if (!safetensors_type(name, &entry->dtype, bits))
        return fail(ERR_FORMAT, "%s: tensor %s has the unknown type '%.40s'", s->path, entry->name,
                    name);
    entry->type_name = name;
    return OK;
}

static Status check_size(const Scan *s, const SafetensorsEntry *entry, int bits)
{
    uint64_t count = 1, all_bits;
    bool zero = false;
    for (int d = 0; d < entry->shape.rank; d++) {
        zero = zero || entry->shape.dim[d] == 0;
        /* refused even where a zero would hide it, as the reference reader multiplies in order */
        if (__builtin_mul_overflow(count, (uint64_t)entry->shape.dim[d], &count)) goto overflow;
    }
    if (__builtin_mul_overflow(count, (uint64_t)bits, &all_bits)) goto overflow;
    if (all_bits % 8 != 0 || all_bits / 8 != entry->bytes) {
        char text[SHAPE_TEXT];
        return fail(ERR_FORMAT, "%s: tensor %s is %s [%s], %llu bits, but has %llu bytes of data",
                    s->path, entry->name, entry->type_name, shape_text(&entry->shape, text),
                    (unsigned long long)all_bits, (unsigned long long)entry->bytes);
    }
    return OK;
overflow:
    return fail(ERR_FORMAT, "%s: the size of tensor %s overflows", s->path, entry->name);
}

/* {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]} in any order, each key once. */
static Status scan_tensor(Scan *s, SafetensorsEntry *entry, uint64_t data_bytes)
{
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    unsigned seen = 0;
    int bits = 0;
    TRY(need(s, '{'));
    for (int k = 0; k < 3; k++) {
        char *key;
        if (k > 0) TRY(need(s, ','));
        TRY(scan_string(s, &key));
        TRY(need(s, ':'));
        int which = 0;
        while (which < 3 && strcmp(keys[which], key) != 0) which++;
        if (which == 3 || (seen >> which & 1))
            return fail(ERR_FORMAT, "%s: tensor %s has the key '%.40s' %s", s->path, entry->name,
                        key, which == 3 ? "that the format does not know" : "twice");
        seen |= 1u << which;
        if (which == 0) TRY(scan_type(s, entry, &bits));
        if (which == 1) TRY(scan_shape(s, entry));
        if (which == 2) TRY(scan_extent(s, entry, data_bytes));
    }
    TRY(need(s, '}'));
    return check_size(s, entry, bits);
}

static Status scan_metadata(Scan *s)
{
    TRY(need(s, '{'));
    if (take(s, '}')) return OK;
    do {
        char *ignored;
        TRY(scan_string(s, &ignored));
        TRY(need(s, ':'));
        TRY(scan_string(s, &ignored));
    } while (take(s, ','));
    return need(s, '}');
}

/* ---- all of them ------------------------------------------------------------------------ */

static int by_offset(const void *a, const void *b)
{
    const SafetensorsEntry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones first */
    return strcmp(x->name, y->name);
}

static int by_entry_name(const void *a, const void *b, void *entries)
{
    const SafetensorsEntry *all = entries;
    return strcmp(all[*(const int *)a].name, all[*(const int *)b].name);
}

static Status check_tiling(Safetensors *file, uint64_t data_bytes)
{
    const char *path = file->map.path;
    qsort(file->entries, (size_t)file->n, sizeof *file->entries, by_offset);
    uint64_t end = 0;
    for (int i = 0; i < file->n; i++) {
        SafetensorsEntry *entry = &file->entries[i];
        if (entry->offset != end)
            return fail(
                ERR_FORMAT,
                "%s: tensor %s begins at data byte %llu, but the one before it ends at %llu", path,
                entry->name, (unsigned long long)entry->offset, (unsigned long long)end);
        end += entry->bytes;
        entry->offset += file->header_bytes;
    }
    if (end != data_bytes)
        return fail(ERR_FORMAT, "%s has %llu bytes after the last tensor", path,
                    (unsigned long long)(data_bytes - end));
    return OK;
}

static Status check_names(Safetensors *file)
{
    file->by_name = xmalloc(sizeof(int) * (size_t)file->n);
    for (int i = 0; i < file->n; i++) file->by_name[i] = i;
    qsort_r(file->by_name, (size_t)file->n, sizeof(int), by_entry_name, file->entries);
    for (int i = 1; i < file->n; i++) {
        const char *name = file->entries[file->by_name[i]].name;
        if (!strcmp(name, file->entries[file->by_name[i - 1]].name))
            return fail(ERR_FORMAT, "%s: tensor %s is there twice", file->map.path, name);
    }
    return OK;
}

static Status scan_entries(Scan *s, Safetensors *file, size_t capacity, uint64_t data_bytes)
{
    bool metadata = false;
    TRY(need(s, '{'));
    if (take(s, '}')) return OK;
    do {
        char *name;
        TRY(scan_string(s, &name));
        TRY(need(s, ':'));
        if (!strcmp(name, "__metadata__")) {
            if (metadata) return fail(ERR_FORMAT, "%s: __metadata__ is there twice", s->path);
            metadata = true;
            TRY(scan_metadata(s));
            continue;
        }
        CHECK((size_t)file->n < capacity);
        SafetensorsEntry *entry = &file->entries[file->n];
        *entry = (SafetensorsEntry){.name = name, .file = file};
        TRY(scan_tensor(s, entry, data_bytes));
        file->n++;
    } while (take(s, ','));
    return need(s, '}');
}

Status safetensors_parse_header(Safetensors *file, size_t n)
{
    /* the shortest entry, "":{"dtype":"U8","shape":[],"data_offsets":[0,0]} and a comma, has 50
     * bytes;
     * an entry that fails half way may be one more */
    enum { SHORTEST_ENTRY = 49 };
    Scan s = {.path = file->map.path, .text = file->text, .n = n};
    uint64_t data_bytes = file->map.n - file->header_bytes;
    if (!utf8_valid((const uint8_t *)s.text, n))
        return fail(ERR_FORMAT, "%s: the header is not UTF-8", s.path);
    if (n == 0 || s.text[0] != '{') return expected(&s, "'{'");
    size_t capacity = n / SHORTEST_ENTRY + 2;
    file->entries = xmalloc(sizeof *file->entries * capacity);
    TRY(scan_entries(&s, file, capacity, data_bytes));
    skip_space(&s);
    if (s.i < n) return expected(&s, "the end of the header");
    TRY(check_tiling(file, data_bytes));
    return check_names(file);
}
