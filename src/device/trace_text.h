/* Traces in the format of chrome://tracing and Perfetto ("Trace Event Format"): processes with
 * tracks, on them boxes. What really ran and what was simulated are written alike, so that the one
 * can be laid over the other. */
#ifndef DEVICE_TRACE_TEXT_H
#define DEVICE_TRACE_TEXT_H

#include "program/program.h"

typedef struct TraceBox {
    int process, track;
    double begin_s, end_s;
} TraceBox;

void trace_text_begin(Str *out);
void trace_text_process(Str *out, int process, const char *name);
void trace_text_track(Str *out, int process, int track, const char *name);
/* Opens a box. The caller adds its arguments, `"bytes":1,"group":"tp"`, and ends it. */
void trace_text_box(Str *out, const TraceBox *box, const char *name, const char *category);
/* Opens one of an instruction. A stage's program may be that of a shorter model: layers_before is
 * added to the number of a layer. What a node of a trace is known by: process, program, stage,
 * phase and "instr", its number in the program. */
void trace_text_instr(Str *out, const TraceBox *box, const Program *program, const Instr *instr,
                      int stage, int64_t layers_before);
void trace_text_end_box(Str *out);
void trace_text_end(Str *out);

#endif
