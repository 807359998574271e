/* Values of settings: read from a scalar, written as they stand in a file. */
#include "setting/setting.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void add_limit(const Setting *s, double value, Str *out)
{
    char buf[32];
    if (s->type == SETTING_BYTES && value >= 1e3)
        str_add(out, format_bytes(value, buf));
    else
        str_printf(out, "%.16g", value);
}

void setting_range_text(const Setting *s, Str *out)
{
    switch (s->type) {
    case SETTING_INT:
    case SETTING_FLOAT:
    case SETTING_RANGE:
    case SETTING_BYTES:
        add_limit(s, s->min, out);
        if (s->max == s->min) return;
        str_add(out, " to ");
        add_limit(s, s->max, out);
        return;
    case SETTING_BOOL: str_add(out, "true or false"); return;
    case SETTING_TEXT: str_add(out, "text"); return;
    case SETTING_CHOICE:
        for (const char *c = s->choices; *c; c++) {
            if (*c == '|')
                str_add(out, strchr(c + 1, '|') ? ", " : " or ");
            else
                str_add_n(out, c, 1);
        }
        return;
    }
}

static void *field_of(const Setting *s, void *base) { return (char *)base + s->offset; }

static Status wrong(Arena *arena, const Setting *s, const SettingNode *node, const char *wanted)
{
    Str range = {0};
    setting_range_text(s, &range);
    const char *got = node->kind == NODE_LIST  ? "a list"
                      : node->kind == NODE_MAP ? "a mapping"
                                               : NULL;
    Status status = got ? fail(ERR_ARG, "%s: %s is %s; %s is wanted (%s)",
                               setting_node_where(arena, node), s->name, got, wanted, range.at)
                        : fail(ERR_ARG, "%s: %s is %s%.80s%s; %s is wanted (%s%s%s)",
                               setting_node_where(arena, node), s->name,
                               node->quoted  ? "the text \""
                               : *node->text ? ""
                                             : "empty",
                               node->text, node->quoted ? "\"" : "", wanted, range.at,
                               *s->unit ? " " : "", s->unit);
    str_deinit(&range);
    return status;
}

/* Whole numbers may be written 1e6 where that is exact. */
static bool parse_whole(const char *text, int64_t *out)
{
    double number;
    if (parse_i64(text, out)) return true;
    if (!parse_f64(text, &number) || number != floor(number) || fabs(number) > 0x1p53) return false;
    *out = (int64_t)number;
    return true;
}

bool setting_parse_bytes(const char *text, int64_t *out)
{
    static const struct {
        const char *suffix;
        double factor;
    } units[] = {{"", 1},      {"kB", 1e3},     {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char digits[40];
    size_t n = strspn(text, "0123456789.");
    if (n == 0 || n >= sizeof digits) return false;
    memcpy(digits, text, n);
    digits[n] = 0;
    double number;
    if (!parse_f64(digits, &number)) return false;
    for (int i = 0; i < COUNT_OF(units); i++) {
        if (strcmp(text + n + (text[n] == ' '), units[i].suffix) != 0) continue;
        double bytes = number * units[i].factor;
        if (bytes > 0x1p62) return false;
        *out = (int64_t)bytes;
        return true;
    }
    return false;
}

/* The place of `word` among words separated by bars, or -1. */
static int choice_index(const char *choices, const char *word)
{
    size_t n = strlen(word);
    for (int i = 0;; i++) {
        size_t length = strcspn(choices, "|");
        if (length == n && !memcmp(choices, word, n)) return i;
        if (!choices[length]) return -1;
        choices += length + 1;
    }
}

static bool in_range(const Setting *s, double value) { return value >= s->min && value <= s->max; }

/* [low, central, high], or one number for all three. */
static Status read_range(Arena *arena, const Setting *s, const SettingNode *node, double range[3])
{
    static const char wanted[] = "a list [low, central, high], or one number";
    if (node->kind == NODE_MAP || (node->kind == NODE_LIST && node->n != 3))
        return wrong(arena, s, node, wanted);
    for (int i = 0; i < 3; i++) {
        const SettingNode *item = node->kind == NODE_LIST ? node->item[i] : node;
        if (item->kind != NODE_SCALAR || item->quoted || !parse_f64(item->text, &range[i]))
            return wrong(arena, s, item, "a number");
        if (!in_range(s, range[i])) return wrong(arena, s, item, "a value in its range");
        if (i && range[i] < range[i - 1])
            return fail(ERR_ARG,
                        "%s: %s is [%g, %g, ...]; low, central and high rise: [%g, %g, ...]",
                        setting_node_where(arena, item), s->name, range[i - 1], range[i], range[i],
                        range[i - 1]);
    }
    return OK;
}

static Status read_number(Arena *arena, const Setting *s, const SettingNode *node, void *field)
{
    int64_t whole = 0;
    double number = 0;
    const char *wanted = s->type == SETTING_INT     ? "a whole number"
                         : s->type == SETTING_FLOAT ? "a number"
                                                    : "a number of bytes such as 512MB or 8GiB";
    bool good = !node->quoted &&
                (s->type == SETTING_INT     ? parse_whole(node->text, &whole)
                 : s->type == SETTING_FLOAT ? parse_f64(node->text, &number)
                                            : setting_parse_bytes(node->text, &whole));
    if (!good) return wrong(arena, s, node, wanted);
    if (!in_range(s, s->type == SETTING_FLOAT ? number : (double)whole))
        return wrong(arena, s, node,
                     s->min == s->max ? "in this version only one value" : "a value in its range");
    if (s->type == SETTING_FLOAT)
        *(double *)field = number;
    else
        *(int64_t *)field = whole;
    return OK;
}

Status setting_read(Arena *arena, const Setting *s, const SettingNode *node, void *base)
{
    void *field = field_of(s, base);
    if (s->type == SETTING_RANGE) {
        double range[3];
        TRY(read_range(arena, s, node, range));
        memcpy(field, range, sizeof range);
        return OK;
    }
    if (node->kind != NODE_SCALAR) return wrong(arena, s, node, "a single value");
    switch (s->type) {
    case SETTING_INT:
    case SETTING_FLOAT:
    case SETTING_BYTES: return read_number(arena, s, node, field);
    case SETTING_BOOL:
        if (node->quoted || (strcmp(node->text, "true") != 0 && strcmp(node->text, "false") != 0))
            return wrong(arena, s, node, "one of two words");
        *(bool *)field = node->text[0] == 't';
        return OK;
    case SETTING_TEXT: *(const char **)field = arena_strdup(arena, node->text); return OK;
    case SETTING_CHOICE: {
        int i = choice_index(s->choices, node->text);
        if (i < 0) return wrong(arena, s, node, "one of these words");
        *(int *)field = i;
        return OK;
    }
    case SETTING_RANGE: break;
    }
    return OK;
}

/* NAN is in no range. */
Status setting_check(const Setting *s, const char *where, const void *base)
{
    const void *field = (const char *)base + s->offset;
    double value[3] = {0};
    int n = 1;
    if (s->type == SETTING_INT || s->type == SETTING_BYTES)
        value[0] = (double)*(const int64_t *)field;
    else if (s->type == SETTING_FLOAT)
        value[0] = *(const double *)field;
    else if (s->type == SETTING_RANGE)
        memcpy(value, field, (n = 3) * sizeof *value);
    else
        return OK;
    for (int i = 0; i < n; i++)
        if (!in_range(s, value[i]) || (i && value[i] < value[i - 1])) {
            Str range = {0};
            setting_range_text(s, &range);
            Status status = fail(ERR_ARG, "%s: %s is %g; %s%s%s is wanted%s", where, s->name,
                                 value[i], range.at, *s->unit ? " " : "", s->unit,
                                 n > 1 ? ", low to high" : "");
            str_deinit(&range);
            return status;
        }
    return OK;
}

Status setting_default(Arena *arena, const Setting *s, void *base)
{
    SettingNode node = {.kind = NODE_SCALAR, .place = "default", .text = s->default_text};
    return setting_read(arena, s, &node, base);
}

/* ---- writing ---------------------------------------------------------------------------- */

/* The shortest form that reads back as the same number. */
static void add_number(double value, Str *out)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break; /* NOLINT(cert-err34-c): our own text */
    }
    str_add(out, text);
}

/* Quoted always: no text can be taken for a number, a boolean or an alias. */
void setting_write_quoted(const char *text, Str *out)
{
    str_add(out, "\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            str_printf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            str_printf(out, "\\x%02x", c);
        else
            str_add_n(out, text, 1);
    }
    str_add(out, "\"");
}

void setting_write(const Setting *s, const void *base, Str *out)
{
    const void *field = (const char *)base + s->offset;
    switch (s->type) {
    case SETTING_INT:
    case SETTING_BYTES: str_printf(out, "%lld", (long long)*(const int64_t *)field); return;
    case SETTING_FLOAT: add_number(*(const double *)field, out); return;
    case SETTING_RANGE: {
        const double *range = field;
        for (int i = 0; i < 3; i++) {
            str_add(out, i ? ", " : "[");
            add_number(range[i], out);
        }
        str_add(out, "]");
        return;
    }
    case SETTING_BOOL: str_add(out, *(const bool *)field ? "true" : "false"); return;
    case SETTING_TEXT: setting_write_quoted(*(const char *const *)field, out); return;
    case SETTING_CHOICE: {
        const char *word = s->choices;
        for (int i = *(const int *)field; i > 0; i--) word += strcspn(word, "|") + 1;
        str_add_n(out, word, strcspn(word, "|"));
        return;
    }
    }
}
