/* What the tests of layouts share: small models, and jobs of some ranks that run some steps, beside
 * the same steps on one rank. Included by *_test.c files only. */
#ifndef TESTS_LAYOUTS_H
#define TESTS_LAYOUTS_H

#include "comm/comm.h"
#include "train/train.h"

#include "base/testing.h"

#include <jansson.h>
#include <math.h>
#include <pthread.h>

enum { STEPS = 20, SEQ = 32, BATCH = 8, VOCAB = 128, MAX_RANKS = 256, MAX_CP = 8 };

static const char *const llama4 =
    "{\"model_type\": \"llama4_text\", \"vocab_size\": 128, \"hidden_size\": 32, "
    "\"num_hidden_layers\": 4, "
    "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"head_dim\": 8, "
    "\"intermediate_size\": 16, "
    "\"intermediate_size_mlp\": 48, \"num_local_experts\": 4, \"num_experts_per_tok\": 2, "
    "\"interleave_moe_layer_step\": 2, \"attention_chunk_size\": 16, \"floor_scale\": 16, "
    "\"tie_word_embeddings\": false}";
static const char *const llama3 = "{\"model_type\": \"llama\", \"vocab_size\": 128, "
                                  "\"hidden_size\": 32, \"num_hidden_layers\": 4, "
                                  "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, "
                                  "\"head_dim\": 8, \"intermediate_size\": 48, "
                                  "\"tie_word_embeddings\": true}";

static const char *const grok1 =
    "{\"model_type\": \"grok-1\", \"vocab_size\": 128, \"hidden_size\": 32, \"num_hidden_layers\": "
    "3, "
    "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"intermediate_size\": 16, "
    "\"num_experts\": 4, "
    "\"num_experts_per_tok\": 2, \"max_attn_value\": 30, \"attn_output_multiplier\": 0.5, "
    "\"embedding_multiplier_scale\": 5.6, "
    "\"output_multiplier_scale\": 0.57, \"tie_word_embeddings\": true}";

/* GPT blocks: learned positions, biases, q k v as one matrix of [in, out]; ALiBi, q k v as one of
 * [out, in]; rotary positions, fewer key heads, an untied head. */
static const char *const gpt2 = "{\"model_type\": \"gpt2\", \"vocab_size\": 128, \"n_embd\": 32, "
                                "\"n_layer\": 4, \"n_head\": 8, "
                                "\"n_inner\": 48, \"n_positions\": 32}";
static const char *const mpt = "{\"model_type\": \"mpt\", \"vocab_size\": 128, \"d_model\": 32, "
                               "\"n_layers\": 4, \"n_heads\": 8, "
                               "\"expansion_ratio\": 2}";
static const char *const gpt =
    "{\"model_type\": \"gpt\", \"vocab_size\": 128, \"hidden_size\": 32, \"num_hidden_layers\": 4, "
    "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"head_dim\": 8, "
    "\"intermediate_size\": 48, \"hidden_act\": \"relu2\", \"position_embedding_type\": \"rope\", "
    "\"tie_word_embeddings\": false}";

/* ---- one job: some ranks, some steps ---------------------------------------------------- */

typedef struct Job {
    const ModelConfig *model;
    StepOptions options;       /* layout: sizes only */
    char schedule[64];         /* of the pipeline; empty: 1f1b */
    const char *table;         /* as text, instead; NULL: none */
    int layers, keys;          /* of the model, and its key heads; 0: as it says */
    Pipeline *pipeline;        /* made of it while the job runs */
    StepRoles planned[MAX_CP]; /* and what a plan says of its ranks; in a ring those of each
                                  coordinate along cp */
    CommWorld *world;
    bool check_wire; /* what was sent must be what the nodes declare */
    bool cuda;       /* on the cuda device that this program is linked to */
    bool tune;       /* its products by algorithms that are tried out */
    int steps;       /* 0: STEPS */
    Status (*at_end)(struct Job *job, const StepPrograms *p,
                     Session *session); /* of each rank, behind its steps; or NULL */
    void *context;
    double loss[STEPS], norm[STEPS]; /* as rank 0 sees them */
    int64_t rows_bytes[MAX_RANKS];   /* that each rank sent to the owners of experts and back */
} Job;

typedef struct RankJob {
    Job *job;
    int rank;
    Status status;
    char message[600];
} RankJob;

/* The first row of the step that this rank sees in a micro-batch: in canonical mode its leaf's. */
static int64_t first_row(const StepOptions *o, int64_t micro)
{
    int64_t part = micro * mesh_data_ranks(&o->layout.mesh) + mesh_data_rank(&o->layout.mesh);
    return (o->layout.chunks ? layout_leaf(&o->layout, o->n_micro, micro) : part) * o->micro_batch;
}

/* The rows of the step that this rank sees in one micro-batch, documents of 20 tokens. */
static Status feed(Session *session, int program, const StepOptions *o, int step, int64_t micro)
{
    int64_t cp = mesh_size(&o->layout.mesh, MESH_CP), columns = SEQ / cp,
            at_rank = o->layout.mesh.coord[MESH_CP];
    int64_t rows = o->micro_batch, first = first_row(o, micro);
    int32_t ids[BATCH * SEQ], targets[BATCH * SEQ], pos[BATCH * SEQ];
    float weights[BATCH * SEQ];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) {
            int64_t half = columns / 2, to = r * columns + c; /* zigzag */
            int64_t t = cp == 1    ? c
                        : c < half ? at_rank * half + c
                                   : (2 * cp - 1 - at_rank) * half + c - half;
            uint64_t at = (uint64_t)((step % 3 * BATCH + first + r) * SEQ + t);
            ids[to] = (int32_t)(rng_u64(7, at) % VOCAB);
            targets[to] = t % 20 == 19 ? -1 : (int32_t)(rng_u64(7, at + 1) % VOCAB);
            pos[to] = (int32_t)(t % 20);
            weights[to] = t % 20 == 19 ? 0 : 1.0f / (BATCH * SEQ);
        }
    }
    size_t n = (size_t)(rows * columns) * 4;
    int32_t number = (int32_t)micro;
    if (session_input(session, program, MICRO_INPUT))
        TRY(session_write(session, program, MICRO_INPUT, &number, sizeof number));
    TRY(session_write(session, program, "ids", ids, n));
    TRY(session_write(session, program, "targets", targets, n));
    TRY(session_write(session, program, "pos", pos, n));
    return session_write(session, program, "weights", weights, n);
}

/* loss: one sum, or in canonical mode one of each leaf. */
static Status add_loss(const StepOptions *o, Session *session, int program, int64_t micro,
                       float *loss)
{
    float value;
    if (!session_has_output(session, program, "loss")) return OK;
    TRY(session_read(session, program, "loss", &value, sizeof value));
    if (o->layout.chunks)
        loss[layout_leaf(&o->layout, o->n_micro, micro)] = value;
    else
        *loss += value;
    return OK;
}

static int program_of(const Pipeline *p, int first, int stage)
{
    for (int s = 0; s < stage; s++) first += p->rank_of[s] == p->rank_of[stage];
    return first;
}

static Status run_pipeline(const StepOptions *o, Session *session, int first, int step, float *loss)
{
    static const Phase begin[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_BACKWARD};
    static const Phase end[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS, PHASE_WEIGHTS};
    const Pipeline *p = o->layout.pipeline;
    const PipelineRank *own = &p->rank[o->layout.mesh.coord[MESH_PP]];
    for (int i = 0; i < own->n; i++) {
        const PipelineAction *a = &own->at[i];
        int program = program_of(p, first, a->stage);
        session_use_slots(session, program, a->slot);
        if (a->work == PIPELINE_FORWARD) TRY(feed(session, program, o, step, a->micro));
        TRY(session_run(session, program, begin[a->work], end[a->work]));
        if (a->work == PIPELINE_BACKWARD || a->work == PIPELINE_BOTH)
            TRY(add_loss(o, session, program, a->micro, loss));
    }
    return OK;
}

static Status run_micro_batches(const StepOptions *o, const StepPrograms *p, Session *session,
                                int step, float *loss)
{
    if (o->layout.pipeline) return run_pipeline(o, session, p->index[PROGRAM_STEP], step, loss);
    for (int64_t micro = 0; micro < o->n_micro; micro++) {
        int program = p->index[micro + 1 < o->n_micro ? PROGRAM_STEP : p->last];
        TRY(feed(session, program, o, step, micro));
        TRY(session_run(session, program, PHASE_FORWARD, PHASE_BACKWARD));
        TRY(add_loss(o, session, program, micro, loss));
    }
    return OK;
}

/* The axes along which ranks have other leaves, or none. */
static unsigned leaf_axes(const StepOptions *o)
{
    static const MeshAxis shares[] = {MESH_PP, MESH_DP, MESH_FSDP, MESH_EP};
    unsigned axes = 0;
    for (int i = 0; i < COUNT_OF(shares); i++)
        if (mesh_size(&o->layout.mesh, shares[i]) > 1) axes |= 1u << shares[i];
    return axes;
}

/* Of all leaves, in their order. */
static Status sum_leaves(Device *device, const StepOptions *o, float *leaf, double *sum)
{
    Comm *group;
    if (leaf_axes(o)) {
        TRY(device_group(device, leaf_axes(o), &group));
        TRY(comm_run(group, &(CommOp){.kind = COMM_ALL_REDUCE,
                                      .dtype = DTYPE_F32,
                                      .send = leaf,
                                      .recv = leaf,
                                      .count = BATCH}));
    }
    *sum = 0;
    for (int i = 0; i < BATCH; i++) *sum += (double)leaf[i];
    return OK;
}

static Status sum_stages(Device *device, const StepOptions *o, float *value)
{
    Comm *stages;
    if (mesh_size(&o->layout.mesh, MESH_PP) < 2) return OK;
    TRY(device_group(device, 1u << MESH_PP, &stages));
    return comm_run(
        stages,
        &(CommOp){
            .kind = COMM_ALL_REDUCE, .dtype = DTYPE_F32, .send = value, .recv = value, .count = 1});
}

static int steps_of(const Job *job) { return job->steps ? job->steps : STEPS; }

static Status run_steps(Job *job, Device *device, const StepOptions *o, StepPrograms *p,
                        Session *session)
{
    int step = p->index[PROGRAM_STEP],
        update = p->index[PROGRAM_UPDATE] >= 0 ? p->index[PROGRAM_UPDATE] : step;
    for (int s = 0; s < steps_of(job); s++) {
        float loss[BATCH] = {0}, value, hyper[HYPER_COUNT];
        double sum = 0;
        TRY(run_micro_batches(o, p, session, s, loss));
        TRY(o->layout.chunks ? sum_leaves(device, o, loss, &sum) : sum_stages(device, o, loss));
        if (!o->layout.chunks) sum = (double)*loss;
        if (update != step && p->last != PROGRAM_UPDATE)
            TRY(session_run(session, update, PHASE_FORWARD, PHASE_BACKWARD));
        TRY(session_read(session, update, "grad_norm", &value, sizeof value));
        if (mesh_rank(&o->layout.mesh) == 0) {
            job->loss[s] = sum;
            job->norm[s] = (double)value;
        }
        hyper[HYPER_LR] = 0.003f, hyper[HYPER_BETA1] = 0.9f, hyper[HYPER_BETA2] = 0.95f,
        hyper[HYPER_EPS] = 1e-4f;
        hyper[HYPER_BIAS1] = 1 - powf(0.9f, (float)s + 1),
        hyper[HYPER_BIAS2] = 1 - powf(0.95f, (float)s + 1);
        hyper[HYPER_DECAY] = 0.1f, hyper[HYPER_CLIP] = 1, hyper[HYPER_BIAS_RATE] = 0.001f;
        TRY(session_write(session, update, "hyper", hyper, sizeof hyper));
        TRY(session_run(session, update, PHASE_UPDATE, PHASE_UPDATE));
    }
    return OK;
}

/* What this rank sent, against what the nodes of its programs say that they send; the loss of a
 * pipeline is the host's to sum. */
static inline Status check_wire(Device *device, const StepOptions *o, const StepPrograms *p)
{
    double declared = 0, sent = 0;
    for (int i = 0; i < p->n; i++)
        declared += STEPS * (i == p->index[PROGRAM_UPDATE] ? 1 : (double)o->n_micro) *
                    graph_cost(p->at[i]->graph).wire_bytes;
    if (o->layout.chunks && leaf_axes(o)) { /* the host's too */
        Comm *group;
        CommOp loss = {.kind = COMM_ALL_REDUCE, .dtype = DTYPE_F32, .count = BATCH};
        TRY(device_group(device, leaf_axes(o), &group));
        declared += STEPS * (double)comm_sent_bytes(&loss, comm_size(group), comm_rank(group));
    } else if (o->layout.pipeline) {
        CommOp loss = {.kind = COMM_ALL_REDUCE, .dtype = DTYPE_F32, .count = 1};
        declared += STEPS * (double)comm_sent_bytes(&loss, o->layout.pipeline->n_ranks,
                                                    o->layout.mesh.coord[MESH_PP]);
    }
    for (unsigned axes = 1; axes < 1u << MESH_AXES; axes++) {
        Comm *group;
        bool used = true;
        for (int a = 0; a < MESH_AXES; a++)
            used &= !(axes >> a & 1) || mesh_size(&o->layout.mesh, (MeshAxis)a) > 1;
        if (!used) continue;
        TRY(device_group(device, axes, &group));
        CommStats stats = comm_stats(group);
        for (int k = 0; k < COMM_KINDS; k++) sent += (double)stats.kind[k].sent_bytes;
    }
    if (sent == declared) return OK;
    return fail(ERR_COMM, "%.0f bytes were sent, the nodes declare %.0f", sent, declared);
}

static inline Status count_rows(Device *device, const StepOptions *o, int64_t *bytes)
{
    Comm *group;
    if (mesh_size(&o->layout.mesh, MESH_EP) < 2) return OK;
    TRY(device_group(device, 1u << MESH_EP, &group));
    *bytes = (int64_t)comm_stats(group).kind[COMM_ALL_TO_ALL].sent_bytes;
    return OK;
}

/* A weight that two ranks of a pipeline hold has the same bits on both, its moments too. */
static inline Status check_twins(Device *device, const StepOptions *o, const StepPrograms *p,
                                 Session *session)
{
    Comm *stages;
    uint64_t mine = 0, all[MAX_RANKS];
    int twin = 0;
    if (!o->layout.pipeline) return OK;
    for (int i = 0; i < p->store->n_entries; i++) {
        const StateEntry *e = &p->store->entry[i];
        if (!e->twin || e->role == STATE_GRAD) continue;
        twin = e->twin;
        mine ^= hash_bytes(e->name, strlen(e->name)) ^
                hash_bytes(session_state(session, i).data, e->bytes);
    }
    TRY(device_group(device, 1u << MESH_PP, &stages));
    TRY(comm_run(stages, &(CommOp){.kind = COMM_ALL_GATHER,
                                   .dtype = DTYPE_U8,
                                   .send = &mine,
                                   .recv = all,
                                   .count = sizeof mine}));
    return twin && all[twin - 1] != mine
               ? fail(ERR_COMM, "rank %d of the pipeline has other bits of a weight that both hold",
                      twin - 1)
               : OK;
}

static Status run_rank(RankJob *r)
{
    Job *job = r->job;
    StepOptions o = job->options;
    Device *device;
    StepPrograms programs;
    Session *session;
    o.layout.mesh = mesh_at(&o.layout.mesh, r->rank);
    CpuOptions cpu = {.threads = 1,
                      .world = job->world ? comm_of_rank(job->world, r->rank) : NULL,
                      .mesh = o.layout.mesh,
                      .tune = job->tune};
    TRY(device_create(job->cuda ? DEVICE_CUDA : DEVICE_CPU, cpu, &device));
    Status status = step_programs_build(job->model, &o, device_target(device), &programs);
    if (status == OK) {
        status = session_create(device, programs.store, programs.at, programs.n, &session);
        if (status == OK && device_allocated_bytes(device) !=
                                session_plan(programs.store, programs.at, programs.n).total_bytes)
            status = fail(ERR_MEMORY, "%zu bytes were allocated, another number than planned",
                          device_allocated_bytes(device));
        const StepRoles *roles = &job->planned[o.layout.ring ? o.layout.mesh.coord[MESH_CP] : 0];
        size_t planned = roles->memory[o.layout.mesh.coord[MESH_PP]].total_bytes;
        if (status == OK && device_allocated_bytes(device) != planned)
            status = fail(ERR_MEMORY,
                          "%zu bytes were allocated, %zu were planned without a machine",
                          device_allocated_bytes(device), planned);
        if (status == OK) {
            status = session_init_weights(session, 3);
            if (status == OK) status = run_steps(job, device, &o, &programs, session);
            if (status == OK) status = session_fetch_states(session);
            if (status == OK && !job->check_wire)
                status = check_twins(device, &o, &programs, session);
            if (status == OK && job->at_end) status = job->at_end(job, &programs, session);
            session_destroy(session); /* waits for what is still on its way */
            if (status == OK && job->check_wire) status = check_wire(device, &o, &programs);
            if (status == OK) status = count_rows(device, &o, &job->rows_bytes[r->rank]);
        }
        step_programs_destroy(&programs);
    }
    device_destroy(device);
    return status;
}

static void *rank_main(void *at)
{
    RankJob *r = at;
    r->status = run_rank(r);
    if (r->status == OK) return NULL;
    snprintf(r->message, sizeof r->message, "%s", status_message());
    if (r->job->world) comm_abort(comm_of_rank(r->job->world, r->rank), ERR_COMM);
    return NULL;
}

/* Of as many stages as the schedule has, or as "@N" behind its name says. */
static Status make_pipeline(Job *job)
{
    char name[64];
    int ranks = mesh_size(&job->options.layout.mesh, MESH_PP);
    if (ranks < 2) return OK;
    if (job->table) {
        TRY(pipeline_parse((Bytes){(const uint8_t *)job->table, strlen(job->table)}, "table",
                           &job->pipeline));
        job->options.layout.pipeline = job->pipeline;
        return OK;
    }
    snprintf(name, sizeof name, "%s", *job->schedule ? job->schedule : "1f1b");
    char *at = strchr(name, '@');
    int stages = at ? (int)strtol(at + 1, NULL, 10) : 0;
    if (at) *at = 0;
    TRY(pipeline_create(name, ranks, stages ? stages : pipeline_default_stages(name),
                        (int)job->options.n_micro, &job->pipeline));
    job->options.layout.pipeline = job->pipeline;
    return OK;
}

/* Without a machine. */
static inline Status plan_job(Job *job)
{
    int cp = job->options.layout.ring ? mesh_size(&job->options.layout.mesh, MESH_CP) : 1;
    CHECK(cp <= MAX_CP);
    for (int c = 0; c < cp; c++) {
        StepOptions o = job->options;
        o.layout.mesh.coord[MESH_CP] = c;
        Target target = {
            .isa = job->cuda ? ISA_GENERIC : cpu_best_isa(), .threads = 1, .gpu = job->cuda};
        TRY(step_roles_build(job->model, &o, target, &job->planned[c]));
    }
    return OK;
}

static inline void forget_plans(Job *job)
{
    for (int c = 0; c < MAX_CP; c++)
        if (job->planned[c].role) step_roles_destroy(&job->planned[c]);
}

static inline Status run_job(Job *job, char *message)
{
    int n = mesh_ranks(&job->options.layout.mesh);
    Status made = make_pipeline(job);
    if (made != OK) {
        snprintf(message, 600, "%s", status_message());
        return made;
    }
    if (plan_job(job) != OK) {
        snprintf(message, 600, "plan: %s", status_message());
        forget_plans(job);
        pipeline_destroy(job->pipeline);
        return ERR_REFUSED;
    }
    RankJob ranks[MAX_RANKS];
    pthread_t thread[MAX_RANKS];
    if (n > 1) TRY(comm_world_create_local(n, &(CommOptions){.deadline_s = 60}, &job->world));
    for (int r = 0; r < n; r++) ranks[r] = (RankJob){.job = job, .rank = r};
    for (int r = 0; r < n; r++)
        if (pthread_create(&thread[r], NULL, rank_main, &ranks[r]))
            return fail(ERR_MEMORY, "no thread");
    Status status = OK;
    for (int r = 0; r < n; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < n && status == OK; r++)
        if ((status = ranks[r].status) != OK)
            snprintf(message, 600, "rank %d: %s", r, ranks[r].message);
    comm_world_destroy(job->world);
    forget_plans(job);
    pipeline_destroy(job->pipeline);
    return status;
}

/* ---- layouts as text: "tp2 dp2 seq micro2", "pp2 micro4 interleaved@2", "chunks4 dp2" --- */

static Job parse_job(const char *text)
{
    Job job = {0};
    StepOptions o = {.n_micro = 1,
                     .seq = SEQ,
                     .dtype = DTYPE_F32,
                     .balance = BALANCE_BIAS,
                     .router_z_loss = 1e-3f};
    char copy[128], *save;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        int n = word[strcspn(word, "0123456789")]
                    ? (int)strtol(word + strcspn(word, "0123456789"), NULL, 10)
                    : 0;
        bool known = false;
        for (int a = 0; a < MESH_AXES; a++) {
            size_t length = strlen(mesh_axis_name((MeshAxis)a));
            if (!n || strncmp(word, mesh_axis_name((MeshAxis)a), length) ||
                !strchr("0123456789", word[length]))
                continue;
            o.layout.mesh.size[a] = n;
            known = true;
        }
        if (!strcmp(word, "seq")) o.layout.sequence = known = true; /* sequence parallelism */
        if (!strcmp(word, "cuda")) job.cuda = known = true;
        if (!strcmp(word, "tune")) job.tune = known = true;
        if (!strncmp(word, "steps", 5)) job.steps = n, known = true;
        if (!strcmp(word, "fold")) o.layout.fold_experts = known = true;
        int n_names;
        const char *const *names = pipeline_names(&n_names);
        for (int k = 0; k < n_names; k++) {
            size_t length = strlen(names[k]);
            if (strncmp(word, names[k], length) != 0 || (word[length] && word[length] != '@'))
                continue;
            snprintf(job.schedule, sizeof job.schedule, "%s", word);
            known = true;
        }
        if (!strcmp(word, "ring")) o.layout.ring = known = true;
        if (!strcmp(word, "bf16")) o.dtype = DTYPE_BF16, known = true;
        if (!strcmp(word, "fp8")) o.dtype = DTYPE_BF16, o.fp8 = FP8_BLOCK, known = true;
        if (!strcmp(word, "fp8-row")) o.dtype = DTYPE_BF16, o.fp8 = FP8_ROW, known = true;
        if (!strcmp(word, "selective")) o.recompute = RECOMPUTE_SELECTIVE, known = true;
        if (!strcmp(word, "full")) o.recompute = RECOMPUTE_FULL, known = true;
        if (!strcmp(word, "plain")) o.balance = BALANCE_NONE, o.router_z_loss = 0, known = true;
        if (!strcmp(word, "aux")) o.balance = BALANCE_AUX, o.aux_loss = 0.01f, known = true;
        if (!strncmp(word, "micro", 5)) o.n_micro = n, known = true;
        if (!strncmp(word, "chunks", 6))
            o.layout.chunks = n, known = true; /* canonical mode; a leaf is one sequence */
        if (!strncmp(word, "layers", 6)) job.layers = n, known = true;
        if (!strncmp(word, "keys", 4)) job.keys = n, known = true;
        assert_true(known);
    }
    if (o.layout.chunks) o.n_micro = BATCH / mesh_data_ranks(&o.layout.mesh);
    o.micro_batch = BATCH / o.n_micro / mesh_data_ranks(&o.layout.mesh);
    job.options = o;
    return job;
}

static void make_model_with(const char *text, int layers, int key_heads, ModelConfig *config)
{
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    if (key_heads) json_object_set_new(json, "num_key_value_heads", json_integer(key_heads));
    static const char *const keys[] = {"num_hidden_layers", "n_layer", "n_layers"};
    for (int i = 0; layers && i < COUNT_OF(keys); i++)
        if (json_object_get(json, keys[i]))
            json_object_set_new(json, keys[i], json_integer(layers));
    assert_int_equal(model_config_from_json(json, config), OK);
    json_decref(json);
    config->expert_bias = config->n_experts > 0;
}

static inline void make_model(const char *text, int layers, ModelConfig *config)
{
    make_model_with(text, layers, 0, config);
}

/* Relative difference of the worst step. In bf16 what is rounded apart drifts apart: the first two
 * only. */
static inline double compare(const Job *a, const Job *b)
{
    double worst = 0;
    int n = a->options.dtype == DTYPE_F32 ? steps_of(a) : 2;
    for (int s = 0; s < n; s++) {
        worst = fmax(worst, fabs(a->loss[s] / b->loss[s] - 1));
        worst = fmax(worst, fabs(a->norm[s] / b->norm[s] - 1));
    }
    return isfinite(worst) ? worst : (double)INFINITY;
}

/* 0 when the layout computes what one rank does, in the steps that LAYOUT_VERBOSE shows. */
static inline int check_against_one_rank(const char *name, const char *model_text, const char *text)
{
    ModelConfig model;
    char message[600] = "";
    Job many = parse_job(text), one = many;
    bool deep = mesh_size(&many.options.layout.mesh, MESH_PP) == 4 ||
                pipeline_default_stages(many.schedule) > 1;
    if (model_text == grok1 && deep && !many.layers)
        many.layers = 4; /* it has 3, enough for two stages */
    make_model_with(model_text, many.layers, many.keys, &model);
    one.model = many.model = &model;
    one.options.micro_batch *= mesh_data_ranks(&one.options.layout.mesh);
    one.options.layout = (Layout){0};
    one.cuda = false;
    Status status = run_job(&one, message);
    if (status == OK) status = run_job(&many, message);
    double difference = status == OK ? compare(&many, &one) : (double)INFINITY;
    /* in 8 bits, what lies between two numbers may fall to either side */
    double most = one.options.dtype == DTYPE_F32 ? 1e-5 : one.options.fp8 ? 1e-2 : 5e-3;
    bool good = difference < most;
    if (!good || getenv("LAYOUT_VERBOSE")) { /* LAYOUT="tp2 seq" picks one */
        print_message("%s: %s: difference %.2e %s\n", name, text, difference, message);
        for (int s = 0; s < steps_of(&many) && status == OK; s++)
            print_message("  step %d: loss %.7f and %.7f, norm %.7f and %.7f\n", s, many.loss[s],
                          one.loss[s], many.norm[s], one.norm[s]);
    }
    model_config_deinit(&model);
    return good ? 0 : 1;
}

#endif
