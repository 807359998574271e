/* Numbers of weights and operations, against the graphs and against what is published. */
#include "model/model.h"
#include "program/program.h"

#include "base/testing.h"

/* What model_counts says is what the graph holds, weight by weight: nothing is left out or counted
 * twice. */
static void counts_are_those_of_the_graph(void **state)
{
    (void)state;
    for (int i = 0; model_preset(i); i++) {
        ModelConfig c;
        Graph *g;
        Store *store = store_create();
        int64_t n = 0;
        assert_ok(model_config_preset(model_preset(i)->name, &c));
        ModelOptions o = {
            .purpose = MODEL_LOSS, .batch = 1, .seq = 4, .dtype = DTYPE_BF16, .training = true};
        assert_ok(model_build(&c, o, &g));
        assert_ok(store_add_graph(store, g));
        for (int e = 0; e < store->n_entries; e++)
            for (int k = 0; store->entry[e].role == STATE_PARAM && k < store->entry[e].n_parts; k++)
                n += shape_count(&store->entry[e].part[k].shape);
        if (n != model_counts(&c).total)
            fail_msg("%s: %lld weights in the graph, %lld counted", model_preset(i)->name,
                     (long long)n, (long long)model_counts(&c).total);
        store_destroy(store);
        graph_destroy(g);
        model_config_deinit(&c);
    }
}

static void grok_counts(void **state)
{
    (void)state;
    ModelConfig c;
    assert_ok(model_config_preset("grok-1", &c));
    assert_int_equal(model_counts(&c).total, 315684820992);
    assert_int_equal(model_counts(&c).active, 83756587008);
    model_config_deinit(&c);
}

static void grok_flop(void **state)
{
    (void)state;
    ModelConfig c;
    assert_ok(model_config_preset("grok-1", &c));
    int64_t norms = 6144 * (1 + 4 * 64), seq = 8192;
    double attention = 6.0 * 64 * 48 * 128 * (double)seq;
    assert_true(model_train_flop_per_token(&c, seq) ==
                6.0 * (double)(model_counts(&c).active - norms) + attention);
    model_config_deinit(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_are_those_of_the_graph),
        cmocka_unit_test(grok_counts),
        cmocka_unit_test(grok_flop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
