/* JSON to text exactly as Python's json.dumps writes it with ensure_ascii off.
 *
 * Templates write tools and arguments through it, so every separator counts: on one line ", " and
 * ": ", indented "," before the newline, and empty lists and objects without one. Reals are what
 * repr gives: the fewest digits that read back as the same number.
 */
#include "chat/chat_internal.h"

#include <math.h>
#include <stdlib.h>

typedef struct JsonWriter {
    Str *out;
    int indent;
    size_t start, max_bytes; /* out->n at the beginning; what may be added */
    const char *name;
} JsonWriter;

void chat_json_string(Bytes text, Str *out)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    str_add(out, "\"");
    for (size_t i = 0, plain = 0; i <= text.n; i++) {
        const char *at = i < text.n && text.at[i] ? strchr(from, text.at[i]) : NULL;
        bool is_control = i < text.n && text.at[i] < 0x20;
        if (i < text.n && !at && !is_control) continue;
        if (i > plain) str_add_n(out, (const char *)text.at + plain, i - plain);
        if (at) {
            char pair[2] = {'\\', to[at - from]};
            str_add_n(out, pair, 2);
        } else if (is_control) {
            str_printf(out, "\\u%04x", text.at[i]);
        }
        plain = i + 1;
    }
    str_add(out, "\"");
}

/* Digits d1 d2 ... dn and exponent e of d1.d2...dn x 10^e, as few as read back. */
static int shortest_digits(double value, char digits[20], int *exponent)
{
    char text[40];
    int precision = 0;
    do snprintf(text, sizeof text, "%.*e", precision, value);
    while (strtod(text, NULL) != value && ++precision < 17);
    int n = 0;
    const char *c = text;
    for (; *c && *c != 'e'; c++)
        if (*c >= '0' && *c <= '9') digits[n++] = *c;
    *exponent = (int)strtol(c + 1, NULL, 10);
    while (n > 1 && digits[n - 1] == '0') n--;
    return n;
}

/* repr(float): plain notation for exponents from -4 to 15, always with a point or an exponent. */
static void add_real(Str *out, double value)
{
    char digits[20];
    int exponent, n = shortest_digits(fabs(value), digits, &exponent);
    if (signbit(value)) str_add(out, "-");
    if (exponent < -4 || exponent > 15) {
        str_add_n(out, digits, 1);
        if (n > 1) str_add(out, ".");
        if (n > 1) str_add_n(out, digits + 1, (size_t)n - 1);
        str_printf(out, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    if (exponent < 0) {
        str_add(out, "0.");
        for (int i = -1; i > exponent; i--) str_add(out, "0");
        str_add_n(out, digits, (size_t)n);
        return;
    }
    for (int i = 0; i <= exponent; i++) str_add_n(out, i < n ? &digits[i] : "0", 1);
    str_add(out, ".");
    if (n > exponent + 1)
        str_add_n(out, digits + exponent + 1, (size_t)(n - exponent - 1));
    else
        str_add(out, "0");
}

static void add_break(JsonWriter *w, int depth)
{
    if (!w->indent) return;
    str_add(w->out, "\n");
    for (int i = 0; i < w->indent * depth; i++) str_add_n(w->out, " ", 1);
}

static const char *comma(const JsonWriter *w, bool is_first)
{
    return is_first ? "" : w->indent ? "," : ", ";
}

static Status add_value(JsonWriter *w, const json_t *value, int depth);

static Status add_list(JsonWriter *w, const json_t *list, int depth)
{
    size_t n = json_array_size(list);
    str_add(w->out, "[");
    for (size_t i = 0; i < n; i++) {
        str_add(w->out, comma(w, i == 0));
        add_break(w, depth + 1);
        TRY(add_value(w, json_array_get(list, i), depth + 1));
    }
    if (n) add_break(w, depth);
    str_add(w->out, "]");
    return OK;
}

static Status add_object(JsonWriter *w, const json_t *object, int depth)
{
    const char *key;
    size_t key_n;
    json_t *value;
    bool is_first = true;
    str_add(w->out, "{");
    json_object_keylen_foreach((json_t *)(uintptr_t)object, key, key_n, value)
    {
        str_add(w->out, comma(w, is_first));
        is_first = false;
        add_break(w, depth + 1);
        chat_json_string((Bytes){(const uint8_t *)key, key_n}, w->out);
        str_add(w->out, ": ");
        TRY(add_value(w, value, depth + 1));
    }
    if (!is_first) add_break(w, depth);
    str_add(w->out, "}");
    return OK;
}

static Status add_value(JsonWriter *w, const json_t *value, int depth)
{
    if (depth > MAX_JSON_DEPTH)
        return fail(ERR_REFUSED, "%s: values nested deeper than %d", w->name, MAX_JSON_DEPTH);
    if (w->out->n - w->start > w->max_bytes)
        return fail(ERR_REFUSED, "%s: more than %zu bytes of JSON", w->name, w->max_bytes);
    switch (json_typeof(value)) {
    case JSON_OBJECT: return add_object(w, value, depth);
    case JSON_ARRAY: return add_list(w, value, depth);
    case JSON_STRING:
        chat_json_string(
            (Bytes){(const uint8_t *)json_string_value(value), json_string_length(value)}, w->out);
        return OK;
    case JSON_INTEGER: str_printf(w->out, "%lld", (long long)json_integer_value(value)); return OK;
    case JSON_REAL: add_real(w->out, json_real_value(value)); return OK;
    case JSON_TRUE: str_add(w->out, "true"); return OK;
    case JSON_FALSE: str_add(w->out, "false"); return OK;
    case JSON_NULL: break;
    }
    str_add(w->out, "null");
    return OK;
}

Status chat_json_write(const json_t *value, int indent, size_t max_bytes, const char *name,
                       Str *out)
{
    JsonWriter w = {out, indent, out->n, max_bytes, name};
    TRY(add_value(&w, value, 0));
    return out->n - w.start > max_bytes
               ? fail(ERR_REFUSED, "%s: more than %zu bytes of JSON", name, max_bytes)
               : OK;
}
