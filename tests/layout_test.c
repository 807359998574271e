/* Every layout computes what one rank computes: losses and gradient norms of several steps, ranks as threads of
 * this process with real arithmetic. What a rank allocates is what was planned, what it sends is what its nodes
 * declare. */
#include "layouts.h"

static int check_layout(const char *model_text, const char *text)
{
    ModelConfig model;
    char message[600] = "";
    make_model(model_text, &model);
    Job one = {.model = &model, .options = parse(text)}, many = {.model = &model, .options = parse(text)};
    one.options.micro_batch *= mesh_data_ranks(&one.options.layout.mesh);
    one.options.layout = (Layout){0};
    Status status = run_job(&one, message);
    if (status == OK) status = run_job(&many, message);
    double difference = status == OK ? compare(&many, &one) : (double)INFINITY;
    bool good = difference < (one.options.dtype == DTYPE_F32 ? 1e-5 : 5e-3);
    if (!good || getenv("LAYOUT_VERBOSE")) { /* LAYOUT="tp2 seq" picks one */
        print_message("%s: %s: difference %.2e %s\n", model_text == llama3 ? "llama3" : model_text == llama4 ? "llama4" : "grok1", text,
                      difference, message);
        for (int s = 0; s < STEPS && status == OK; s++)
            print_message("  step %d: loss %.7f and %.7f, norm %.7f and %.7f\n", s, many.loss[s], one.loss[s], many.norm[s],
                          one.norm[s]);
    }
    model_config_deinit(&model);
    return good ? 0 : 1;
}

static const char *const layouts[] = {
    "dp2", "dp4", "dp2 micro2", "tp2", "tp4", "tp2 seq", "tp4 seq", "tp2 micro2", "tp2 seq micro4",
    "cp2", "cp4", "cp2 micro2", "cp2 tp2", "cp2 tp2 seq", "cp2 dp2", "cp2 fsdp2", "cp2 dp2 tp2 seq", "cp2 selective", "cp2 full", "cp2 aux",
    "pp2 micro4", "pp4 micro4", "pp3 micro8", "pp2 micro4 gpipe", "pp2", "pp2 tp2 micro4", "pp2 tp2 seq micro4", "pp2 dp2 micro2",
    "pp2 fsdp2 micro4", "pp2 cp2 micro4", "pp2 ep2 micro2", "pp2 micro4 selective", "pp2 micro4 full", "pp2 dp2 ep2 fsdp2 tp2 seq",
    "pp2 cp2 tp2 seq micro4", "pp2 micro4 aux", "dp4 pp4 tp4 cp2 ep2 seq",
    "ep2", "ep4", "ep2 micro2", "ep2 tp2", "ep2 tp2 seq", "ep2 dp2", "ep2 fsdp2", "ep2 cp2", "dp2 ep2 fsdp2 tp2 seq", "ep2 selective",
    "ep2 full", "ep2 aux", "ep2 cp2 tp2 seq",
    "fsdp2", "fsdp4", "fsdp2 micro2", "dp2 fsdp2", "dp2 tp2", "dp2 tp2 seq", "fsdp2 tp2", "fsdp2 tp2 seq micro2",
    "dp2 fsdp2 tp2 seq", "tp2 seq selective", "tp2 seq full", "fsdp2 selective", "fsdp2 full", "tp2 aux", "dp2 aux",
    "dp2 cp2 tp2", "fsdp2 cp2 tp2 seq", "dp2 ep2 cp2", "pp2 dp2 tp2", "pp2 fsdp4 tp4 seq", "dp2 fsdp2 ep2 cp2 tp2", "dp2 plain", "tp2 bf16", "fsdp2 tp2 seq bf16",
};

static void check_all(const char *model)
{
    int wrong = 0;
    const char *only = getenv("LAYOUT");
    bool tied = model != llama4; /* a tied head has no pipeline */
    for (int i = 0; i < COUNT_OF(layouts); i++)
        if ((!only || !strcmp(only, layouts[i])) && !(tied && strstr(layouts[i], "pp"))) wrong += check_layout(model, layouts[i]);
    assert_int_equal(wrong, 0);
}

/* Sums over stages are the host's, so pipelines are not counted; what experts exchange depends on the data. */
static void test_wire(void **state)
{
    (void)state;
    static const char *const counted[] = {"dp2", "dp4", "tp2", "tp4 seq", "cp2", "fsdp2", "fsdp4 micro2", "dp2 fsdp2 tp2 seq micro2", "cp2 tp2 seq"};
    ModelConfig model;
    make_model(llama4, &model);
    for (int i = 0; i < COUNT_OF(counted); i++) {
        char message[600] = "";
        Job job = {.model = &model, .options = parse(counted[i]), .check_wire = true};
        if (run_job(&job, message) != OK) fail_msg("%s: %s", counted[i], message);
    }
    model_config_deinit(&model);
}

/* Fully sharded over 8 ranks, a rank holds an eighth of weights, gradients and moments. */
static void test_shares_of_memory(void **state)
{
    (void)state;
    static const StateRole roles[] = {STATE_PARAM, STATE_GRAD, STATE_ADAM_M, STATE_ADAM_V, STATE_COPY};
    size_t bytes[2] = {0};
    ModelConfig model;
    assert_int_equal(model_config_preset("bench-small", &model), OK);
    for (int k = 0; k < 2; k++) {
        StepOptions o = {.n_micro = 2, .micro_batch = 1, .seq = 64, .dtype = DTYPE_BF16};
        o.layout.mesh.size[MESH_FSDP] = k ? 8 : 1;
        StepPrograms p;
        assert_int_equal(step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, &p), OK);
        for (int r = 0; r < COUNT_OF(roles); r++) bytes[k] += store_role_bytes(p.store, roles[r]);
        step_programs_destroy(&p);
    }
    model_config_deinit(&model);
    assert_true(fabs((double)bytes[1] * 8 / (double)bytes[0] - 1) < 0.02);
}

static void test_llama3(void **state)
{
    (void)state;
    check_all(llama3);
}

static void test_llama4(void **state)
{
    (void)state;
    check_all(llama4);
}

static void test_grok1(void **state)
{
    (void)state;
    check_all(grok1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_llama3), cmocka_unit_test(test_llama4), cmocka_unit_test(test_grok1),
                                       cmocka_unit_test(test_wire),   cmocka_unit_test(test_shares_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
