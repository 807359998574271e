/* setting: files of settings: YAML that becomes a small tree, and tables by which the tree becomes
 * values.
 *
 * What it is.   SettingNode, the tree with the line of every key; Setting, one thing that can be
 *               set (dotted name, type,
 *               unit, range, default, sentence); readers and writers that go by a table of them.
 * Depends on.   base; libyaml.
 * Owns.         Nothing: nodes and texts live in the arena of the caller.
 * Invariants.   Refusals are one sentence that names file, line, key, what was wrong, and the
 *               nearest right key or
 *               the range. A tree is at most 24 deep and of one document without anchors, aliases
 *               and tags.
 * Use:
 *     SettingNode *root;
 *     TRY(setting_node_parse(&arena, text, "demo.yaml", &root));
 *     SettingReader reader = {&arena, table, COUNT_OF(table), "see docs/run-file.md", NULL};
 *     TRY(setting_read_defaults(&reader, "", &config));
 *     TRY(setting_read_map(&reader, "", root, &config));
 */
#ifndef SETTING_SETTING_H
#define SETTING_SETTING_H

#include "base/base.h"

/* ---- the tree --------------------------------------------------------------------------- */

typedef enum SettingNodeKind { NODE_SCALAR, NODE_LIST, NODE_MAP } SettingNodeKind;

/* Nodes live in the arena of what is read. A map has n keys and n items, in the order of the file.
 */
typedef struct SettingNode SettingNode;
struct SettingNode {
    SettingNodeKind kind;
    bool quoted;       /* scalar: it is text whatever it looks like */
    int line;          /* 0: from an override */
    const char *place; /* "demo.yaml", or the override as given */
    const char *text;  /* scalar */
    int n, cap;
    const char **key;
    SettingNode **item;
};

enum { MAX_SETTING_FILE_BYTES = 1 << 20 };

/* An empty text gives an empty map. */
Status setting_node_parse(Arena *arena, Bytes text, const char *place, SettingNode **root);
SettingNode *setting_node_create(Arena *arena, SettingNodeKind kind, const char *place, int line);
SettingNode *setting_node_find(const SettingNode *map,
                               const char *key); /* NULL when absent, or when map is no map */
void setting_node_set(Arena *arena, SettingNode *map, const char *key,
                      SettingNode *item); /* replaces */
void setting_node_append(Arena *arena, SettingNode *node, const char *key, SettingNode *item);
/* "demo.yaml:7" or "train.lr=abc" on the command line. */
const char *setting_node_where(Arena *arena, const SettingNode *node);
Status setting_node_override(Arena *arena, SettingNode *root, const char *text); /* key=value */
/* Plain scalars become null, true, false and numbers as in YAML 1.2's core schema. */
Status setting_node_json(Arena *arena, const SettingNode *node, Str *out);

/* ---- the table -------------------------------------------------------------------------- */

typedef enum SettingType {
    SETTING_INT,    /* int64_t */
    SETTING_FLOAT,  /* double */
    SETTING_BOOL,   /* bool */
    SETTING_TEXT,   /* const char * */
    SETTING_CHOICE, /* an enum; the values are the places in `choices` */
    SETTING_BYTES,  /* int64_t; 512MB, 8GiB or a plain number */
    SETTING_RANGE,  /* double[3]: low, central, high as a list, each at least the one before; one
                       number is all three */
} SettingType;

typedef struct Setting {
    const char *name; /* "train.lr"; those of each element of a list: "data[].path" */
    SettingType type;
    const char *unit;         /* "" where there is none */
    double min, max;          /* of numbers */
    const char *default_text; /* as it would stand in the file; NULL: it must be given */
    const char *choices;      /* words separated by a bar, or NULL */
    size_t offset;            /* in the struct that the table is for */
    const char *sentence;
} Setting;

typedef struct SettingReader {
    Arena *arena;
    const Setting *table;
    int n;
    const char *help;          /* where all are listed, for unknown keys that resemble none */
    const SettingNode **given; /* [n]: the node that set each, for later refusals; or NULL */
} SettingReader;

const Setting *setting_find(const Setting *table, int n,
                            const char *name); /* NULL when there is none */
/* All settings whose name starts with `prefix` ("" or "train."): defaults, those that have one. */
Status setting_read_defaults(const SettingReader *r, const char *prefix, void *base);
/* The keys of `map`, which stand under `prefix`, and the sections in it; unknown ones name the
 * nearest. */
Status setting_read_map(const SettingReader *r, const char *prefix, const SettingNode *map,
                        void *base);
/* Every setting under `prefix` without a default was given; `where` stands for the place of the
 * section. */
Status setting_read_required(const SettingReader *r, const char *prefix, const char *where);

/* A scalar (or list of three) by the setting's type and range into base + offset. */
Status setting_read(Arena *arena, const Setting *s, const SettingNode *node, void *base);
Status setting_default(Arena *arena, const Setting *s, void *base);
/* That the value in `base` is in the setting's range; `where` says whose it is. */
Status setting_check(const Setting *s, const char *where, const void *base);
/* As it stands in the file. */
void setting_write(const Setting *s, const void *base, Str *out);
void setting_range_text(const Setting *s, Str *out); /* "0 to 10", "true or false" */
/* Opens the sections of the dotted `name` that are not those of `before`, and writes its last key
 * and a colon. */
void setting_write_key(const char *name, const char *before, Str *out);
void setting_write_quoted(const char *text, Str *out);

/* "5000", "512MB", "1.5 GiB": a number of bytes; false otherwise. */
bool setting_parse_bytes(const char *text, int64_t *out);

#endif
