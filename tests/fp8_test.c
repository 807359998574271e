/* Runs in 8 bits from beginning to end: the loss stays beside that of bf16, stopping and resuming
 * leaves no trace, and what cannot be is refused before it starts. */
#include "shop.h"

static const char *const llama =
    "model={model_type: llama, vocab_size: 512, hidden_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, intermediate_size: 128}";

static void loss_stays_beside_bf16(void **state)
{
    (void)state;
    static const char *const settings[][2] = {{"train.precision=bf16", "train.fp8_scaling=block"},
                                              {"train.precision=fp8", "train.fp8_scaling=block"},
                                              {"train.precision=fp8", "train.fp8_scaling=row"}};
    double loss[3], val[3];
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "loss-%d", i);
        const char *more[] = {llama, settings[i][0], settings[i][1], "train.steps=40",
                              "train.schedule=cosine"};
        TrainOutcome outcome;
        assert_ok(train(name, more, COUNT_OF(more), &outcome));
        loss[i] = outcome.loss;
        val[i] = outcome.val_loss;
        if (getenv("FP8_VERBOSE")) print_message("loss %.5f, held out %.5f\n", loss[i], val[i]);
    }
    for (int i = 1; i < 3; i++) {
        assert_true(loss[i] != loss[0]);
        assert_true(fabs(loss[i] - loss[0]) < 0.02 * loss[0]);
        assert_true(fabs(val[i] - val[0]) < 0.02 * val[0]);
    }
}

/* Also in parts, with accumulation; the number of threads does not matter. */
static void stop_and_resume_gives_the_same_bits(void **state)
{
    (void)state;
    TrainOutcome outcome;
    int64_t step_a, step_b;
    const char *more[] = {llama,           "train.precision=fp8",     "train.micro_batch=2",
                          "train.steps=8", "train.schedule=constant", "train.threads=2"};
    assert_ok(train("whole", more, COUNT_OF(more), &outcome));
    more[3] = "train.steps=3";
    assert_ok(train("parts", more, COUNT_OF(more), &outcome));
    more[3] = "train.steps=8";
    more[5] = "train.threads=1";
    assert_ok(train("parts", more, COUNT_OF(more), &outcome));
    uint64_t a = state_hash("whole", &step_a), b = state_hash("parts", &step_b);
    assert_int_equal(step_a, 8);
    assert_int_equal(step_b, 8);
    assert_true(a == b);
}

/* Its files are those of any run. */
static void goes_on_in_bf16(void **state)
{
    (void)state;
    TrainOutcome outcome;
    const char *more[] = {llama, "train.precision=fp8", "train.steps=2", "train.schedule=constant"};
    assert_ok(train("moves", more, COUNT_OF(more), &outcome));
    more[1] = "train.precision=bf16";
    more[2] = "train.steps=4";
    assert_ok(train("moves", more, COUNT_OF(more), &outcome));
    assert_int_equal(outcome.step, 4);
}

/* A bad step is seen through 8 bits too, and leaves nothing behind. */
static void bad_steps_are_skipped(void **state)
{
    (void)state;
    TrainOutcome outcome;
    const char *more[] = {llama, "train.precision=fp8", "train.steps=4", "train.schedule=constant"};
    assert_ok(fault_set("train.activation:2"));
    assert_ok(train("bad", more, COUNT_OF(more), &outcome));
    assert_true(fault_count("train.activation") >= 2);
    assert_ok(fault_set(NULL));
    assert_int_equal(outcome.step, 4);
    assert_true(isfinite(outcome.loss));
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    TrainOutcome outcome;
    const char *odd[] = {"model={model_type: llama, vocab_size: 512, hidden_size: 40, "
                         "num_hidden_layers: 2, num_attention_heads: 5, num_key_value_heads: 5, "
                         "head_dim: 8, intermediate_size: 40}",
                         "train.precision=fp8"};
    assert_int_equal(train("odd", odd, 2, &outcome), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "train.precision fp8"));
    assert_non_null(strstr(status_message(), "multiples of 16"));
    const char *canonical[] = {llama, "train.precision=fp8", "train.canonical=true"};
    assert_int_equal(train("canonical", canonical, 3, &outcome), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "train.canonical: products of 8 bits"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_stays_beside_bf16),
        cmocka_unit_test(stop_and_resume_gives_the_same_bits),
        cmocka_unit_test(goes_on_in_bf16),
        cmocka_unit_test(bad_steps_are_skipped),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
