/* What is said to fit fits, what is said to be better is, and sizes that are found are the least or
 * largest that do. */
#include <jansson.h>

#include "base/testing.h"
#include "outlook/outlook_internal.h"

#define MODEL                                                                                      \
    "model={preset: llama3-micro, hidden_size: 1024, num_attention_heads: 4, "                     \
    "num_key_value_heads: 1, head_dim: 256, intermediate_size: 4096, num_hidden_layers: 12}"
#define COMMON MODEL, "data=[{synthetic: uniform}]", "train.seq=2048", "train.micro_batch=1"
#define BIG                                                                                        \
    "model=llama3.1-8b", "data=[{synthetic: uniform}]", "train.seq=8192", "train.micro_batch=1"
static const char *const cluster_line = "64 h100, 8 per node, 400G";

#define SETTINGS(...)                                                                              \
    (const char *const[]){__VA_ARGS__}, COUNT_OF(((const char *const[]){__VA_ARGS__}))

static void load(const char *const *settings, int n, RunConfig *config, Cluster *cluster)
{
    assert_ok(run_config_load(NULL, settings, n, config));
    assert_ok(cluster_load(cluster_line, cluster));
}

static void unload(RunConfig *config, Cluster *cluster)
{
    run_config_deinit(config);
    cluster_deinit(cluster);
}

static void make(const RunConfig *config, const Cluster *cluster, double tokens, Outlook *o)
{
    assert_ok(outlook_make(config, cluster, &(PlanOptions){.jitter = -1}, tokens, o));
}

static void assert_says(const char *words)
{
    if (!strstr(status_message(), words)) fail_msg("no '%s' in: %s", words, status_message());
}

/* ---- ladders ---------------------------------------------------------------------------- */

typedef struct Steps {
    Ladder ladder;
    int least, tries, patience;
} Steps;

static bool high_enough(Ladder *ladder, int at)
{
    Steps *s = (Steps *)(void *)ladder;
    s->tries++;
    if (s->patience && s->tries >= s->patience) ladder->hopeless = true;
    return at >= s->least;
}

static void test_ladder(void **state)
{
    (void)state;
    for (int least = 0; least <= 50; least++)
        for (int guess = -1; guess <= 51; guess++) {
            Steps s = {{.n = 50, .good = high_enough}, .least = least};
            assert_int_equal(outlook_climb(&s.ladder, guess), least < 50 ? least : -1);
            assert_true(s.tries <= 12);
            if (abs(least - guess) <= 1) assert_true(s.tries <= 4);
        }
    Steps s = {{.n = 50, .good = high_enough}, .least = 50, .patience = 3};
    assert_int_equal(outlook_climb(&s.ladder, 0), -1);
    assert_int_equal(s.tries, 3);
}

/* ---- one plan --------------------------------------------------------------------------- */

static void test_outlook(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    Outlook o;
    Str text = {0};
    load(SETTINGS(COMMON, "train.batch=64", "parallel.dp=64"), &config, &cluster);
    make(&config, &cluster, 1e12, &o);
    assert_true(o.has_fleet && o.plan.fits);
    assert_true(outlook_days(&o) > 1e12 / o.plan.tokens_per_s / 86400); /* failures take time */
    str_add(&text, "{");
    outlook_json(&o, &text);
    str_add(&text, "}");
    json_t *json = json_loads(text.at, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    json_decref(json);
    outlook_deinit(&o);
    str_deinit(&text);
    assert_int_equal(outlook_make(&config, &cluster, &(PlanOptions){.jitter = -1}, 1e5, &o),
                     ERR_REFUSED);
    assert_says("train.batch=48 would be one step");
    assert_int_equal(outlook_make(&config, &cluster, &(PlanOptions){.jitter = -1}, 100, &o),
                     ERR_REFUSED);
    assert_says("less than one sequence");
    unload(&config, &cluster);
}

/* Against draws of the largest of n: shares below the quantiles are theirs. */
static void test_jitter(void **state)
{
    (void)state;
    enum { RANKS = 64, DRAWS = 4000 };
    int below[3] = {0};
    static const double q[3] = {0.05, 0.5, 0.95};
    uint64_t key = rng_key(1, "jitter");
    for (int i = 0; i < DRAWS; i++) {
        double most = -100;
        for (int r = 0; r < RANKS; r++)
            most = fmax(most, rng_normal(key, (uint64_t)(i * RANKS + r)));
        for (int k = 0; k < 3; k++) below[k] += most < outlook_slowest_of(RANKS, q[k]);
    }
    for (int k = 0; k < 3; k++) assert_true(fabs((double)below[k] / DRAWS - q[k]) < 0.02);
    assert_near(outlook_slowest_of(1, 0.975), 1.959964, 1e-6);
    RunConfig config;
    Cluster cluster;
    Outlook o;
    Jitter j;
    load(SETTINGS(COMMON, "train.batch=64", "parallel.dp=64"), &config, &cluster);
    make(&config, &cluster, 0, &o);
    outlook_jitter(&o, &j);
    assert_true(j.p5_s < j.p50_s && j.p50_s < j.p95_s && j.p95_s < j.slow_step_s);
    assert_true(j.p5_s > o.plan.time.step_s - o.plan.time.part.jitter_s);
    assert_near(j.slow_nodes, 8 * 0.005, 1e-12);
    assert_near(j.any_slow, 1 - pow(0.995, 8), 1e-9);
    outlook_deinit(&o);
    unload(&config, &cluster);
}

static void test_scale(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    Outlook o;
    Scaling s;
    load(SETTINGS(COMMON, "train.batch=64", "parallel.dp=16", "parallel.pp=2"), &config, &cluster);
    make(&config, &cluster, 1e12, &o);
    outlook_scale(&o, &s);
    assert_true(s.n >= 5);
    assert_int_equal(s.point[s.here].devices, 32);
    assert_near(s.point[s.here].tokens_per_s, o.plan.tokens_per_s, 1e-9);
    for (int i = 1; i < s.n; i++) {
        double more = (double)s.point[i].devices / (double)s.point[i - 1].devices;
        assert_true(more == 2 && s.point[i].step_s < s.point[i - 1].step_s);
        assert_true(s.point[i].mfu < s.point[i - 1].mfu); /* the batch does not grow */
    }
    assert_int_equal(s.point[s.n - 1].devices, 128); /* 64 sequences on 64 replicas */
    outlook_deinit(&o);
    unload(&config, &cluster);
}

/* ---- what would do ---------------------------------------------------------------------- */

/* Each remedy of the sentence, taken at its word, fits. */
static void check_remedies(const char *sentence, const char *const *settings, int n)
{
    int found = 0;
    for (const char *at = strstr(sentence, "fits with "); at; at = strstr(at, "or with ")) {
        const char *all[16];
        char words[256];
        int more = n;
        at = strstr(at, "with ") + 5;
        const char *end = strchr(at, '(');
        assert_true(n <= 8 && end && end - at < (long)sizeof words);
        snprintf(words, sizeof words, "%.*s", (int)(end - at), at);
        memcpy(all, settings, (size_t)n * sizeof *all);
        char *rest = words;
        for (char *word; (word = strsep(&rest, " ")) && more < COUNT_OF(all);)
            if (*word) all[more++] = word;
        RunConfig config;
        Cluster cluster;
        Outlook o;
        load(all, more, &config, &cluster);
        make(&config, &cluster, 0, &o);
        if (!o.plan.fits) fail_msg("does not fit: %.*s", (int)(end - at), at);
        outlook_deinit(&o);
        unload(&config, &cluster);
        found++;
    }
    assert_true(found > 0 && found <= 3);
}

static void test_remedies(void **state)
{
    (void)state;
    static const char *const replicas[] = {BIG, "train.batch=64", "parallel.dp=64"};
    static const char *const wide[] = {BIG, "train.batch=64", "parallel.tp=2", "parallel.dp=2",
                                       "train.memory_limit=60GB"};
    const struct {
        const char *const *settings;
        int n;
    } cases[] = {{replicas, COUNT_OF(replicas)}, {wide, COUNT_OF(wide)}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        RunConfig config;
        Cluster cluster;
        Outlook o;
        load(cases[i].settings, cases[i].n, &config, &cluster);
        make(&config, &cluster, 0, &o);
        assert_false(o.plan.fits);
        assert_int_equal(outlook_refuse(&o), ERR_REFUSED);
        char *sentence = strdup(status_message());
        assert_null(strchr(sentence, '\n'));
        check_remedies(sentence, cases[i].settings, cases[i].n);
        free(sentence);
        outlook_deinit(&o);
        unload(&config, &cluster);
    }
}

/* One device does not hold the states, whatever is done. */
static void test_no_remedy(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    Outlook o;
    load(SETTINGS(COMMON, "train.batch=1", "train.memory_limit=200MB"), &config, &cluster);
    make(&config, &cluster, 0, &o);
    assert_int_equal(outlook_refuse(&o), ERR_REFUSED);
    assert_says("no layout of 1 devices was found to fit");
    outlook_deinit(&o);
    unload(&config, &cluster);
}

static void test_divides(void **state)
{
    (void)state;
    static const struct {
        const char *batch, *axis, *words;
    } cases[] = {{"train.batch=100", "parallel.dp=64", "train.batch=128 would do"},
                 {"train.batch=16", "parallel.dp=64", "train.batch=64 would do"},
                 {"train.batch=128", "parallel.dp=128", "parallel.dp=64 would do"},
                 {"train.batch=96", "parallel.dp=96", "parallel.dp=48 would do"},
                 {"train.batch=16", "parallel.tp=3", "tp 2 would"},
                 {"train.batch=16", "parallel.cp=3", "parallel.cp=2 would do"},
                 {"train.batch=16", "parallel.cp=12", "parallel.cp=8 would do"},
                 {"train.batch=16", "parallel.pp=128", "parallel.pp=8 would do"}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        RunConfig config;
        Cluster cluster;
        Outlook o;
        load(SETTINGS(COMMON, cases[i].batch, cases[i].axis), &config, &cluster);
        assert_int_equal(outlook_make(&config, &cluster, &(PlanOptions){.jitter = -1}, 0, &o),
                         ERR_REFUSED);
        assert_says(cases[i].words);
        unload(&config, &cluster);
    }
}

/* ---- comparisons ------------------------------------------------------------------------ */

static void test_compare(void **state)
{
    (void)state;
    RunConfig config[3];
    Cluster cluster[3];
    Contender c[3] = {{.label = "stages"}, {.label = "more \"batches\""}, {.label = "large"}};
    CompareRow row[COMPARE_ROWS];
    Str text = {0};
    int first_part;
    load(SETTINGS(COMMON, "train.batch=16", "parallel.pp=4", "parallel.dp=2"), &config[0],
         &cluster[0]);
    load(SETTINGS(COMMON, "train.batch=16", "parallel.dp=8"), &config[1], &cluster[1]);
    load(SETTINGS(BIG, "train.batch=8", "parallel.dp=8"), &config[2], &cluster[2]);
    for (int i = 0; i < 3; i++) make(&config[i], &cluster[i], 0, &c[i].outlook);
    assert_int_equal(outlook_better(c, 2), 1);
    outlook_why(c, 2, &text);
    assert_non_null(strstr(text.at, "more \"batches\" is better than stages: "));
    assert_non_null(strstr(text.at, ": waiting for other stages "));
    int n = outlook_compare_rows(c, 2, row, &first_part);
    double sum[2] = {0};
    for (int i = first_part; i < n; i++)
        for (int k = 0; k < 2; k++) sum[k] += row[i].value[k];
    for (int k = 0; k < 2; k++) assert_near(sum[k], c[k].outlook.plan.time.step_s, 0.005);
    assert_non_null(strstr(outlook_part_unit(c, 2), "of the step"));
    str_clear(&text);
    str_add(&text, "{");
    outlook_compare_json(c, 3, &text);
    str_add(&text, "}");
    json_t *json = json_loads(text.at, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    assert_int_equal(json_array_size(json_object_get(json, "compared")), 3);
    assert_int_equal(json_integer_value(json_object_get(json, "better")), 1);
    json_decref(json);
    str_clear(&text);
    outlook_why(c + 1, 2, &text); /* the large one does not fit */
    assert_non_null(strstr(text.at, "is better: large does not fit"));
    str_clear(&text);
    outlook_compare_text(c, 3, &text);
    assert_non_null(strstr(text.at, "DOES NOT FIT"));
    for (int i = 0; i < 3; i++) {
        outlook_deinit(&c[i].outlook);
        unload(&config[i], &cluster[i]);
    }
    str_deinit(&text);
}

/* ---- the other way round ---------------------------------------------------------------- */

static Question ask(const RunConfig *config, const Cluster *cluster, double tokens, double days)
{
    return (Question){.config = config,
                      .cluster = cluster,
                      .max_batch = 256,
                      .tokens = tokens,
                      .days = days,
                      .simulate = 4,
                      .threads = 2};
}

static void test_smallest(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SmallestAnswer s;
    load(SETTINGS(COMMON, "train.batch=256"), &config, &cluster);
    Question q = ask(&config, &cluster, 2e12, 1);
    assert_ok(outlook_smallest(&q, &s));
    assert_true(outlook_days(&s.answer->outlook) <= 1 && s.days_below > 1);
    assert_true(s.devices_below > 0 && s.devices_below < s.answer->devices);
    assert_int_equal(s.answer->outlook.plan.ranks, s.answer->devices);
    int64_t devices = s.answer->devices;
    outlook_answer_destroy(s.answer);
    q.max_usd = 100;
    assert_int_equal(outlook_smallest(&q, &s), ERR_REFUSED);
    assert_says("above the limit of 0.0001; take --max-usd 1, or more --days");
    q.max_usd = 0;
    q.days = 0.85;
    assert_ok(outlook_smallest(&q, &s));
    assert_true(s.answer->devices > devices);
    outlook_answer_destroy(s.answer);
    q.days = 0.001;
    assert_int_equal(outlook_smallest(&q, &s), ERR_REFUSED);
    assert_says("come nearest; take --days");
    unload(&config, &cluster);
}

/* What would do is planned: it fits. */
static void test_search_refused(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    load(SETTINGS(COMMON, "train.batch=64", "train.memory_limit=700MB"), &config, &cluster);
    assert_ok(cluster_resize(&cluster, 2));
    Question q = ask(&config, &cluster, 0, (double)NAN);
    SearchOptions how = {.devices = 2, .max_batch = 64, .simulate = 4, .threads = 2};
    Status status = plan_search(&config, &cluster, &how, &found);
    assert_int_equal(outlook_refuse_search(&q, status), ERR_REFUSED);
    assert_says("devices would do, with ");
    const char *words = status_message();
    for (const char *at = words; (at = strstr(at, "; ")); at += 2)
        if (strtol(at + 2, NULL, 10) > 0) how.devices = strtol(at + 2, NULL, 10);
    assert_true(how.devices > 2);
    assert_ok(cluster_resize(&cluster, how.devices));
    assert_ok(plan_search(&config, &cluster, &how, &found));
    assert_true(found.n > 0);
    search_result_deinit(&found);
    unload(&config, &cluster);
}

static void test_doubling(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    Doubling d;
    load(SETTINGS(COMMON, "train.batch=256"), &config, &cluster);
    Question q = ask(&config, &cluster, 0, (double)NAN);
    assert_ok(outlook_doubling(&q, &d));
    assert_int_equal(d.of[DOUBLED]->devices, 128);
    assert_true(d.of[DOUBLED]->outlook.plan.tokens <= 256 * 2048.0);
    assert_true(outlook_speedup(&d, AS_IT_IS) == 1);
    assert_true(outlook_speedup(&d, DOUBLED) > 1 &&
                outlook_speedup(&d, DOUBLED) < outlook_speedup(&d, DOUBLED_BATCH));
    assert_true(outlook_speedup(&d, DOUBLED_BATCH) < 2.02);
    const Outlook *twice = &d.of[DOUBLED]->outlook;
    assert_near(outlook_elastic_speedup(&d, DOUBLED) / outlook_speedup(&d, DOUBLED),
                twice->fleet.goodput[RECOVER_REPLICAS].mean /
                    twice->fleet.goodput[twice->fleet.scheme].mean,
                1e-9);
    outlook_doubling_deinit(&d);
    unload(&config, &cluster);
}

/* 64 devices with 32 sequences are starved: a larger batch makes more, fewer devices less than all
 * but more for each. With 64 sequences nobody is. Profiles that are kept change nothing. */
static void test_batch_limit(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    SearchResult found, again;
    BatchLimit limit;
    Str text = {0};
    load(SETTINGS(COMMON, "train.seq=1024"), &config, &cluster);
    ProfileStore *profiles = profile_store_create();
    Question q = ask(&config, &cluster, 0, (double)NAN);
    q.max_batch = 32;
    q.profiles = profiles;
    SearchOptions how = {.devices = 64, .max_batch = 32, .simulate = 8, .threads = 2};
    assert_ok(plan_search(&config, &cluster, &how, &found));
    how.profiles = profiles;
    for (int i = 0; i < 2; i++) {
        assert_ok(plan_search(&config, &cluster, &how, &again));
        assert_int_equal(again.n_layouts, found.n_layouts);
        assert_int_equal(again.n, found.n);
        assert_true(again.plan[0].time.step_s == found.plan[0].time.step_s);
        search_result_deinit(&again);
    }
    assert_true(outlook_batch_limit(&q, &found.plan[0], &limit));
    assert_near(limit.tokens, 32 * 1024.0, 1e-12);
    assert_near(limit.rate, found.plan[0].tokens_per_s, 1e-12);
    assert_true(limit.times >= 2 && limit.rate_larger > 1.05 * limit.rate);
    assert_int_equal(limit.devices, 32);
    assert_true(limit.rate_fewer < limit.rate && limit.rate_fewer > limit.rate * 32 / 64);
    outlook_batch_limit_text(&limit, &text);
    assert_non_null(strstr(text.at, "tokens/s"));
    assert_non_null(strstr(text.at, "32 devices make"));
    str_deinit(&text);
    search_result_deinit(&found);
    q.max_batch = how.max_batch = 64;
    assert_ok(plan_search(&config, &cluster, &how, &found));
    assert_false(outlook_batch_limit(&q, &found.plan[0], &limit));
    search_result_deinit(&found);
    profile_store_destroy(profiles);
    unload(&config, &cluster);
}

static void test_largest(void **state)
{
    (void)state;
    RunConfig config;
    Cluster cluster;
    Arena arena = {0};
    double before = 0;
    static const char *const settings[] = {COMMON, "train.batch=256"};
    const ConfigSource source = {NULL, settings, COUNT_OF(settings)};
    load(settings, COUNT_OF(settings), &config, &cluster);
    double usd = 0;
    for (double days = 2; days <= 8; days *= 4) {
        LargestAnswer l;
        Question q = ask(&config, &cluster, 0, days);
        assert_ok(outlook_largest(&arena, &q, &source, 20, &l));
        const Outlook *o = &l.answer->outlook;
        assert_true(outlook_days(o) <= days && outlook_days(o) > 0.3 * days);
        assert_near(l.tokens, 20 * o->plan.active_weights, 1e-12);
        assert_int_equal(o->plan.ranks, 64);
        assert_true(o->plan.weights > 1.5 * before);
        before = o->plan.weights;
        usd = o->fleet.run_usd.central;
        outlook_largest_deinit(&l);
    }
    LargestAnswer less;
    Question poor = ask(&config, &cluster, 0, 8);
    poor.max_usd = usd / 2;
    assert_ok(outlook_largest(&arena, &poor, &source, 20, &less));
    assert_true(less.answer->outlook.fleet.run_usd.central <= usd / 2);
    assert_true(less.answer->outlook.plan.weights < before);
    outlook_largest_deinit(&less);
    poor.max_usd = 1e-3;
    poor.days = 1e-3; /* the guess is near the end of the ladder */
    assert_int_equal(outlook_largest(&arena, &poor, &source, 20, &less), ERR_REFUSED);
    assert_says("20 tokens a weight for that money; take more --days");
    arena_deinit(&arena);
    unload(&config, &cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ladder),   cmocka_unit_test(test_outlook),
        cmocka_unit_test(test_scale),    cmocka_unit_test(test_jitter),
        cmocka_unit_test(test_remedies), cmocka_unit_test(test_no_remedy),
        cmocka_unit_test(test_divides),  cmocka_unit_test(test_compare),
        cmocka_unit_test(test_smallest), cmocka_unit_test(test_search_refused),
        cmocka_unit_test(test_doubling), cmocka_unit_test(test_batch_limit),
        cmocka_unit_test(test_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
