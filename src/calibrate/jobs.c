/* Training programs run as they are, every instruction timed: on all cores at once, each its own
 * rank, as ranks of a layout do; then on one rank that has them all. */
#include "calibrate/calibrate_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Dense, experts and Grok's; both element types; several sizes of everything, so that no op is told
 * by one shape. */
const CalibrateJob calibrate_jobs[] = {
    {"llama3-nano", DTYPE_F32, 4, 1, 256, RECOMPUTE_NONE, .cut = MESH_PP},
    {"llama3-nano", DTYPE_BF16, 4, 2, 256, RECOMPUTE_NONE, .cut = MESH_PP},
    {"llama4-nano", DTYPE_F32, 4, 2, 256, RECOMPUTE_NONE, .cut = MESH_PP},
    {"llama4-nano", DTYPE_BF16, 4, 1, 256, RECOMPUTE_SELECTIVE, .cut = MESH_PP},
    {"grok1-nano", DTYPE_F32, 2, 1, 256, RECOMPUTE_NONE, .cut = MESH_PP},
    {"grok1-nano", DTYPE_BF16, 4, 2, 128, RECOMPUTE_NONE, .cut = MESH_PP},
    {"bench-small", DTYPE_F32, 8, 1, 256, RECOMPUTE_NONE, .cut = MESH_PP},
    {"bench-small", DTYPE_BF16, 8, 1, 256, RECOMPUTE_NONE, .cut = MESH_PP},
    {"bench-moe", DTYPE_F32, 4, 1, 512, RECOMPUTE_NONE, .cut = MESH_PP},
    {"bench-moe", DTYPE_BF16, 4, 1, 512, RECOMPUTE_NONE, .cut = MESH_PP},
    {"llama3-micro", DTYPE_BF16, 2, 1, 256, RECOMPUTE_FULL, .cut = MESH_PP},
    {"bench-small", DTYPE_F32, 8, 1, 256, RECOMPUTE_NONE, .cut = MESH_TP},
    {"bench-small", DTYPE_BF16, 2, 2, 256, RECOMPUTE_NONE, .cut = MESH_TP},
    {"llama4-nano", DTYPE_F32, 4, 1, 256, RECOMPUTE_NONE, .cut = MESH_EP},
    {"bench-moe", DTYPE_BF16, 1, 2, 256, RECOMPUTE_NONE, .cut = MESH_EP},
    {"bench-small", DTYPE_F32, 2, 1, 256, RECOMPUTE_NONE, .cut = MESH_FSDP},
};
const int calibrate_jobs_n = COUNT_OF(calibrate_jobs);

int calibrate_ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double calibrate_median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, calibrate_ascending);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* ---- one rank --------------------------------------------------------------------------- */

typedef VEC(double) Times;

typedef struct RankRun {
    const CalibrateJob *job;
    const ModelConfig *model;
    CommWorld *world;
    int rank, ranks, threads, rounds;
    StepPrograms programs;
    Times *times[2 * MAX_OWN_STAGES + 1]; /* per program and instruction */
    double *step_s;                       /* [rounds] */
    OpSamples samples;
    Status status;
    char message[512];
    pthread_t thread;
} RankRun;

static void note(void *context, const InstrTime *t)
{
    RankRun *r = context;
    for (int p = 0; p < r->programs.n; p++)
        if (r->programs.at[p] == t->program)
            VEC_PUSH(&r->times[p][t->instr - t->program->instr], t->end_s - t->begin_s);
}

/* Random tokens; each counts alike. */
static Status feed(const RankRun *r, Session *session, int program, int round)
{
    int64_t n = r->job->micro_batch * r->job->seq;
    int32_t *ids = session_input(session, program, "ids"),
            *targets = session_input(session, program, "targets");
    int32_t *pos = session_input(session, program, "pos");
    float *weights = session_input(session, program, "weights");
    uint64_t key = rng_key((uint64_t)r->rank, "calibrate");
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = (uint64_t)(round * n + i);
        if (ids) ids[i] = (int32_t)rng_below(key, at, (uint64_t)r->model->vocab);
        if (targets) targets[i] = (int32_t)rng_below(key, at + 1, (uint64_t)r->model->vocab);
        if (pos) pos[i] = (int32_t)(i % r->job->seq);
        if (weights) weights[i] = 1.0f / (float)(n * r->job->n_micro);
    }
    return OK;
}

static Status step(RankRun *r, Session *session, int round)
{
    static const float hyper[HYPER_COUNT] = {
        [HYPER_LR] = 1e-4f,    [HYPER_BETA1] = 0.9f, [HYPER_BETA2] = 0.95f, [HYPER_BIAS1] = 0.1f,
        [HYPER_BIAS2] = 0.05f, [HYPER_EPS] = 1e-8f,  [HYPER_CLIP] = 1};
    const StepPrograms *p = &r->programs;
    int update = p->index[PROGRAM_UPDATE] >= 0 ? p->index[PROGRAM_UPDATE] : p->index[PROGRAM_STEP];
    for (int64_t micro = 0; micro < r->job->n_micro; micro++) {
        TRY(feed(r, session, p->index[PROGRAM_STEP], round));
        TRY(session_run(session, p->index[PROGRAM_STEP], PHASE_FORWARD, PHASE_BACKWARD));
    }
    TRY(session_write(session, update, "hyper", hyper, sizeof hyper));
    return session_run(session, update, PHASE_UPDATE, PHASE_UPDATE);
}

/* The first two rounds warm up. Ranks begin each together, so that all cores are busy with the
 * same. */
static Status run_rounds(RankRun *r, Session *session)
{
    Comm *all = r->world ? comm_of_rank(r->world, r->rank) : NULL;
    for (int round = -2; round < r->rounds; round++) {
        if (round == 0) session_watch(session, note, r);
        if (all) TRY(comm_run(all, &(CommOp){.kind = COMM_BARRIER}));
        double begin = clock_s();
        TRY(step(r, session, round + 2));
        if (round >= 0) r->step_s[round] = clock_s() - begin;
    }
    return OK;
}

bool calibrate_sample(const Graph *graph, const Node *node, double seconds, OpSample *out)
{
    if (!node->op->cost) return false;
    Cost cost = node->op->cost(graph, node);
    double bytes = cost.read_bytes + cost.write_bytes;
    if (cost.wire_bytes > 0 || cost.flop + bytes <= 0) return false;
    const Value *x = node->n_in && node->in[0].id ? graph_value(graph, node->in[0]) : NULL;
    *out = (OpSample){.op = node->op->name,
                      .math = x ? cluster_math(x->dtype) : MATH_F32,
                      .matmul = cost.kind >= COST_MATMUL && cost.kind <= COST_ATTENTION_GRAD,
                      .flop = cost.flop,
                      .bytes = bytes,
                      .cost = cost,
                      .seconds = seconds};
    if (!strcmp(out->op, "linear") && x) {
        const Value *y = graph_value(graph, node->out[0]);
        out->k = x->shape.dim[x->shape.rank - 1];
        out->n = y->shape.dim[y->shape.rank - 1];
        out->m = shape_count(&y->shape) / out->n;
    }
    return true;
}

static void add_samples(RankRun *r)
{
    for (int p = 0; p < r->programs.n; p++) {
        const Program *program = r->programs.at[p];
        for (int i = 0; i < program->n_instr; i++) {
            Times *times = &r->times[p][i];
            OpSample s;
            if (times->n && calibrate_sample(program->graph, program->instr[i].node,
                                             calibrate_median(times->at, (int)times->n), &s))
                VEC_PUSH(&r->samples, s);
        }
    }
}

/* Who comes last to an exchange waits for nobody: of all ranks the shortest. What is only begun
 * moves nothing yet. */
static Status add_exchange(RankRun *r, const Instr *instr, const Cost *cost, const Times *times)
{
    int n = (int)times->n;
    bool starts = instr->op->flags & OP_STARTS;
    float *shortest = xcalloc((size_t)n + 1, sizeof *shortest);
    double *seconds = xcalloc((size_t)n + 1, sizeof *seconds);
    for (int i = 0; i < n; i++) shortest[i] = (float)times->at[i];
    Status status = comm_run(comm_of_rank(r->world, r->rank), &(CommOp){.kind = COMM_ALL_REDUCE,
                                                                        .dtype = DTYPE_F32,
                                                                        .reduce = COMM_MIN,
                                                                        .send = shortest,
                                                                        .recv = shortest,
                                                                        .count = n,
                                                                        .node = "calibrate"});
    for (int i = 0; i < n; i++) seconds[i] = (double)shortest[i];
    OpSample s = {.op = instr->op->name,
                  .bytes = cost->read_bytes + cost->write_bytes,
                  .seconds = calibrate_median(seconds, n),
                  .among = r->ranks,
                  .kind = cost->exchange,
                  .whole_bytes = starts ? 0 : cost->whole_bytes};
    if (status == OK) VEC_PUSH(&r->samples, s);
    free(shortest);
    free(seconds);
    return status;
}

/* Of a program that several ranks share; all of them come here with as many times. */
static Status add_exchanges(RankRun *r)
{
    for (int p = 0; p < r->programs.n; p++) {
        const Program *program = r->programs.at[p];
        for (int i = 0; i < program->n_instr; i++) {
            const Node *node = program->instr[i].node;
            const Times *times = &r->times[p][i];
            if (!times->n || !node->op->cost) continue;
            Cost cost = node->op->cost(program->graph, node);
            if (cost.kind == COST_EXCHANGE) TRY(add_exchange(r, &program->instr[i], &cost, times));
        }
    }
    return OK;
}

static Status measure(RankRun *r, Device *device, const StepOptions *options)
{
    Session *session;
    TRY(step_programs_build(r->model, options, device_target(device), &r->programs));
    Status status = session_create(device, r->programs.store, r->programs.at, r->programs.n,
                                   &session);
    for (int p = 0; p < r->programs.n; p++)
        r->times[p] = xcalloc((size_t)r->programs.at[p]->n_instr, sizeof(Times));
    if (status == OK) {
        status = session_init_weights(session, 1);
        if (status == OK) status = run_rounds(r, session);
        if (status == OK) add_samples(r);
        if (status == OK && r->world && r->job->cut != MESH_PP) status = add_exchanges(r);
        session_destroy(session);
    }
    for (int p = 0; p < r->programs.n; p++) {
        for (int i = 0; i < r->programs.at[p]->n_instr; i++) VEC_FREE(&r->times[p][i]);
        free(r->times[p]);
    }
    step_programs_destroy(&r->programs);
    return status;
}

static Status run_rank(RankRun *r)
{
    const CalibrateJob *job = r->job;
    bool cut = job->cut != MESH_PP && r->ranks > 1;
    StepOptions options = {.micro_batch = job->micro_batch,
                           .n_micro = job->n_micro,
                           .seq = job->seq,
                           .dtype = job->dtype,
                           .fp8 = job->fp8,
                           .recompute = job->recompute};
    CpuOptions cpu = {.threads = r->threads, .tune = job->gpu && !gpu_is_emulated()};
    Device *device;
    if (cut) {
        Mesh sizes = {0};
        sizes.size[job->cut] = r->ranks;
        cpu.world = comm_of_rank(r->world, r->rank);
        cpu.mesh = options.layout.mesh = mesh_at(&sizes, r->rank);
    }
    TRY(device_create(job->gpu ? DEVICE_CUDA : DEVICE_CPU, cpu, &device));
    Status status = measure(r, device, &options);
    device_destroy(device);
    return status;
}

static void *rank_main(void *opaque)
{
    RankRun *r = opaque;
    r->status = run_rank(r);
    if (r->status == OK) return NULL;
    snprintf(r->message, sizeof r->message, "%s", status_message());
    if (r->world) comm_abort(comm_of_rank(r->world, r->rank), ERR_COMM);
    return NULL;
}

/* ---- all ranks -------------------------------------------------------------------------- */

static Status join(RankRun *runs, int ranks, int rounds, OpSamples *samples, double *step_s)
{
    double *slowest = xcalloc((size_t)rounds, sizeof *slowest);
    Status status = OK;
    for (int i = 0; i < ranks; i++) {
        RankRun *r = &runs[i];
        for (int k = 0; k < rounds; k++)
            if (r->step_s[k] > slowest[k]) slowest[k] = r->step_s[k];
        for (size_t k = 0; k < r->samples.n && samples; k++) VEC_PUSH(samples, r->samples.at[k]);
        if (r->status != OK && (status == OK || status == ERR_COMM))
            status = fail(r->status, "%s: %s", r->job->preset, r->message);
        VEC_FREE(&r->samples);
        free(r->step_s);
    }
    *step_s = calibrate_median(slowest, rounds);
    free(slowest);
    return status;
}

/* The preset, with other fields where the job has some: a run file's words, one by one. */
Status calibrate_read_model(const CalibrateJob *job, ModelConfig *model)
{
    enum { MOST_FIELDS = 8 };
    if (!job->fields) return model_config_preset(job->preset, model);
    Arena arena = {0};
    RunConfig config;
    const char *words[MOST_FIELDS + 1] = {arena_printf(&arena, "model=%s", job->preset)};
    int n = 1;
    for (const char *at = job->fields; *at && n <= MOST_FIELDS; n++) {
        int length = (int)strcspn(at, " ");
        words[n] = arena_printf(&arena, "model.%.*s", length, at);
        at += length + (at[length] == ' ');
    }
    Status status = run_config_load(NULL, words, n, &config);
    if (status == OK) {
        status = train_read_model(&config, model);
        run_config_deinit(&config);
    }
    arena_deinit(&arena);
    return status;
}

Status calibrate_run_job(const CalibrateJob *job, int ranks, int threads, int rounds,
                         OpSamples *samples, double *step_s)
{
    ModelConfig model;
    CommWorld *world = NULL;
    TRY(calibrate_read_model(job, &model));
    Status status = ranks > 1 ? comm_world_create_local(ranks, NULL, &world) : OK;
    RankRun *runs = xcalloc((size_t)ranks, sizeof *runs);
    int started = 0;
    for (; started < ranks && status == OK; started++) {
        runs[started] = (RankRun){.job = job,
                                  .model = &model,
                                  .world = world,
                                  .rank = started,
                                  .ranks = ranks,
                                  .threads = threads,
                                  .rounds = rounds,
                                  .step_s = xcalloc((size_t)rounds, sizeof(double))};
        if (!pthread_create(&runs[started].thread, NULL, rank_main, &runs[started])) continue;
        status = fail(ERR_MEMORY, "no thread for rank %d of %d", started, ranks);
        free(runs[started].step_s);
        if (world) comm_abort(comm_of_rank(world, started), ERR_COMM);
        break;
    }
    for (int i = 0; i < started; i++) pthread_join(runs[i].thread, NULL);
    Status joined = started ? join(runs, started, rounds, samples, step_s) : OK;
    free(runs);
    comm_world_destroy(world);
    model_config_deinit(&model);
    return status == OK ? joined : status;
}
