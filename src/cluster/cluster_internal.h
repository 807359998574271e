/* cluster, inside: the table of settings, files that are compiled in, the one-line form,
 * contradictions. */
#ifndef CLUSTER_CLUSTER_INTERNAL_H
#define CLUSTER_CLUSTER_INTERNAL_H

#include "cluster/cluster.h"
#include "setting/setting.h"

/* Dotted names of everything in a Cluster; those of lists: network.tiers[]., failures[].,
 * device.ops[]. */
extern const Setting cluster_table[];
extern const int cluster_table_n;
enum { MAX_CAUSES = 64, MAX_OP_RATES = 256 };

/* A YAML file of src/cluster/ that the build put into the program; the list ends with a name of
 * NULL. */
typedef struct ClusterFile {
    const char *name; /* "devices/h100": path without .yaml */
    const unsigned char *at;
    size_t n;
} ClusterFile;
extern const ClusterFile cluster_files[];

/* "16384 h100, 8 per node, 400G, spine 1:4" begins with a digit. */
bool cluster_is_line(const char *text);
/* The same as the tree of a file. */
Status cluster_line_tree(Arena *arena, const char *line, SettingNode **root);

/* The device of that name as a preset, or NULL; and the nearest name, or NULL. */
const ClusterFile *cluster_find_file(const char *folder, const char *name);
const char *cluster_nearest_file(const char *name, bool devices_only);

/* Contradictions between values that are each in range. `place` of a key, for sentences: of an
 * element of its list
 * ("network.tiers", 2), else of the one value. */
typedef struct ClusterPlaces {
    const char *(*place)(const struct ClusterPlaces *places, const char *key, int element);
    const void *context;
} ClusterPlaces;
Status cluster_contradictions(const Cluster *cluster, const ClusterPlaces *places);

#endif
