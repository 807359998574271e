/* A cluster as a file that loads to the same cluster; the list of presets. */
#include "cluster/cluster_internal.h"

#include <string.h>

/* The value, with its source beside it where there is one. */
static void add_value(const Cluster *c, const Setting *s, const void *base, const char *key,
                      Str *out)
{
    const char *words = cluster_source(c, key);
    if (*words) str_add(out, "{value: ");
    setting_write(s, base, out);
    if (*words) {
        str_add(out, ", source: ");
        setting_write_quoted(words, out);
        str_add(out, "}");
    }
}

/* One element of a list, on lines of their own below a dash. */
static void add_element(const Cluster *c, const char *prefix, const char *path, int indent,
                        const void *item, Str *out)
{
    size_t skip = strlen(prefix);
    const char *lead = "- ";
    char key[160];
    for (int i = 0; i < cluster_table_n; i++) {
        const Setting *s = &cluster_table[i];
        if (strncmp(s->name, prefix, skip) != 0) continue;
        snprintf(key, sizeof key, "%s.%s", path, s->name + skip);
        str_printf(out, "%*s%s%s: ", indent, "", lead, s->name + skip);
        add_value(c, s, item, key, out);
        str_add(out, "\n");
        lead = "  ";
    }
}

typedef struct List {
    const char *prefix; /* in the table */
    const char *key;    /* of the file */
    int indent;
    const char *items;
    int n;
    size_t size;
} List;

static void add_list(const Cluster *c, const List *list, Str *out)
{
    const char *dot = strrchr(list->key, '.');
    str_printf(out, "%*s%s:%s\n", list->indent, "", dot ? dot + 1 : list->key,
               list->n ? "" : " []");
    for (int i = 0; i < list->n; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s[%d]", list->key, i);
        add_element(c, list->prefix, path, list->indent + 2, list->items + list->size * (size_t)i,
                    out);
    }
}

void cluster_text(const Cluster *c, Str *out)
{
    const List lists[] = {
        {"device.ops[].", "device.ops", 2, (const char *)c->device.op, c->device.n_ops,
         sizeof(OpRate)},
        {"network.tiers[].", "network.tiers", 2, (const char *)c->network.tier, c->network.n_tiers,
         sizeof(Tier)},
        {"failures[].", "failures", 0, (const char *)c->failure, c->n_failures,
         sizeof(FailureCause)},
    };
    const char *before = "";
    int done = 0; /* lists written */
    for (int i = 0; i < cluster_table_n; i++) {
        const Setting *s = &cluster_table[i];
        if (done < COUNT_OF(lists) &&
            !strncmp(s->name, lists[done].prefix, strlen(lists[done].prefix)))
            add_list(c, &lists[done++], out);
        if (strstr(s->name, "[]")) continue;
        setting_write_key(s->name, before, out);
        add_value(c, s, c, s->name, out);
        str_add(out, "\n");
        before = s->name;
    }
}

/* The line `about:` of a file, without reading the rest of it. */
static const char *about_of(const ClusterFile *file)
{
    static const char key[] = "about: ";
    for (size_t i = 0; i + sizeof key <= file->n; i++)
        if ((i == 0 || file->at[i - 1] == '\n') && !memcmp(file->at + i, key, sizeof key - 1))
            return (const char *)file->at + i + sizeof key - 1;
    return "\n";
}

ClusterPreset cluster_list(int index)
{
    for (const ClusterFile *file = cluster_files; file->name; file++) {
        bool is_device = !strncmp(file->name, "devices/", 8);
        if ((!is_device && strncmp(file->name, "presets/", 8) != 0) || index-- > 0) continue;
        const char *about = about_of(file);
        return (ClusterPreset){path_base(file->name), about, (int)strcspn(about, "\n"), is_device};
    }
    return (ClusterPreset){0};
}
