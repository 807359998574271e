/* Shared by the files of program/. */
#ifndef PROGRAM_PROGRAM_INTERNAL_H
#define PROGRAM_PROGRAM_INTERNAL_H

#include "program/program.h"

/* Where a value lies: in the storage of its root, so many bytes further, with these strides. Starts
 * as the graph says; placement moves values into others' storage. */
typedef struct Placed {
    int root; /* value id of the storage */
    size_t offset_bytes;
    int64_t stride[MAX_RANK];
    int next;      /* list of the values in one storage, from the root */
    int last_read; /* node index; -1 never; n_nodes for outputs */
} Placed;

typedef struct Placement {
    const Graph *graph;
    Placed *at; /* per value */
    int *uses;  /* reads by nodes that are no views */
    int *views; /* views directly of the value */
} Placement;

/* Decides which values share storage: views, in-place successors, parts of concatenations. */
void placement_init(Placement *placement, const Graph *graph);
void placement_deinit(Placement *placement);

/* One piece of memory with a lifetime [birth, death] in node indices; offset is what is wanted. */
typedef struct Block {
    size_t bytes, offset;
    int birth, death;
} Block;
/* Offsets such that blocks whose lives overlap do not; returns the bytes needed. */
size_t plan_blocks(Block *block, int n);

#endif
