/* Every layout computes what one rank computes: losses and gradient norms of several steps, ranks
 * as threads of this process with real arithmetic. What a rank allocates is what was planned, what
 * it sends is what its nodes declare. */
#include "layouts.h"

static const char *name_of(const char *model)
{
    return model == llama3 ? "llama3" : model == llama4 ? "llama4" : "grok1";
}

static int check_layout(const char *model_text, const char *text)
{
    return check_against_one_rank(name_of(model_text), model_text, text);
}

static const char *const layouts[] = {
    "dp2",
    "dp4",
    "dp2 micro2",
    "tp2",
    "tp4",
    "tp2 seq",
    "tp4 seq",
    "tp2 micro2",
    "tp2 seq micro4",
    "cp2",
    "cp4",
    "cp2 micro2",
    "cp2 tp2",
    "cp2 tp2 seq",
    "cp2 dp2",
    "cp2 fsdp2",
    "cp2 dp2 tp2 seq",
    "cp2 selective",
    "cp2 full",
    "cp2 aux",
    "pp2 micro4",
    "pp4 micro4",
    "pp3 micro8",
    "pp2 micro4 gpipe",
    "pp2",
    "pp2 tp2 micro4",
    "pp2 tp2 seq micro4",
    "pp2 dp2 micro2",
    "pp2 fsdp2 micro4",
    "pp2 cp2 micro4",
    "pp2 ep2 micro2",
    "pp2 micro4 selective",
    "pp2 micro4 full",
    "pp2 dp2 ep2 fsdp2 tp2 seq",
    "pp2 cp2 tp2 seq micro4",
    "pp2 micro4 aux",
    "dp4 pp4 tp4 cp2 ep2 seq",
    "ep2",
    "ep4",
    "ep2 micro2",
    "ep2 tp2",
    "ep2 tp2 seq",
    "ep2 dp2",
    "ep2 fsdp2",
    "ep2 cp2",
    "dp2 ep2 fsdp2 tp2 seq",
    "ep2 selective",
    "ep2 full",
    "ep2 aux",
    "ep2 cp2 tp2 seq",
    "tp2 fold",
    "tp4 fold",
    "tp2 seq fold",
    "tp2 seq fold micro2",
    "ep2 tp2 fold",
    "ep2 tp2 seq fold aux",
    "tp4 seq fold selective",
    "tp2 fold full",
    "cp2 tp2 seq fold",
    "pp2 tp2 seq fold micro4",
    "dp2 fsdp2 tp2 seq fold",
    "tp2 seq fold bf16",
    "fsdp2",
    "fsdp4",
    "fsdp2 micro2",
    "dp2 fsdp2",
    "dp2 tp2",
    "dp2 tp2 seq",
    "fsdp2 tp2",
    "fsdp2 tp2 seq micro2",
    "dp2 fsdp2 tp2 seq",
    "tp2 seq selective",
    "tp2 seq full",
    "fsdp2 selective",
    "fsdp2 full",
    "tp2 aux",
    "dp2 aux",
    "cp2 ring",
    "cp4 ring",
    "cp8 ring",
    "cp2 ring micro2",
    "cp4 ring tp2",
    "cp2 ring tp2 seq",
    "cp4 ring dp2",
    "cp2 ring fsdp2",
    "cp4 ring ep2",
    "cp2 ring pp2 micro4",
    "cp4 ring pp2 micro4 full",
    "cp4 ring selective",
    "cp4 ring full",
    "cp2 ring aux",
    "cp4 ring plain",
    "cp4 ring bf16",
    "cp2 ring tp2 seq bf16",
    "dp2 fsdp2 ep2 cp2 ring tp2",
    "pp2 cp4 ring tp2 seq micro4",
    "dp2 cp2 tp2",
    "fsdp2 cp2 tp2 seq",
    "dp2 ep2 cp2",
    "pp2 dp2 tp2",
    "pp2 fsdp4 tp4 seq",
    "dp2 fsdp2 ep2 cp2 tp2",
    "tp8",
    "tp8 seq",
    "tp8 seq micro2",
    "tp8 seq selective",
    "tp8 full",
    "tp2 keys1",
    "tp2 seq keys1",
    "tp4 seq keys2 micro2",
    "tp4 keys1 aux",
    "tp2 seq keys1 bf16",
    "dp2 tp4 seq keys2",
    "fsdp2 tp4 seq keys1 micro2",
    "ep2 tp4 seq keys2",
    "cp2 tp2 seq keys1",
    "cp2 ring tp4 seq keys2",
    "pp2 tp4 seq keys1 micro4",
    "pp2 tp4 keys2 micro4 zb-v",
    "dp2 plain",
    "tp2 bf16",
    "fsdp2 tp2 seq bf16",
};

/* Pipelines under every schedule: fewer micro-batches than ranks, as many, more, and numbers that
 * do not divide. */
static const char *const schedules[] = {
    "pp2 micro8 gpipe",
    "pp4 micro2 gpipe",
    "pp4 micro2",
    "pp4 micro8",
    "pp3 micro8",
    "pp2 micro4 interleaved",
    "pp2 micro8 interleaved@4 layers8",
    "pp3 micro8 interleaved layers6",
    "pp4 micro2 interleaved layers8",
    "pp4 micro8 interleaved layers8",
    "pp2 micro4 zb-h1",
    "pp4 micro8 zb-h1",
    "pp4 micro2 zb-h1",
    "pp3 micro8 zb-h1",
    "pp2 zb-h1",
    "pp2 micro4 zb-v",
    "pp2 zb-v",
    "pp4 micro8 zb-v layers8",
    "pp4 micro2 zb-v layers8",
    "pp3 micro8 zb-v layers6",
    "pp2 micro4 dualpipev",
    "pp2 micro8 dualpipev",
    "pp4 micro8 dualpipev layers8",
    "pp3 micro8 dualpipev layers6",
};

/* And together with the other axes. */
static const char *const mixed_schedules[] = {
    "pp2 dp2 micro4 zb-v",
    "pp2 fsdp2 micro4 zb-v",
    "pp2 tp2 seq micro4 zb-v",
    "pp2 cp2 micro4 zb-v",
    "pp2 ep2 micro4 zb-v",
    "pp2 dp2 micro4 zb-h1",
    "pp2 fsdp2 tp2 micro4 zb-h1",
    "pp2 ep2 tp2 seq micro2 zb-h1",
    "pp2 cp2 micro4 zb-h1 selective",
    "pp2 fsdp2 micro4 zb-h1 full",
    "pp2 dp2 fsdp2 micro2 interleaved",
    "pp2 tp2 micro4 interleaved",
    "pp2 ep2 micro4 interleaved full",
    "pp2 cp2 tp2 seq micro4 dualpipev",
    "pp2 cp2 ring micro4 zb-v",
    "pp2 cp4 ring micro4 zb-h1",
    "pp2 cp4 ring micro4 zb-v full",
    "pp2 cp2 ring tp2 micro4 dualpipev",
    "pp2 fsdp2 micro4 dualpipev selective",
    "pp2 micro4 zb-v bf16",
    "pp2 micro4 zb-v full",
    "pp2 micro4 aux zb-v",
};

static int check_list(const char *model, const char *const *list, int n)
{
    const char *only = getenv("LAYOUT");
    int wrong = 0;
    for (int i = 0; i < n; i++) {
        if (only && strcmp(only, list[i]) != 0) continue;
        if (model != llama4 && strstr(list[i], "dp4 pp4")) continue; /* 256 ranks: once */
        if (model == llama3 && strstr(list[i], "fold")) continue;    /* no experts */
        if (model == grok1 && strstr(list[i], "keys")) continue;     /* with 1, dp alone: 2e-3 */
        if (model == grok1 && strstr(list[i], "pp") && i % 3 && !strstr(list[i], "selective"))
            continue; /* some of its pipelines */
        wrong += check_layout(model, list[i]);
    }
    return wrong;
}

static void check_all(const char *model)
{
    assert_int_equal(check_list(model, layouts, COUNT_OF(layouts)), 0);
}

/* The schedules concern the order of work, not the kind of layers: the models share them out. Of
 * Grok's layers four are so touchy at this size that dp alone, which only sums in another order,
 * comes to differ by 2e-5: plain pipelines only. */
static void test_schedules(void **state)
{
    (void)state;
    static const char *const of_grok[] = {"pp2 micro4 zb-v", "pp2 micro8 zb-h1 selective",
                                          "pp2 micro4 dualpipev", "pp3 fsdp2 micro4 zb-h1"};
    int wrong = check_list(grok1, of_grok, COUNT_OF(of_grok));
    for (int i = 0; i < COUNT_OF(schedules); i++)
        wrong += check_list(i % 2 ? llama3 : llama4, &schedules[i], 1);
    for (int i = 0; i < COUNT_OF(mixed_schedules); i++)
        wrong += check_list(i % 2 && !strstr(mixed_schedules[i], "ep2") ? llama3 : llama4,
                            &mixed_schedules[i], 1);
    assert_int_equal(wrong, 0);
}

/* ---- tables that nobody would write ----------------------------------------------------- */

enum { TABLE_STAGES = 4, TABLE_MICRO = 4 };

/* Which of F, B, W of each stage are done: for how many micro-batches, in order. */
typedef struct Done {
    int of[TABLE_STAGES][3];
} Done;

static bool can_do(const Done *d, int stage, int work)
{
    int m = d->of[stage][work];
    if (m == TABLE_MICRO) return false;
    if (work == 0) return stage == 0 || d->of[stage - 1][0] > m;
    if (work == 2) return d->of[stage][1] > m;
    return d->of[stage][0] > m && (stage == TABLE_STAGES - 1 || d->of[stage + 1][1] > m);
}

/* Actions that can be done are done in random order, some B and W as one. */
static void random_table(uint64_t seed, int ranks, const int *rank_of, Str *out)
{
    Str row[TABLE_STAGES] = {{0}};
    Done done = {{{0}}};
    uint64_t draw = 0;
    str_printf(out, "micro-batches %d\nstages", TABLE_MICRO);
    for (int s = 0; s < TABLE_STAGES; s++) str_printf(out, " %d", rank_of[s]);
    for (int left = TABLE_STAGES * TABLE_MICRO * 3; left > 0;) {
        int pick = (int)rng_below(seed, draw++, TABLE_STAGES * 3), stage = pick / 3,
            work = pick % 3;
        if (!can_do(&done, stage, work)) continue;
        int m = done.of[stage][work]++;
        bool both = work == 1 && done.of[stage][2] == m && rng_below(seed, draw++, 2);
        if (both) done.of[stage][2]++;
        left -= both ? 2 : 1;
        str_printf(&row[rank_of[stage]], " %s%d.%d",
                   both        ? "BW"
                   : work == 0 ? "F"
                   : work == 1 ? "B"
                               : "W",
                   stage, m);
    }
    for (int r = 0; r < ranks; r++) {
        str_printf(out, "\nrank %d:%s", r, row[r].at);
        str_deinit(&row[r]);
    }
}

/* Whatever the verifier passes trains as one rank does: any place of the stages, any number of
 * messages under way. */
static void test_random_tables(void **state)
{
    (void)state;
    static const struct {
        int ranks, rank_of[TABLE_STAGES];
    } places[] = {{2, {0, 1, 0, 1}}, {2, {0, 1, 1, 0}}, {2, {0, 0, 1, 1}},
                  {2, {1, 0, 0, 0}}, {3, {2, 0, 1, 0}}, {4, {3, 1, 2, 0}}};
    for (int i = 0; i < COUNT_OF(places); i++) {
        char layout[32], message[600] = "";
        ModelConfig model;
        Str table = {0};
        snprintf(layout, sizeof layout, "pp%d micro%d", places[i].ranks, TABLE_MICRO);
        random_table((uint64_t)i, places[i].ranks, places[i].rank_of, &table);
        Job many = parse_job(layout), one = many;
        make_model(i % 2 ? llama3 : llama4, 0, &model);
        one.model = many.model = &model;
        one.options.layout = (Layout){0};
        many.table = table.at;
        many.check_wire = true;
        if (run_job(&one, message) != OK || run_job(&many, message) != OK)
            fail_msg("%s: %s", table.at, message);
        if (!(compare(&many, &one) < 1e-5))
            fail_msg("%s: difference %.2e", table.at, compare(&many, &one));
        str_deinit(&table);
        model_config_deinit(&model);
    }
}

/* Run to run the same bits, however the ranks' threads meet. */
static void test_same_bits(void **state)
{
    (void)state;
    static const char *const list[] = {"pp2 micro4 zb-v", "pp2 dp2 micro4 zb-h1",
                                       "pp3 micro8 interleaved layers6",
                                       "pp2 fsdp2 tp2 seq micro4 zb-v"};
    for (int i = 0; i < COUNT_OF(list); i++) {
        ModelConfig model;
        char message[600] = "";
        Job first = parse_job(list[i]);
        make_model(llama3, first.layers, &model);
        first.model = &model;
        Job again = first;
        again.options.layout.blocking = i %
                                        2; /* nor does it matter when collectives are waited for */
        if (run_job(&first, message) != OK || run_job(&again, message) != OK)
            fail_msg("%s: %s", list[i], message);
        assert_memory_equal(first.loss, again.loss, sizeof first.loss);
        assert_memory_equal(first.norm, again.norm, sizeof first.norm);
        model_config_deinit(&model);
    }
}

/* Ranks of tensor parallelism hold the same rows, and each sends its part of their columns: in all
 * as many bytes as without them. */
static void test_rows_are_sent_once(void **state)
{
    (void)state;
    static const char *const texts[] = {"ep2", "ep2 tp2", "ep2 tp2 seq", "ep2 tp4"},
                             *const models[] = {llama4, grok1};
    for (int m = 0; m < COUNT_OF(models); m++) {
        int64_t alone = 0;
        for (int i = 0; i < COUNT_OF(texts); i++) {
            ModelConfig model;
            char message[600] = "";
            Job job = parse_job(texts[i]);
            make_model(models[m], job.layers, &model);
            job.model = &model;
            if (run_job(&job, message) != OK) fail_msg("%s: %s", texts[i], message);
            int64_t sum = 0;
            for (int r = 0; r < mesh_ranks(&job.options.layout.mesh); r++) sum += job.rows_bytes[r];
            if (i == 0) alone = sum;
            assert_true(alone > 0);
            if (sum != alone)
                fail_msg("%s: %lld bytes, alone %lld", texts[i], (long long)sum, (long long)alone);
            model_config_deinit(&model);
        }
    }
}

/* What experts exchange depends on the data. */
static void test_wire(void **state)
{
    (void)state;
    static const char *const counted[] = {
        "dp2",           "dp4",           "tp2",
        "tp4 seq",       "tp2 seq fold",  "cp2",
        "fsdp2",         "fsdp4 micro2",  "dp2 fsdp2 tp2 seq micro2",
        "cp2 tp2 seq",   "cp2 ring",      "cp4 ring micro2",
        "cp8 ring",      "cp4 ring tp2",  "cp2 ring tp2 seq dp2",
        "cp4 ring full", "cp4 ring bf16", "cp2 ring fsdp2"};
    static const char *const pipelines[] = {
        "pp2 micro4",           "pp2 micro4 zb-v",
        "pp2 dp2 micro4 zb-h1", "pp2 fsdp2 tp2 seq micro4 interleaved",
        "pp2 micro4 dualpipev", "pp2 cp4 ring micro4 zb-v"};
    for (int i = 0; i < COUNT_OF(counted) + 2 * COUNT_OF(pipelines); i++) {
        ModelConfig model;
        char message[600] = "";
        int k = i - COUNT_OF(counted);
        const char *text = k < 0 ? counted[i] : pipelines[k / 2];
        Job job = parse_job(text);
        make_model(k >= 0 && k % 2 ? llama3 : llama4, job.layers,
                   &model); /* llama3's head is tied: gradients cross the pipeline */
        job.model = &model;
        job.check_wire = true;
        if (run_job(&job, message) != OK) fail_msg("%s: %s", text, message);
        model_config_deinit(&model);
    }
}

/* Fully sharded over 8 ranks, a rank holds an eighth of weights, gradients and moments. */
static void test_shares_of_memory(void **state)
{
    (void)state;
    static const StateRole roles[] = {STATE_PARAM, STATE_GRAD, STATE_ADAM_M, STATE_ADAM_V,
                                      STATE_COPY};
    size_t bytes[2] = {0};
    ModelConfig model;
    assert_int_equal(model_config_preset("bench-small", &model), OK);
    for (int k = 0; k < 2; k++) {
        StepOptions o = {.n_micro = 2, .micro_batch = 1, .seq = 64, .dtype = DTYPE_BF16};
        o.layout.mesh.size[MESH_FSDP] = k ? 8 : 1;
        StepPrograms p;
        assert_int_equal(
            step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1}, &p), OK);
        for (int r = 0; r < COUNT_OF(roles); r++) bytes[k] += store_role_bytes(p.store, roles[r]);
        step_programs_destroy(&p);
    }
    model_config_deinit(&model);
    assert_true(fabs((double)bytes[1] * 8 / (double)bytes[0] - 1) < 0.02);
}

/* The memory of a pipeline's rank: zb-h1 and zb-v hold as many micro-batches as 1f1b's first rank,
 * and what B leaves for W beside the one that is at B; gpipe holds all. */
static void test_pipeline_memory(void **state)
{
    (void)state;
    static const char *const names[] = {"1f1b", "gpipe", "zb-h1", "zb-v", "interleaved"};
    enum { RANKS = 4, MICRO = 16 };
    size_t most[COUNT_OF(names)] = {0};
    ModelConfig model;
    make_model(llama3, 8, &model);
    for (int k = 0; k < COUNT_OF(names); k++) {
        Pipeline *p;
        assert_int_equal(
            pipeline_create(names[k], RANKS, pipeline_default_stages(names[k]), MICRO, &p), OK);
        for (int r = 0; r < RANKS; r++) {
            StepOptions o = {.n_micro = MICRO, .micro_batch = 1, .seq = 256, .dtype = DTYPE_F32};
            StepPrograms programs;
            o.layout.mesh.size[MESH_PP] = RANKS;
            o.layout.mesh.coord[MESH_PP] = r;
            o.layout.pipeline = p;
            if (step_programs_build(&model, &o, (Target){.isa = ISA_GENERIC, .threads = 1},
                                    &programs) != OK)
                fail_msg("%s", status_message());
            size_t bytes = session_plan(programs.store, programs.at, programs.n).step_bytes;
            if (bytes > most[k]) most[k] = bytes;
            step_programs_destroy(&programs);
        }
        pipeline_destroy(p);
        if (getenv("LAYOUT_VERBOSE")) print_message("%s: %zu bytes\n", names[k], most[k]);
    }
    model_config_deinit(&model);
    assert_true((double)most[1] > 3 * (double)most[0]);
    assert_true((double)most[2] < 1.2 * (double)most[0]);
    assert_true((double)most[3] < 1.2 * (double)most[0]);
    assert_true((double)most[4] > (double)most[0]);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_llama3),
                                       cmocka_unit_test(test_llama4),
                                       cmocka_unit_test(test_grok1),
                                       cmocka_unit_test(test_schedules),
                                       cmocka_unit_test(test_random_tables),
                                       cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_rows_are_sent_once),
                                       cmocka_unit_test(test_rows_are_sent_once),
                                       cmocka_unit_test(test_wire),
                                       cmocka_unit_test(test_shares_of_memory),
                                       cmocka_unit_test(test_pipeline_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
