/* Internal to planner/: measured and simulated traces, read and laid over each other. */
#ifndef PLANNER_OVERLAY_H
#define PLANNER_OVERLAY_H

#include "device/trace_text.h"
#include "planner/planner_internal.h"
#include "planner/trace_read.h"

/* text: of a measured trace. both: NULL, or a trace with both sides is added to it. ERR_FORMAT: it
 * is no trace; ERR_REFUSED: it is one of another layout. */
Status overlay_make(const PlanJob *job, Bytes text, const char *name, Str *both, Overlay *out);

#endif
