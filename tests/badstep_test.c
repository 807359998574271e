/* Steps that go wrong in a whole run: a loss that is no number, a gradient that overflows,
 * activations that are none. Such a step changes no bit of the state, is counted and written down,
 * and the run goes on; several in a row end it, with what was good before them in a checkpoint. */
#include "shop.h"

#include <math.h>

static Ckpt *open_step(const char *run, int64_t step)
{
    Arena arena = {0};
    Ckpt *ckpt;
    assert_ok(
        ckpt_open(arena_printf(&arena, "%s/runs/%s/ckpt/step-%08lld", shop, run, (long long)step),
                  CKPT_VERIFY_HASHES, &ckpt));
    arena_deinit(&arena);
    return ckpt;
}

static uint64_t hash_at(const char *run, int64_t step)
{
    Ckpt *ckpt = open_step(run, step);
    uint64_t hash = ckpt_hash(ckpt);
    ckpt_close(ckpt);
    return hash;
}

/* A number of the manifest's run object: skipped_steps, good_steps, ... */
static int64_t counter_at(const char *run, int64_t step, const char *key)
{
    Ckpt *ckpt = open_step(run, step);
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\"%s\":", key);
    const char *at = strstr(ckpt_run_json(ckpt), pattern);
    assert_non_null(at);
    int64_t value = strtoll(at + strlen(pattern), NULL, 10);
    ckpt_close(ckpt);
    return value;
}

/* How often the text stands in the run's metrics. */
static int in_metrics(const char *run, const char *text)
{
    Arena arena = {0};
    Bytes all;
    int n = 0;
    assert_ok(file_read(&arena, arena_printf(&arena, "%s/runs/%s/metrics.jsonl", shop, run),
                        1 << 20, &all));
    for (const char *at = (const char *)all.at; (at = strstr(at, text)); at++) n++;
    arena_deinit(&arena);
    return n;
}

typedef struct Case {
    const char *point, *micro_batch, *balance, *precision;
} Case;

static const Case cases[] = {
    {"train.nan", "train.micro_batch=4", "train.balance=aux", "train.precision=f32"},
    {"train.nan", "train.micro_batch=1", "train.balance=bias", "train.precision=bf16"},
    {"train.inf", "train.micro_batch=4", "train.balance=bias", "train.precision=bf16"},
    {"train.inf", "train.micro_batch=2", "train.balance=aux", "train.precision=f32"},
    {"train.activation", "train.micro_batch=4", "train.balance=bias", "train.precision=f32"},
    {"train.activation", "train.micro_batch=1", "train.balance=aux", "train.precision=bf16"},
};

static void check_skip(const Case *c, const char *run)
{
    const char *more[] = {
        c->micro_batch,   c->balance,           c->precision,          "train.steps=6",
        "train.warmup=2", "checkpoint.every=1", "checkpoint.keep=100", "checkpoint.async=false"};
    TrainOutcome outcome;
    char fault[48];
    snprintf(fault, sizeof fault, "%s:3", c->point);
    assert_ok(fault_set(fault));
    assert_ok(train(run, more, COUNT_OF(more), &outcome));
    assert_ok(fault_set(NULL));
    assert_int_equal(outcome.step, 6);
    assert_true(isfinite(outcome.loss));
    assert_true(hash_at(run, 1) != hash_at(run, 2));
    assert_true(hash_at(run, 2) == hash_at(run, 3)); /* no bit of weights and moments */
    assert_true(hash_at(run, 3) != hash_at(run, 4));
    assert_int_equal(counter_at(run, 2, "skipped_steps"), 0);
    assert_int_equal(counter_at(run, 3, "skipped_steps"), 1);
    assert_int_equal(counter_at(run, 3, "skipped_in_a_row"), 1);
    assert_int_equal(counter_at(run, 6, "skipped_steps"),
                     1); /* nothing of it is left for the next */
    assert_int_equal(counter_at(run, 6, "skipped_in_a_row"), 0);
    assert_int_equal(counter_at(run, 6, "good_steps"), 5);
    assert_int_equal(in_metrics(run, "{\"event\": \"skip\", \"step\": 3"), 1);
    assert_int_equal(in_metrics(run, "\"event\": \"skip\""), 1);
    assert_int_equal(in_metrics(run, "\"skipped\": true"), 1);
    assert_int_equal(in_metrics(run, "\"loss\": null"), strcmp(c->point, "train.inf") != 0);
    assert_int_equal(in_metrics(run, "\"grad_norm\": null"), 1);
}

static void a_bad_step_changes_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char run[32];
        snprintf(run, sizeof run, "bad-%d", i);
        check_skip(&cases[i], run);
    }
}

/* A run that skipped a step and was stopped and resumed is the run that was not stopped. */
static void a_skip_survives_a_restart(void **state)
{
    (void)state;
    const char *more[] = {"train.steps=6", "train.warmup=2", "train.schedule=constant",
                          "train.balance=bias", "train.micro_batch=2"};
    const char *part[] = {"train.steps=4", "train.warmup=2", "train.schedule=constant",
                          "train.balance=bias", "train.micro_batch=2"};
    TrainOutcome outcome;
    int64_t step;
    assert_ok(fault_set("train.nan:3"));
    assert_ok(train("skip-whole", more, COUNT_OF(more), &outcome));
    assert_ok(fault_set("train.nan:3"));
    assert_ok(train("skip-parts", part, COUNT_OF(part), &outcome));
    assert_ok(fault_set(NULL));
    assert_ok(train("skip-parts", more, COUNT_OF(more), &outcome));
    uint64_t whole = state_hash("skip-whole", &step), parts = state_hash("skip-parts", &step);
    assert_int_equal(step, 6);
    assert_true(whole == parts);
    assert_int_equal(counter_at("skip-parts", 6, "skipped_steps"), 1);
}

static void several_in_a_row_end_the_run_with_a_checkpoint(void **state)
{
    (void)state;
    const char *more[] = {"train.steps=8", "train.warmup=2", "train.schedule=constant",
                          "train.max_skips=2", "checkpoint.every=0"};
    const char *two[] = {"train.steps=2", "train.warmup=2", "train.schedule=constant"};
    TrainOutcome outcome;
    int64_t step;
    assert_ok(fault_set("train.nan:3,train.inf:4,train.nan:5"));
    assert_int_equal(train("row", more, COUNT_OF(more), &outcome), ERR_FORMAT);
    assert_ok(fault_set(NULL));
    assert_non_null(strstr(status_message(), "3 bad steps in a row at step 5"));
    assert_non_null(strstr(status_message(), "train.lr"));
    assert_int_equal(in_metrics("row", "\"event\": \"skip\""), 2);
    assert_int_equal(in_metrics("row", "{\"event\": \"stop\", \"step\": 5"), 1);
    assert_int_equal(in_metrics("row", "\"event\": \"failed\""), 1);
    uint64_t kept = state_hash("row", &step);
    assert_int_equal(step, 4);
    assert_ok(train("row-two", two, COUNT_OF(two), &outcome)); /* the last two good steps, alone */
    assert_true(kept == state_hash("row-two", &step));
    assert_ok(train("row", more, COUNT_OF(more), &outcome)); /* the same command goes on */
    assert_int_equal(outcome.step, 8);
    assert_int_equal(counter_at("row", 8, "skipped_steps"), 3);
}

static void without_skipping_the_first_ends_the_run(void **state)
{
    (void)state;
    const char *more[] = {"train.steps=6", "train.skip_nonfinite=false"};
    TrainOutcome outcome;
    int64_t step;
    assert_ok(fault_set("train.activation:4"));
    assert_int_equal(train("first", more, COUNT_OF(more), &outcome), ERR_FORMAT);
    assert_ok(fault_set(NULL));
    state_hash("first", &step);
    assert_int_equal(step, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_step_changes_nothing),
        cmocka_unit_test(a_skip_survives_a_restart),
        cmocka_unit_test(several_in_a_row_end_the_run_with_a_checkpoint),
        cmocka_unit_test(without_skipping_the_first_ends_the_run),
    };
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
