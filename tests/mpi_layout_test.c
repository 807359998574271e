/* The same layouts as processes: every process is a rank; the first compares with one rank. */
#include "layouts.h"

#include <float.h>

static const char *const layouts[] = {
    "dp2",
    "tp2 seq micro2",
    "cp2",
    "ep2",
    "fsdp2 micro2",
    "pp2 micro4",
    "dp4",
    "tp4 seq",
    "cp4",
    "ep4",
    "fsdp4",
    "pp4 micro4",
    "dp2 tp2 seq",
    "fsdp2 tp2",
    "cp2 ep2 micro2",
    "pp2 tp2 seq micro4",
    "dp2 pp2 micro4 gpipe",
    "chunks4 dp2",
    "chunks4 tp2",
    "chunks4 fsdp2 tp2",
    "chunks4 ep2 dp2",
    "chunks4 pp2 ep2 zb-v", /* the same bits */
    "ep2 fsdp2 full",
    "ep2 tp2 seq fold",
    "pp2 micro4 zb-v",
    "pp2 micro4 interleaved",
    "pp2 micro4 dualpipev",
    "pp4 micro4 zb-h1",
    "pp4 micro4 zb-v layers8",
    "cp2 ring",
    "cp2 ring full",
    "cp4 ring",
    "cp4 ring selective",
    "cp2 ring tp2 seq",
    "cp2 ring fsdp2 micro2",
};

/* Of this process's rank; the difference is known on the first. */
static void check(CommWorld *world, const char *model_text, const char *text)
{
    ModelConfig model;
    char message[600] = "";
    int rank;
    Job many = parse_job(text);
    make_model(model_text, many.layers, &model);
    many.model = &model;
    many.world = world;
    assert_int_equal(make_pipeline(&many), OK);
    assert_int_equal(plan_job(&many), OK);
    comm_world_here(world, &rank);
    RankJob mine = {.job = &many, .rank = rank};
    if (run_rank(&mine) != OK) fail_msg("%s: %s", text, status_message());
    if (rank == 0) {
        int chunks = many.options.layout.chunks;
        Job one = parse_job(chunks ? "chunks4" : text);
        one.model = &model;
        one.options.micro_batch *= mesh_data_ranks(&one.options.layout.mesh);
        one.options.layout = (Layout){.chunks = chunks};
        assert_int_equal(run_job(&one, message), OK);
        double difference = compare(&many, &one);
        if (!(difference < (chunks ? DBL_TRUE_MIN : 1e-5)))
            fail_msg("%s: difference %.2e", text, difference);
    }
    forget_plans(&many);
    pipeline_destroy(many.pipeline);
    model_config_deinit(&model);
}

static void test_layouts(void **state)
{
    (void)state;
    CommWorld *world;
    int n = 0;
    assert_int_equal(comm_world_create_mpi(&(CommOptions){.deadline_s = 60}, &world), OK);
    for (int i = 0; i < COUNT_OF(layouts); i++) {
        StepOptions o = parse_job(layouts[i]).options;
        if (mesh_ranks(&o.layout.mesh) != comm_world_size(world)) continue;
        check(world, strstr(layouts[i], "pp2 micro4") ? llama3 : llama4,
              layouts[i]); /* llama3's head is tied */
        n++;
    }
    assert_true(n >= 6);
    comm_world_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
