/* A simulated step laid over measured ones of the same layout: node by node as figures, and both as
 * processes of one trace. A node is the same one when it is the same instruction of the same phase,
 * program and stage on ranks at the same place in the pipeline: both sides compiled the program. */
#include "planner/overlay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Times of one node on one side. */
typedef struct Group {
    const TraceNode *node; /* the first */
    int64_t rank;          /* along pp */
    int64_t n;
    double seconds; /* of all */
} Group;
typedef VEC(Group) Groups;

typedef struct Side {
    Bytes text;
    const char *name;
    int64_t processes, per_stage; /* there are; of one rank of the pipeline */
    json_t *root;
    TraceNodes nodes;
    Groups group;
} Side;

/* ---- one side --------------------------------------------------------------------------- */

static int by_node(const void *left, const void *right)
{
    const TraceNode *a = left, *b = right;
    int order = strcmp(a->program, b->program);
    if (order) return order;
    if (a->process != b->process) return a->process < b->process ? -1 : 1;
    if (a->stage != b->stage) return a->stage < b->stage ? -1 : 1;
    if (a->instr != b->instr) return a->instr < b->instr ? -1 : 1;
    return strcmp(a->phase, b->phase);
}

static Status read_side(Side *s)
{
    TRY(trace_read(s->text, s->name, &s->root, &s->nodes));
    for (size_t i = 0; i < s->nodes.n; i++) {
        TraceNode *node = &s->nodes.at[i];
        if (node->process >= s->processes)
            return fail(ERR_REFUSED,
                        "%s: there is a rank %lld, and the layout that is planned has %lld ranks; "
                        "take the run's own run file",
                        s->name, (long long)node->process, (long long)s->processes);
        node->process /= s->per_stage;
    }
    qsort(s->nodes.at, s->nodes.n, sizeof *s->nodes.at, by_node);
    for (size_t i = 0; i < s->nodes.n; i++) {
        const TraceNode *node = &s->nodes.at[i];
        Groups *g = &s->group;
        if (!g->n || by_node(g->at[g->n - 1].node, node)) {
            Group first = {.node = node, .rank = node->process};
            VEC_PUSH(g, first);
        }
        g->at[g->n - 1].n++;
        g->at[g->n - 1].seconds += node->end_s - node->begin_s;
    }
    return OK;
}

static void side_deinit(Side *s)
{
    VEC_FREE(&s->nodes);
    VEC_FREE(&s->group);
    if (s->root) json_decref(s->root);
}

/* From the first instruction's begin to the last one's end, of the slowest rank. */
static double whole_s(const Side *s)
{
    double first = (double)INFINITY, last = -(double)INFINITY;
    for (size_t i = 0; i < s->nodes.n; i++) {
        first = fmin(first, s->nodes.at[i].begin_s);
        last = fmax(last, s->nodes.at[i].end_s);
    }
    return last - first;
}

/* ---- both ------------------------------------------------------------------------------- */

static void add_odd(Overlay *o, const Group *g, bool measured)
{
    int *count = measured ? &o->n_measured_only : &o->n_simulated_only;
    if (!o->odd)
        o->odd = arena_printf(
            &o->arena, "%s (%s, instruction %lld of program %s, rank %lld) was %s only",
            g->node->name, g->node->phase, (long long)g->node->instr, g->node->program,
            (long long)g->rank, measured ? "measured" : "simulated");
    ++*count;
}

static void add_both(Overlay *o, const Group *m, const Group *s)
{
    const TraceNode *node = s->node;
    o->node[o->n++] = (OverlayNode){.program = arena_strdup(&o->arena, node->program),
                                    .phase = arena_strdup(&o->arena, node->phase),
                                    .name = arena_strdup(&o->arena, node->name),
                                    .rank = (int)s->rank,
                                    .stage = (int)node->stage,
                                    .instr = (int)node->instr,
                                    .layer = (int)node->layer,
                                    .times = s->n,
                                    .measured_s = m->seconds / (double)m->n,
                                    .simulated_s = s->seconds / (double)s->n};
}

static bool same_words(const TraceNode *a, const TraceNode *b)
{
    return !strcmp(a->name, b->name) && a->layer == b->layer;
}

static bool is_simulated(const Side *simulated, const char *program)
{
    for (size_t i = 0; i < simulated->group.n; i++)
        if (!strcmp(simulated->group.at[i].node->program, program)) return true;
    return false;
}

/* Programs that no step runs (an evaluation between steps) are not compared. */
static void merge(const Side *measured, const Side *simulated, Overlay *o)
{
    size_t i = 0, k = 0;
    const Groups *m = &measured->group, *s = &simulated->group;
    o->node = ARENA_ARRAY(&o->arena, OverlayNode, m->n + 1);
    while (i < m->n || k < s->n) {
        int order = i == m->n ? 1 : k == s->n ? -1 : by_node(m->at[i].node, s->at[k].node);
        if (order == 0 && same_words(m->at[i].node, s->at[k].node)) {
            add_both(o, &m->at[i++], &s->at[k++]);
            continue;
        }
        if (order <= 0) {
            if (is_simulated(simulated, m->at[i].node->program)) add_odd(o, &m->at[i], true);
            i++;
        }
        if (order >= 0) add_odd(o, &s->at[k++], false);
    }
}

/* How often the measured side has what a step has once: the same for every node. */
static Status count_steps(const Side *measured, const Side *simulated, Overlay *o)
{
    const Groups *m = &measured->group, *s = &simulated->group;
    double steps = 0;
    size_t k = 0;
    for (size_t i = 0; i < m->n; i++) {
        while (k < s->n && by_node(s->at[k].node, m->at[i].node) < 0) k++;
        if (k == s->n || by_node(s->at[k].node, m->at[i].node)) continue;
        double here = (double)m->at[i].n / (double)(s->at[k].n * measured->per_stage);
        if (steps > 0 && here != steps)
            return fail(ERR_REFUSED,
                        "%s: it has %s %g times in a step that other instructions have once; it is "
                        "no trace of this layout, batch and micro-batch",
                        measured->name, m->at[i].node->name, here / steps);
        steps = here;
    }
    if (steps > 0 && steps != floor(steps))
        return fail(ERR_REFUSED,
                    "%s: what a step of this layout has once it has %g times; it is no trace of "
                    "this batch and micro-batch",
                    measured->name, steps);
    o->steps = steps;
    return OK;
}

/* ---- one trace of both ------------------------------------------------------------------ */

static void name_measured(json_t *event)
{
    const char *what = json_string_value(json_object_get(event, "name"));
    json_t *args = json_object_get(event, "args");
    if (!what || strcmp(what, "process_name") != 0) return;
    const char *name = json_string_value(json_object_get(args, "name"));
    if (name) json_object_set_new(args, "name", json_sprintf("%s, measured", name));
}

static void copy_measured(const Side *measured, Str *out)
{
    json_t *events = json_object_get(measured->root, "traceEvents"), *event;
    size_t i;
    json_array_foreach(events, i, event)
    {
        name_measured(event);
        char *line = json_dumps(event, JSON_COMPACT);
        if (line) str_printf(out, "%s,\n", line);
        free(line);
    }
}

/* ---- entry ------------------------------------------------------------------------------ */

static Status lay_over(Side *measured, Side *simulated, Overlay *o)
{
    TRY(read_side(measured));
    TRY(read_side(simulated));
    TRY(count_steps(measured, simulated, o));
    merge(measured, simulated, o);
    if (o->n == 0)
        return fail(ERR_REFUSED, "%s: %s; no node is in both: it is no trace of this layout",
                    measured->name, o->odd);
    o->measured_s = whole_s(measured) / o->steps;
    o->simulated_s = whole_s(simulated);
    return OK;
}

Status overlay_make(const PlanJob *job, Bytes text, const char *name, Str *both, Overlay *out)
{
    Str simulated_text = {0};
    int64_t ranks = mesh_ranks(&job->sim.mesh), stages = job->roles.n_ranks;
    *out = (Overlay){0};
    str_add(&simulated_text, "{\"traceEvents\":[\n");
    plan_trace_text(job, &(TraceForm){.name = "simulated rank", .all = true}, &simulated_text);
    trace_text_end(&simulated_text);
    Side measured = {.text = text, .name = name, .processes = ranks, .per_stage = ranks / stages};
    Side simulated = {.text = {(const unsigned char *)simulated_text.at, simulated_text.n},
                      .name = "the simulated trace",
                      .processes = stages,
                      .per_stage = 1};
    Status status = lay_over(&measured, &simulated, out);
    if (status == OK && both) {
        trace_text_begin(both);
        copy_measured(&measured, both);
        plan_trace_text(
            job, &(TraceForm){.name = "simulated rank", .process = (int)ranks, .all = true}, both);
        trace_text_end(both);
    }
    side_deinit(&measured);
    side_deinit(&simulated);
    str_deinit(&simulated_text);
    if (status != OK) overlay_deinit(out);
    return status;
}

void overlay_deinit(Overlay *o)
{
    arena_deinit(&o->arena);
    *o = (Overlay){0};
}
