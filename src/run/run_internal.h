/* run, inside: the tree that YAML becomes, and values written and read by the table. */
#ifndef RUN_RUN_INTERNAL_H
#define RUN_RUN_INTERNAL_H

#include "run/run.h"

typedef enum RunNodeKind { NODE_SCALAR, NODE_LIST, NODE_MAP } RunNodeKind;

/* Nodes live in the arena of their config. A map has n keys and n items, in the order of the file. */
typedef struct RunNode RunNode;
struct RunNode {
    RunNodeKind kind;
    bool quoted;       /* scalar: it is text whatever it looks like */
    int line;          /* 0: from an override */
    const char *place; /* "demo.yaml", or the override as given */
    const char *text;  /* scalar */
    int n, cap;
    const char **key;
    RunNode **item;
};

enum { MAX_RUN_FILE_BYTES = 1 << 20, MAX_DEPTH = 24, MAX_KEYS = 4096, MAX_TEXT_BYTES = 1 << 14, MAX_KEY_BYTES = 128 };

/* An empty text gives an empty map. */
Status run_node_parse(Arena *arena, Bytes text, const char *place, RunNode **root);
RunNode *run_node_create(Arena *arena, RunNodeKind kind, const char *place, int line);
RunNode *run_node_find(const RunNode *map, const char *key); /* NULL when absent, or when map is no map */
void run_node_set(Arena *arena, RunNode *map, const char *key, RunNode *item); /* replaces */
void run_node_append(Arena *arena, RunNode *node, const char *key, RunNode *item);
/* "demo.yaml:7" or "train.lr=abc" on the command line. */
const char *run_node_where(Arena *arena, const RunNode *node);
Status run_node_override(Arena *arena, RunNode *root, const char *text);
/* Plain scalars become null, true, false and numbers as in YAML 1.2's core schema. */
Status run_node_json(Arena *arena, const RunNode *node, Str *out);

void settings_range_text(const Setting *s, Str *out);
/* Parses a scalar by the setting's type and range into base + offset. */
Status setting_read(Arena *arena, const Setting *s, const RunNode *node, void *base);
Status setting_default(Arena *arena, const Setting *s, void *base);
/* As it stands in the file. */
void setting_write(const Setting *s, const void *base, Str *out);

#endif
