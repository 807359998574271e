/* A rank of a pipeline at work: its actions in the schedule's order, each on the program of its
 * stage and in the slots of its micro-batch. */
#include <stdlib.h>
#include <string.h>

#include "train/trainer_internal.h"

/* ---- which schedule --------------------------------------------------------------------- */

static bool is_name(const char *text)
{
    int n;
    const char *const *names = pipeline_names(&n);
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], text)) return true;
    return false;
}

static Status unknown(const char *text)
{
    int n;
    const char *const *names = pipeline_names(&n), *nearest = name_nearest(text, names, n);
    Str all = {0};
    for (int i = 0; i < n; i++) str_printf(&all, "%s%s", i ? ", " : "", names[i]);
    Status status =
        nearest
            ? fail(ERR_ARG,
                   "parallel.schedule: there is no schedule and no file '%.200s'; did you mean %s?",
                   text, nearest)
            : fail(ERR_ARG, "parallel.schedule: '%.200s' is no file, and none of the schedules %s",
                   text, all.at);
    str_deinit(&all);
    return status;
}

static Status check_file(const RunParallel *r, const Pipeline *p, int64_t n_micro)
{
    if (p->n_ranks != r->pp || p->n_micro != n_micro)
        return fail(ERR_REFUSED,
                    "%s is a schedule for %d ranks and %d micro-batches; the run has parallel.pp "
                    "%lld and %lld micro-batches in a step",
                    r->schedule, p->n_ranks, p->n_micro, (long long)r->pp, (long long)n_micro);
    if (r->virtual_stages && r->virtual_stages * r->pp != p->n_stages)
        return fail(ERR_REFUSED, "%s has %d stages; leave parallel.virtual_stages out", r->schedule,
                    p->n_stages);
    return OK;
}

Status train_pipeline(const RunConfig *config, int64_t n_micro, Pipeline **out)
{
    const RunParallel *r = &config->parallel;
    *out = NULL;
    if (r->pp < 2) return OK;
    if (is_name(r->schedule)) {
        int64_t stages = r->virtual_stages ? r->virtual_stages
                                           : pipeline_default_stages(r->schedule);
        if (r->pp > INT32_MAX / 2 || n_micro > INT32_MAX / 2)
            return fail(ERR_REFUSED, "parallel.pp %lld with %lld micro-batches", (long long)r->pp,
                        (long long)n_micro);
        TRY_AS(pipeline_create(r->schedule, (int)r->pp, (int)stages, (int)n_micro, out),
               "parallel");
        return OK;
    }
    if (!file_exists(r->schedule)) return unknown(r->schedule);
    Pipeline *p;
    TRY_AS(pipeline_load(r->schedule, &p), "parallel.schedule");
    Status status = check_file(r, p, n_micro);
    if (status == OK)
        *out = p;
    else
        pipeline_destroy(p);
    return status;
}

/* The work of a stage's phases, by what its ops count. */
static PipelineCost work_of(const Program *stage)
{
    double flop[PHASES] = {0};
    for (int i = 1; i < stage->graph->n_nodes; i++) {
        const Node *node = &stage->graph->node[i];
        if (node->op->cost) flop[node->phase] += node->op->cost(stage->graph, node).flop;
    }
    return (PipelineCost){flop[PHASE_FORWARD], flop[PHASE_BACKWARD], flop[PHASE_WEIGHTS], 0};
}

/* Shares of a backward that is never split stay one. */
static void add_by_work(const Pipeline *p, const Program *stage, Str *out)
{
    PipelineCost work = work_of(stage);
    if (work.forward <= 0) return;
    str_printf(out, ", %.1f%% by the work of this stage (F 1, ",
               100 * pipeline_time(p, work).bubble);
    if (work.weights > 0)
        str_printf(out, "B %.2g, W %.2g)", work.backward / work.forward,
                   work.weights / work.forward);
    else
        str_printf(out, "B and W %.2g)", work.backward / work.forward);
}

void train_pipeline_report(const Pipeline *p, const Program *stage, int columns, Str *out)
{
    PipelineTime time = pipeline_time(p, pipeline_equal_cost());
    str_printf(out,
               "pipeline %s: %d ranks, %d stages, %d micro-batches; %.1f%% of the time is waiting "
               "when F, B and W take the same",
               p->name, p->n_ranks, p->n_stages, p->n_micro, 100 * time.bubble);
    if (stage) add_by_work(p, stage, out);
    str_add(out, "\n");
    for (int r = 0; r < p->n_ranks; r++)
        str_printf(out, "%s%d", r ? " " : "micro-batches that the ranks' stages hold at most: ",
                   pipeline_slots(p, r, PIPELINE_FW));
    str_add(out, "\n");
    if (columns > 0) pipeline_picture(p, columns, out);
}

/* ---- batches ---------------------------------------------------------------------------- */

static size_t batch_elements(const Trainer *t)
{
    return (size_t)(t->micro_batch * t->config->train.seq);
}

/* A rank with several stages reads a batch once and keeps it until the last of them has had it. */
size_t trainer_pipeline_bytes(const Trainer *t)
{
    if (!t->pipeline || t->programs.n_stages < 2) return 0;
    return (size_t)pipeline_inputs(t->pipeline, t->layout.mesh.coord[MESH_PP]) * 4 *
           batch_elements(t) * sizeof(int32_t);
}

static void make_kept(Trainer *t)
{
    t->n_kept = pipeline_inputs(t->pipeline, t->layout.mesh.coord[MESH_PP]);
    t->kept = xcalloc((size_t)t->n_kept, sizeof *t->kept);
    size_t n = batch_elements(t);
    for (int i = 0; i < t->n_kept; i++) {
        int32_t *at = xmalloc(4 * n * sizeof *at);
        t->kept[i].batch = (DataBatch){at, at + n, at + 2 * n, (float *)(void *)(at + 3 * n)};
    }
}

void trainer_pipeline_free(Trainer *t)
{
    for (int i = 0; i < t->n_kept; i++) free(t->kept[i].batch.ids);
    free(t->kept);
    t->kept = NULL;
    t->n_kept = 0;
}

static Status keep(Trainer *t, KeptBatch *kept, int micro)
{
    const DataBatch *from;
    size_t bytes = batch_elements(t) * sizeof(int32_t);
    TRY(data_prefetch_next(t->prefetch, t->step, micro, &from));
    memcpy(kept->batch.ids, from->ids, bytes);
    memcpy(kept->batch.targets, from->targets, bytes);
    memcpy(kept->batch.pos, from->pos, bytes);
    memcpy(kept->batch.weights, from->weights, bytes);
    kept->micro = micro;
    kept->left = t->programs.n_stages;
    return OK;
}

static Status find_batch(Trainer *t, int micro, const DataBatch **batch)
{
    KeptBatch *kept = NULL;
    if (t->programs.n_stages < 2) return data_prefetch_next(t->prefetch, t->step, micro, batch);
    if (!t->kept) make_kept(t);
    for (int i = 0; i < t->n_kept && !kept; i++)
        if (t->kept[i].left > 0 && t->kept[i].micro == micro) kept = &t->kept[i];
    for (int i = 0; i < t->n_kept && !kept; i++) {
        if (t->kept[i].left > 0) continue;
        kept = &t->kept[i];
        TRY(keep(t, kept, micro));
    }
    CHECK(kept); /* pipeline_inputs counted them */
    kept->left--;
    *batch = &kept->batch;
    return OK;
}

/* ---- actions ---------------------------------------------------------------------------- */

static int program_of(const Trainer *t, int stage)
{
    int before = 0;
    for (int s = 0; s < stage; s++)
        before += t->pipeline->rank_of[s] == t->pipeline->rank_of[stage];
    return t->programs.index[PROGRAM_STEP] + before;
}

static Status run_action(Trainer *t, const PipelineAction *a, const StepFaults *faults,
                         double *loss)
{
    static const Phase first[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_BACKWARD};
    static const Phase last[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_WEIGHTS};
    int program = program_of(t, a->stage);
    session_use_slots(t->session, program, a->slot);
    if (a->work == PIPELINE_FORWARD) {
        const DataBatch *batch;
        TRY(trainer_enter(t, TRAINER_DATA));
        TRY(find_batch(t, a->micro, &batch));
        TRY(trainer_feed(t, program, batch, a->micro));
        faults_in_batch(faults, t, program);
    }
    TRY(trainer_enter(t, a->work == PIPELINE_FORWARD ? TRAINER_FORWARD : TRAINER_BACKWARD));
    TRY(session_run(t->session, program, first[a->work], last[a->work]));
    bool backward = a->work == PIPELINE_BACKWARD || a->work == PIPELINE_BOTH;
    return backward ? trainer_add_loss(t, program, a->micro, loss) : OK;
}

Status trainer_run_pipeline(Trainer *t, const StepFaults *faults, double *loss)
{
    const PipelineRank *own = &t->pipeline->rank[t->layout.mesh.coord[MESH_PP]];
    for (int i = 0; i < own->n; i++) TRY(run_action(t, &own->at[i], faults, loss));
    return t->n_leaves ? OK : trainer_sum_stages(t, loss);
}
