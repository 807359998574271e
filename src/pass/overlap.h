/* Between the two halves of pass/overlap: what is done in which order, and the graph made of it.
 * Internal to pass/. */
#ifndef PASS_OVERLAP_H
#define PASS_OVERLAP_H

#include "pass/pass.h"

/* A collective on its way, or several all_reduces that are one: their operands lie in one bucket.
 */
typedef struct Flight {
    VEC(int) member; /* nodes of the old graph */
    VEC(int) later;  /* nodes that read its result and can wait */
    size_t bytes;    /* of what is sent */
    int segment;     /* in which it was started */
    int work;        /* kernels that were in front of its start */
    int handed_by;   /* flight whose results its members are, 0: none */
    bool started, landed;
} Flight;

typedef enum ActKind { ACT_NODE, ACT_START, ACT_WAIT } ActKind;
typedef struct Act {
    ActKind kind;
    int index;   /* of the node, or of the flight */
    Phase phase; /* in which it is run */
} Act;

typedef struct Timetable {
    VEC(Act) act;
    VEC(Flight) flight; /* from 1 */
    int *uses;          /* reads of each old value */
} Timetable;

void timetable_make(const Graph *graph, size_t bucket_bytes, Timetable *timetable);
void timetable_free(Timetable *timetable);

#endif
