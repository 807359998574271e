/* A simulated step as a trace, in the form of a measured one (train/trace.c): a process for each
 * rank of the pipeline, in it a track of instructions and one of exchanges for each axis. Ranks
 * that differ along other axes would look the same. Of many micro-batches that are alike only the
 * first is told instruction by instruction, unless all are asked for; all are there as actions. */
#include <stdlib.h>

#include "device/trace_text.h"
#include "planner/planner_internal.h"

enum { TRACK_INSTRUCTIONS = 1, TRACK_EXCHANGES, TRACK_ACTIONS = TRACK_EXCHANGES + MESH_AXES };

typedef struct Writer {
    const PlanJob *job;
    Str *out;
    const TraceForm *form;
    const StepSpan *span; /* whose instructions are told */
    int64_t layers_before;
} Writer;

/* Programs of a role have the layers of a shorter model (train/roles.c), in the stage's order. */
static int64_t layers_before(const PlanJob *job, const StepSpan *span)
{
    const Graph *g = span->program->graph;
    int64_t least = INT64_MAX, n = job->pipeline ? job->pipeline->n_stages : 1;
    if (span->stage < 0) return 0;
    for (int i = 1; i < g->n_nodes; i++)
        if (g->node[i].layer >= 0) least = min_i64(least, g->node[i].layer);
    return least == INT64_MAX ? 0 : (span->stage * job->model->n_layers + n - 1) / n - least;
}

static void tell_event(void *context, const SimEvent *e)
{
    Writer *w = context;
    int track = e->track == SIM_TRACK_KERNELS ? TRACK_INSTRUCTIONS : TRACK_EXCHANGES + e->track - 1;
    TraceBox box = {w->form->process + w->span->rank, track, w->span->begin_s + e->begin_s,
                    w->span->begin_s + e->end_s};
    trace_text_instr(w->out, &box, e->program, e->instr, w->span->stage, w->layers_before);
    if (e->track != SIM_TRACK_KERNELS) str_add(w->out, ",\"exchange\":true");
    trace_text_end_box(w->out);
}

static void tell_span(void *context, const StepSpan *span)
{
    Writer *w = context;
    TraceBox box = {w->form->process + span->rank, TRACK_ACTIONS, span->begin_s, span->end_s};
    const char *name = span->first != span->last && span->first == PHASE_BACKWARD
                           ? "backward and weights"
                           : phase_name(span->first);
    trace_text_box(w->out, &box, name, "action");
    str_printf(w->out, "\"program\":\"%s\"", span->program->graph->name);
    if (span->stage >= 0) str_printf(w->out, ",\"stage\":%d", span->stage);
    if (span->micro >= 0) str_printf(w->out, ",\"micro_batch\":%d", span->micro);
    trace_text_end_box(w->out);
    if (span->micro > 0 && !w->form->all) return;
    w->span = span;
    w->layers_before = layers_before(w->job, span);
    sim_run(&w->job->sim, span->program, span->first, span->last, tell_event, w);
}

static void name_tracks(const Writer *w, int rank)
{
    char name[64];
    int process = w->form->process + rank;
    snprintf(name, sizeof name, "%s %d", w->form->name, rank);
    trace_text_process(w->out, process, name);
    trace_text_track(w->out, process, TRACK_ACTIONS, "actions");
    trace_text_track(w->out, process, TRACK_INSTRUCTIONS, "instructions");
    for (int a = 0; a < MESH_AXES; a++)
        if (mesh_size(&w->job->sim.mesh, (MeshAxis)a) > 1)
            trace_text_track(w->out, process, TRACK_EXCHANGES + a, mesh_axis_name((MeshAxis)a));
}

void plan_trace_text(const PlanJob *job, const TraceForm *form, Str *out)
{
    Writer w = {.job = job, .out = out, .form = form};
    for (int r = 0; r < job->roles.n_ranks; r++) name_tracks(&w, r);
    step_time(&job->sim, &job->roles, &job->options, tell_span, &w);
}

Status plan_write_trace(const PlanJob *job, const char *path)
{
    Str text = {0};
    trace_text_begin(&text);
    plan_trace_text(job, &(TraceForm){.name = "rank"}, &text);
    trace_text_end(&text);
    Status status = file_write_atomic(path, text.at, text.n);
    str_deinit(&text);
    return status;
}
