/* For tests of runs of several ranks, which are threads here: jobs in a directory that is thrown
 * away, and the files that they leave. */
#ifndef TRAIN_TRAIN_TESTKIT_H
#define TRAIN_TRAIN_TESTKIT_H

#include "train/trainer_internal.h"

#include "base/testing.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

enum { MAX_TEST_RANKS = 16 };

static const char *const llama4 =
    "model={model_type: llama4_text, vocab_size: 128, hidden_size: 32, num_hidden_layers: 4, "
    "num_attention_heads: 8, num_key_value_heads: 4, "
    "head_dim: 8, intermediate_size: 16, intermediate_size_mlp: 48, num_local_experts: 4, "
    "interleave_moe_layer_step: 2, attention_chunk_size: 16}";
static const char *const llama3 =
    "model={model_type: llama, vocab_size: 128, hidden_size: 32, num_hidden_layers: 2, "
    "num_attention_heads: 8, "
    "num_key_value_heads: 4, head_dim: 8, intermediate_size: 48, tie_word_embeddings: true}";
static const char *const grok1 =
    "model={model_type: grok-1, vocab_size: 128, hidden_size: 32, num_hidden_layers: 2, "
    "num_attention_heads: 8, num_key_value_heads: 4, "
    "intermediate_size: 16, num_experts: 4, num_experts_per_tok: 2, max_attn_value: 30, "
    "attn_output_multiplier: 0.5, "
    "embedding_multiplier_scale: 5.6, output_multiplier_scale: 0.57, tie_word_embeddings: true}";

static char shop[64];

/* ---- jobs ------------------------------------------------------------------------------- */

typedef struct Job {
    const char *name, *model;
    const char *layout; /* "tp=2 dp=2", settings under parallel. */
    const char *more[4];
    int64_t steps;
    bool again;        /* no step: what was loaded is saved once more */
    const char *hosts; /* DROVER_TEST_HOSTS; NULL: one */
    double alarm_s;    /* 0: as ever */
    const char *fault; /* set once all ranks have been made */
    int crippled;      /* 1 + the rank whose snapshots do not fit; 0: none */
    /* out */
    int64_t step;
    uint64_t share_bytes[MAX_TEST_RANKS]; /* that each rank writes */
    int n;
} Job;

typedef struct RankJob {
    Job *job;
    const RunConfig *config;
    CommWorld *world;
    pthread_barrier_t *made;
    int rank;
    Status status;
    char message[600];
} RankJob;

static inline Status configure(const Job *job, RunConfig *config)
{
    Arena arena = {0};
    const char *list[32] = {job->model,
                            "data=[{synthetic: uniform}]",
                            "train.batch=8",
                            "train.seq=32",
                            "train.val_every=0",
                            "train.val_batches=0",
                            "train.precision=f32",
                            "train.balance=bias",
                            "train.lr=3e-3",
                            "train.warmup=0",
                            "log.tensorboard=false",
                            "train.schedule=constant",
                            "train.threads=1",
                            "log.every=1000"};
    int n = 14;
    list[n++] = arena_printf(&arena, "name=%s", job->name);
    list[n++] = arena_printf(&arena, "dir=%s/%s", shop, job->name);
    list[n++] = arena_printf(&arena, "train.steps=%lld", (long long)job->steps);
    char *layout = arena_strdup(&arena, job->layout), *save;
    for (char *word = strtok_r(layout, " ", &save); word; word = strtok_r(NULL, " ", &save))
        list[n++] = arena_printf(&arena, "parallel.%s", word);
    for (int i = 0; i < COUNT_OF(job->more) && job->more[i]; i++) list[n++] = job->more[i];
    Status status = run_config_load(NULL, list, n, config);
    arena_deinit(&arena);
    return status;
}

static inline Status work(RankJob *r, Trainer *t)
{
    TrainOutcome outcome;
    Job *job = r->job;
    for (int i = 0; i < t->saved.n; i++)
        job->share_bytes[r->rank] += tensor_bytes(&t->saved.part[i]);
    if (r->rank == 0) job->step = t->step;
    if (r->made) pthread_barrier_wait(r->made);
    if (ckpt_reserved_bytes(t->store) != t->snapshot_bytes)
        return fail(ERR_MEMORY, "%zu bytes are planned for the snapshot, %zu reserved",
                    t->snapshot_bytes, ckpt_reserved_bytes(t->store));
    if (job->alarm_s > 0) t->save_alarm_s = job->alarm_s;
    if (r->rank + 1 == job->crippled) t->saved.part[0].shape.dim[0] += 1 << 20;
    if (r->rank == 0 && job->fault) assert_ok(fault_set(job->fault));
    return job->again ? trainer_save(t, true) : trainer_run(t, &outcome);
}

static inline void *run_rank(void *context)
{
    RankJob *r = context;
    Trainer *t;
    Comm *world = r->world ? comm_of_rank(r->world, r->rank) : NULL;
    r->status = trainer_create_rank(r->config, world, r->job->n, &t);
    if (r->status == OK) {
        r->status = work(r, t);
        if (r->status != OK) snprintf(r->message, sizeof r->message, "%s", status_message());
        if (r->status != OK && world) comm_abort(world, ERR_COMM);
        trainer_destroy(t);
        return NULL;
    }
    snprintf(r->message, sizeof r->message, "%s", status_message());
    if (world) comm_abort(world, ERR_COMM);
    if (r->made) pthread_barrier_wait(r->made);
    return NULL;
}

/* The first rank's status, or another's where that is the cause; its sentence is the thread's. */
static inline Status run(Job *job)
{
    RunConfig config;
    RankJob ranks[MAX_TEST_RANKS];
    pthread_t thread[MAX_TEST_RANKS];
    CommWorld *world = NULL;
    pthread_barrier_t made;
    assert_ok(configure(job, &config));
    int n = job->n = (int)run_ranks(&config);
    assert_true(n <= MAX_TEST_RANKS);
    memset(job->share_bytes, 0, sizeof job->share_bytes);
    if (job->hosts) setenv("DROVER_TEST_HOSTS", job->hosts, 1);
    if (n > 1) assert_ok(comm_world_create_local(n, &(CommOptions){.deadline_s = 60}, &world));
    unsetenv("DROVER_TEST_HOSTS");
    pthread_barrier_init(&made, NULL, (unsigned)n);
    for (int r = 0; r < n; r++) {
        ranks[r] = (RankJob){
            .job = job, .config = &config, .world = world, .made = n > 1 ? &made : NULL, .rank = r};
        assert_int_equal(pthread_create(&thread[r], NULL, run_rank, &ranks[r]), 0);
    }
    const RankJob *worst = &ranks[0];
    for (int r = 0; r < n; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < n; r++)
        if (ranks[r].status != OK && (worst->status == OK || worst->status == ERR_COMM))
            worst = &ranks[r];
    Status status = worst->status == OK ? OK
                                        : fail(worst->status, "%s: rank %d: %s", job->layout,
                                               worst->rank, worst->message);
    (void)fault_set(NULL);
    pthread_barrier_destroy(&made);
    comm_world_destroy(world);
    run_config_deinit(&config);
    return status;
}

/* ---- files ------------------------------------------------------------------------------ */

static inline char *step_path(Arena *arena, const char *name, int64_t step)
{
    return arena_printf(arena, "%s/%s/ckpt/step-%08lld", shop, name, (long long)step);
}

/* Name and content of every file. */
static inline void read_dir(Arena *arena, const char *path, DirEntries *entries, Bytes **content)
{
    assert_ok(dir_list(arena, path, entries));
    *content = ARENA_ARRAY(arena, Bytes, entries->n);
    for (int i = 0; i < entries->n; i++)
        assert_ok(
            file_read(arena, path_join(arena, path, entries->name[i]), 1 << 28, &(*content)[i]));
}

static inline void assert_same_files(const char *what, const DirEntries *a, const Bytes *x,
                                     const char *path)
{
    Arena arena = {0};
    DirEntries b;
    Bytes *y;
    read_dir(&arena, path, &b, &y);
    assert_int_equal(a->n, b.n);
    for (int i = 0; i < b.n; i++) {
        assert_string_equal(a->name[i], b.name[i]);
        if (x[i].n != y[i].n || memcmp(x[i].at, y[i].at, x[i].n) != 0)
            fail_msg("%s: %s differs", what, b.name[i]);
    }
    arena_deinit(&arena);
}

static inline int make_shop(void **state)
{
    (void)state;
    log_set_level(LOG_SILENT);
    snprintf(shop, sizeof shop, "/tmp/drover-ranks-XXXXXX");
    return mkdtemp(shop) ? 0 : -1;
}

static inline int remove_shop(void **state)
{
    (void)state;
    return dir_remove_tree(shop) == OK ? 0 : -1;
}

#endif
