/* Whole runs on the cuda device: stopped and resumed they leave the same bits as uninterrupted; a
 * checkpoint of one device goes on on the other; bad steps leave nothing behind; what does not fit
 * is refused before anything is allocated. */
#include "shop.h"

#include "gpu/gpu.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_and_resume_gives_the_same_bits),
        cmocka_unit_test(another_device_goes_on),
        cmocka_unit_test(a_bad_step_leaves_nothing),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, make_tuned_shop, remove_shop);
}
