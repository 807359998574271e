/* YAML text to a small tree, through libyaml's events: each node knows its line, so that every
 * later refusal can name it.
 *
 * Refused here: duplicate keys, keys that are no plain texts, anchors and aliases (so that a small
 * file cannot unfold into a large one), tags, several documents, depth over MAX_DEPTH. */
#include "setting/setting.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { MAX_DEPTH = 24, MAX_KEYS = 4096, MAX_TEXT_BYTES = 1 << 14, MAX_KEY_BYTES = 128 };

SettingNode *setting_node_create(Arena *arena, SettingNodeKind kind, const char *place, int line)
{
    SettingNode *node = ARENA_NEW(arena, SettingNode);
    node->kind = kind;
    node->place = place;
    node->line = line;
    node->text = "";
    return node;
}

void setting_node_append(Arena *arena, SettingNode *node, const char *key, SettingNode *item)
{
    if (node->n == node->cap) {
        int cap = node->cap ? 2 * node->cap : 8;
        SettingNode **items = ARENA_ARRAY(arena, SettingNode *, cap);
        const char **keys = ARENA_ARRAY(arena, const char *, cap);
        for (int i = 0; i < node->n; i++) {
            items[i] = node->item[i];
            keys[i] = node->key[i];
        }
        node->item = items;
        node->key = keys;
        node->cap = cap;
    }
    node->key[node->n] = key;
    node->item[node->n++] = item;
}

static int find_key(const SettingNode *map, const char *key)
{
    if (!map || map->kind != NODE_MAP) return -1;
    for (int i = 0; i < map->n; i++)
        if (!strcmp(map->key[i], key)) return i;
    return -1;
}

SettingNode *setting_node_find(const SettingNode *map, const char *key)
{
    int i = find_key(map, key);
    return i < 0 ? NULL : map->item[i];
}

void setting_node_set(Arena *arena, SettingNode *map, const char *key, SettingNode *item)
{
    int i = find_key(map, key);
    if (i < 0)
        setting_node_append(arena, map, key, item);
    else
        map->item[i] = item;
}

const char *setting_node_where(Arena *arena, const SettingNode *node)
{
    return node->line ? arena_printf(arena, "%s:%d", node->place, node->line) : node->place;
}

/* ---- events ----------------------------------------------------------------------------- */

typedef struct Reader {
    yaml_parser_t parser;
    Arena *arena;
    const char *place;
    bool is_file; /* lines mean something */
} Reader;

static int line_of(const Reader *r, const yaml_mark_t *mark)
{
    return r->is_file ? (int)(mark->line < INT_MAX - 1 ? mark->line + 1 : INT_MAX) : 0;
}

static Status refuse(const Reader *r, const yaml_mark_t *mark, const char *what)
{
    if (!r->is_file) return fail(ERR_ARG, "%s: %s", r->place, what);
    return fail(ERR_ARG, "%s:%d: %s", r->place, line_of(r, mark), what);
}

static Status next_event(Reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event)) return OK;
    const yaml_parser_t *p = &r->parser;
    const char *problem = p->problem ? p->problem : "not YAML";
    char text[256];
    if (p->error == YAML_READER_ERROR)
        snprintf(text, sizeof text, "%s at byte %zu", problem, p->problem_offset);
    else if (p->context && (strstr(p->context, "alias") || strstr(p->context, "anchor")))
        snprintf(
            text, sizeof text,
            "aliases and anchors are not accepted; a text that begins with * or & needs quotes");
    else if (p->context)
        snprintf(text, sizeof text, "%s %s", problem, p->context);
    else
        snprintf(text, sizeof text, "%s", problem);
    return refuse(r, &p->problem_mark, text);
}

static Status read_scalar(Reader *r, const yaml_event_t *event, SettingNode **out)
{
    const char *value = (const char *)event->data.scalar.value;
    size_t n = event->data.scalar.length;
    if (event->data.scalar.anchor || event->data.scalar.tag)
        return refuse(
            r, &event->start_mark,
            "anchors and tags are not accepted; a text that begins with & or ! needs quotes");
    if (strlen(value) != n) return refuse(r, &event->start_mark, "a text contains a zero byte");
    if (n > MAX_TEXT_BYTES)
        return refuse(r, &event->start_mark, "a text has more than 16384 bytes");
    SettingNode *node = setting_node_create(r->arena, NODE_SCALAR, r->place,
                                            line_of(r, &event->start_mark));
    node->text = arena_strndup(r->arena, value, n);
    node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    *out = node;
    return OK;
}

static Status read_node(Reader *r, yaml_event_t *event, int depth, SettingNode **out);

static Status read_key(Reader *r, yaml_event_t *event, const SettingNode *map, const char **key)
{
    if (event->type != YAML_SCALAR_EVENT)
        return refuse(r, &event->start_mark, "a key must be a plain word");
    SettingNode *node;
    TRY(read_scalar(r, event, &node));
    const SettingNode *same = setting_node_find(map, node->text);
    if (same)
        return fail(ERR_ARG, "%s: the key '%s' stands twice, first at line %d",
                    setting_node_where(r->arena, node), node->text, same->line);
    if (strlen(node->text) > MAX_KEY_BYTES)
        return refuse(r, &event->start_mark, "a key has more than 128 bytes");
    if (map->n == MAX_KEYS)
        return refuse(r, &event->start_mark, "a mapping has more than 4096 keys");
    *key = node->text;
    return OK;
}

static Status read_items(Reader *r, int depth, SettingNode *node)
{
    yaml_event_type_t end = node->kind == NODE_MAP ? YAML_MAPPING_END_EVENT
                                                   : YAML_SEQUENCE_END_EVENT;
    for (;;) {
        yaml_event_t event;
        TRY(next_event(r, &event));
        Status status = OK;
        const char *key = NULL;
        SettingNode *item = NULL;
        bool ended = event.type == end;
        if (!ended && node->kind == NODE_MAP) {
            status = read_key(r, &event, node, &key);
            yaml_event_delete(&event);
            if (status == OK) status = next_event(r, &event);
            if (status != OK) return status;
        }
        if (!ended) status = read_node(r, &event, depth + 1, &item);
        yaml_event_delete(&event);
        if (status != OK || ended) return status;
        setting_node_append(r->arena, node, key, item);
    }
}

static Status read_node(Reader *r, yaml_event_t *event, int depth, SettingNode **out)
{
    if (event->type == YAML_SCALAR_EVENT) return read_scalar(r, event, out);
    if (event->type == YAML_ALIAS_EVENT)
        return refuse(r, &event->start_mark,
                      "aliases are not accepted; a text that begins with * needs quotes");
    bool map = event->type == YAML_MAPPING_START_EVENT;
    if (map ? event->data.mapping_start.anchor || event->data.mapping_start.tag
            : event->data.sequence_start.anchor || event->data.sequence_start.tag)
        return refuse(r, &event->start_mark, "anchors and tags are not accepted");
    if (depth > MAX_DEPTH) return refuse(r, &event->start_mark, "nested more than 24 deep");
    SettingNode *node = setting_node_create(r->arena, map ? NODE_MAP : NODE_LIST, r->place,
                                            line_of(r, &event->start_mark));
    TRY(read_items(r, depth, node));
    *out = node;
    return OK;
}

/* The one event that may come next besides the expected ones is the end of the stream: an empty
 * text. */
static Status read_document(Reader *r, SettingNode **root)
{
    for (bool seen = false;;) {
        yaml_event_t event;
        TRY(next_event(r, &event));
        yaml_event_type_t type = event.type;
        Status status = OK;
        bool content = type == YAML_SCALAR_EVENT || type == YAML_MAPPING_START_EVENT ||
                       type == YAML_SEQUENCE_START_EVENT || type == YAML_ALIAS_EVENT;
        if (type == YAML_DOCUMENT_START_EVENT && seen)
            status = refuse(r, &event.start_mark, "a second document begins; one is wanted");
        seen |= type == YAML_DOCUMENT_START_EVENT;
        if (status == OK && content) status = read_node(r, &event, 0, root);
        yaml_event_delete(&event);
        if (status != OK || type == YAML_STREAM_END_EVENT) return status;
    }
}

static Status parse(Arena *arena, Bytes text, const char *place, bool is_file, SettingNode **root)
{
    Reader r = {.arena = arena, .place = place, .is_file = is_file};
    if (text.n > MAX_SETTING_FILE_BYTES)
        return fail(ERR_ARG, "%s has %zu bytes; a file of settings has at most %d", place, text.n,
                    MAX_SETTING_FILE_BYTES);
    if (!yaml_parser_initialize(&r.parser))
        return fail(ERR_MEMORY, "%s: no memory to read YAML", place);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, text.at, text.n);
    SettingNode *node = setting_node_create(arena, NODE_MAP, place, is_file);
    Status status = read_document(&r, &node);
    yaml_parser_delete(&r.parser);
    if (status == OK) *root = node;
    return status;
}

Status setting_node_parse(Arena *arena, Bytes text, const char *place, SettingNode **root)
{
    SettingNode *node = NULL;
    TRY(parse(arena, text, place, true, &node));
    if (node->kind == NODE_SCALAR && !*node->text)
        node = setting_node_create(arena, NODE_MAP, place, 1);
    if (node->kind != NODE_MAP)
        return fail(ERR_ARG, "%s: a mapping is wanted, lines such as `name: demo`; this is a %s",
                    setting_node_where(arena, node),
                    node->kind == NODE_LIST ? "list" : "single text");
    *root = node;
    return OK;
}

/* ---- overrides -------------------------------------------------------------------------- */

/* Steps from `at` to its child `name`, which is made when absent. A scalar on the way becomes a map
 * with the scalar under the key that its short form stands for. */
static Status descend(Arena *arena, SettingNode **slot, const char *place, const char *name,
                      SettingNode ***child)
{
    SettingNode *at = *slot;
    int64_t index;
    if (at->kind == NODE_SCALAR) {
        SettingNode *map = setting_node_create(arena, NODE_MAP, at->place, at->line);
        if (*at->text) setting_node_append(arena, map, "", at);
        *slot = at = map;
    }
    if (at->kind == NODE_LIST) {
        if (!parse_i64(name, &index) || index < 0 || index >= at->n)
            return fail(ERR_ARG, "%s: '%s' should be the number of an element, 0 to %d", place,
                        name, at->n - 1);
        *child = &at->item[index];
        return OK;
    }
    int i = find_key(at, name);
    if (i < 0) {
        if (at->n >= MAX_KEYS) return fail(ERR_ARG, "%s: too many keys", place);
        setting_node_append(arena, at, name, setting_node_create(arena, NODE_SCALAR, place, 0));
        i = at->n - 1;
    }
    *child = &at->item[i];
    return OK;
}

Status setting_node_override(Arena *arena, SettingNode *root, const char *text)
{
    if (!utf8_valid((const uint8_t *)text, strlen(text)))
        return fail(ERR_ARG, "an override is not UTF-8");
    if (strlen(text) > MAX_TEXT_BYTES)
        return fail(ERR_ARG, "an override has more than %d bytes", MAX_TEXT_BYTES);
    const char *place = arena_printf(arena, "'%s' on the command line", text);
    const char *equals = strchr(text, '=');
    if (!equals || equals == text)
        return fail(ERR_ARG, "%s is not key=value, such as train.steps=500", place);
    char *key = arena_strndup(arena, text, (size_t)(equals - text));
    SettingNode **slot = &root;
    int depth = 0;
    for (char *part = key, *dot; part; part = dot ? dot + 1 : NULL) {
        dot = strchr(part, '.');
        if (dot) *dot = 0;
        if (!*part || strlen(part) > MAX_KEY_BYTES)
            return fail(ERR_ARG, "%s: a part of the key is empty or has more than %d bytes", place,
                        MAX_KEY_BYTES);
        if (++depth > MAX_DEPTH) return fail(ERR_ARG, "%s: the key has more than 24 parts", place);
        TRY(descend(arena, slot, place, part, &slot));
    }
    const char *value = equals + 1;
    if (*value && strchr("[{\"'", *value))
        return parse(arena, (Bytes){(const uint8_t *)value, strlen(value)}, place, false, slot);
    SettingNode *scalar = setting_node_create(arena, NODE_SCALAR, place, 0);
    scalar->text = value[0] ? arena_strdup(arena, value) : "";
    *slot = scalar;
    return OK;
}

/* ---- JSON ------------------------------------------------------------------------------- */

static void add_json_text(const char *text, Str *out)
{
    str_add(out, "\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            str_printf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            str_printf(out, "\\u%04x", c);
        else
            str_add_n(out, text, 1);
    }
    str_add(out, "\"");
}

static bool is_word(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (!strcmp(text, *words)) return true;
    return false;
}

static Status scalar_json(Arena *arena, const SettingNode *node, Str *out)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const truths[] = {"true", "True", "TRUE", NULL};
    static const char *const lies[] = {"false", "False", "FALSE", NULL};
    static const char *const refused[] = {".inf",  "-.inf", "+.inf", ".Inf",
                                          "-.Inf", ".nan",  ".NaN",  NULL};
    int64_t whole;
    double number;
    const char *text = node->text;
    if (!node->quoted && is_word(text, nulls))
        str_add(out, "null");
    else if (!node->quoted && is_word(text, truths))
        str_add(out, "true");
    else if (!node->quoted && is_word(text, lies))
        str_add(out, "false");
    else if (!node->quoted && is_word(text, refused))
        return fail(ERR_ARG, "%s: %s is no finite number", setting_node_where(arena, node), text);
    else if (!node->quoted && parse_i64(text, &whole))
        str_printf(out, "%lld", (long long)whole);
    else if (!node->quoted && parse_f64(text, &number)) {
        size_t at = out->n;
        str_printf(out, "%.17g", number);
        if (!strpbrk(out->at + at, ".e")) str_add(out, ".0"); /* 1e3 stays a float */
    } else
        add_json_text(text, out);
    return OK;
}

Status setting_node_json(Arena *arena, const SettingNode *node, Str *out)
{
    if (node->kind == NODE_SCALAR) return scalar_json(arena, node, out);
    str_add(out, node->kind == NODE_MAP ? "{" : "[");
    for (int i = 0; i < node->n; i++) {
        if (i) str_add(out, ", ");
        if (node->kind == NODE_MAP) {
            add_json_text(node->key[i], out);
            str_add(out, ": ");
        }
        TRY(setting_node_json(arena, node->item[i], out));
    }
    str_add(out, node->kind == NODE_MAP ? "}" : "]");
    return OK;
}
