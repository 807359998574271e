/* Training on the cuda device, one rank and several, computes what one rank computes on the
 * processor: losses and gradient norms of several steps. On the emulated device ranks are threads
 * with a GPU each; the host carries what they exchange, and then some of it once more is exchanged
 * among the GPUs themselves. */
#include "layouts.h"

#include "gpu/gpu.h"

#include <stdatomic.h>
#include <stdlib.h>

static const char *const alone[] = {
    "cuda steps4",
    "cuda steps2 layers2 micro2",
    "cuda steps2 layers2 selective",
    "cuda steps2 layers2 full",
    "cuda steps2 layers2 aux",
    "cuda steps2 layers2 bf16",
    "cuda steps2 layers2 fp8",
};
static const char *const layouts[] = {
    "cuda steps2 layers2 dp2",       "cuda steps2 layers2 fsdp2",
    "cuda steps2 layers2 tp2",       "cuda steps2 layers2 tp2 seq",
    "cuda steps2 layers2 cp2",       "cuda steps2 layers2 cp2 ring",
    "cuda steps2 dp2 fsdp2 tp2 seq", "cuda steps2 pp2 micro4",
    "cuda steps2 pp2 micro4 zb-h1",  "cuda steps2 pp2 micro4 interleaved",
};
/* of a model without experts: what is not as in the other */
static const char *const dense[] = {
    "cuda steps2 layers2 cp2 ring",
    "cuda steps2 layers2 dp2 fsdp2 tp2 seq",
    "cuda steps2 layers2 pp2 micro4",
};
/* of a model that has experts, in one of two layers */
static const char *const experts[] = {
    "cuda steps1 layers2 ep4 bf16",
    "cuda steps1 layers2 ep2 tp2 fold",
    "cuda steps1 layers2 ep2 chunks4 plain",
};
/* without the host between */
static const char *const among_gpus[] = {
    "cuda steps1 layers2 fsdp2 tp2 seq",
    "cuda steps1 layers2 cp2 ring",
    "cuda steps1 layers2 ep2 tp2 seq",
    "cuda steps1 layers2 pp2 ep2 micro2 full",
    "cuda steps1 pp4 micro2",
};

static void check_all(const char *name, const char *model, const char *const *list, int n)
{
    const char *only = getenv("LAYOUT"); /* one of the list, or any other */
    int wrong = 0;
    if (!gpu_count(NULL)) skip();
    for (int i = 0; i < n && !only; i++) wrong += check_against_one_rank(name, model, list[i]);
    if (only) wrong += check_against_one_rank(name, model, only);
    assert_int_equal(wrong, 0);
}

static void test_llama3(void **state)
{
    (void)state;
    check_all("llama3", llama3, alone, COUNT_OF(alone));
    check_all("llama3", llama3, dense, COUNT_OF(dense));
}

static void test_llama4(void **state)
{
    (void)state;
    check_all("llama4", llama4, alone, COUNT_OF(alone));
    check_all("llama4", llama4, layouts, COUNT_OF(layouts));
}

static void test_experts(void **state)
{
    (void)state;
    check_all("llama4", llama4, experts, COUNT_OF(experts));
}

/* Stages have products of their own: ranks agree stage by stage on how they are computed, and both
 * ranks of a stage must, since they hold the same norms. */
static const char *const tuned[] = {"cuda steps1 pp2 tp2 micro2 tune"};

static void test_tuned(void **state)
{
    (void)state;
    char dir[64] = "/tmp/drover-layouts-XXXXXX", file[96];
    assert_non_null(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/drover/products", dir);
    setenv("XDG_CACHE_HOME", dir, 1);
    check_all("llama3", llama3, tuned, COUNT_OF(tuned));
    assert_true(getenv("LAYOUT") || !gpu_count(NULL) || file_exists(file));
    unsetenv("XDG_CACHE_HOME");
    assert_int_equal(dir_remove_tree(dir), OK);
}

/* GPUs of several ranks, of which a machine that tests real ones has one. */
static void test_among_gpus(void **state)
{
    (void)state;
    if (!gpu_is_emulated()) skip();
    setenv("DROVER_EMULATED_EXCHANGE", "1", 1);
    check_all("llama4", llama4, among_gpus, COUNT_OF(among_gpus));
    unsetenv("DROVER_EMULATED_EXCHANGE");
}

/* The first rank that comes here goes on with a step, the others give up. */
static Status go_on_alone(Job *job, const StepPrograms *p, Session *session)
{
    float loss;
    int program = p->index[p->last];
    if (atomic_fetch_add((atomic_int *)job->context, 1)) return fail(ERR_IO, "enough");
    TRY(session_run(session, program, PHASE_FORWARD, PHASE_BACKWARD));
    return session_read(session, program, "loss", &loss, sizeof loss);
}

/* What its GPU waits for never comes; it ends all the same, and gives its memory back. */
static void test_others_give_up(void **state)
{
    (void)state;
    ModelConfig model;
    char message[600] = "";
    atomic_int came = 0;
    if (!gpu_is_emulated()) skip();
    setenv("DROVER_EMULATED_EXCHANGE", "1", 1);
    Job job = parse_job("cuda steps1 fsdp2");
    make_model(llama3, 2, &model);
    job.model = &model;
    job.at_end = go_on_alone;
    job.context = &came;
    assert_int_not_equal(run_job(&job, message), OK);
    unsetenv("DROVER_EMULATED_EXCHANGE");
    if (!strstr(message, "enough")) fail_msg("%s", message);
    model_config_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3),     cmocka_unit_test(test_llama4),
        cmocka_unit_test(test_experts),    cmocka_unit_test(test_tuned),
        cmocka_unit_test(test_among_gpus), cmocka_unit_test(test_others_give_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
