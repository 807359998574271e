/* Profiles of layers, from the programs themselves. */
#include "planner/profile.h"

#include <stdlib.h>
#include <string.h>

enum { STAGES = 3 }; /* the first, one in the middle, the last */

static bool same_kind(const LayerConfig *a, const LayerConfig *b)
{
    return a->moe == b->moe && a->rope == b->rope && a->chunk == b->chunk;
}

static bool repeats(const ModelConfig *m, int64_t period)
{
    for (int64_t i = period; i < m->n_layers; i++)
        if (!same_kind(&m->layer[i], &m->layer[i - period])) return false;
    return true;
}

int64_t profile_period(const ModelConfig *m)
{
    int64_t period = 1;
    while (period < m->n_layers && !repeats(m, period)) period++;
    return period;
}

/* The run with a pipeline of three stages, a period of layers on each. */
static RunConfig short_run(const RunConfig *config, LayerCut cut)
{
    RunConfig c = *config;
    c.parallel = (RunParallel){.dp = 1,
                               .fsdp = 1,
                               .tp = cut.tp,
                               .pp = STAGES,
                               .schedule = cut.splits ? "zb-h1" : "1f1b",
                               .cp = cut.cp,
                               .ep = cut.ep,
                               .overlap = config->parallel.overlap,
                               .bucket = config->parallel.bucket};
    c.train.micro_batch = cut.micro_batch;
    c.train.batch = cut.micro_batch * cut.ep * STAGES;
    c.train.recompute = cut.recompute;
    return c;
}

static double role_bytes(const StepRole *role, StateRole which)
{
    return (double)store_role_bytes(role->programs.store, which);
}

/* Of one layer, all its states of this kind. */
static double largest_layer(const StepRole *role)
{
    double copies = role_bytes(role, STATE_COPY),
           whole = copies > 0 ? copies : role_bytes(role, STATE_PARAM);
    const Graph *g = role->programs.at[role->programs.index[PROGRAM_STEP]]->graph;
    int first = -1, last = -1;
    for (int i = 1; i < g->n_nodes; i++) {
        int layer = g->node[i].layer;
        if (layer >= 0 && first < 0) first = layer;
        if (layer > last) last = layer;
    }
    return first < 0 ? whole : whole / (double)(last - first + 1);
}

static StageProfile profile_of(const PlanJob *job, int rank)
{
    const StepRole *role = &job->roles.role[job->roles.role_of[rank]];
    const Program *p = role->programs.at[role->programs.index[PROGRAM_STEP]];
    const MemoryPlan *m = &job->roles.memory[rank];
    int slots = pipeline_slots(job->pipeline, rank, PIPELINE_FW);
    return (StageProfile){
        .forward_s = sim_run(&job->sim, p, PHASE_FORWARD, PHASE_FORWARD, NULL, NULL).total_s,
        .backward_s = sim_run(&job->sim, p, PHASE_BACKWARD, PHASE_WEIGHTS, NULL, NULL).total_s,
        .held_bytes = (double)m->held_bytes / slots,
        .step_bytes = (double)(m->step_bytes - m->held_bytes),
        .message_bytes = (double)job->roles.message_bytes[rank],
        .input_bytes = (double)m->io_bytes / slots,
        .weights = role_bytes(role, STATE_PARAM),
        .copies = role_bytes(role, STATE_COPY),
        .moments = role_bytes(role, STATE_ADAM_M) + role_bytes(role, STATE_ADAM_V),
        .gradients = role_bytes(role, STATE_GRAD),
        .largest_layer = largest_layer(role)};
}

Status profile_make(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                    LayerCut cut, Profile *out)
{
    RunConfig c = short_run(config, cut);
    ModelConfig brief = *model;
    PlanJob job;
    *out = (Profile){.cut = cut, .period = profile_period(model)};
    if (STAGES * out->period > model->n_layers)
        return fail(ERR_UNSUPPORTED, "the model's layers do not repeat");
    brief.n_layers = STAGES * out->period;
    Status status = plan_job_init(&c, &brief, cluster, &job);
    if (status == ERR_REFUSED) return OK;
    TRY(status);
    out->good = true;
    out->first = profile_of(&job, 0);
    out->middle = profile_of(&job, 1);
    out->last = profile_of(&job, STAGES - 1);
    plan_job_deinit(&job);
    return OK;
}
