/* Internal to planner/: a trace as a list of instructions. */
#ifndef PLANNER_TRACE_READ_H
#define PLANNER_TRACE_READ_H

#include <jansson.h>

#include "base/base.h"

typedef struct TraceNode {
    const char *program, *phase, *name;   /* the JSON's */
    int64_t process, stage, instr, layer; /* stage, layer: -1 where there is none */
    double begin_s, end_s;
    size_t event; /* its number among the events */
} TraceNode;
typedef VEC(TraceNode) TraceNodes;

/* Texts are root's, which the caller drops. ERR_FORMAT names the event. */
Status trace_read(Bytes text, const char *name, json_t **root, TraceNodes *out);

#endif
