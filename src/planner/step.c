/* One step of a job: the programs of its roles on simulated devices, in the order in which the
 * trainer's host runs them (train/steps.c, train/pipeline.c). Every program and phase is simulated
 * once; a pipeline's table is run with these times. */
#include "planner/planner.h"

#include <math.h>
#include <stdlib.h>

/* A stage's program, each kind of the schedule's work. */
typedef struct StageTime {
    SimTime of[PIPELINE_BOTH + 1];
    double sent_bytes[2]; /* by its forward and by its backward phase */
} StageTime;

typedef struct Stepper {
    const Sim *sim;
    const StepRoles *roles;
    const StepOptions *options;
    const Pipeline *pipeline;
    StepWatch *watch;
    void *context;
    StageTime *stage; /* [stages] */
    int *local;       /* [stages]: which of its rank's */
    int *at;          /* [ranks]: the next action */
    double *free_s;   /* [ranks] */
    double **end_s;   /* [ranks][actions] */
    SimTime *sum;     /* [ranks] of all actions */
    double *beside_s; /* [ranks] kernels of one micro-batch, forward and backward */
    double late_s;    /* waited for messages on their way, all ranks */
} Stepper;

static const Phase first_phase[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_BACKWARD};
static const Phase last_phase[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_WEIGHTS};

static const StepPrograms *programs_of(const StepRoles *roles, int rank)
{
    return &roles->role[roles->role_of[rank]].programs;
}

static void tell(const Stepper *s, StepSpan span)
{
    if (s->watch) s->watch(s->context, &span);
}

/* ---- stages ----------------------------------------------------------------------------- */

static double sent_bytes(const Program *program, Phase phase)
{
    double sum = 0;
    for (int i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++) {
        const Instr *instr = &program->instr[i];
        Cost c = instr->op->cost ? instr->op->cost(program->graph, instr->node) : (Cost){0};
        if (c.kind == COST_MESSAGE) sum += c.wire_bytes;
    }
    return sum;
}

static StageTime time_stage(const Stepper *s, const Program *program)
{
    StageTime t = {0};
    for (int work = 0; work <= PIPELINE_BOTH; work++)
        if (work < PIPELINE_WEIGHTS || s->pipeline->splits || work == PIPELINE_BOTH)
            t.of[work] = sim_run(s->sim, program, first_phase[work], last_phase[work], NULL, NULL);
    t.sent_bytes[0] = sent_bytes(program, PHASE_FORWARD);
    t.sent_bytes[1] = sent_bytes(program, PHASE_BACKWARD);
    return t;
}

/* Of stages that have one program the first is simulated. */
static StageTime time_own_stage(const Stepper *s, const StepPrograms *p, const int *own, int k)
{
    Program *const *at = &p->at[p->index[PROGRAM_STEP]];
    for (int j = 0; j < k; j++)
        if (at[j] == at[k]) return s->stage[own[j]];
    return time_stage(s, at[k]);
}

/* A role's stages are simulated once, for all its ranks. */
static void time_stages(Stepper *s)
{
    const Pipeline *p = s->pipeline;
    int *own = xcalloc((size_t)p->n_stages, sizeof *own),
        *like = xcalloc((size_t)p->n_stages, sizeof *like);
    for (int r = 0; r < p->n_ranks; r++) {
        int n = pipeline_stages_of(p, r, own),
            built = s->roles->role[s->roles->role_of[r]].built_for;
        const StepPrograms *programs = programs_of(s->roles, r);
        pipeline_stages_of(p, built, like);
        for (int k = 0; k < n; k++) {
            s->local[own[k]] = k;
            s->stage[own[k]] = built < r ? s->stage[like[k]] : time_own_stage(s, programs, own, k);
            const SimTime *of = s->stage[own[k]].of;
            s->beside_s[r] += of[PIPELINE_FORWARD].total_s + of[PIPELINE_BOTH].total_s;
        }
    }
    free(own);
    free(like);
}

/* ---- the pipeline's table --------------------------------------------------------------- */

/* Work 0, 1 or 2 (F, B, W) of a stage and micro-batch: when it ended; negative: not yet. */
static double ended(const Stepper *s, int stage, int micro, int work)
{
    const Pipeline *p = s->pipeline;
    int rank = p->rank_of[stage],
        place = p->place[((int64_t)stage * p->n_micro + micro) * 3 + work];
    return place < s->at[rank] ? s->end_s[rank][place] : -1;
}

/* A message of a stage's rank to the same rank of another stage. */
static double message_s(const Stepper *s, int from, int to, double bytes)
{
    const Pipeline *p = s->pipeline;
    int tp = mesh_size(&s->sim->mesh, MESH_TP);
    if (!s->sim->stack.messages_cut || tp < 2)
        return sim_message_s(s->sim, p->rank_of[from], p->rank_of[to], bytes);
    return sim_message_s(s->sim, p->rank_of[from], p->rank_of[to], bytes / tp) +
           sim_exchange_s(s->sim, COMM_ALL_GATHER, 1u << MESH_TP, bytes);
}

/* What another stage sends takes its way. *sent_s: when it was sent. */
static double arrival(const Stepper *s, int from, int to, int micro, int work, double *sent_s)
{
    const Pipeline *p = s->pipeline;
    *sent_s = ended(s, from, micro, work);
    if (*sent_s < 0 || p->rank_of[from] == p->rank_of[to]) return *sent_s;
    return *sent_s + message_s(s, from, to, s->stage[from].sent_bytes[work]);
}

/* When all that the action reads is there; negative: not yet. *sent_s: when the last of it was
 * made. */
static double ready(const Stepper *s, const PipelineAction *a, double *sent_s)
{
    double own = 0, before = 0, sent = 0;
    int last = s->pipeline->n_stages - 1;
    if (a->work == PIPELINE_FORWARD) {
        before = a->stage > 0 ? arrival(s, a->stage - 1, a->stage, a->micro, 0, &sent) : 0;
    } else if (a->work == PIPELINE_WEIGHTS) {
        own = ended(s, a->stage, a->micro, 1);
    } else {
        own = ended(s, a->stage, a->micro, 0);
        before = a->stage < last ? arrival(s, a->stage + 1, a->stage, a->micro, 1, &sent) : 0;
    }
    if (own < 0 || before < 0) return -1;
    *sent_s = fmax(own, sent);
    return fmax(own, before);
}

/* What the action makes for another stage, on its way. */
static double sending_s(const Stepper *s, const PipelineAction *a)
{
    const Pipeline *p = s->pipeline;
    int forward = a->work == PIPELINE_FORWARD, to = forward ? a->stage + 1 : a->stage - 1;
    if (a->work == PIPELINE_WEIGHTS || to < 0 || to >= p->n_stages ||
        p->rank_of[to] == p->rank_of[a->stage])
        return 0;
    return message_s(s, a->stage, to, s->stage[a->stage].sent_bytes[forward ? 0 : 1]);
}

static bool run_next(Stepper *s, int rank)
{
    const PipelineRank *list = &s->pipeline->rank[rank];
    if (s->at[rank] >= list->n) return false;
    const PipelineAction *a = &list->at[s->at[rank]];
    double sent = 0, there = ready(s, a, &sent);
    if (there < 0) return false;
    double begin = fmax(s->free_s[rank], there),
           end = begin + s->stage[a->stage].of[a->work].total_s;
    double sending = s->sim->stack.messages_wait ? sending_s(s, a) : 0;
    s->late_s += begin - fmax(s->free_s[rank], sent) + sending;
    sim_time_add(&s->sum[rank], &s->stage[a->stage].of[a->work], 1);
    s->end_s[rank][s->at[rank]++] = end;
    s->free_s[rank] = end + sending;
    const StepPrograms *programs = programs_of(s->roles, rank);
    tell(s, (StepSpan){rank, a->stage, a->micro,
                       programs->at[programs->index[PROGRAM_STEP] + s->local[a->stage]],
                       first_phase[a->work], last_phase[a->work], begin, end});
    return true;
}

/* Until all ranks have come to their ends; returns when the last one has. */
static double run_table(Stepper *s)
{
    const Pipeline *p = s->pipeline;
    double end = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int r = 0; r < p->n_ranks; r++)
            while (run_next(s, r)) moved = true;
    }
    for (int r = 0; r < p->n_ranks; r++) end = fmax(end, s->free_s[r]);
    return end;
}

static double pipeline_s(Stepper *s)
{
    const Pipeline *p = s->pipeline;
    s->stage = xcalloc((size_t)p->n_stages, sizeof *s->stage);
    s->local = xcalloc((size_t)p->n_stages, sizeof *s->local);
    s->at = xcalloc((size_t)p->n_ranks, sizeof *s->at);
    s->free_s = xcalloc((size_t)p->n_ranks, sizeof *s->free_s);
    s->end_s = xcalloc((size_t)p->n_ranks, sizeof *s->end_s);
    for (int r = 0; r < p->n_ranks; r++)
        s->end_s[r] = xcalloc((size_t)p->rank[r].n, sizeof(double));
    time_stages(s);
    double end = run_table(s);
    for (int r = 0; r < p->n_ranks; r++) free(s->end_s[r]);
    free(s->end_s);
    free(s->free_s);
    free(s->at);
    free(s->local);
    free(s->stage);
    return end;
}

/* ---- without a pipeline ----------------------------------------------------------------- */

/* From now on; the span's stage and times are set here. */
static SimTime run_phases(Stepper *s, StepSpan span, double *now)
{
    SimTime t = sim_run(s->sim, span.program, span.first, span.last, NULL, NULL);
    span.stage = -1;
    span.begin_s = *now;
    span.end_s = *now += t.total_s;
    tell(s, span);
    return t;
}

/* Micro-batches one after the other, the last one perhaps in the program that has the update. */
static double micro_batches_s(Stepper *s)
{
    const StepPrograms *p = programs_of(s->roles, 0);
    const Program *step = p->at[p->index[PROGRAM_STEP]], *last = p->at[p->index[p->last]];
    double now = 0;
    SimTime f = {0}, b = {0};
    for (int64_t m = 0; m < s->options->n_micro; m++) {
        const Program *program = m + 1 < s->options->n_micro ? step : last;
        if (m == 0 || m + 1 == s->options->n_micro || s->watch) {
            f = run_phases(s,
                           (StepSpan){.rank = 0,
                                      .micro = (int)m,
                                      .program = program,
                                      .first = PHASE_FORWARD,
                                      .last = PHASE_FORWARD},
                           &now);
            b = run_phases(s,
                           (StepSpan){.rank = 0,
                                      .micro = (int)m,
                                      .program = program,
                                      .first = PHASE_BACKWARD,
                                      .last = PHASE_BACKWARD},
                           &now);
        } else {
            now += f.total_s + b.total_s;
        }
        sim_time_add(&s->sum[0], &f, 1);
        sim_time_add(&s->sum[0], &b, 1);
        s->beside_s[0] = f.total_s + b.total_s;
    }
    return now;
}

/* ---- update ----------------------------------------------------------------------------- */

/* Sums of gradients, norm and update, of one rank. */
static SimTime update(Stepper *s, int rank, double begin_s)
{
    const StepPrograms *p = programs_of(s->roles, rank);
    SimTime sum = {0}, t;
    double now = begin_s;
    int own = p->index[PROGRAM_UPDATE], step = p->index[PROGRAM_STEP];
    if (own >= 0 && p->last != PROGRAM_UPDATE) {
        t = run_phases(s,
                       (StepSpan){.rank = rank,
                                  .micro = -1,
                                  .program = p->at[own],
                                  .first = PHASE_FORWARD,
                                  .last = PHASE_BACKWARD},
                       &now);
        sim_time_add(&sum, &t, 1);
    }
    t = run_phases(s,
                   (StepSpan){.rank = rank,
                              .micro = -1,
                              .program = p->at[own >= 0 ? own : step],
                              .first = PHASE_UPDATE,
                              .last = PHASE_UPDATE},
                   &now);
    sim_time_add(&sum, &t, 1);
    return sum;
}

/* How many micro-batches' time exchanges of replicas have: a stage's begin behind its last one. Of
 * several stages on a rank each takes as many micro-batches in turn as the pipeline has ranks, so
 * that only the stage that comes last in the last turn has no other one's work beside it. */
static double micro_batches_beside(const Stepper *s)
{
    const Pipeline *p = s->pipeline;
    if (!p || p->n_stages == p->n_ranks) return 1;
    double turn = fmin(p->n_micro, p->n_ranks), stages = (double)p->n_stages / p->n_ranks;
    return fmax(1, turn * (stages - 1) / stages);
}

/* Of a stack whose exchanges of replicas run beside micro-batches, what is still waited for. */
static void hide_replicas(const Stepper *s, int rank, SimTime *t)
{
    static const MeshAxis axes[] = {MESH_DP, MESH_FSDP};
    double budget = s->beside_s[rank] * micro_batches_beside(s);
    for (int i = 0; i < COUNT_OF(axes) && s->sim->stack.dp_beside; i++) {
        double hidden = fmin(budget, t->exposed_s[axes[i]]);
        t->exposed_s[axes[i]] -= hidden;
        t->hidden_s[axes[i]] += hidden;
        t->total_s -= hidden;
        budget -= hidden;
    }
}

/* Ranks of one role do the same update. */
static double updates_s(Stepper *s, double begin_s, SimTime *all)
{
    double longest = 0;
    SimTime *of = xcalloc((size_t)s->roles->n, sizeof *of);
    for (int r = 0; r < s->roles->n_ranks; r++) {
        int role = s->roles->role_of[r];
        if (s->watch || s->roles->role[role].built_for == r) {
            of[role] = update(s, r, begin_s);
            hide_replicas(s, r, &of[role]);
        }
        sim_time_add(all, &of[role], 1);
        longest = fmax(longest, of[role].total_s);
    }
    free(of);
    return longest;
}

/* ---- entry ------------------------------------------------------------------------------ */

static void add_parts(StepTime *t, const SimTime *work, const SimTime *update, double ranks)
{
    for (int w = 0; w < SIM_WORKS; w++) {
        t->part.work_s[w] = work->work_s[w] / ranks;
        t->part.optimizer_s += update->work_s[w] / ranks;
    }
    t->part.launch_s = (work->launch_s + update->launch_s) / ranks;
    for (int a = 0; a < MESH_AXES; a++) {
        t->part.exposed_s[a] = (work->exposed_s[a] + update->exposed_s[a]) / ranks;
        t->hidden_s[a] = (work->hidden_s[a] + update->hidden_s[a]) / ranks;
    }
    t->slowed_s = (work->slowed_s + update->slowed_s) / ranks;
    t->flop = work->flop + update->flop;
}

StepTime step_time(const Sim *sim, const StepRoles *roles, const StepOptions *options,
                   StepWatch *watch, void *context)
{
    int n = roles->n_ranks;
    Stepper s = {.sim = sim,
                 .roles = roles,
                 .options = options,
                 .pipeline = n > 1 ? options->layout.pipeline : NULL,
                 .watch = watch,
                 .context = context};
    s.sum = xcalloc((size_t)n, sizeof *s.sum);
    s.beside_s = xcalloc((size_t)n, sizeof *s.beside_s);
    SimTime work = {0}, end = {0};
    double work_s = s.pipeline ? pipeline_s(&s) : micro_batches_s(&s);
    double loss_s = s.pipeline ? sim_exchange_s(sim, COMM_ALL_REDUCE, 1u << MESH_PP, sizeof(float))
                               : 0; /* all stages meet */
    double update_s = updates_s(&s, work_s + loss_s, &end);
    for (int r = 0; r < n; r++) sim_time_add(&work, &s.sum[r], 1);
    StepTime t = {.step_s = work_s + loss_s + update_s};
    add_parts(&t, &work, &end, n);
    double waiting = t.step_s - loss_s - (work.total_s + end.total_s) / n;
    t.part.exposed_s[MESH_PP] += s.late_s / n + loss_s;
    t.part.bubble_s = waiting - s.late_s / n;
    free(s.sum);
    free(s.beside_s);
    return t;
}
