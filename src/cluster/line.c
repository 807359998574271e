/* The one-line form: "16384 h100, 8 per node, 400G, tor, pod of 3072 1:1, spine 1:7". */
#include "cluster/cluster_internal.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

static const char forms[] =
    "`N per node`, `400G`, `8 x 400G`, `rail`, `tor`, `spine 1:4` or `pod of 3072 1:1`";

typedef struct Line {
    Arena *arena;
    const char *place;
    SettingNode *root, *node, *network, *tiers;
    int64_t devices, per_node; /* 0: as the device's usual node */
} Line;

bool cluster_is_line(const char *text)
{
    return isdigit((unsigned char)*text) && strchr(text, ' ') != NULL;
}

static void set(Line *l, SettingNode *map, const char *key, const char *value)
{
    SettingNode *scalar = setting_node_create(l->arena, NODE_SCALAR, l->place, 0);
    scalar->text = value;
    setting_node_set(l->arena, map, key, scalar);
}

static SettingNode *section(Line *l, const char *key)
{
    SettingNode *map = setting_node_create(l->arena, NODE_MAP, l->place, 0);
    setting_node_append(l->arena, l->root, key, map);
    return map;
}

static Status refuse(const Line *l, const char *part)
{
    part += strspn(part, " \t");
    return fail(ERR_ARG, "%s: '%s' is no part of a cluster's line; there are %s", l->place, part,
                forms);
}

/* ---- parts ------------------------------------------------------------------------------ */

/* Words of a part, separated by blanks. */
typedef struct Words {
    char *word[8];
    int n; /* 8 stands for too many */
} Words;

static Words words_of(Arena *arena, const char *part)
{
    Words w = {0};
    while (w.n < COUNT_OF(w.word)) {
        part += strspn(part, " \t");
        size_t n = strcspn(part, " \t");
        if (n == 0) break;
        w.word[w.n++] = arena_strndup(arena, part, n);
        part += n;
    }
    return w;
}

/* "16384 h100", the first part. */
static Status read_devices(Line *l, const char *part)
{
    Words w = words_of(l->arena, part);
    if (w.n != 2 || !parse_i64(w.word[0], &l->devices) || l->devices < 1 || l->devices > 1 << 24)
        return fail(
            ERR_ARG,
            "%s: '%s' should say how many devices of which kind, 1 to %d, such as `16384 h100`",
            l->place, part, 1 << 24);
    if (!cluster_find_file("devices/", w.word[1])) {
        const char *near = cluster_nearest_file(w.word[1], true);
        return fail(ERR_ARG, "%s: no device is called %s%s%s", l->place, w.word[1],
                    near ? "; did you mean " : "", near ? near : "");
    }
    set(l, l->root, "device", w.word[1]);
    return OK;
}

/* "400G" is a NIC's rate in gigabits. */
static bool parse_gigabits(Arena *arena, const char *word, double *bytes_per_s)
{
    size_t n = strlen(word);
    double gigabits;
    if (n < 2 || word[n - 1] != 'G' || !parse_f64(arena_strndup(arena, word, n - 1), &gigabits))
        return false;
    *bytes_per_s = gigabits * 1e9 / 8;
    return gigabits > 0;
}

/* "1:4" */
static bool parse_ratio(Arena *arena, const char *word, double *ratio)
{
    const char *colon = strchr(word, ':');
    double a, b;
    if (!colon || !parse_f64(arena_strndup(arena, word, (size_t)(colon - word)), &a) ||
        !parse_f64(colon + 1, &b))
        return false;
    if (a <= 0 || b < a) return false;
    *ratio = b / a;
    return true;
}

/* A tier over `devices` devices; 0: over all. */
static Status add_tier(Line *l, const char *name, int64_t devices, double over)
{
    int64_t nodes = (devices ? devices : l->devices) / l->per_node;
    if (devices && (devices % l->per_node != 0 || nodes < 1))
        return fail(
            ERR_ARG, "%s: a %s of %lld devices is no whole number of nodes of %lld; %lld are",
            l->place, name, (long long)devices, (long long)l->per_node,
            (long long)(max_i64(1, (devices + l->per_node / 2) / l->per_node) * l->per_node));
    if (l->tiers->n == MAX_TIERS)
        return fail(ERR_ARG, "%s: more than %d tiers", l->place, MAX_TIERS);
    if (!devices && l->tiers->n) { /* the last one holds a whole number of those below */
        int64_t below = 0;
        const SettingNode *last = l->tiers->item[l->tiers->n - 1];
        CHECK(parse_i64(setting_node_find(last, "nodes")->text, &below));
        nodes = max_i64(2, (nodes + below - 1) / below) * below;
    }
    SettingNode *tier = setting_node_create(l->arena, NODE_MAP, l->place, 0);
    set(l, tier, "name", name);
    set(l, tier, "nodes", arena_printf(l->arena, "%lld", (long long)nodes));
    set(l, tier, "oversubscription", arena_printf(l->arena, "%.17g", over));
    /* base latencies of an Ethernet leaf and of what is above it (cluster.md 2.6: 3.6 and 5.6 us,
     * then some more per tier) */
    set(l, tier, "latency_s",
        arena_printf(l->arena, "%.2g", l->tiers->n ? 5.6e-6 + 2e-6 * (l->tiers->n - 1) : 3.6e-6));
    setting_node_append(l->arena, l->tiers, NULL, tier);
    return OK;
}

static Status read_part(Line *l, const char *part)
{
    Words w = words_of(l->arena, part);
    double rate, ratio;
    int64_t count;
    bool per_node = w.n == 3 && !strcmp(w.word[1], "per") && !strcmp(w.word[2], "node");
    bool many = w.n == 3 && !strcmp(w.word[1], "x") && parse_i64(w.word[0], &count);
    if (per_node) return OK; /* read_per_node */
    if (w.n == 1 && (!strcmp(w.word[0], "rail") || !strcmp(w.word[0], "tor"))) {
        set(l, l->network, "kind", w.word[0]);
        return OK;
    }
    if ((w.n == 1 || many) && parse_gigabits(l->arena, w.word[w.n - 1], &rate)) {
        set(l, l->node, "nic_bytes_per_s", arena_printf(l->arena, "%.17g", rate));
        if (many) set(l, l->node, "nics", w.word[0]);
        return OK;
    }
    bool whole = w.n == 2, group = w.n == 4 && !strcmp(w.word[1], "of");
    if ((whole || group) && isalpha((unsigned char)w.word[0][0]) &&
        parse_ratio(l->arena, w.word[w.n - 1], &ratio)) {
        if (whole) return add_tier(l, w.word[0], 0, ratio);
        if (parse_i64(w.word[2], &count) && count > 0 && count <= 1 << 24)
            return add_tier(l, w.word[0], count, ratio);
    }
    return refuse(l, part);
}

/* Nodes are counted before anything else, since tiers are given in devices. */
static Status read_per_node(Line *l, char *const *part, int n)
{
    for (int i = 0; i < n; i++) {
        Words w = words_of(l->arena, part[i]);
        if (w.n != 3 || strcmp(w.word[1], "per") != 0 || strcmp(w.word[2], "node") != 0) continue;
        if (!parse_i64(w.word[0], &l->per_node) || l->per_node < 1 || l->per_node > 4096)
            return fail(ERR_ARG, "%s: '%s' should be 1 to 4096 per node", l->place, part[i]);
        set(l, l->node, "devices", w.word[0]);
        set(l, l->node, "nics", w.word[0]);
    }
    if (l->per_node == 0) l->per_node = min_i64(8, l->devices);
    if (l->devices % l->per_node != 0)
        return fail(
            ERR_REFUSED, "%s: %lld devices are no whole number of nodes of %lld; %lld are",
            l->place, (long long)l->devices, (long long)l->per_node,
            (long long)(max_i64(1, (l->devices + l->per_node / 2) / l->per_node) * l->per_node));
    set(l, l->node, "devices", arena_printf(l->arena, "%lld", (long long)l->per_node));
    set(l, l->root, "nodes", arena_printf(l->arena, "%lld", (long long)(l->devices / l->per_node)));
    return OK;
}

static bool has_tier_over_all(const Line *l)
{
    int64_t nodes = 0;
    if (l->tiers->n == 0) return false;
    CHECK(parse_i64(setting_node_find(l->tiers->item[l->tiers->n - 1], "nodes")->text, &nodes));
    return nodes >= l->devices / l->per_node;
}

Status cluster_line_tree(Arena *arena, const char *line, SettingNode **root)
{
    Line l = {.arena = arena, .place = arena_printf(arena, "'%.300s'", line)};
    char *part[16];
    int n = 0;
    if (strlen(line) > 300)
        return fail(ERR_ARG, "%s...: a cluster's line has at most 300 letters", l.place);
    if (!utf8_valid((const uint8_t *)line, strlen(line)))
        return fail(ERR_ARG, "a cluster's line is not UTF-8");
    for (const char *at = line; n < COUNT_OF(part); at++) {
        size_t length = strcspn(at, ",");
        part[n++] = arena_strndup(arena, at, length);
        at += length;
        if (!*at) break;
    }
    if (n == COUNT_OF(part))
        return fail(ERR_ARG, "%s: more than %d parts", l.place, COUNT_OF(part) - 1);
    l.root = setting_node_create(arena, NODE_MAP, l.place, 0);
    set(&l, l.root, "name", line);
    set(&l, l.root, "about", "");
    TRY(read_devices(&l, part[0]));
    l.node = section(&l, "node");
    l.network = section(&l, "network");
    l.tiers = setting_node_create(arena, NODE_LIST, l.place, 0);
    TRY(read_per_node(&l, part + 1, n - 1));
    for (int i = 1; i < n; i++) TRY(read_part(&l, part[i]));
    if (!has_tier_over_all(&l)) TRY(add_tier(&l, "all", 0, 1));
    setting_node_append(arena, l.network, "tiers", l.tiers);
    *root = l.root;
    return OK;
}
