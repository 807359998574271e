/* Profiles of layers, from the programs themselves. */
#include "planner/profile.h"

#include <stdlib.h>
#include <string.h>

static bool same_kind(const LayerConfig *a, const LayerConfig *b)
{
    return a->moe == b->moe && a->rope == b->rope && a->chunk == b->chunk;
}

Status profile_kinds(const ModelConfig *m, LayerKinds *out)
{
    LayerKinds k = {0};
    for (int64_t i = 0; i < m->n_layers; i++) {
        int at = 0;
        while (at < k.n && !same_kind(&m->layer[k.layer[at]], &m->layer[i])) at++;
        if (at == PROFILE_KINDS)
            return fail(ERR_UNSUPPORTED, "more than %d kinds of layers are not searched over",
                        PROFILE_KINDS);
        if (at == k.n) k.layer[k.n++] = i;
        k.share[at] += 1 / (double)m->n_layers;
        if (i == 0) k.first = at;
        k.last = at;
    }
    *out = k;
    return OK;
}

/* So many, or more where only powers of two can be summed. */
static int64_t micro_batches(const RunConfig *config, int64_t stages)
{
    int64_t n = 1;
    if (!config->train.canonical) return stages;
    while (n < stages) n *= 2;
    return n;
}

/* The run with a pipeline of so many stages, a layer on each. */
static RunConfig short_run(const RunConfig *config, LayerCut cut, int64_t stages)
{
    RunConfig c = *config;
    c.parallel = (RunParallel){.dp = 1,
                               .fsdp = 1,
                               .tp = cut.tp,
                               .pp = stages,
                               .schedule = cut.splits ? "zb-h1" : "1f1b",
                               .cp = cut.cp,
                               .ep = cut.ep,
                               .fold_experts = cut.folds,
                               .overlap = config->parallel.overlap,
                               .bucket = config->parallel.bucket};
    c.train.micro_batch = cut.micro_batch;
    c.train.batch = cut.micro_batch * cut.ep * micro_batches(config, stages);
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
        .packed_bytes = (double)m->packed_bytes,
        .weights = role_bytes(role, STATE_PARAM),
        .copies = role_bytes(role, STATE_COPY),
        .moments = role_bytes(role, STATE_ADAM_M) + role_bytes(role, STATE_ADAM_V),
        .gradients = role_bytes(role, STATE_GRAD),
        .largest_layer = largest_layer(role)};
}

/* The short pipeline may take more devices than the cluster has: the others are like those. */
static Cluster with_room(const Cluster *cluster, int64_t ranks)
{
    Cluster c = *cluster; /* texts and lists stay the cluster's */
    int64_t nodes = (ranks + c.node.devices - 1) / c.node.devices;
    c.arena = (Arena){0};
    if (c.device.cores || nodes <= c.n_nodes || c.network.n_tiers == 0) return c;
    return cluster_resize(&c, nodes * c.node.devices) == OK ? c : *cluster;
}

Status profile_make(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                    LayerCut cut, Profile *out)
{
    PlanJob job;
    *out = (Profile){.cut = cut};
    TRY(profile_kinds(model, &out->kinds));
    int n = out->kinds.n, last = n + 1; /* its stage */
    LayerConfig layer[PROFILE_KINDS + 2] = {[0] = model->layer[0]};
    for (int k = 0; k < n; k++) layer[1 + k] = model->layer[out->kinds.layer[k]];
    layer[last] = model->layer[model->n_layers - 1];
    ModelConfig brief = *model;
    brief.layer = layer;
    brief.n_layers = last + 1;
    RunConfig c = short_run(config, cut, brief.n_layers);
    Cluster room = with_room(cluster, run_ranks(&c));
    Status status = plan_job_init(&c, &brief, &room, NULL, &job);
    if (status == ERR_REFUSED) return OK;
    TRY(status);
    out->good = true;
    out->first = profile_of(&job, 0);
    for (int k = 0; k < n; k++) out->kind[k] = profile_of(&job, 1 + k);
    out->last = profile_of(&job, last);
    plan_job_deinit(&job);
    return OK;
}
