/* GPT blocks under every kind of layout: what one rank computes, as layout_test.c has it of the
 * other families (canonical_test.c: the same bits). */
#include "layouts.h"

static int check_list(const char *name, const char *model, const char *const *list, int n)
{
    const char *only = getenv("LAYOUT");
    int wrong = 0;
    for (int i = 0; i < n; i++)
        if (!only || !strcmp(only, list[i])) wrong += check_against_one_rank(name, model, list[i]);
    return wrong;
}

/* Biases and norms are cut, summed and gathered; so are matrices of blocks. */
static const char *const layouts[] = {
    "dp2 micro2",
    "tp2",
    "tp4",
    "tp2 seq",
    "tp4 seq micro2",
    "tp8 seq",
    "cp2",
    "cp2 ring",
    "cp4 ring tp2",
    "cp2 tp2 seq",
    "fsdp2",
    "fsdp2 tp2 seq micro2",
    "dp2 fsdp2 tp2 seq",
    "pp2 micro4",
    "pp2 micro4 zb-v",
    "pp2 tp2 seq micro4",
    "pp2 fsdp2 micro4 zb-h1 full",
    "pp4 micro8",
    "tp2 seq selective",
    "fsdp2 full",
    "tp2 seq bf16",
    "pp2 cp2 ring tp2 seq micro4",
};

/* Where the others differ from GPT-2 in what a layout cuts. */
static const char *const some[] = {
    "tp2",          "tp4 seq",    "cp4 ring",           "cp2 ring tp2 seq",
    "fsdp2 tp2",    "pp2 micro4", "pp2 tp2 seq micro4", "pp2 micro4 interleaved",
    "tp2 seq bf16",
};

static void test_gpt2(void **state)
{
    (void)state;
    assert_int_equal(check_list("gpt2", gpt2, layouts, COUNT_OF(layouts)), 0);
}

static void test_mpt(void **state)
{
    (void)state;
    assert_int_equal(check_list("mpt", mpt, some, COUNT_OF(some)), 0);
}

static void test_gpt(void **state)
{
    (void)state;
    assert_int_equal(check_list("gpt", gpt, some, COUNT_OF(some)), 0);
}

/* What is sent is what the nodes declare. */
static void test_wire(void **state)
{
    (void)state;
    static const char *const counted[] = {"tp2", "tp4 seq", "fsdp2 tp2 seq micro2", "cp2 ring tp2",
                                          "pp2 micro4"};
    for (int i = 0; i < COUNT_OF(counted); i++) {
        ModelConfig model;
        char message[600] = "";
        Job job = parse_job(counted[i]);
        make_model(i % 2 ? mpt : gpt2, job.layers, &model);
        job.model = &model;
        job.check_wire = true;
        if (run_job(&job, message) != OK) fail_msg("%s: %s", counted[i], message);
        model_config_deinit(&model);
    }
}

/* Sequences longer than there are learned positions would read rows that are not there. */
static void test_refusals(void **state)
{
    (void)state;
    ModelConfig model;
    Graph *g;
    make_model(gpt2, 0, &model);
    ModelOptions o = {.purpose = MODEL_LOSS, .batch = 1, .seq = 33, .dtype = DTYPE_F32};
    assert_int_equal(model_build(&model, o, &g), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "learned 32 positions"));
    model_config_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gpt2), cmocka_unit_test(test_mpt),
                                       cmocka_unit_test(test_gpt), cmocka_unit_test(test_wire),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
