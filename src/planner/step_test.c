/* One step of a job on simulated devices: its parts sum up, pipelines wait as their tables say,
 * overlap hides what it can. */
#include <math.h>

#include "base/testing.h"
#include "planner/planner_internal.h"

static RunConfig config_of(const char *settings[], int n)
{
    RunConfig config;
    if (run_config_load(NULL, settings, n, &config) != OK) fail_msg("%s", status_message());
    return config;
}

/* llama3-micro's six layers, or as many as are said, of a size that fills a GPU. */
#define MODEL                                                                                      \
    "model={preset: llama3-micro, hidden_size: 2048, num_attention_heads: 16, "                    \
    "num_key_value_heads: 8, head_dim: 128, "                                                      \
    "intermediate_size: 8192, num_hidden_layers: 16}"
#define COMMON                                                                                     \
    MODEL, "data=[{synthetic: uniform}]", "train.seq=2048", "train.batch=64", "train.micro_batch=1"

static StepTime time_of(const char *settings[], int n, double *messages_s)
{
    Cluster cluster;
    ModelConfig model;
    PlanJob job;
    RunConfig config = config_of(settings, n);
    if (cluster_load("1024 h100, 8 per node, 400G", &cluster) != OK ||
        plan_read_model(&config, &model) != OK ||
        plan_job_init(&config, &model, &cluster, NULL, &job) != OK)
        fail_msg("%s", status_message());
    StepTime t = step_time(&job.sim, &job.roles, &job.options, NULL, NULL);
    double sum = t.part.launch_s + t.part.bubble_s + t.part.optimizer_s;
    for (int w = 0; w < SIM_WORKS; w++) sum += t.part.work_s[w];
    for (int a = 0; a < MESH_AXES; a++) sum += t.part.exposed_s[a];
    assert_true(fabs(sum / t.step_s - 1) < 1e-9);
    if (messages_s) *messages_s = t.part.exposed_s[MESH_PP];
    plan_job_deinit(&job);
    model_config_deinit(&model);
    cluster_deinit(&cluster);
    run_config_deinit(&config);
    return t;
}
#define TIME(...)                                                                                  \
    time_of((const char *[]){COMMON, __VA_ARGS__},                                                 \
            COUNT_OF(((const char *[]){COMMON, __VA_ARGS__})), NULL)

static double kernels(const StepTime *t)
{
    return t->part.work_s[SIM_MATRIX] + t->part.work_s[SIM_ATTENTION] + t->part.work_s[SIM_MEMORY];
}

/* p ranks and m micro-batches wait (p - 1) / m of the time that they work, and the interleaved ones
 * a v-th of that; stages differ by embedding and head, so within half of it. */
static void test_bubble(void **state)
{
    (void)state;
    StepTime plain = TIME("parallel.pp=8", "parallel.schedule=1f1b"),
             turns = TIME("parallel.pp=8", "parallel.schedule=interleaved",
                          "parallel.virtual_stages=2");
    double ideal = 7.0 / 64;
    assert_true(plain.part.bubble_s / kernels(&plain) > ideal);
    assert_true(turns.part.bubble_s < plain.part.bubble_s);
    StepTime more = TIME("parallel.pp=8", "parallel.schedule=1f1b", "train.batch=256");
    assert_true(more.part.bubble_s / more.step_s < plain.part.bubble_s / plain.step_s);
}

/* The same work, whatever the layout: matrix FLOP of all ranks together. */
static void test_work(void **state)
{
    (void)state;
    StepTime one = TIME("parallel.dp=1"), stages = TIME("parallel.pp=4"),
             replicas = TIME("parallel.dp=8"), tensor = TIME("parallel.tp=8");
    assert_true(fabs(stages.flop / one.flop - 1) < 1e-9);
    assert_true(fabs(replicas.flop * 8 / one.flop - 1) < 1e-9);
    assert_true(fabs(tensor.flop * 8 / one.flop - 1) <
                0.02); /* head and loss are made of two nodes */
    assert_true(replicas.step_s < one.step_s / 7 && tensor.step_s > one.step_s / 8);
}

static void test_recompute(void **state)
{
    (void)state;
    StepTime none = TIME("parallel.dp=1"), full = TIME("train.recompute=full");
    assert_true(full.flop > 1.2 * none.flop && full.flop < 1.35 * none.flop);
    assert_true(full.step_s > 1.15 * none.step_s);
}

/* Weights that are gathered while the layer before runs cost less time than those that are waited
 * for. */
static void test_overlap(void **state)
{
    (void)state;
    StepTime beside = TIME("parallel.fsdp=64"),
             before = TIME("parallel.fsdp=64", "parallel.overlap=false");
    assert_true(beside.hidden_s[MESH_FSDP] > 0 && before.hidden_s[MESH_FSDP] == 0);
    assert_true(beside.part.exposed_s[MESH_FSDP] < before.part.exposed_s[MESH_FSDP]);
    assert_true(beside.step_s < before.step_s);
    assert_true(beside.slowed_s > 0);
}

static void count_spans(void *context, const StepSpan *span)
{
    assert_true(span->end_s >= span->begin_s && span->rank >= 0);
    ++*(int *)context;
}

/* Watched or not, a step takes the same; every action is told once. */
static void test_watch(void **state)
{
    (void)state;
    const char *settings[] = {COMMON, "parallel.pp=4", "parallel.dp=2", "train.batch=16"};
    Cluster cluster;
    ModelConfig model;
    PlanJob job;
    RunConfig config = config_of(settings, COUNT_OF(settings));
    int n = 0;
    assert_int_equal(cluster_load("1024 h100, 8 per node, 400G", &cluster), OK);
    assert_int_equal(plan_read_model(&config, &model), OK);
    assert_int_equal(plan_job_init(&config, &model, &cluster, NULL, &job), OK);
    StepTime quiet = step_time(&job.sim, &job.roles, &job.options, NULL, NULL),
             told = step_time(&job.sim, &job.roles, &job.options, count_spans, &n);
    assert_true(quiet.step_s == told.step_s);
    assert_int_equal(n, 4 * (2 * 8 + 2)); /* F and BW of 8 micro-batches, sums, update */
    plan_job_deinit(&job);
    model_config_deinit(&model);
    cluster_deinit(&cluster);
    run_config_deinit(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bubble), cmocka_unit_test(test_work),
                                       cmocka_unit_test(test_recompute),
                                       cmocka_unit_test(test_overlap),
                                       cmocka_unit_test(test_watch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
