/* A simulated step to be drawn: its actions, and a closer look at two layers. */
#include <stdlib.h>
#include <string.h>

#include "planner/planner_internal.h"

enum { WINDOW_LAYERS = 2 };

const char *timeline_work_name(TimelineWork work)
{
    static const char *const names[] = {"forward", "backward", "gradients of weights", "update"};
    return names[work];
}

/* What an action waits for exchanges; a few programs and phases stand for all actions. */
typedef struct Exposed {
    const Program *program;
    Phase first, last;
    double seconds;
} Exposed;

typedef struct Event {
    TimelineEvent event;
    int layer; /* -1: none */
} Event;

typedef struct Filler {
    const PlanJob *job;
    Timeline *timeline;
    int middle; /* the rank that is looked at closely */
    VEC(TimelineAction) action;
    VEC(Exposed) exposed;
    VEC(Event) event; /* of the action that is looked at */
} Filler;

/* ---- actions ---------------------------------------------------------------------------- */

static TimelineWork work_of(const StepSpan *span)
{
    if (span->first == PHASE_UPDATE || span->micro < 0) return TIMELINE_UPDATE;
    return span->first == PHASE_FORWARD    ? TIMELINE_FORWARD
           : span->first == PHASE_BACKWARD ? TIMELINE_BACKWARD
                                           : TIMELINE_WEIGHTS;
}

static double exposed_s(Filler *f, const StepSpan *span)
{
    for (size_t i = 0; i < f->exposed.n; i++) {
        const Exposed *e = &f->exposed.at[i];
        if (e->program == span->program && e->first == span->first && e->last == span->last)
            return e->seconds;
    }
    SimTime t = sim_run(&f->job->sim, span->program, span->first, span->last, NULL, NULL);
    Exposed e = {span->program, span->first, span->last, 0};
    for (int a = 0; a < MESH_AXES; a++) e.seconds += t.exposed_s[a];
    VEC_PUSH(&f->exposed, e);
    return e.seconds;
}

/* ---- two layers, instruction by instruction --------------------------------------------- */

static SimWork kernel_work(const Program *program, const Instr *instr)
{
    Cost c = instr->op->cost(program->graph, instr->node);
    if (c.kind == COST_MATMUL) return SIM_MATRIX;
    return c.kind == COST_ATTENTION || c.kind == COST_ATTENTION_GRAD ? SIM_ATTENTION : SIM_MEMORY;
}

/* Of an instruction what its kernels take: where nothing is drawn, they wait. */
static void keep_event(void *context, const SimEvent *e)
{
    Filler *f = context;
    const Node *node = e->instr->node;
    bool kernel = e->track == SIM_TRACK_KERNELS;
    double begin_s = kernel ? e->end_s - e->kernel_s : e->begin_s;
    if (e->end_s <= begin_s) return;
    Event event = {
        {.track = e->track,
         .work = kernel ? kernel_work(e->program, e->instr) : SIM_MEMORY,
         .name = arena_printf(&f->timeline->arena, "%s%s%s", node->name ? node->name : "",
                              node->name ? ": " : "", e->instr->op->name),
         .begin_s = begin_s,
         .end_s = e->end_s},
        node->layer};
    VEC_PUSH(&f->event, event);
}

/* The time in which kernels of layers [layer, layer + n) run. */
static void find_window(const Filler *f, int layer, int n, TimelineWindow *w)
{
    w->begin_s = w->end_s = -1;
    for (size_t i = 0; i < f->event.n; i++) {
        const Event *e = &f->event.at[i];
        if (e->event.track != SIM_TRACK_KERNELS || e->layer < layer || e->layer >= layer + n)
            continue;
        if (w->begin_s < 0) w->begin_s = e->event.begin_s;
        w->end_s = e->event.end_s;
    }
    w->layers = w->end_s > w->begin_s ? n : 0;
}

static int by_begin(const void *a, const void *b)
{
    const TimelineEvent *x = a, *y = b;
    if (x->track != y->track) return x->track - y->track;
    return (x->begin_s > y->begin_s) - (x->begin_s < y->begin_s);
}

static void fill_window(Filler *f, const StepSpan *span, TimelineWindow *w)
{
    int least = -1, most = -1;
    f->event.n = 0;
    sim_run(&f->job->sim, span->program, span->first, span->last, keep_event, f);
    for (size_t i = 0; i < f->event.n; i++) {
        int layer = f->event.at[i].layer;
        if (layer < 0) continue;
        if (least < 0 || layer < least) least = layer;
        if (layer > most) most = layer;
    }
    if (least < 0) return;
    int n = (int)min_i64(WINDOW_LAYERS, most - least + 1),
        layer = least + (most - least + 1 - n) / 2;
    find_window(f, layer, n, w);
    w->event = ARENA_ARRAY(&f->timeline->arena, TimelineEvent, f->event.n + 1);
    for (size_t i = 0; i < f->event.n; i++) {
        const TimelineEvent *e = &f->event.at[i].event;
        if (e->end_s > w->begin_s && e->begin_s < w->end_s) w->event[w->n++] = *e;
    }
    qsort(w->event, (size_t)w->n, sizeof *w->event, by_begin);
}

/* ---- entry ------------------------------------------------------------------------------ */

static void keep_span(void *context, const StepSpan *span)
{
    Filler *f = context;
    TimelineAction a = {.rank = span->rank,
                        .stage = span->stage,
                        .micro = span->micro,
                        .work = work_of(span),
                        .begin_s = span->begin_s,
                        .end_s = span->end_s,
                        .exposed_s = exposed_s(f, span)};
    VEC_PUSH(&f->action, a);
    if (span->end_s > f->timeline->step_s) f->timeline->step_s = span->end_s;
    if (span->rank != f->middle || span->micro != 0 || a.work > TIMELINE_BACKWARD) return;
    TimelineWindow *w = &f->timeline->window[a.work];
    if (!w->layers) fill_window(f, span, w);
}

void plan_fill_timeline(const PlanJob *job, Timeline *timeline)
{
    *timeline = (Timeline){.n_ranks = job->roles.n_ranks};
    Filler f = {.job = job, .timeline = timeline, .middle = job->roles.n_ranks / 2};
    step_time(&job->sim, &job->roles, &job->options, keep_span, &f);
    timeline->n = (int)f.action.n;
    timeline->action = ARENA_ARRAY(&timeline->arena, TimelineAction, f.action.n + 1);
    memcpy(timeline->action, f.action.at, f.action.n * sizeof *f.action.at);
    VEC_FREE(&f.action);
    VEC_FREE(&f.exposed);
    VEC_FREE(&f.event);
}

void timeline_deinit(Timeline *timeline)
{
    arena_deinit(&timeline->arena);
    *timeline = (Timeline){0};
}
