/* Calls as a list of Python: [get_weather(city="Bern", days=3), now()].
 *
 * Read are keyword arguments whose values are literals: texts, numbers, True, False, None, lists
 * and dictionaries. Anything else of Python is no call.
 */
#include "chat/chat_internal.h"

#include <ctype.h>
#include <stdlib.h>

enum { MAX_DEPTH = 32, MAX_NUMBER_BYTES = 64 };

typedef struct PyReader {
    Bytes text;
    size_t at;
} PyReader;

static int peek(const PyReader *r) { return r->at < r->text.n ? r->text.at[r->at] : -1; }

static void skip_blanks(PyReader *r)
{
    while (r->at < r->text.n && isspace(r->text.at[r->at])) r->at++;
}

/* The character, with white space around it. */
static bool take(PyReader *r, char c)
{
    skip_blanks(r);
    if (peek(r) != c) return false;
    r->at++;
    skip_blanks(r);
    return true;
}

/* A name, with dots if `dotted`; empty when there is none. */
static Bytes read_name(PyReader *r, bool dotted)
{
    size_t start = r->at;
    while (r->at < r->text.n) {
        uint8_t c = r->text.at[r->at];
        bool good = isalpha(c) || c == '_' ||
                    (r->at > start && (isdigit(c) || (dotted && c == '.')));
        if (!good) break;
        r->at++;
    }
    return (Bytes){r->text.at + start, r->at - start};
}

static json_t *read_value(PyReader *r, int depth);

/* ---- texts ------------------------------------------------------------------------------ */

static bool read_hex(PyReader *r, int digits, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < digits; i++) {
        int c = peek(r);
        if (c < 0 || !isxdigit(c)) return false;
        *value = *value << 4 | (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        r->at++;
    }
    return true;
}

/* Behind the backslash. */
static bool read_escape(PyReader *r, Str *out)
{
    static const char from[] = "\\'\"nrtabfv", to[] = "\\'\"\n\r\t\a\b\f\v";
    int c = peek(r);
    const char *known = c > 0 ? strchr(from, c) : NULL;
    r->at++;
    if (known) {
        str_add_n(out, &to[known - from], 1);
        return true;
    }
    uint32_t code_point;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (!digits || !read_hex(r, digits, &code_point)) return false;
    if (code_point > 0x10ffff || (code_point >= 0xd800 && code_point < 0xe000)) return false;
    uint8_t utf8[4];
    str_add_n(out, (const char *)utf8, (size_t)utf8_encode(code_point, utf8));
    return true;
}

static json_t *read_text(PyReader *r)
{
    int quote = r->text.at[r->at++];
    Str out = {0};
    bool good = true;
    while (good && peek(r) != quote) {
        int c = peek(r);
        good = c >= 0 && c != '\n';
        r->at++;
        char byte = (char)c;
        if (good && c == '\\')
            good = read_escape(r, &out);
        else if (good)
            str_add_n(&out, &byte, 1);
    }
    r->at++;
    json_t *text = good ? json_stringn(out.n ? out.at : "", out.n)
                        : NULL; /* NULL too when it is no UTF-8 */
    str_deinit(&out);
    return text;
}

/* ---- other values ----------------------------------------------------------------------- */

static json_t *read_number(PyReader *r)
{
    char word[MAX_NUMBER_BYTES];
    size_t n = 0;
    for (int c; n < sizeof word - 1 && (c = peek(r)) >= 0 && (isdigit(c) || strchr("+-.eE", c));
         r->at++)
        word[n++] = (char)c;
    word[n] = 0;
    int64_t whole;
    double real;
    if (parse_i64(word, &whole)) return json_integer(whole);
    return parse_f64(word, &real) ? json_real(real) : NULL;
}

static json_t *read_constant(PyReader *r)
{
    Bytes name = read_name(r, false);
    if (bytes_equal(name, "True") || bytes_equal(name, "true")) return json_true();
    if (bytes_equal(name, "False") || bytes_equal(name, "false")) return json_false();
    return bytes_equal(name, "None") || bytes_equal(name, "null") ? json_null() : NULL;
}

static json_t *read_list(PyReader *r, int depth)
{
    json_t *list = json_array();
    take(r, '[');
    while (peek(r) != ']') {
        json_t *value = read_value(r, depth + 1);
        if (!value || json_array_append_new(list, value) != 0 ||
            (!take(r, ',') && peek(r) != ']')) {
            json_decref(list);
            return NULL;
        }
    }
    r->at++;
    return list;
}

static bool read_entry(PyReader *r, json_t *object, int depth)
{
    json_t *key = peek(r) == '"' || peek(r) == '\'' ? read_text(r) : NULL;
    json_t *value = key && take(r, ':') ? read_value(r, depth + 1) : NULL;
    bool good = value && strlen(json_string_value(key)) == json_string_length(key) &&
                !json_object_get(object, json_string_value(key)) &&
                json_object_set(object, json_string_value(key), value) == 0;
    json_decref(key);
    json_decref(value);
    return good && (take(r, ',') || peek(r) == '}');
}

static json_t *read_dictionary(PyReader *r, int depth)
{
    json_t *object = json_object();
    take(r, '{');
    while (peek(r) != '}') {
        if (!read_entry(r, object, depth)) {
            json_decref(object);
            return NULL;
        }
    }
    r->at++;
    return object;
}

/* A new reference, or NULL; behind it white space is skipped. */
static json_t *read_value(PyReader *r, int depth)
{
    int c = peek(r);
    json_t *value = NULL;
    if (depth > MAX_DEPTH) return NULL;
    if (c == '"' || c == '\'')
        value = read_text(r);
    else if (c == '[')
        value = read_list(r, depth);
    else if (c == '{')
        value = read_dictionary(r, depth);
    else if (c == '-' || (c >= '0' && c <= '9'))
        value = read_number(r);
    else
        value = read_constant(r);
    if (value) skip_blanks(r);
    return value;
}

/* ---- calls ------------------------------------------------------------------------------ */

/* key=value, ... to the closing bracket. */
static bool read_arguments(PyReader *r, json_t *arguments)
{
    while (peek(r) != ')') {
        char key[MAX_NAME_BYTES + 1];
        Bytes name = read_name(r, false);
        if (name.n == 0 || name.n > MAX_NAME_BYTES || !take(r, '=')) return false;
        memcpy(key, name.at, name.n);
        key[name.n] = 0;
        if (json_object_get(arguments, key)) return false;
        json_t *value = read_value(r, 0);
        if (!value || json_object_set_new(arguments, key, value) != 0) return false;
        if (!take(r, ',') && peek(r) != ')') return false;
    }
    r->at++;
    return true;
}

static bool read_call(PyReader *r, Arena *arena, ChatCalls *calls)
{
    Bytes name = read_name(r, true);
    if (name.n == 0 || !take(r, '(')) return false;
    json_t *arguments = json_object();
    ChatCall call;
    bool good = read_arguments(r, arguments) &&
                chat_make_call(arena, name, arguments, "call", &call) == OK;
    json_decref(arguments);
    if (good) VEC_PUSH(calls, call);
    return good;
}

bool pycall_parse(Arena *arena, Bytes text, ChatCalls *calls)
{
    PyReader r = {.text = text};
    size_t n = calls->n;
    bool good = take(&r, '[');
    while (good && peek(&r) != ']')
        good = read_call(&r, arena, calls) && (take(&r, ',') || (skip_blanks(&r), peek(&r) == ']'));
    r.at++;
    skip_blanks(&r);
    if (good && calls->n > n && r.at >= r.text.n) return true;
    calls->n = n;
    return false;
}
