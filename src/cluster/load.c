/* Files laid over one another: what is common to all, the base, the device, the file itself. */
#include "cluster/cluster_internal.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_BASES = 4 };

typedef struct Loader {
    Arena *arena;
    Cluster *cluster;
    const SettingNode **given; /* [cluster_table_n] */
    VEC(ClusterSource) source;
    const SettingNode *tiers, *causes; /* the lists, where they were given */
    bool is_preset; /* of the file that is being laid over: whoever says nothing of a source has
                       none */
    int depth;
} Loader;

static SettingReader reader_of(const Loader *l)
{
    return (SettingReader){l->arena, cluster_table, cluster_table_n,
                           "`drover inspect --cluster hgx` shows them all", l->given};
}

/* ---- files that are compiled in --------------------------------------------------------- */

const ClusterFile *cluster_find_file(const char *folder, const char *name)
{
    size_t n = strlen(folder);
    for (const ClusterFile *file = cluster_files; file->name; file++)
        if (!strncmp(file->name, folder, n) && !strcmp(file->name + n, name)) return file;
    return NULL;
}

const char *cluster_nearest_file(const char *name, bool devices_only)
{
    const char *names[64];
    int n = 0;
    for (const ClusterFile *file = cluster_files; file->name && n < COUNT_OF(names); file++)
        if (strchr(file->name, '/') && (!devices_only || !strncmp(file->name, "devices/", 8)))
            names[n++] = path_base(file->name);
    return name_nearest(name, names, n);
}

/* ---- sources ---------------------------------------------------------------------------- */

static void add_source(Loader *l, const char *key, const char *words)
{
    for (size_t i = 0; i < l->source.n; i++)
        if (!strcmp(l->source.at[i].key, key)) {
            l->source.at[i].words = words;
            return;
        }
    ClusterSource source = {key, words};
    VEC_PUSH(&l->source, source);
}

/* A list replaces that of the base, with its sources. */
static void drop_sources(Loader *l, const char *list)
{
    size_t n = strlen(list), kept = 0;
    for (size_t i = 0; i < l->source.n; i++)
        if (strncmp(l->source.at[i].key, list, n) != 0 || l->source.at[i].key[n] != '[')
            l->source.at[kept++] = l->source.at[i];
    l->source.n = kept;
}

/* What names another file: laid under this one already. */
static bool is_base(const char *path, const SettingNode *node)
{
    return !strcmp(path, "base") || !strcmp(path, "device.base") ||
           (!strcmp(path, "device") && node->kind == NODE_SCALAR);
}

/* A copy of `node` without its bases and its sources, which are noted for every value below: its
 * own, else `words`. */
static Status take_sources(Loader *l, const SettingNode *node, const char *key, const char *words,
                           SettingNode **out)
{
    const SettingNode *own = setting_node_find(node, "source"),
                      *value = setting_node_find(node, "value");
    if (own && own->kind != NODE_SCALAR)
        return fail(ERR_ARG, "%s: a source is a text", setting_node_where(l->arena, own));
    if (own) words = own->text;
    if (value) {
        if (node->n != 1 + (own != NULL))
            return fail(ERR_ARG, "%s: beside value only source may stand",
                        setting_node_where(l->arena, node));
        return take_sources(l, value, key, words, out);
    }
    SettingNode *copy = setting_node_create(l->arena, node->kind, node->place, node->line);
    copy->text = node->text;
    copy->quoted = node->quoted;
    bool leaf = node->kind == NODE_SCALAR ||
                (node->kind == NODE_LIST && node->n && node->item[0]->kind == NODE_SCALAR);
    if (leaf && !words && !l->is_preset) words = setting_node_where(l->arena, node);
    if (leaf && words) add_source(l, key, words);
    if (node->kind == NODE_LIST && !leaf) drop_sources(l, key);
    for (int i = 0; i < node->n; i++) {
        const char *name = node->kind == NODE_MAP ? node->key[i] : NULL;
        SettingNode *item;
        if (node->item[i] == own) continue;
        const char *path = !name  ? arena_printf(l->arena, "%s[%d]", key, i)
                           : *key ? arena_printf(l->arena, "%s.%s", key, name)
                                  : name;
        if (is_base(path, node->item[i])) continue;
        if (leaf)
            item = node->item[i];
        else
            TRY(take_sources(l, node->item[i], path, words, &item));
        setting_node_append(l->arena, copy, name, item);
    }
    *out = copy;
    return OK;
}

const char *cluster_source(const Cluster *cluster, const char *key)
{
    for (int i = 0; i < cluster->n_sources; i++)
        if (!strcmp(cluster->source[i].key, key)) return cluster->source[i].words;
    return "";
}

/* ---- lists ------------------------------------------------------------------------------ */

/* Takes `name` out of `map`; NULL when it is not there. */
static SettingNode *take(SettingNode *map, const char *name)
{
    SettingNode *item = setting_node_find(map, name);
    for (int i = 0; item && i < map->n; i++) {
        if (map->item[i] != item) continue;
        memmove(map->item + i, map->item + i + 1, sizeof *map->item * (size_t)(map->n - i - 1));
        memmove(map->key + i, map->key + i + 1, sizeof *map->key * (size_t)(map->n - i - 1));
        map->n--;
        break;
    }
    return item;
}

/* The list's elements into n structs of `size` bytes, at most `max`. */
/* NOLINTNEXTLINE(readability-function-size): an array of any type takes as many words */
static Status read_list(Loader *l, const SettingNode *list, const char *prefix, size_t size,
                        int max, void **out, int *n)
{
    SettingReader r = reader_of(l);
    const char *where = setting_node_where(l->arena, list);
    if (list->kind != NODE_LIST || list->n > max)
        return fail(ERR_ARG, "%s: %.*s should be a list of at most %d elements, each {%s: ...}",
                    where, (int)strlen(prefix) - 3, prefix, max,
                    !strcmp(prefix, "device.ops[].") ? "op" : "name");
    char *items = arena_alloc(l->arena, size * (size_t)(list->n + 1));
    for (int i = 0; i < list->n; i++) {
        for (int k = 0; k < cluster_table_n; k++)
            if (!strncmp(cluster_table[k].name, prefix, strlen(prefix))) l->given[k] = NULL;
        TRY(setting_read_defaults(&r, prefix, items + size * (size_t)i));
        TRY(setting_read_map(&r, prefix, list->item[i], items + size * (size_t)i));
        TRY(setting_read_required(&r, prefix, setting_node_where(l->arena, list->item[i])));
    }
    *out = items;
    *n = list->n;
    return OK;
}

static Status read_tiers(Loader *l, const SettingNode *list)
{
    Network *network = &l->cluster->network;
    void *items = NULL;
    int n = 0;
    TRY(read_list(l, list, "network.tiers[].", sizeof(Tier), MAX_TIERS, &items, &n));
    l->tiers = list;
    network->n_tiers = n;
    memcpy(network->tier, items, sizeof(Tier) * (size_t)n);
    return OK;
}

static Status read_causes(Loader *l, const SettingNode *list)
{
    void *items = NULL;
    TRY(read_list(l, list, "failures[].", sizeof(FailureCause), MAX_CAUSES, &items,
                  &l->cluster->n_failures));
    l->causes = list;
    l->cluster->failure = items;
    return OK;
}

static Status read_ops(Loader *l, const SettingNode *list)
{
    void *items = NULL;
    TRY(read_list(l, list, "device.ops[].", sizeof(OpRate), MAX_OP_RATES, &items,
                  &l->cluster->device.n_ops));
    l->cluster->device.op = items;
    return OK;
}

/* ---- layers ----------------------------------------------------------------------------- */

static Status apply_base(Loader *l, const SettingNode *name, bool device_only);

/* Of a cluster that lends its device only: what it says of device and node. */
static const SettingNode *device_part(Loader *l, const SettingNode *tree)
{
    static const char *const keys[] = {"base", "device", "node"};
    SettingNode *part = setting_node_create(l->arena, NODE_MAP, tree->place, tree->line);
    for (int i = 0; i < COUNT_OF(keys); i++) {
        SettingNode *item = setting_node_find(tree, keys[i]);
        if (item) setting_node_append(l->arena, part, keys[i], item);
    }
    return part;
}

/* Sections are read by the table once their lists and bases are out of the way. */
static Status apply_tree(Loader *l, const SettingNode *tree, bool device_only)
{
    SettingReader r = reader_of(l);
    SettingNode *root;
    const SettingNode *from = setting_node_find(tree, "base"),
                      *of = setting_node_find(tree, "device");
    if (of && of->kind == NODE_MAP) of = setting_node_find(of, "base");
    if (from) TRY(apply_base(l, from, device_only));
    if (of && (*of->text || of->kind != NODE_SCALAR)) TRY(apply_base(l, of, true));
    TRY(take_sources(l, device_only ? device_part(l, tree) : tree, "", NULL, &root));
    SettingNode *ops = take(setting_node_find(root, "device"), "ops"),
                *causes = take(root, "failures");
    SettingNode *tiers = take(setting_node_find(root, "network"), "tiers");
    TRY(setting_read_map(&r, "", root, l->cluster));
    if (ops) TRY(read_ops(l, ops));
    if (tiers) TRY(read_tiers(l, tiers));
    return causes ? read_causes(l, causes) : OK;
}

static Status apply_text(Loader *l, Bytes text, const char *place, bool device_only)
{
    SettingNode *root;
    TRY(setting_node_parse(l->arena, text, arena_strdup(l->arena, place), &root));
    return apply_tree(l, root, device_only);
}

static Status apply_file(Loader *l, const ClusterFile *file, bool device_only)
{
    bool was_preset = l->is_preset;
    l->is_preset = true;
    Status status = apply_text(l, (Bytes){file->at, file->n}, file->name, device_only);
    l->is_preset = was_preset;
    return status;
}

/* A preset by name, else a file. */
static Status apply_base(Loader *l, const SettingNode *name, bool device_only)
{
    const char *where = setting_node_where(l->arena, name);
    if (name->kind != NODE_SCALAR || !*name->text)
        return fail(ERR_ARG, "%s: %s is the name of a preset or a file, such as h100", where,
                    device_only ? "device" : "base");
    if (++l->depth > MAX_BASES)
        return fail(ERR_ARG, "%s: bases stand on one another more than %d deep", where, MAX_BASES);
    const ClusterFile *file = cluster_find_file("devices/", name->text);
    if (!file) file = cluster_find_file("presets/", name->text);
    if (file)
        TRY(apply_file(l, file, device_only));
    else {
        const char *near = cluster_nearest_file(name->text, device_only);
        Bytes text;
        if (!file_exists(name->text))
            return fail(ERR_ARG, "%s: no preset and no file is called %.200s%s%s", where,
                        name->text, near ? "; did you mean " : "", near ? near : "");
        TRY(file_read(l->arena, name->text, MAX_SETTING_FILE_BYTES, &text));
        TRY(apply_text(l, text, name->text, device_only));
    }
    l->depth--;
    return OK;
}

/* ---- all together ----------------------------------------------------------------------- */

/* Values whose default depends on others. */
static void resolve(Loader *l, const char *name)
{
    Cluster *c = l->cluster;
    if (!*c->name) {
        const char *base = path_base(name), *dot = strrchr(base, '.');
        c->name = arena_strndup(l->arena, base,
                                dot && dot != base ? (size_t)(dot - base) : strlen(base));
    }
    if (c->node.link_domain == 0) c->node.link_domain = c->node.devices;
    if (c->network.n_tiers == 0)
        c->network.tier[c->network.n_tiers++] = (Tier){"all", c->n_nodes, 1, 5e-6};
    c->device.op_speed = 1;
}

static const char *place_of(const ClusterPlaces *places, const char *key, int element)
{
    const Loader *l = places->context;
    const Setting *s = setting_find(cluster_table, cluster_table_n, key);
    const SettingNode *list = !strncmp(key, "failures", 8)         ? l->causes
                              : !strncmp(key, "network.tiers", 13) ? l->tiers
                                                                   : NULL;
    const SettingNode *node = list && element < list->n ? list->item[element]
                              : s                       ? l->given[s - cluster_table]
                                                        : NULL;
    return node ? setting_node_where(l->arena, node) : l->cluster->name;
}

/* What to lay over the common part: a tree, or a preset. */
static Status load(Loader *l, const SettingNode *tree, const ClusterFile *preset, const char *name)
{
    SettingReader r = reader_of(l);
    const ClusterFile *common = cluster_find_file("", "common");
    CHECK(common);
    TRY(setting_read_defaults(&r, "", l->cluster));
    TRY(apply_file(l, common, false));
    TRY(preset ? apply_file(l, preset, false) : apply_tree(l, tree, false));
    TRY(setting_read_required(&r, "", name));
    resolve(l, name);
    ClusterPlaces places = {place_of, l};
    TRY(cluster_contradictions(l->cluster, &places));
    l->cluster->n_sources = (int)l->source.n;
    l->cluster->source = arena_copy(l->arena, l->source.at, l->source.n * sizeof *l->source.at);
    return OK;
}

/* `arena` holds the tree already; on success the cluster owns it. */
static Status finish(Arena *arena, const SettingNode *tree, const ClusterFile *preset,
                     const char *name, Cluster *cluster)
{
    Cluster loaded = {0};
    Loader l = {.arena = arena,
                .cluster = &loaded,
                .given = ARENA_ARRAY(arena, const SettingNode *, cluster_table_n)};
    Status status = load(&l, tree, preset, name);
    VEC_FREE(&l.source);
    if (status != OK) {
        arena_deinit(arena);
        return status;
    }
    loaded.arena = *arena;
    *cluster = loaded;
    return OK;
}

Status cluster_parse(Bytes text, const char *name, Cluster *cluster)
{
    Arena arena = {0};
    SettingNode *root = NULL;
    const char *place = arena_strdup(&arena, name);
    Status status = setting_node_parse(&arena, text, place, &root);
    if (status == OK) return finish(&arena, root, NULL, place, cluster);
    arena_deinit(&arena);
    return status;
}

static Status load_line(const char *line, Cluster *cluster)
{
    Arena arena = {0};
    SettingNode *root = NULL;
    Status status = cluster_line_tree(&arena, line, &root);
    if (status == OK)
        return finish(&arena, root, NULL, arena_printf(&arena, "'%s'", line), cluster);
    arena_deinit(&arena);
    return status;
}

Status cluster_load(const char *text, Cluster *cluster)
{
    const ClusterFile *file = cluster_find_file("presets/", text);
    if (!file) file = cluster_find_file("devices/", text);
    Arena arena = {0};
    if (file) return finish(&arena, NULL, file, file->name, cluster);
    if (cluster_is_line(text) && !file_exists(text)) return load_line(text, cluster);
    if (!file_exists(text)) {
        const char *near = cluster_nearest_file(text, false);
        return fail(ERR_ARG, "cluster: no preset and no file is called %.200s%s%s", text,
                    near ? "; did you mean " : "",
                    near ? near : "; `drover inspect --cluster list` shows the presets");
    }
    Bytes bytes;
    Status status = file_read(&arena, text, MAX_SETTING_FILE_BYTES, &bytes);
    if (status == OK) status = cluster_parse(bytes, text, cluster);
    arena_deinit(&arena);
    return status;
}

void cluster_deinit(Cluster *cluster)
{
    Arena arena = cluster->arena;
    *cluster = (Cluster){0};
    arena_deinit(&arena);
}
