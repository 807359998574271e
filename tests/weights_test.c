/* One model in its several forms, through training and inference: the same bits come out, a
 * multimodal directory gives its checkpoints in its own names, and what a directory lacks is
 * refused before anything runs. */
#include "infer/infer.h"
#include "train/train.h"

#include "base/testing.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#define GOLDEN SOURCE_DIR "/tests/golden_meta/"

static char shop[64];

static int make_shop(void **state)
{
    (void)state;
    log_set_level(LOG_SILENT);
    snprintf(shop, sizeof shop, "/tmp/drover-forms-XXXXXX");
    return mkdtemp(shop) ? 0 : -1;
}

static int remove_shop(void **state)
{
    (void)state;
    return dir_remove_tree(shop) == OK ? 0 : -1;
}

/* ---- logits ----------------------------------------------------------------------------- */

enum { N = 12, VOCAB = 24 };

static void logits_of(const char *path, float out[N * VOCAB])
{
    static const int32_t ids[N] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
    InferModel model;
    Infer *infer;
    const float *logits;
    assert_ok(infer_model_open(path, &model));
    assert_ok(infer_create(
        &model,
        (InferOptions){.threads = 1, .logits_tokens = N, .dtype_set = true, .dtype = DTYPE_F32},
        &infer));
    assert_ok(infer_logits(infer, ids, N, &logits));
    memcpy(out, logits, sizeof(float) * N * VOCAB);
    infer_destroy(infer);
    infer_model_deinit(&model);
}

static void same_logits(void **state)
{
    (void)state;
    static const char *const forms[][4] = {
        {"llama3/hf", "llama3/meta1", "llama3/meta2", "llama3/meta8"},
        {"llama4/hf", "llama4/meta1", "llama4/meta2", "llama4/meta8"}};
    for (int family = 0; family < 2; family++) {
        float first[N * VOCAB], other[N * VOCAB];
        for (int i = 0; i < 4; i++) {
            char path[512];
            snprintf(path, sizeof path, GOLDEN "%s", forms[family][i]);
            logits_of(path, i ? other : first);
            if (i) assert_memory_equal(first, other, sizeof first);
        }
        assert_true(first[0] != first[1]);
    }
}

/* ---- training --------------------------------------------------------------------------- */

static Status train(const char *name, const char *from, const char *steps, const char *lr)
{
    Arena arena = {0};
    const char *settings[] = {arena_printf(&arena, "model.from=%s", from),
                              arena_printf(&arena, "name=%s", name),
                              arena_printf(&arena, "dir=%s/%s", shop, name),
                              "data=[{synthetic: uniform}]",
                              "train.batch=2",
                              "train.seq=16",
                              "train.threads=1",
                              "train.precision=f32",
                              "train.val_every=0",
                              "log.tensorboard=false",
                              "train.schedule=constant",
                              "train.warmup=0",
                              arena_printf(&arena, "train.steps=%s", steps),
                              arena_printf(&arena, "train.lr=%s", lr)};
    RunConfig config;
    Trainer *trainer;
    TrainOutcome outcome;
    Status status = run_config_load(NULL, settings, COUNT_OF(settings), &config);
    arena_deinit(&arena);
    TRY(status);
    status = trainer_create(&config, &trainer);
    if (status == OK) {
        status = trainer_run(trainer, &outcome);
        trainer_destroy(trainer);
    }
    run_config_deinit(&config);
    return status;
}

static Weights *open_run(const char *name)
{
    char path[128];
    Ckpt *ckpt;
    Weights *weights;
    snprintf(path, sizeof path, "%s/%s/ckpt", shop, name);
    assert_ok(ckpt_find(path, &ckpt));
    assert_ok(weights_open_ckpt(ckpt, &weights));
    return weights;
}

/* Every weight of `a` has the same bits in `b`, read as `dtype`; those that only checkpoints have
 * do not matter. */
static void compare(const Weights *a, const Weights *b, DType dtype)
{
    for (int i = 0; i < weights_count(a); i++) {
        const Weight *x = weights_at(a, i), *y = weights_find(b, x->name);
        if (!y) fail_msg("no %s", x->name);
        int64_t n = shape_count(&x->shape);
        void *p = xcalloc((size_t)n, dtype_bytes(dtype)),
             *q = xcalloc((size_t)n, dtype_bytes(dtype));
        assert_ok(weights_read_range(x, 0, n, dtype, p));
        assert_ok(weights_read_range(y, 0, n, dtype, q));
        if (memcmp(p, q, (size_t)n * dtype_bytes(dtype)) != 0) fail_msg("%s differs", x->name);
        free(p);
        free(q);
    }
}

static void same_training(void **state)
{
    (void)state;
    assert_ok(train("from-hf", GOLDEN "llama4/hf", "3", "1e-2"));
    assert_ok(train("from-meta", GOLDEN "llama4/meta8", "3", "1e-2"));
    Weights *a = open_run("from-hf"), *b = open_run("from-meta");
    compare(a, b, DTYPE_F32);
    weights_close(a);
    weights_close(b);
}

/* With steps too small to be seen nothing is lost: a checkpoint is f32, and what was bf16 comes out
 * of it with its bits. */
static void round_trip(void **state)
{
    (void)state;
    assert_ok(train("still", GOLDEN "llama4/hf", "1", "1e-12"));
    Weights *before, *after = open_run("still");
    assert_ok(weights_open(GOLDEN "llama4/hf", CKPT_VERIFY_SIZES, &before));
    compare(before, after, DTYPE_BF16);
    weights_close(before);
    weights_close(after);
}

/* All weights of `a` are in `b`, but for a step of 1e-12. */
static void compare_after_a_step(const Weights *a, const Weights *b)
{
    assert_int_equal(weights_count(a), weights_count(b));
    for (int i = 0; i < weights_count(a); i++) {
        const Weight *x = weights_at(a, i), *y = weights_find(b, x->name);
        if (!y) fail_msg("no %s", x->name);
        assert_true(shape_equal(&x->shape, &y->shape));
        int64_t n = shape_count(&x->shape);
        float *p = xcalloc((size_t)n, sizeof *p), *q = xcalloc((size_t)n, sizeof *q);
        assert_ok(weights_read_range(x, 0, n, DTYPE_F32, p));
        assert_ok(weights_read_range(y, 0, n, DTYPE_F32, q));
        for (int64_t k = 0; k < n; k++)
            if (!(fabsf(p[k] - q[k]) <= 2e-12f))
                fail_msg("%s[%lld] differs", x->name, (long long)k);
        free(p);
        free(q);
    }
}

/* GPT blocks: matrices of blocks in both orientations, biases and positions come out of a
 * checkpoint as they went in, under their own names; and go on from there. */
static void round_trip_gpt(void **state)
{
    (void)state;
    static const char *const cases[] = {"gpt2-plain", "gpt2-untied", "mpt-six-heads"};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char dir[512];
        Weights *before, *after;
        snprintf(dir, sizeof dir, SOURCE_DIR "/tests/golden/%s", cases[i]);
        assert_ok(train(cases[i], dir, "1", "1e-12"));
        after = open_run(cases[i]);
        assert_ok(weights_open(dir, CKPT_VERIFY_SIZES, &before));
        compare_after_a_step(before, after);
        weights_close(before);
        weights_close(after);
        assert_ok(train(cases[i], dir, "2", "1e-3"));
    }
}

/* ---- a text model inside a multimodal one ----------------------------------------------- */

/* llama4/hf with the prefix, beside a part for images, its configuration inside another. */
static void make_multimodal(const char *dir)
{
    Arena arena = {0};
    Weights *weights;
    json_t *text;
    assert_ok(weights_open(GOLDEN "llama4/hf", CKPT_VERIFY_SIZES, &weights));
    assert_ok(weights_config(weights, &text));
    NamedTensor *list = ARENA_ARRAY(&arena, NamedTensor, weights_count(weights) + 1);
    int n = weights_count(weights);
    for (int i = 0; i < n; i++) {
        const Weight *w = weights_at(weights, i);
        void *data = arena_alloc(&arena, (size_t)shape_count(&w->shape) * 2 + 1);
        assert_ok(weights_read_range(w, 0, shape_count(&w->shape), DTYPE_BF16, data));
        list[i] = (NamedTensor){arena_printf(&arena, "language_model.%s", w->name),
                                tensor_make(data, DTYPE_BF16, w->shape)};
    }
    static float image[3] = {1, 2, 3};
    list[n] = (NamedTensor){"vision_model.class_embedding",
                            tensor_make(image, DTYPE_F32, shape_make(1, (int64_t[]){3}, NULL))};
    assert_ok(modeldir_write(dir, list, n + 1, 0));
    json_t *config = json_pack("{s:s, s:o, s:{s:i}, s:s}", "model_type", "llama4", "text_config",
                               text, "vision_config", "hidden_size", 3, "a key of ours", "kept");
    char *dump = json_dumps(config, 0);
    assert_ok(file_write_atomic(path_join(&arena, dir, "config.json"), dump, strlen(dump)));
    free(dump);
    json_decref(config);
    weights_close(weights);
    arena_deinit(&arena);
}

static void multimodal(void **state)
{
    (void)state;
    char dir[128], run[128];
    float want[N * VOCAB], have[N * VOCAB];
    snprintf(dir, sizeof dir, "%s/multimodal", shop);
    snprintf(run, sizeof run, "%s/inside", shop);
    make_multimodal(dir);
    logits_of(GOLDEN "llama4/hf", want);
    logits_of(dir, have);
    assert_memory_equal(want, have, sizeof want);
    assert_ok(train("inside", dir, "1", "1e-12"));
    assert_ok(train("inside", dir, "2", "1e-12")); /* goes on from its own checkpoint */
    Weights *after = open_run("inside");
    assert_string_equal(weights_prefix(after), "language_model.");
    json_t *config;
    assert_ok(weights_config(after, &config));
    assert_string_equal(json_string_value(json_object_get(config, "a key of ours")), "kept");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(config, "text_config"),
                                                        "num_local_experts")),
                     3);
    json_decref(config);
    weights_close(after);
    logits_of(run, have);
    for (int i = 0; i < N * VOCAB; i++) assert_true(fabsf(have[i] - want[i]) < 1e-4f);
}

/* A configuration of another size: said at once, with the name of a tensor. */
static void refused(void **state)
{
    (void)state;
    Arena arena = {0};
    const char *settings[] = {
        "model.from=" GOLDEN "llama4/meta2",      "model.num_hidden_layers=1",   "name=cut",
        arena_printf(&arena, "dir=%s/cut", shop), "data=[{synthetic: uniform}]", "train.seq=16"};
    RunConfig config;
    Str plan = {0};
    assert_ok(run_config_load(NULL, settings, COUNT_OF(settings), &config));
    assert_int_equal(trainer_plan(&config, &plan), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "tensor model.layers.1."));
    run_config_deinit(&config);
    str_deinit(&plan);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_logits), cmocka_unit_test(same_training),
        cmocka_unit_test(round_trip),  cmocka_unit_test(round_trip_gpt),
        cmocka_unit_test(multimodal),  cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
