/* Whole runs on the cuda device: stopped and resumed they leave the same bits as uninterrupted; a
 * checkpoint of one device goes on on the other; bad steps leave nothing behind; what does not fit
 * is refused before anything is allocated; attention by the library. */
#include "shop.h"

#include "gpu/attention.h"

static Status train_on(const char *device, const char *name, int steps, TrainOutcome *outcome)
{
    char which[32], many[32];
    snprintf(which, sizeof which, "train.device=%s", device);
    snprintf(many, sizeof many, "train.steps=%d", steps);
    const char *list[] = {which,
                          many,
                          "train.schedule=constant",
                          "train.warmup=2",
                          "train.seq=16",
                          "train.precision=f32",
                          "train.val_batches=0",
                          "train.tune=auto"};
    return train(name, list, COUNT_OF(list), outcome);
}

/* Algorithms of products are tried out by the first run, and kept for the others in the shop. */
static int make_tuned_shop(void **state)
{
    if (make_shop(state) != 0) return -1;
    return setenv("XDG_CACHE_HOME", shop, 1);
}

static void stop_and_resume_gives_the_same_bits(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    TrainOutcome outcome;
    int64_t step_a, step_b;
    assert_ok(train_on("cuda", "whole", 4, &outcome));
    assert_ok(train_on("cuda", "parts", 2, &outcome));
    assert_int_equal(outcome.step, 2);
    assert_ok(train_on("cuda", "parts", 4, &outcome));
    uint64_t a = state_hash("whole", &step_a), b = state_hash("parts", &step_b);
    assert_int_equal(step_a, 4);
    assert_int_equal(step_b, 4);
    assert_true(a == b);
    Arena arena = {0};
    assert_true(file_exists(arena_printf(&arena, "%s/drover/products", shop)));
    arena_deinit(&arena);
}

/* The processor's sums have another order: near, not the same. */
static void another_device_goes_on(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    TrainOutcome there, back, alone;
    assert_ok(train_on("cuda", "moves", 2, &there));
    assert_ok(train_on("cpu", "moves", 4, &back));
    assert_ok(train_on("cpu", "stays", 4, &alone));
    assert_int_equal(back.step, 4);
    assert_true(fabs(back.loss - alone.loss) < 1e-4 * alone.loss);
}

static void a_bad_step_leaves_nothing(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    static const char *const faults[] = {"train.nan:2", "train.activation:2"};
    int64_t step;
    uint64_t hash[2];
    for (int i = 0; i < COUNT_OF(faults); i++) {
        TrainOutcome outcome;
        assert_ok(fault_set(faults[i]));
        assert_ok(train_on("cuda", i ? "activation" : "nan", 3, &outcome));
        assert_ok(fault_set(NULL));
        hash[i] = state_hash(i ? "activation" : "nan", &step);
        assert_int_equal(step, 3);
    }
    assert_true(hash[0] == hash[1]); /* both skipped the second step, whatever was wrong with it */
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    if (!gpu_count(NULL)) skip();
    TrainOutcome outcome;
    const char *list[] = {"train.device=cuda", "train.steps=1", "train.memory_limit=100000"};
    assert_int_equal(train("large", list, COUNT_OF(list), &outcome), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "memory"));
}

static const char *llama = "model={model_type: llama, vocab_size: 512, hidden_size: 32, "
                           "num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, "
                           "head_dim: 64, intermediate_size: 48}";

static Status train_by(const char *attention, const char *precision, const char *device,
                       const char *name, TrainOutcome *outcome)
{
    char how[48], type[48], where[48];
    snprintf(how, sizeof how, "train.attention=%s", attention);
    snprintf(type, sizeof type, "train.precision=%s", precision);
    snprintf(where, sizeof where, "train.device=%s", device);
    const char *list[] = {
        llama,          how, type, where, "train.steps=2", "train.seq=24", "train.warmup=0",
        "train.batch=2"};
    return train(name, list, COUNT_OF(list), outcome);
}

/* The library's attention beside ours: the same training but for rounding, over packed documents;
 * what a rank holds was planned to the byte, or the session would have said so. */
static void attention_by_the_library(void **state)
{
    (void)state;
    Gpu *gpu = NULL;
    bool can = gpu_count(NULL) && gpu_open(0, &gpu) == OK && gpu_attention_can(gpu) == OK;
    gpu_close(gpu);
    if (!can) skip();
    TrainOutcome own, library, again;
    assert_ok(train_by("own", "bf16", "cuda", "own", &own));
    assert_ok(train_by("cudnn", "bf16", "cuda", "library", &library));
    assert_ok(train_by("cudnn", "bf16", "cuda", "again", &again));
    assert_true(fabs(own.loss - library.loss) < 2e-3 * own.loss);
    assert_true(library.loss == again.loss);
    assert_true(library.loss != own.loss); /* it was the library that computed */
}

static void attention_that_cannot_be_had_is_refused(void **state)
{
    (void)state;
    TrainOutcome outcome;
    assert_int_equal(train_by("cudnn", "bf16", "cpu", "refused", &outcome), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "needs the cuda device"));
    assert_non_null(strstr(status_message(), "train.attention=own"));
    if (!gpu_count(NULL)) return;
    assert_int_equal(train_by("cudnn", "f32", "cuda", "refused", &outcome), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "train.attention"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_and_resume_gives_the_same_bits),
        cmocka_unit_test(another_device_goes_on),
        cmocka_unit_test(a_bad_step_leaves_nothing),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(attention_by_the_library),
        cmocka_unit_test(attention_that_cannot_be_had_is_refused),
    };
    return cmocka_run_group_tests(tests, make_tuned_shop, remove_shop);
}
