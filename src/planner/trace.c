/* A simulated step as a trace, in the form of a measured one (train/trace.c): a process for each
 * rank of the pipeline, in it a track of instructions and one of exchanges for each axis. Ranks
 * that differ along other axes would look the same. Of many micro-batches that are alike only the
 * first is told instruction by instruction; all are there as actions. */
#include <stdlib.h>

#include "device/trace_text.h"
#include "planner/planner_internal.h"

enum { TRACK_INSTRUCTIONS = 1, TRACK_EXCHANGES, TRACK_ACTIONS = TRACK_EXCHANGES + MESH_AXES };

typedef struct Writer {
    const PlanJob *job;
    Str *out;
    const StepSpan *span; /* whose instructions are told */
} Writer;

static void tell_event(void *context, const SimEvent *e)
{
    Writer *w = context;
    int track = e->track == SIM_TRACK_KERNELS ? TRACK_INSTRUCTIONS : TRACK_EXCHANGES + e->track - 1;
    TraceBox box = {w->span->rank, track, w->span->begin_s + e->begin_s,
                    w->span->begin_s + e->end_s};
    trace_text_instr(w->out, &box, e->program, e->instr);
    trace_text_end_box(w->out);
}

static void tell_span(void *context, const StepSpan *span)
{
    Writer *w = context;
    TraceBox box = {span->rank, TRACK_ACTIONS, span->begin_s, span->end_s};
    const char *name = span->first != span->last && span->first == PHASE_BACKWARD
                           ? "backward and weights"
                           : phase_name(span->first);
    trace_text_box(w->out, &box, name, "action");
    str_printf(w->out, "\"program\":\"%s\"", span->program->graph->name);
    if (span->stage >= 0) str_printf(w->out, ",\"stage\":%d", span->stage);
    if (span->micro >= 0) str_printf(w->out, ",\"micro_batch\":%d", span->micro);
    trace_text_end_box(w->out);
    if (span->micro > 0) return;
    w->span = span;
    sim_run(&w->job->sim, span->program, span->first, span->last, tell_event, w);
}

static void name_tracks(const PlanJob *job, Str *out, int rank)
{
    char name[32];
    snprintf(name, sizeof name, "rank %d", rank);
    trace_text_process(out, rank, name);
    trace_text_track(out, rank, TRACK_ACTIONS, "actions");
    trace_text_track(out, rank, TRACK_INSTRUCTIONS, "instructions");
    for (int a = 0; a < MESH_AXES; a++)
        if (mesh_size(&job->sim.mesh, (MeshAxis)a) > 1)
            trace_text_track(out, rank, TRACK_EXCHANGES + a, mesh_axis_name((MeshAxis)a));
}

Status plan_write_trace(const PlanJob *job, const char *path)
{
    Str text = {0};
    Writer w = {.job = job, .out = &text};
    trace_text_begin(&text);
    for (int r = 0; r < job->roles.n_ranks; r++) name_tracks(job, &text, r);
    step_time(&job->sim, &job->roles, &job->options, tell_span, &w);
    trace_text_end(&text);
    Status status = file_write_atomic(path, text.at, text.n);
    str_deinit(&text);
    return status;
}
