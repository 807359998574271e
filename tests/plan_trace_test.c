/* What is simulated and what is measured are the same nodes: a run's trace laid over its plan's,
 * for layouts of every kind. */
#include "planner/planner.h"
#include "shop.h"

#include <jansson.h>

enum { TRACED = 2, MORE = 6 };

/* Runs, plans with the trace of the run, and leaves both in one file. */
static void lay_over(const char *name, const char *const *settings, Plan *plan, Overlay *overlay)
{
    Arena arena = {0};
    RunConfig config;
    Cluster cluster;
    const char *more[MORE + 3] = {"train.steps=5", "checkpoint.every=0",
                                  arena_printf(&arena, "log.trace=%s/%s.json", shop, name)};
    int n = 3;
    for (; *settings; settings++) more[n++] = *settings;
    assert_ok(load(name, more, n, &config));
    train_ranks(&config);
    assert_ok(cluster_load("cpu", &cluster));
    PlanOptions how = {.jitter = -1,
                       .measured = config.log.trace,
                       .overlay = overlay,
                       .trace = arena_printf(&arena, "%s/%s-both.json", shop, name)};
    if (plan_make(&config, &cluster, &how, plan) != OK) fail_msg("%s: %s", name, status_message());
    cluster_deinit(&cluster);
    run_config_deinit(&config);
    arena_deinit(&arena);
}

/* Of both sides' processes every one is there, and of each as many instructions as it has. */
static void check_file(const char *name, int ranks, const Overlay *o)
{
    Arena arena = {0};
    json_t *root = json_load_file(arena_printf(&arena, "%s/%s-both.json", shop, name),
                                  JSON_REJECT_DUPLICATES, NULL),
           *event;
    assert_non_null(root);
    size_t i, measured = 0, simulated = 0;
    int64_t once = 0, stages = 0;
    json_array_foreach(json_object_get(root, "traceEvents"), i, event)
    {
        const json_t *args = json_object_get(event, "args");
        if (!json_object_get(args, "instr") || json_object_get(args, "exchange")) continue;
        bool real = json_integer_value(json_object_get(event, "pid")) < ranks;
        *(real ? &measured : &simulated) += 1;
    }
    for (int k = 0; k < o->n; k++) {
        once += o->node[k].times;
        stages = o->node[k].rank >= stages ? o->node[k].rank + 1 : stages;
    }
    assert_int_equal(simulated, once);
    assert_int_equal(measured, once * TRACED * (ranks / stages));
    json_decref(root);
    arena_deinit(&arena);
}

static const struct {
    const char *name;
    int ranks;
    const char *settings[MORE];
} layouts[] = {
    {"alone", 1, {"train.micro_batch=4"}},
    {"micro", 1, {"train.micro_batch=1", "train.recompute=full"}},
    {"dp", 2, {"parallel.dp=2", "train.micro_batch=1"}},
    {"zero", 2, {"parallel.dp=2", "parallel.zero=2", "train.micro_batch=1"}},
    {"fsdp", 2, {"parallel.fsdp=2", "train.precision=bf16"}},
    {"tp", 2, {"parallel.tp=2", "train.recompute=selective"}},
    {"ep", 2, {"parallel.ep=2"}},
    {"folded", 4, {"parallel.ep=2", "parallel.tp=2", "parallel.fold_experts=true"}},
    {"cp", 2, {"parallel.cp=2"}},
    {"canonical", 2, {"parallel.tp=2", "train.canonical=true", "train.micro_batch=1"}},
    {"leaves", 2, {"parallel.dp=2", "train.canonical=true", "train.micro_batch=1"}},
    {"pp", 2, {"parallel.pp=2", "train.micro_batch=1"}},
    {"turns", 2, {"parallel.pp=2", "train.micro_batch=1", "parallel.schedule=interleaved"}},
    {"split", 2, {"parallel.pp=2", "train.micro_batch=1", "parallel.schedule=zb-h1"}},
    {"both", 4, {"parallel.pp=2", "parallel.dp=2", "train.micro_batch=1"}},
};

static void test_same_nodes(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(layouts); i++) {
        Plan plan;
        Overlay o;
        Str text = {0};
        lay_over(layouts[i].name, layouts[i].settings, &plan, &o);
        if (o.n_measured_only || o.n_simulated_only)
            fail_msg("%s: %d nodes were measured only, %d simulated only; %s", layouts[i].name,
                     o.n_measured_only, o.n_simulated_only, o.odd);
        assert_true(o.n > 100 && o.steps == TRACED && o.measured_s > 0);
        double step_s = plan.time.step_s - plan.time.part.jitter_s;
        assert_true(o.simulated_s <= step_s * (1 + 1e-6) && o.simulated_s > 0.9 * step_s);
        check_file(layouts[i].name, layouts[i].ranks, &o);
        overlay_text(&o, &text);
        assert_non_null(strstr(text.at, "0 measured only, 0 simulated only\n"));
        str_deinit(&text);
        overlay_deinit(&o);
        plan_deinit(&plan);
    }
}

/* Another layout's trace, and what is none, are refused by name. */
static void test_refused(void **state)
{
    (void)state;
    Arena arena = {0};
    RunConfig config;
    Cluster cluster;
    static const struct {
        const char *trace, *setting, *words;
    } cases[] = {{"dp.json", "train.micro_batch=4", "the layout that is planned has 1 ranks"},
                 {"alone.json", "train.micro_batch=1", "0.5 times; it is no trace of this batch"},
                 {"t00.c", "train.micro_batch=1", "line 1"}};
    assert_ok(cluster_load("cpu", &cluster));
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Plan plan;
        Overlay o = {0};
        assert_ok(load("other", &cases[i].setting, 1, &config));
        PlanOptions how = {.measured = arena_printf(&arena, "%s/%s", shop, cases[i].trace),
                           .overlay = &o};
        Status status = plan_make(&config, &cluster, &how, &plan);
        if (status == OK || !strstr(status_message(), cases[i].words))
            fail_msg("%s: %s", cases[i].trace, status == OK ? "planned" : status_message());
        assert_null(o.node);
        run_config_deinit(&config);
    }
    cluster_deinit(&cluster);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_nodes),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
