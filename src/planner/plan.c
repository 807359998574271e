/* A plan of one layout: the programs of all roles, their memory, their time. */
#include "planner/planner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planner/overlay.h"

/* ---- what is planned -------------------------------------------------------------------- */

/* The target that the cluster's devices are: this processor's instruction set where they are
 * processors. */
static Target target_of(const Sim *sim)
{
    if (!sim->device.cores) return (Target){.isa = ISA_GENERIC, .threads = 1, .gpu = true};
    int64_t here = (mesh_ranks(&sim->mesh) + sim->cluster->n_nodes - 1) / sim->cluster->n_nodes;
    return (Target){.isa = cpu_best_isa(), .threads = (int)max_i64(1, sim->device.cores / here)};
}

static DType dtype_of(const RunConfig *config, const Target *target)
{
    RunPrecision p = config->train.precision;
    bool fast = target->gpu || target->isa == ISA_AVX512BF16;
    return p == RUN_BF16 || p == RUN_FP8 || (p == RUN_AUTO && fast) ? DTYPE_BF16 : DTYPE_F32;
}

static Status check_precision(const RunConfig *config, const DeviceSheet *device)
{
    if (config->train.precision != RUN_FP8 || device->matrix[MATH_FP8].peak_flop_per_s > 0)
        return OK;
    return fail(ERR_REFUSED, "train.precision fp8: a %s has no products of 8 bits; take bf16",
                device->name);
}

Status plan_read_model(const RunConfig *config, ModelConfig *model)
{
    TRY(train_expect_model(config, model));
    if (config->train.balance == RUN_BALANCE_BIAS) model->expert_bias = true;
    return OK;
}

static size_t most_bytes(const StepRoles *roles)
{
    size_t most = 0;
    for (int r = 0; r < roles->n_ranks; r++)
        most = roles->memory[r].total_bytes > most ? roles->memory[r].total_bytes : most;
    return most;
}

/* Ranks of a ring along cp hold a little more or less than one another: the plan is that of those
 * that hold most. */
static Status build_roles(PlanJob *job)
{
    int n = job->options.layout.ring ? mesh_size(&job->options.layout.mesh, MESH_CP) : 1;
    for (int c = 0; c < n; c++) {
        StepOptions o = job->options;
        StepRoles roles;
        o.layout.mesh.coord[MESH_CP] = c;
        TRY(step_roles_build(job->model, &o, job->target, &roles));
        bool better = c == 0 || most_bytes(&roles) > most_bytes(&job->roles);
        StepRoles drop = better ? job->roles : roles;
        if (better) job->roles = roles;
        if (drop.role) step_roles_destroy(&drop);
    }
    return OK;
}

Status plan_job_init(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                     const PlanOptions *options, PlanJob *job)
{
    *job = (PlanJob){.model = model};
    TRY(run_layout_check(config, run_ranks(config)));
    Layout layout = train_layout(config, 0);
    TRY(sim_init(cluster, &layout.mesh, &job->sim));
    TRY(check_precision(config, &job->sim.device));
    if (options) job->sim.stack = options->stack;
    job->target = target_of(&job->sim);
    if (config->train.threads && !job->target.gpu) job->target.threads = (int)config->train.threads;
    Status status = train_check_divides(config, model);
    if (status == OK) status = train_pipeline(config, run_n_micro(config), &job->pipeline);
    if (status == OK) status = train_layout_chunks(config, model, &layout);
    layout.pipeline = job->pipeline;
    layout.expert_room = options && options->balanced;
    if (options && options->stack.whole_sequences) layout.sequence = false;
    if (status == OK) {
        job->options = train_step_options(config, &layout, dtype_of(config, &job->target),
                                          train_expects_validation(config));
        if (job->sim.stack.fp8) job->options.fp8 = FP8_NONE; /* priced on the graph in bf16 */
        status = build_roles(job);
        if (status == ERR_ARG || status == ERR_SHAPE ||
            status == ERR_UNSUPPORTED) /* no graph can be what the run file asks for */
            status = fail(
                ERR_REFUSED,
                "this model cannot be built with train.micro_batch %lld and train.seq %lld: %s",
                (long long)job->options.micro_batch, (long long)job->options.seq, status_message());
    }
    if (status != OK) plan_job_deinit(job);
    return status;
}

void plan_job_deinit(PlanJob *job)
{
    if (job->roles.role) step_roles_destroy(&job->roles);
    pipeline_destroy(job->pipeline);
    *job = (PlanJob){0};
}

/* ---- memory ----------------------------------------------------------------------------- */

static PlanMemory memory_of(const PlanJob *job, int rank)
{
    const StepRole *role = &job->roles.role[job->roles.role_of[rank]];
    const Store *store = role->programs.store;
    const MemoryPlan *m = &job->roles.memory[rank];
    PlanMemory p = {
        .weights = store_role_bytes(store, STATE_PARAM),
        .copies = store_role_bytes(store, STATE_COPY),
        .moments = store_role_bytes(store, STATE_ADAM_M) + store_role_bytes(store, STATE_ADAM_V),
        .gradients = store_role_bytes(store, STATE_GRAD),
        .buffers = store_role_bytes(store, STATE_BUFFER) + store_role_bytes(store, STATE_LOAD),
        .activations = m->held_bytes,
        .step = m->step_bytes - m->held_bytes,
        .packed = m->packed_bytes,
        .inputs = m->io_bytes,
        .total = m->total_bytes};
    p.messages = m->state_bytes - p.weights - p.copies - p.moments - p.gradients - p.buffers;
    return p;
}

/* Of one rank, for its programs. */
static size_t limit_of(const RunConfig *config, const PlanJob *job)
{
    const MemoryCurve *m = &job->sim.device.memory;
    if (config->train.memory_limit) return (size_t)config->train.memory_limit;
    return m->bytes > m->reserved_bytes ? (size_t)(m->bytes - m->reserved_bytes) : 0;
}

static void plan_memory(const RunConfig *config, const PlanJob *job, Plan *plan)
{
    plan->n_stages = job->roles.n_ranks;
    plan->memory = xcalloc((size_t)plan->n_stages, sizeof *plan->memory);
    for (int r = 0; r < plan->n_stages; r++) {
        plan->memory[r] = memory_of(job, r);
        if (plan->memory[r].total > plan->memory[plan->largest].total) plan->largest = r;
    }
    plan->limit_bytes = limit_of(config, job);
    plan->fits = plan->memory[plan->largest].total <= plan->limit_bytes;
}

/* ---- time ------------------------------------------------------------------------------- */

/* What all ranks wait for the slowest of them in the time that they compute. */
static void add_jitter(Plan *plan, double deviation)
{
    StepTime *t = &plan->time;
    double work_s = t->part.optimizer_s;
    for (int w = 0; w < SIM_WORKS; w++) work_s += t->part.work_s[w];
    t->part.jitter_s = work_s * deviation * sqrt(2 * log((double)plan->ranks));
    t->step_s += t->part.jitter_s;
}

static void plan_time(const RunConfig *config, const PlanJob *job, const PlanOptions *options,
                      Plan *plan)
{
    const DeviceSheet *d = &job->sim.device;
    const RunTrain *r = &config->train;
    plan->time = step_time(&job->sim, &job->roles, &job->options, NULL, NULL);
    add_jitter(plan, options->jitter < 0 ? PLAN_JITTER : options->jitter);
    plan->tokens = (double)r->batch * (double)r->seq;
    plan->tokens_per_s = plan->tokens / plan->time.step_s;
    plan->model_flop_per_token = model_train_flop_per_token(job->model, r->seq);
    double rate = plan->tokens_per_s * plan->model_flop_per_token / (double)plan->ranks;
    MathKind math = r->precision == RUN_FP8 ? MATH_FP8 : cluster_math(job->options.dtype);
    double peak = d->matrix[math].peak_flop_per_s;
    plan->tflops_per_gpu = rate * 1e-12;
    plan->mfu = peak > 0 ? rate / peak : 0;
}

/* ---- entry ------------------------------------------------------------------------------ */

enum { MAX_TRACE = 1 << 30 };

static Status overlay(const PlanJob *job, const PlanOptions *options)
{
    Arena arena = {0};
    Bytes text;
    Str both = {0};
    bool write = options->trace;
    Status status = file_read(&arena, options->measured, MAX_TRACE, &text);
    if (status == OK)
        status = overlay_make(job, text, options->measured, write ? &both : NULL, options->overlay);
    if (status == OK && write) status = file_write_atomic(options->trace, both.at, both.n);
    if (status != OK) overlay_deinit(options->overlay);
    str_deinit(&both);
    arena_deinit(&arena);
    return status;
}

static Status write_traces(const PlanJob *job, const PlanOptions *options)
{
    if (options->measured) return overlay(job, options);
    return options->trace ? plan_write_trace(job, options->trace) : OK;
}

static Status make(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                   const PlanOptions *options, Plan *plan)
{
    PlanJob job;
    double start = clock_s();
    TRY(plan_job_init(config, model, cluster, options, &job));
    if (config->train.precision == RUN_AUTO)
        plan->config.train.precision = job.options.dtype == DTYPE_BF16 ? RUN_BF16 : RUN_F32;
    plan_memory(config, &job, plan);
    plan->build_s = clock_s() - start;
    plan_time(config, &job, options, plan);
    ModelCounts counts = model_counts(model);
    plan->weights = (double)counts.total;
    plan->active_weights = (double)counts.active;
    plan->experts = model->n_experts > 0;
    plan->simulate_s = clock_s() - start - plan->build_s;
    Status status = write_traces(&job, options);
    if (status == OK && options->timeline) plan_fill_timeline(&job, options->timeline);
    plan_job_deinit(&job);
    return status;
}

Status plan_make_of(const RunConfig *config, const ModelConfig *model, const Cluster *cluster,
                    const PlanOptions *options, Plan *plan)
{
    *plan = (Plan){.config = *config,
                   .cluster = cluster->name,
                   .device = cluster->device.name,
                   .ranks = run_ranks(config),
                   .devices = cluster_devices(cluster)};
    Status status = make(config, model, cluster, options, plan);
    if (status != OK) plan_deinit(plan);
    return status;
}

Status plan_make(const RunConfig *config, const Cluster *cluster, const PlanOptions *options,
                 Plan *plan)
{
    ModelConfig model;
    TRY(plan_read_model(config, &model));
    Status status = plan_make_of(config, &model, cluster, options, plan);
    model_config_deinit(&model);
    return status;
}

void plan_deinit(Plan *plan)
{
    free(plan->memory);
    plan->memory = NULL;
}

Status plan_refuse(const Plan *plan)
{
    char need[32], limit[32];
    const PlanMemory *m = &plan->memory[plan->largest];
    format_bytes((double)m->total, need);
    format_bytes((double)plan->limit_bytes, limit);
    if (plan->n_stages > 1)
        return fail(
            ERR_REFUSED,
            "the layout does not fit: rank %d of the pipeline needs %s, a %s has %s for programs",
            plan->largest, need, plan->device, limit);
    return fail(ERR_REFUSED, "the layout does not fit: a rank needs %s, a %s has %s for programs",
                need, plan->device, limit);
}
