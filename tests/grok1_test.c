/* Whole runs of a small Grok-1: it stops and resumes to the same bits, learns a text by heart, and
 * does not care how its batches are cut. Its experts are one state with many published parts, and
 * its head is its embedding. */
#include "shop.h"

static int make_grok_shop(void **state)
{
    model_fields = "model={model_type: grok-1, vocab_size: 512, hidden_size: 32, "
                   "num_hidden_layers: 3, num_attention_heads: 4, "
                   "num_key_value_heads: 2, head_dim: 8, intermediate_size: 24, num_experts: 4, "
                   "num_experts_per_tok: 2, max_attn_value: 30, "
                   "attn_output_multiplier: 0.35, embedding_multiplier_scale: 5.65, "
                   "output_multiplier_scale: 0.577}";
    return make_shop(state);
}

static void stop_and_resume_gives_the_same_bits(void **state)
{
    (void)state;
    static const char *const how[2][3] = {
        {"train.precision=f32", "train.balance=aux", "train.micro_batch=2"},
        {"train.precision=bf16", "train.balance=bias", "train.recompute=selective"}};
    for (int i = 0; i < 2; i++) {
        Arena arena = {0};
        TrainOutcome outcome;
        int64_t step_a, step_b;
        const char *whole = arena_printf(&arena, "whole-%d", i),
                   *parts = arena_printf(&arena, "parts-%d", i);
        const char *list[] = {how[i][0],        how[i][1],
                              how[i][2],        "train.schedule=constant",
                              "train.warmup=3", "train.steps=12"};
        assert_ok(train(whole, list, 6, &outcome));
        list[5] = "train.steps=6";
        assert_ok(train(parts, list, 6, &outcome));
        assert_int_equal(outcome.step, 6);
        list[5] = "train.steps=12";
        assert_ok(train(parts, list, 6, &outcome)); /* from 6 on */
        uint64_t a = state_hash(whole, &step_a), b = state_hash(parts, &step_b);
        assert_int_equal(step_a, 12);
        assert_int_equal(step_b, 12);
        assert_true(a == b);
        arena_deinit(&arena);
    }
}

static void one_text_is_learnt_by_heart(void **state)
{
    (void)state;
    check_text_is_learnt();
}

static void micro_batches_add_up(void **state)
{
    (void)state;
    check_micro_batches_add_up();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_and_resume_gives_the_same_bits),
        cmocka_unit_test(one_text_is_learnt_by_heart),
        cmocka_unit_test(micro_batches_add_up),
    };
    return cmocka_run_group_tests(tests, make_grok_shop, remove_shop);
}
