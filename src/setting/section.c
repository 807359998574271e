/* Mappings of a tree read by a table: sections, unknown keys, what was left out. */
#include "setting/setting.h"

#include <string.h>

const Setting *setting_find(const Setting *table, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

/* Settings of the elements of a list below `prefix` belong to another struct. */
static bool is_under(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);
    return !strncmp(name, prefix, n) && !strstr(name + n, "[]");
}

static bool is_section(const SettingReader *r, const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < r->n; i++)
        if (!strncmp(r->table[i].name, name, n) && r->table[i].name[n] == '.') return true;
    return false;
}

/* The right key nearest to `name` under `prefix`; else the setting elsewhere that ends in `name`.
 */
static const char *suggest(const SettingReader *r, const char *prefix, const char *name)
{
    const char **candidates = ARENA_ARRAY(r->arena, const char *, r->n);
    size_t skip = strlen(prefix);
    int n = 0;
    for (int i = 0; i < r->n; i++) {
        const char *full = r->table[i].name;
        if (strncmp(full, prefix, skip) != 0) continue;
        size_t length = strcspn(full + skip, ".[");
        candidates[n++] = arena_strndup(r->arena, full + skip, length);
    }
    const char *near = name_nearest(name, candidates, n);
    if (near) return arena_printf(r->arena, "%s%s", prefix, near);
    for (int i = 0; i < r->n; i++) {
        const char *dot = strrchr(r->table[i].name, '.');
        if (dot && !strcmp(dot + 1, name)) return r->table[i].name;
    }
    return NULL;
}

static Status unknown(const SettingReader *r, const SettingNode *node, const char *prefix,
                      const char *name)
{
    const char *near = suggest(r, prefix, name);
    return fail(ERR_ARG, "%s: there is no setting '%s%.80s'%s%s%s",
                setting_node_where(r->arena, node), prefix, name, near ? "; did you mean " : "; ",
                near ? near : r->help, near ? "?" : "");
}

Status setting_read_map(const SettingReader *r, const char *prefix, const SettingNode *map,
                        void *base)
{
    if (map->kind == NODE_SCALAR && !*map->text && !map->quoted)
        return OK; /* `train:` with nothing */
    if (map->kind != NODE_MAP) {
        const char *near = suggest(r, prefix, "");
        return fail(ERR_ARG, "%s: %.*s is a section with keys of its own, such as %s",
                    setting_node_where(r->arena, map), *prefix ? (int)strlen(prefix) - 1 : 4,
                    *prefix ? prefix : "this", near ? near : r->table[0].name);
    }
    for (int i = 0; i < map->n; i++) {
        const char *name = arena_printf(r->arena, "%s%s", prefix, map->key[i]);
        const Setting *s = setting_find(r->table, r->n, name);
        if (s) {
            if (r->given) r->given[s - r->table] = map->item[i];
            TRY(setting_read(r->arena, s, map->item[i], base));
        } else if (is_section(r, name))
            TRY(setting_read_map(r, arena_printf(r->arena, "%s.", name), map->item[i], base));
        else
            return unknown(r, map->item[i], prefix, map->key[i]);
    }
    return OK;
}

Status setting_read_defaults(const SettingReader *r, const char *prefix, void *base)
{
    for (int i = 0; i < r->n; i++)
        if (is_under(r->table[i].name, prefix) && r->table[i].default_text)
            TRY(setting_default(r->arena, &r->table[i], base));
    return OK;
}

Status setting_read_required(const SettingReader *r, const char *prefix, const char *where)
{
    for (int i = 0; i < r->n; i++) {
        const Setting *s = &r->table[i];
        if (!is_under(s->name, prefix) || s->default_text || r->given[i]) continue;
        return fail(ERR_ARG, "%s: %s is missing: %s", where, s->name, s->sentence);
    }
    return OK;
}

void setting_write_key(const char *name, const char *before, Str *out)
{
    int depth = 0;
    bool shared = true;
    const char *dot;
    for (; (dot = strchr(name, '.')); name = dot + 1, depth++) {
        size_t n = (size_t)(dot - name) + 1;
        shared = shared && !strncmp(name, before, n);
        if (shared)
            before += n;
        else
            str_printf(out, "%*s%.*s:\n", 2 * depth, "", (int)n - 1, name);
    }
    str_printf(out, "%*s%s: ", 2 * depth, "", name);
}
