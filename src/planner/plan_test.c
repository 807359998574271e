/* Plans: figures that belong together, refusals, JSON that parses, run files that load, searches
 * that find what planning each layout would. */
#include <jansson.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/testing.h"
#include "planner/profile.h"

#define BIG                                                                                        \
    "model=llama3.1-8b", "data=[{synthetic: uniform}]", "train.seq=8192", "train.batch=512",       \
        "train.micro_batch=1"
static const char *const node_text = "1024 h100, 8 per node, 400G";

static void load(const char *const *settings, int n, const char *text, RunConfig *config,
                 Cluster *cluster)
{
    if (run_config_load(NULL, settings, n, config) != OK || cluster_load(text, cluster) != OK)
        fail_msg("%s", status_message());
}

static Status make(const char *const *settings, int n, const char *text, Plan *plan,
                   RunConfig *config, Cluster *cluster)
{
    load(settings, n, text, config, cluster);
    return plan_make(config, cluster, &(PlanOptions){.jitter = -1}, plan);
}
#define SETTINGS(...)                                                                              \
    (const char *const[]){__VA_ARGS__}, COUNT_OF(((const char *const[]){__VA_ARGS__}))

static void done(Plan *plan, RunConfig *config, Cluster *cluster)
{
    plan_deinit(plan);
    run_config_deinit(config);
    cluster_deinit(cluster);
}

/* 8.03B weights: f32 masters 4, working copies 2, moments 8, gradients 4 bytes each, shared by tp;
 * the embedding has no copy. */
static void test_states(void **state)
{
    (void)state;
    Plan plan;
    RunConfig config;
    Cluster cluster;
    assert_int_equal(
        make(SETTINGS(BIG, "parallel.tp=8", "parallel.dp=8"), node_text, &plan, &config, &cluster),
        OK);
    const PlanMemory *m = &plan.memory[0];
    double n = 8.030e9 / 8, embedding = 128256.0 * 4096 / 8;
    assert_true(plan.fits);
    assert_true(fabs((double)m->weights / (4 * n) - 1) < 0.002);
    assert_true(fabs((double)m->copies / (2 * (n - embedding)) - 1) < 0.002);
    assert_true(fabs((double)m->moments / (8 * n) - 1) < 0.002);
    assert_true(fabs((double)m->gradients / (4 * n) - 1) < 0.002);
    assert_int_equal(m->total, m->weights + m->copies + m->moments + m->gradients + m->buffers +
                                   m->messages + m->activations + m->step + m->packed + m->inputs);
    done(&plan, &config, &cluster);
}

/* Published: 8B in bf16 on H100 trains at 550 TFLOP/s by our counting (dgxc); what is planned of
 * this program may be lower, never higher than the device's best product. */
static void test_rates(void **state)
{
    (void)state;
    Plan plan;
    RunConfig config;
    Cluster cluster;
    assert_int_equal(make(SETTINGS(BIG, "parallel.tp=2", "parallel.dp=64", "parallel.zero=1"),
                          node_text, &plan, &config, &cluster),
                     OK);
    assert_true(plan.fits);
    assert_true(plan.tflops_per_gpu > 250 && plan.tflops_per_gpu < 700);
    assert_true(fabs(plan.mfu * 989 / plan.tflops_per_gpu - 1) < 1e-9);
    assert_true(fabs(plan.tokens_per_s * plan.time.step_s / (512.0 * 8192) - 1) < 1e-9);
    done(&plan, &config, &cluster);
}

static void test_json(void **state)
{
    (void)state;
    Plan plan;
    RunConfig config;
    Cluster cluster;
    Str text = {0};
    assert_int_equal(make(SETTINGS(BIG, "parallel.tp=4", "parallel.pp=4", "parallel.dp=4"),
                          node_text, &plan, &config, &cluster),
                     OK);
    str_add(&text, "{");
    plan_json(&plan, &text);
    str_add(&text, "}");
    json_t *json = json_loads(text.at, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    static const char *const keys[] = {
        "fits",           "peak_bytes", "step_s",      "tokens_per_s", "tokens_per_s_per_gpu",
        "tflops_per_gpu", "mfu",        "breakdown_s", "layout",       "memory"};
    for (int i = 0; i < COUNT_OF(keys); i++) assert_non_null(json_object_get(json, keys[i]));
    assert_int_equal(json_array_size(json_object_get(json, "memory")), 4);
    double sum = 0;
    const char *key;
    json_t *part;
    json_object_foreach(json_object_get(json, "breakdown_s"), key, part)
        sum += json_number_value(part);
    assert_true(fabs(sum / plan.time.step_s - 1) < 1e-9);
    json_decref(json);
    str_deinit(&text);
    done(&plan, &config, &cluster);
}

static void test_refused(void **state)
{
    (void)state;
    Plan plan;
    RunConfig config;
    Cluster cluster;
    static const struct {
        const char *setting, *words;
    } cases[] = {{"parallel.tp=3", "tp 2 would"},
                 {"parallel.dp=4096", "1024 devices"},
                 {"parallel.pp=64", "64 stages"},
                 {"parallel.ep=2", "no experts"}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        load(SETTINGS(BIG, "train.batch=4096", cases[i].setting), node_text, &config, &cluster);
        assert_int_equal(plan_make(&config, &cluster, &(PlanOptions){.jitter = -1}, &plan),
                         ERR_REFUSED);
        if (!strstr(status_message(), cases[i].words))
            fail_msg("%s: %s", cases[i].setting, status_message());
        run_config_deinit(&config);
        cluster_deinit(&cluster);
    }
    assert_int_equal(make(SETTINGS(BIG, "parallel.dp=8"), node_text, &plan, &config, &cluster),
                     OK); /* 18 bytes a weight */
    assert_false(plan.fits);
    assert_int_equal(plan_refuse(&plan), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "does not fit"));
    done(&plan, &config, &cluster);
}

/* The programs that train in 8 bits: products of layers at the sheet's fp8 rate, quantising by
 * memory, and less kept for the backward pass, where weights' gradients are all that reads it. A
 * stack of others is priced on the program in bf16. */
static void test_fp8(void **state)
{
    (void)state;
    Plan plan[3];
    RunConfig config;
    Cluster cluster;
    static const char *const precision[] = {"train.precision=bf16", "train.precision=fp8",
                                            "train.precision=fp8"};
    for (int i = 0; i < 3; i++) {
        load(SETTINGS(BIG, "parallel.tp=2", "parallel.dp=64", "parallel.zero=1", precision[i]),
             node_text, &config, &cluster);
        assert_int_equal(plan_make(&config, &cluster,
                                   &(PlanOptions){.jitter = -1, .stack = {.fp8 = i == 2}},
                                   &plan[i]),
                         OK);
        run_config_deinit(&config);
        cluster_deinit(&cluster);
    }
    const StepBreakdown *a = &plan[0].time.part, *b = &plan[1].time.part;
    assert_true(plan[1].memory[0].step < plan[0].memory[0].step);
    assert_true(plan[1].memory[0].total < plan[0].memory[0].total);
    assert_int_equal(plan[1].memory[0].copies, plan[0].memory[0].copies);
    assert_int_equal(plan[2].memory[0].total, plan[0].memory[0].total);
    assert_true(fabs(plan[2].time.step_s / plan[1].time.step_s - 1) < 0.1);
    assert_true(b->work_s[SIM_MATRIX] < 0.75 * a->work_s[SIM_MATRIX] &&
                b->work_s[SIM_MATRIX] > 0.5 * a->work_s[SIM_MATRIX]);
    assert_true(b->work_s[SIM_MEMORY] > a->work_s[SIM_MEMORY]); /* casts */
    /* but for what exchanges beside it take */
    assert_true(fabs(b->work_s[SIM_ATTENTION] / a->work_s[SIM_ATTENTION] - 1) < 0.05);
    assert_true(plan[1].time.step_s < plan[0].time.step_s);
    assert_true(fabs(plan[1].mfu * 1979 / plan[1].tflops_per_gpu - 1) < 1e-9);
    for (int i = 0; i < 3; i++) plan_deinit(&plan[i]);
    assert_int_equal(make(SETTINGS(BIG, "parallel.dp=8", precision[1]), "8 a100, 8 per node",
                          &plan[0], &config, &cluster),
                     ERR_REFUSED);
    assert_non_null(strstr(status_message(), "a a100 has no products of 8 bits"));
    run_config_deinit(&config);
    cluster_deinit(&cluster);
}

/* What other software does otherwise moves the step the way that it should, and nothing but it. */
static void test_stacks(void **state)
{
    (void)state;
    static const struct {
        SimStack stack;
        double low, high; /* of the step's time with our own */
    } cases[] = {{{0}, 1, 1},
                 {{.plain_attention = true}, 1.1, 3},
                 {{.plain_attention = true, .attention_again = true}, 1.2, 4},
                 {{.attention = 0.5}, 1.02, 1.4},
                 {{.tp_hidden = 0.5}, 0.8, 0.98},
                 {{.dp_beside = true}, 0.8, 0.999},
                 {{.gradients_16 = true}, 0.8, 0.999},
                 {{.traffic = 2}, 1.02, 1.4},
                 /* norms of all rows on every rank; an all-reduce takes no longer than a gathering
                  * and a scattering, and less where switches add */
                 {{.whole_sequences = true}, 0.98, 1.4},
                 {{.messages_wait = true}, 1.001, 1.2},
                 {{.host_s = 100e-6}, 1.005, 10},
                 {{.host_s = 5e-6, .blocking = true}, 1.005, 2},
                 {{.host_s = 5e-6, .blocking = true, .return_s = 50e-6}, 1.05, 10},
                 {{.messages_cut = true}, 0.95, 0.9999},
                 {{.rows_sent = 0.5}, 1, 1}, /* there are no experts */
                 /* of 128,256 words on 4 ranks a product less, and as many logits through memory */
                 {{.logit_bytes = 1e-3}, 0.9, 0.9999},
                 {{.logit_bytes = 100}, 1.001, 1.2},
                 {{.products_again = 0.5}, 1.08, 1.2},
                 {{.gathers_8 = true}, 0.9, 0.9999},
                 {{.rings = true}, 0.9999, 1.2},
                 {{.fetch_late = true}, 1, 1}}; /* no weight lies in parts */
    double own = 0, own_memory_s = 0;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Plan plan;
        RunConfig config;
        Cluster cluster;
        load(SETTINGS(BIG, "parallel.tp=4", "parallel.pp=4", "parallel.dp=64", "parallel.zero=1"),
             node_text, &config, &cluster);
        assert_int_equal(plan_make(&config, &cluster,
                                   &(PlanOptions){.jitter = -1, .stack = cases[i].stack}, &plan),
                         OK);
        double memory_s = plan.time.part.work_s[SIM_MEMORY];
        if (i == 0) own = plan.time.step_s;
        if (i == 0) own_memory_s = memory_s;
        if (cases[i].stack.whole_sequences) assert_true(memory_s > 1.1 * own_memory_s);
        double ratio = plan.time.step_s / own;
        if (ratio < cases[i].low - 1e-9 || ratio > cases[i].high + 1e-9)
            fail_msg("case %d: %.4f times our own step", i, ratio);
        done(&plan, &config, &cluster);
    }
}

/* Exchanges of replicas that run beside micro-batches have more of them where a rank has several
 * stages. */
static void test_replicas_beside(void **state)
{
    (void)state;
    static const char *const schedule[] = {"parallel.schedule=1f1b",
                                           "parallel.schedule=interleaved"};
    double exposed_s[2], hidden_s[2];
    for (int i = 0; i < 2; i++) {
        Plan plan;
        RunConfig config;
        Cluster cluster;
        load(SETTINGS(BIG, "parallel.pp=8", "parallel.dp=64", "parallel.zero=1", schedule[i]),
             "512 h100, 8 per node, 25G", &config, &cluster);
        assert_int_equal(plan_make(&config, &cluster,
                                   &(PlanOptions){.jitter = -1, .stack = {.dp_beside = true}},
                                   &plan),
                         OK);
        exposed_s[i] = plan.time.part.exposed_s[MESH_DP];
        hidden_s[i] = plan.time.hidden_s[MESH_DP];
        done(&plan, &config, &cluster);
    }
    assert_true(exposed_s[0] > 0 && exposed_s[1] < 0.8 * exposed_s[0]);
    if (!(hidden_s[1] > 1.5 * hidden_s[0]))
        fail_msg("hidden %g and %g s, exposed %g and %g", hidden_s[0], hidden_s[1], exposed_s[0],
                 exposed_s[1]);
}

/* Gathered late, the weights of a backward pass are waited for; those of a forward pass are not.
 * Exchanges that take three times as long do in all. */
static void test_fetch_late(void **state)
{
    (void)state;
    double exposed_s[3], hidden_s[3];
    for (int i = 0; i < 3; i++) {
        Plan plan;
        RunConfig config;
        Cluster cluster;
        SimStack stack = {.fetch_late = i == 1, .sharded_times = i == 2 ? 3 : 0};
        load(SETTINGS(BIG, "parallel.fsdp=64", "train.batch=64"), node_text, &config, &cluster);
        assert_int_equal(
            plan_make(&config, &cluster, &(PlanOptions){.jitter = -1, .stack = stack}, &plan), OK);
        exposed_s[i] = plan.time.part.exposed_s[MESH_FSDP];
        hidden_s[i] = plan.time.hidden_s[MESH_FSDP];
        done(&plan, &config, &cluster);
    }
    double moved = exposed_s[1] - exposed_s[0];
    assert_true(moved > 0.15 * hidden_s[0] && moved < 0.5 * hidden_s[0]);
    assert_near(hidden_s[0] - hidden_s[1], moved, 0.05);
    assert_near(exposed_s[2] + hidden_s[2], 3 * (exposed_s[0] + hidden_s[0]), 0.03);
}

/* Owners of experts have room for all rows that may come, or, where these come evenly, for as many
 * as a rank has. That is memory and no time. */
static void test_balanced(void **state)
{
    (void)state;
    Plan plan[2];
    RunConfig config;
    Cluster cluster;
    for (int i = 0; i < 2; i++) {
        load(SETTINGS("model=llama4-scout", "data=[{synthetic: uniform}]", "train.seq=4096",
                      "train.batch=64", "train.micro_batch=1", "parallel.ep=16", "parallel.tp=2",
                      "parallel.dp=4"),
             node_text, &config, &cluster);
        assert_int_equal(
            plan_make(&config, &cluster, &(PlanOptions){.jitter = -1, .balanced = i > 0}, &plan[i]),
            OK);
        run_config_deinit(&config);
        cluster_deinit(&cluster);
    }
    assert_true(plan[0].memory[0].activations + plan[0].memory[0].step >
                2 * (plan[1].memory[0].activations + plan[1].memory[0].step));
    assert_true(fabs(plan[1].time.step_s / plan[0].time.step_s - 1) < 0.01);
    plan_deinit(&plan[0]);
    plan_deinit(&plan[1]);
}

/* More of the same hardware is never slower, and a slower network never faster. */
static void test_monotone(void **state)
{
    (void)state;
    double before = 0;
    static const char *const networks[] = {
        "256 h100, 8 per node, 100G", "256 h100, 8 per node, 400G", "256 h100, 8 per node, 800G"};
    for (int i = 0; i < COUNT_OF(networks); i++) {
        Plan plan;
        RunConfig config;
        Cluster cluster;
        assert_int_equal(make(SETTINGS(BIG, "parallel.fsdp=256", "train.batch=256"), networks[i],
                              &plan, &config, &cluster),
                         OK);
        assert_true(plan.tokens_per_s > before);
        before = plan.tokens_per_s;
        done(&plan, &config, &cluster);
    }
}

static void test_trace(void **state)
{
    (void)state;
    Plan plan;
    RunConfig config;
    Cluster cluster;
    Bytes text;
    Arena arena = {0};
    char path[] = "/tmp/drover-plan-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    load(SETTINGS(BIG, "parallel.tp=8", "parallel.pp=2", "parallel.fsdp=4", "train.batch=64"),
         node_text, &config, &cluster);
    assert_int_equal(plan_make(&config, &cluster, &(PlanOptions){.trace = path}, &plan), OK);
    assert_int_equal(file_read(&arena, path, 1 << 28, &text), OK);
    json_t *json = json_loadb((const char *)text.at, text.n, 0, NULL);
    assert_non_null(json);
    size_t n = json_array_size(json_object_get(json, "traceEvents")), products = 0;
    double end = 0;
    for (size_t i = 0; i < n; i++) {
        json_t *e = json_array_get(json_object_get(json, "traceEvents"), i);
        double until = (json_number_value(json_object_get(e, "ts")) +
                        json_number_value(json_object_get(e, "dur"))) *
                       1e-6;
        end = fmax(end, until);
        const char *op = json_string_value(json_object_get(json_object_get(e, "args"), "op"));
        products += op && !strcmp(op, "linear");
    }
    assert_true(fabs(end / (plan.time.step_s - plan.time.part.jitter_s) - 1) < 1e-6);
    assert_true(products >=
                2 * 16 * 4); /* both stages' layers, forward, of the first micro-batch */
    json_decref(json);
    arena_deinit(&arena);
    unlink(path);
    done(&plan, &config, &cluster);
}

/* The best that a search reports is at least as good as layouts that somebody would try by hand. */
static void test_search(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    static const char *const by_hand[] = {"parallel.tp=8", "parallel.tp=4", "parallel.fsdp=64",
                                          "parallel.pp=4"};
    load(SETTINGS(BIG, "train.batch=512"), "64 h100, 8 per node, 400G", &config, &cluster);
    SearchOptions how = {.devices = 64, .max_batch = 512, .simulate = 16, .threads = 2};
    if (plan_search(&config, &cluster, &how, &found) != OK) fail_msg("%s", status_message());
    assert_true(found.n > 0 && found.n_layouts > 1000 && found.n_simulated == 16);
    for (int i = 0; i < found.n; i++) {
        assert_true(found.plan[i].fits && found.plan[i].ranks == 64);
        assert_true(i == 0 || found.plan[i].tokens_per_s <= found.plan[i - 1].tokens_per_s);
    }
    for (int i = 0; i < COUNT_OF(by_hand); i++) {
        Plan plan;
        RunConfig mine;
        Cluster same;
        char dp[32];
        int ranks = (int)strtol(strchr(by_hand[i], '=') + 1, NULL, 10);
        snprintf(dp, sizeof dp, "parallel.dp=%d", 64 / ranks);
        assert_int_equal(make(SETTINGS(BIG, "parallel.zero=1", by_hand[i], dp),
                              "64 h100, 8 per node, 400G", &plan, &mine, &same),
                         OK);
        if (plan.fits && plan.tokens_per_s > 1.001 * found.plan[0].tokens_per_s)
            fail_msg("%s makes %.0f tokens/s, the best found %.0f", by_hand[i], plan.tokens_per_s,
                     found.plan[0].tokens_per_s);
        done(&plan, &mine, &same);
    }
    search_result_deinit(&found);
    run_config_deinit(&config);
    cluster_deinit(&cluster);
}

/* In canonical mode what is found sums a power of two of leaves, also where the devices are none.
 */
static void test_search_canonical(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    SearchOptions how = {.devices = 96, .max_batch = 200, .simulate = 16, .threads = 2};
    load(SETTINGS(BIG, "train.canonical=true"), "96 h100, 8 per node, 400G", &config, &cluster);
    if (plan_search(&config, &cluster, &how, &found) != OK) fail_msg("%s", status_message());
    assert_true(found.n > 0 && found.n_layouts > 100);
    for (int i = 0; i < found.n; i++) {
        const RunConfig *c = &found.plan[i].config;
        int64_t leaves = c->train.batch / c->train.micro_batch;
        assert_true(c->train.canonical && leaves > 0 && (leaves & (leaves - 1)) == 0);
        assert_true(c->train.batch <= 200 && c->parallel.tp <= 8);
        assert_ok(run_layout_check(c, run_ranks(c)));
    }
    search_result_deinit(&found);
    run_config_deinit(&config);
    cluster_deinit(&cluster);
}

/* 13 nodes and a batch of 96: that many devices have a sequence each, and the others are idle. Few
 * ever are. */
static void test_search_idle(void **state)
{
    (void)state;
    RunConfig config, mine;
    Cluster cluster, same;
    SearchResult found;
    Plan plan;
    static const char *const nodes = "104 h100, 8 per node, 400G";
    SearchOptions how = {.devices = 104, .max_batch = 96, .simulate = 16, .threads = 2};
    load(SETTINGS(BIG), nodes, &config, &cluster);
    if (plan_search(&config, &cluster, &how, &found) != OK) fail_msg("%s", status_message());
    bool all = false;
    for (int i = 0; i < found.n; i++) {
        const Plan *p = &found.plan[i];
        assert_true(p->ranks % 8 == 0 && p->ranks <= 104 && p->ranks >= 96);
        assert_true(p->config.train.batch <= 96);
        all |= p->ranks == 104;
    }
    assert_true(all);
    assert_int_equal(make(SETTINGS(BIG, "train.batch=96", "parallel.fsdp=32", "parallel.dp=3",
                                   "train.recompute=selective"),
                          nodes, &plan, &mine, &same),
                     OK);
    assert_true(plan.fits && found.plan[0].tokens_per_s >= 0.999 * plan.tokens_per_s);
    assert_int_equal(found.plan[0].ranks, 96);
    search_result_deinit(&found);
    done(&plan, &mine, &same);
    run_config_deinit(&config);
    cluster_deinit(&cluster);
}

/* Experts whole on the ranks of tp, or a part of each: a batch so small that tp is needed, and many
 * small experts. What is found is whole ones, and at least as much as who tries both by hand has.
 */
static void test_search_folded(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    static const char *const node = "64 h100, 8 per node, 400G";
    static const char *const by_hand[] = {"parallel={dp: 8, tp: 8, zero: 1}",
                                          "parallel={dp: 8, tp: 8, zero: 1, fold_experts: true}"};
#define EXPERTS                                                                                    \
    "model={preset: llama3.1-8b, model_type: llama4_text, num_local_experts: 64, "                 \
    "num_experts_per_tok: 4, interleave_moe_layer_step: 1, intermediate_size: 1024, "              \
    "num_hidden_layers: 8}",                                                                       \
        "data=[{synthetic: uniform}]", "train.seq=1024", "train.batch=8", "train.micro_batch=1"
    load(SETTINGS(EXPERTS), node, &config, &cluster);
    SearchOptions how = {.devices = 64, .max_batch = 8, .simulate = 24, .threads = 2};
    if (plan_search(&config, &cluster, &how, &found) != OK) fail_msg("%s", status_message());
    assert_true(found.plan[0].config.parallel.fold_experts);
    for (int i = 0; i < COUNT_OF(by_hand); i++) {
        Plan plan;
        RunConfig mine;
        Cluster same;
        if (make(SETTINGS(EXPERTS, by_hand[i]), node, &plan, &mine, &same) != OK)
            fail_msg("%s", status_message());
        if (plan.fits && plan.tokens_per_s > 1.001 * found.plan[0].tokens_per_s)
            fail_msg("%s makes %.0f tokens/s, the best found %.0f", by_hand[i], plan.tokens_per_s,
                     found.plan[0].tokens_per_s);
        done(&plan, &mine, &same);
    }
    search_result_deinit(&found);
    run_config_deinit(&config);
    cluster_deinit(&cluster);
}

/* A cut that takes all devices is profiled, although the profile's pipeline takes more of them. */
static void test_profile_small(void **state)
{
    (void)state;
    for (int64_t tp = 1; tp <= 8; tp *= 8) {
        RunConfig config;
        Cluster cluster;
        ModelConfig model;
        Profile profile;
        LayerCut cut = {.tp = tp, .cp = 1, .ep = 1, .micro_batch = 1};
        load(SETTINGS(BIG), "8 h100, 8 per node, 400G", &config, &cluster);
        assert_int_equal(cluster_resize(&cluster, tp), OK);
        assert_int_equal(plan_read_model(&config, &model), OK);
        assert_int_equal(profile_make(&config, &model, &cluster, cut, &profile), OK);
        assert_true(profile.good && profile.first.forward_s > 0);
        assert_int_equal(cluster_devices(&cluster), tp);
        model_config_deinit(&model);
        run_config_deinit(&config);
        cluster_deinit(&cluster);
    }
}

/* Where the best estimates do not fit once they are planned, others are. */
static void test_search_goes_on(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    load(SETTINGS(BIG, "train.memory_limit=8GB"), "64 h100, 8 per node, 400G", &config, &cluster);
    SearchOptions how = {.devices = 64, .max_batch = 512, .simulate = 2, .front = 2, .threads = 2};
    if (plan_search(&config, &cluster, &how, &found) != OK) fail_msg("%s", status_message());
    assert_true(found.n_simulated > how.simulate + how.front && found.n > 0);
    for (int i = 0; i < found.n; i++)
        assert_true(found.plan[i].memory[found.plan[i].largest].total <= 8000000000u);
    search_result_deinit(&found);
    run_config_deinit(&config);
    cluster_deinit(&cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_states),
                                       cmocka_unit_test(test_rates),
                                       cmocka_unit_test(test_json),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_fp8),
                                       cmocka_unit_test(test_balanced),
                                       cmocka_unit_test(test_stacks),
                                       cmocka_unit_test(test_fetch_late),
                                       cmocka_unit_test(test_replicas_beside),
                                       cmocka_unit_test(test_monotone),
                                       cmocka_unit_test(test_trace),
                                       cmocka_unit_test(test_search),
                                       cmocka_unit_test(test_search_goes_on),
                                       cmocka_unit_test(test_search_idle),
                                       cmocka_unit_test(test_search_canonical),
                                       cmocka_unit_test(test_search_folded),
                                       cmocka_unit_test(test_profile_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
