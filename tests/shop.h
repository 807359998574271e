/* For tests of whole runs: a directory with text, small runs in it, of one rank or of several that
 * are threads, and hashes of what they leave. */
#ifndef TESTS_SHOP_H
#define TESTS_SHOP_H

#include "ckpt/ckpt.h"
#include "train/train.h"

#include "base/testing.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

/* ---- a workshop: a directory with text, thrown away afterwards -------------------------- */

static char shop[64];

static inline int make_shop(void **state)
{
    (void)state;
    log_set_level(LOG_SILENT);
    snprintf(shop, sizeof shop, "/tmp/drover-train-XXXXXX");
    if (!mkdtemp(shop)) return -1;
    Arena arena = {0};
    Str text = {0};
    for (int i = 0; i < 40; i++) {
        str_clear(&text);
        for (int k = 0; k < 30; k++)
            str_printf(&text, "int f_%d_%d(int a, int b)\n{\n    return a * %d + b;\n}\n\n", i, k,
                       (i * 31 + k) % 97);
        Status status = file_write_atomic(arena_printf(&arena, "%s/t%02d.c", shop, i), text.at,
                                          text.n);
        if (status != OK) return -1;
    }
    str_deinit(&text);
    arena_deinit(&arena);
    return 0;
}

static inline int remove_shop(void **state)
{
    (void)state;
    return dir_remove_tree(shop) == OK ? 0 : -1;
}

static const char *model_fields = "model={model_type: llama4_text, vocab_size: 512, hidden_size: "
                                  "32, num_hidden_layers: 4, num_attention_heads: 4, "
                                  "num_key_value_heads: 2, head_dim: 8, intermediate_size: 32, "
                                  "intermediate_size_mlp: 48, num_local_experts: 4, "
                                  "num_experts_per_tok: 1, interleave_moe_layer_step: 2, "
                                  "attention_chunk_size: 16, floor_scale: 16}";

/* run NAME: the defaults of these tests with overrides on top. */
static inline Status load(const char *name, const char *const *more, int n_more, RunConfig *config)
{
    Arena arena = {0};
    const char *overrides[32] = {model_fields,
                                 "tokenizer.train.vocab_size=512",
                                 "train.batch=4",
                                 "train.seq=48",
                                 "train.val_every=0",
                                 "train.val_batches=2",
                                 "checkpoint.every=5",
                                 "train.lr=3e-3",
                                 "log.tensorboard=false",
                                 "train.threads=1",
                                 "train.tune=off"};
    int n = 11;
    overrides[n++] = arena_printf(&arena, "name=%s", name);
    overrides[n++] = arena_printf(&arena, "dir=%s/runs/%s", shop, name);
    overrides[n++] = arena_printf(&arena, "data=%s/*.c", shop);
    overrides[n++] = arena_printf(&arena, "dataset.cache=%s/cache", shop);
    for (int i = 0; i < n_more; i++) overrides[n++] = more[i];
    Status status = run_config_load(NULL, overrides, n, config);
    arena_deinit(&arena);
    return status;
}

static inline Status train(const char *name, const char *const *more, int n_more,
                           TrainOutcome *outcome)
{
    RunConfig config;
    Trainer *trainer;
    TRY(load(name, more, n_more, &config));
    Status status = trainer_create(&config, &trainer);
    if (status == OK) {
        status = trainer_run(trainer, outcome);
        trainer_destroy(trainer);
    }
    run_config_deinit(&config);
    return status;
}

/* ---- ranks as threads ------------------------------------------------------------------- */

enum { MAX_SHOP_RANKS = 16 };

typedef struct ShopRank {
    const RunConfig *config;
    Comm *world;
    Status status;
} ShopRank;

static inline void *train_rank(void *context)
{
    ShopRank *r = context;
    Trainer *trainer;
    TrainOutcome outcome;
    log_set_thread_quiet(true);
    r->status = trainer_create_rank(r->config, r->world, comm_size(r->world), &trainer);
    if (r->status == OK) {
        r->status = trainer_run(trainer, &outcome);
        trainer_destroy(trainer);
    }
    if (r->status != OK) comm_abort(r->world, ERR_COMM);
    return NULL;
}

/* All ranks of the layout, which all end well. */
static inline void train_ranks(const RunConfig *config)
{
    CommWorld *world;
    ShopRank rank[MAX_SHOP_RANKS];
    pthread_t thread[MAX_SHOP_RANKS];
    int n = (int)run_ranks(config);
    assert_true(n <= MAX_SHOP_RANKS);
    assert_ok(comm_world_create_local(n, NULL, &world));
    for (int r = 0; r < n; r++) rank[r] = (ShopRank){config, comm_of_rank(world, r), OK};
    for (int r = 0; r < n; r++)
        assert_int_equal(pthread_create(&thread[r], NULL, train_rank, &rank[r]), 0);
    for (int r = 0; r < n; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < n; r++) assert_int_equal(rank[r].status, OK);
    comm_world_destroy(world);
}

/* ---- what runs leave -------------------------------------------------------------------- */

/* Hash of every tensor of a checkpoint, weights and moments. */
static inline uint64_t ckpt_hash(const Ckpt *ckpt)
{
    Arena arena = {0};
    uint64_t hash = 0;
    const ModelDir *model = ckpt_model(ckpt);
    int n = modeldir_count(model);
    for (int i = 0; i < 3 * n; i++) {
        const SafetensorsEntry *e = modeldir_at(model, i % n);
        if (i >= n)
            e = ckpt_optimizer_find(
                ckpt, arena_printf(&arena, "%s.adam_%c", e->name, i < 2 * n ? 'm' : 'v'));
        if (!e) fail_msg("no moment %s", modeldir_at(model, i % n)->name);
        int64_t count = shape_count(&e->shape);
        float *data = ARENA_ARRAY(&arena, float, count);
        assert_ok(safetensors_read(e, 0, count, DTYPE_F32, data));
        hash = hash * 31 + hash_bytes(data, (size_t)count * 4);
    }
    static const char *const router[] = {"feed_forward.router", "moe_block.gate"};
    for (int i = 0; i < 8;
         i++) { /* expert biases, where the run has any: no part of the model's files */
        const char *bias = arena_printf(&arena, "model.layers.%d.%s.expert_bias", i / 2,
                                        router[i % 2]);
        const SafetensorsEntry *e = ckpt_optimizer_find(ckpt, bias);
        assert_null(modeldir_find(model, bias));
        if (!e) continue;
        float data[4];
        assert_ok(safetensors_read(e, 0, 4, DTYPE_F32, data));
        hash = hash * 31 + hash_bytes(data, sizeof data);
    }
    arena_deinit(&arena);
    return hash;
}

/* Of a run's newest checkpoint, and which one it is. */
static inline uint64_t state_hash(const char *name, int64_t *step)
{
    Arena arena = {0};
    Ckpt *ckpt;
    assert_ok(ckpt_find(arena_printf(&arena, "%s/runs/%s/ckpt", shop, name), &ckpt));
    assert_non_null(ckpt);
    uint64_t hash = ckpt_hash(ckpt);
    *step = ckpt_step(ckpt);
    ckpt_close(ckpt);
    arena_deinit(&arena);
    return hash;
}

/* One document, one sequence: the loss goes to nearly nothing. */
static inline void check_text_is_learnt(void)
{
    Arena arena = {0};
    const char *text =
        "the quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly; "
        "pack my box with five dozen liquor jugs, said the sphinx of black quartz to the judge\n";
    const char *path = arena_printf(&arena, "%s/one.txt", shop);
    assert_ok(file_write_atomic(path, text, strlen(text)));
    const char *more[] = {arena_printf(&arena, "data=%s", path),
                          "train.steps=200",
                          "train.batch=1",
                          "train.lr=1e-2",
                          "tokenizer.train.vocab_size=300",
                          "dataset.holdout=0",
                          "train.precision=f32",
                          "train.balance=none",
                          arena_printf(&arena, "dataset.cache=%s/cache-one", shop),
                          "train.seq=180"};
    TrainOutcome outcome;
    assert_ok(train("one", more, COUNT_OF(more), &outcome));
    if (!(outcome.loss < 0.02)) fail_msg("loss is still %g", outcome.loss);
    arena_deinit(&arena);
}

static inline void check_micro_batches_add_up(void)
{
    TrainOutcome one, four;
    const char *whole[] = {"train.precision=f32", "train.steps=8", "train.balance=none",
                           "train.micro_batch=4"};
    const char *parts[] = {"train.precision=f32", "train.steps=8", "train.balance=none",
                           "train.micro_batch=1"};
    assert_ok(train("micro-4", whole, 4, &one));
    assert_ok(train("micro-1", parts, 4, &four));
    if (!(fabs(one.loss - four.loss) < 1e-5 * one.loss))
        fail_msg("%.9g and %.9g", one.loss, four.loss);
}

#endif
