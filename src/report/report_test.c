/* Pages: well-formed whatever the plan and whatever the names, with every figure, without anything
 * that a browser would fetch. */
#include <ctype.h>
#include <jansson.h>

#include "base/testing.h"
#include "report/report_internal.h"

#define MODEL                                                                                      \
    "model={preset: llama3-micro, hidden_size: 2048, num_attention_heads: 16, "                    \
    "num_key_value_heads: 8, head_dim: 128, intermediate_size: 8192, num_hidden_layers: 16}"
#define COMMON                                                                                     \
    MODEL, "data=[{synthetic: uniform}]", "train.seq=2048", "train.batch=64", "train.micro_batch=1"
static const char *const cluster_line = "64 h100, 8 per node, 400G";

typedef struct Made {
    RunConfig config;
    Cluster cluster;
    Outlook outlook;
    Timeline timeline;
    SearchResult found;
    Scaling scaling;
    Str json, page;
} Made;

static void write_page(Made *m)
{
    str_clear(&m->json);
    str_clear(&m->page);
    str_add(&m->json, "{");
    outlook_json(&m->outlook, &m->json);
    str_add(&m->json, "}");
    report_page(&(ReportInput){.outlook = &m->outlook,
                               .timeline = &m->timeline,
                               .found = m->found.n ? &m->found : NULL,
                               .scaling = &m->scaling,
                               .version = "test",
                               .json = m->json.at},
                &m->page);
}

static void make(Made *m, const char *const *settings, int n, const char *cluster, double tokens,
                 bool search)
{
    *m = (Made){0};
    assert_ok(run_config_load(NULL, settings, n, &m->config));
    assert_ok(cluster_load(cluster, &m->cluster));
    SearchOptions how = {.devices = 64, .max_batch = 64, .simulate = 6, .front = 6, .threads = 2};
    if (search) assert_ok(plan_search(&m->config, &m->cluster, &how, &m->found));
    assert_ok(outlook_make(search ? &m->found.plan[0].config : &m->config, &m->cluster,
                           &(PlanOptions){.jitter = -1, .timeline = &m->timeline}, tokens,
                           &m->outlook));
    outlook_scale(&m->outlook, &m->scaling);
    write_page(m);
}
#define SETTINGS(...)                                                                              \
    (const char *const[]){__VA_ARGS__}, COUNT_OF(((const char *const[]){__VA_ARGS__}))

static void done(Made *m)
{
    str_deinit(&m->json);
    str_deinit(&m->page);
    timeline_deinit(&m->timeline);
    outlook_deinit(&m->outlook);
    search_result_deinit(&m->found);
    cluster_deinit(&m->cluster);
    run_config_deinit(&m->config);
}

/* ---- a strict reader of what pages are made of ------------------------------------------ */

typedef struct Open {
    const char *name;
    size_t n;
} Open;

static const char *read_entity(const char *at)
{
    static const char *const known[] = {"&lt;", "&gt;", "&amp;", "&quot;"};
    for (int i = 0; i < COUNT_OF(known); i++)
        if (!strncmp(at, known[i], strlen(known[i]))) return at + strlen(known[i]);
    fail_msg("no entity: %.40s", at);
    return at;
}

static const char *read_name(const char *at)
{
    if (!isalpha((unsigned char)*at)) fail_msg("no name: %.40s", at);
    while (isalnum((unsigned char)*at) || *at == '-' || *at == ':') at++;
    return at;
}

/* ` name="value"`, as often as it comes. */
static const char *read_attributes(const char *at)
{
    while (*at == ' ') {
        at = read_name(at + 1);
        if (at[0] != '=' || at[1] != '"') fail_msg("an attribute without a value: %.40s", at);
        for (at += 2; *at != '"';) {
            if (!*at || *at == '<') fail_msg("an attribute that is not closed");
            at = *at == '&' ? read_entity(at) : at + 1;
        }
        at++;
    }
    return at;
}

static void check_page(const char *text)
{
    Open open[64];
    int depth = 0, elements = 0;
    static const char doctype[] = "<!DOCTYPE html>\n";
    assert_int_equal(strncmp(text, doctype, sizeof doctype - 1), 0);
    for (const char *at = text + sizeof doctype - 1; *at;) {
        if (*at == '&') {
            at = read_entity(at);
            continue;
        }
        if (*at != '<') {
            if (*at == '>' && !(depth && !strncmp(open[depth - 1].name, "style", 5)))
                fail_msg("a bare >: %.40s", at);
            at++;
            continue;
        }
        bool closes = at[1] == '/';
        const char *name = at + 1 + closes;
        at = read_name(name);
        size_t n = (size_t)(at - name);
        if (closes) {
            if (!depth || open[depth - 1].n != n || strncmp(open[depth - 1].name, name, n))
                fail_msg("</%.*s> closes nothing", (int)n, name);
            depth--;
        } else {
            at = read_attributes(at);
            elements++;
            if (*at == '/')
                at++;
            else if (depth < COUNT_OF(open))
                open[depth++] = (Open){name, n};
        }
        if (*at++ != '>') fail_msg("a tag that is not closed: %.40s", name);
    }
    assert_int_equal(depth, 0);
    assert_true(elements > 100);
}

static void check_fetches_nothing(const char *page)
{
    static const char *const words[] = {"http", "src=",    "url(",  "@import", "<script", "<link",
                                        "<img", "<iframe", "nan\"", "nan ",    "inf\""};
    for (int i = 0; i < COUNT_OF(words); i++)
        if (strstr(page, words[i])) fail_msg("the page has %s", words[i]);
}

/* ---- figures ---------------------------------------------------------------------------- */

static void check_leaf(const char *page, const char *key, json_t *value)
{
    char text[64] = "";
    for (void *at = json_object_iter(value); at; at = json_object_iter_next(value, at))
        check_leaf(page, json_object_iter_key(at), json_object_iter_value(at));
    for (size_t i = 0; i < json_array_size(value); i++)
        check_leaf(page, key, json_array_get(value, i));
    if (json_is_integer(value))
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
    if (json_is_string(value)) snprintf(text, sizeof text, "%s", json_string_value(value));
    if (*text && !strstr(page, text)) fail_msg("%s: %s is not on the page", key, text);
}

/* What somebody looks for first stands outside of the list of all figures. */
static void check_headline(const Made *m)
{
    const Plan *p = &m->outlook.plan;
    const FleetReport *f = &m->outlook.fleet;
    char text[64], money[32];
    char *page = strndup(m->page.at, (size_t)(strstr(m->page.at, "<details>") - m->page.at));
#define HAS(...)                                                                                   \
    do {                                                                                           \
        snprintf(text, sizeof text, __VA_ARGS__);                                                  \
        if (!strstr(page, text)) fail_msg("the page lacks %s", text);                              \
    } while (0)
    HAS("<b>%.4g s</b>", p->time.step_s);
    HAS("<b>%.1f %%</b>", 100 * p->mfu);
    HAS("%.4g TFLOP/s", p->tflops_per_gpu);
    HAS("<b>%.4g days</b>", f->time.days);
    HAS("<b>%s</b>", money_words(f->run_usd.central, money));
    HAS("<b>%.1f %%</b>", 100 * f->goodput[f->scheme].mean);
    HAS("%.4g s, %.1f%%", p->time.part.bubble_s, 100 * p->time.part.bubble_s / p->time.step_s);
#undef HAS
    free(page);
}

static void test_numbers(void **state)
{
    (void)state;
    char buf[32];
    assert_string_equal(money_words(5.2094e9, buf), "$5.21 B");
    assert_string_equal(money_words(999.6e6, buf), "$1 B");
    assert_string_equal(money_words(15.06e6, buf), "$15.1 M");
    assert_string_equal(money_words(4200, buf), "$4.2 k");
    assert_string_equal(money_words(0.9274, buf), "$0.927");
    static const struct {
        double from, to;
        bool is_log;
        int n;
        double first, last;
    } cases[] = {{0, 100, false, 6, 0, 100},       {0, 77, false, 4, 0, 60},
                 {98.5, 100, false, 4, 98.5, 100}, {10, 1000, true, 7, 10, 1000},
                 {80, 13e4, true, 4, 100, 1e5},    {3, 3, false, 1, 3, 3}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        double tick[MAX_TICKS];
        int n = chart_ticks(cases[i].from, cases[i].to, cases[i].is_log, tick);
        if (n != cases[i].n) fail_msg("%g to %g: %d ticks", cases[i].from, cases[i].to, n);
        assert_near(tick[0] + 1, cases[i].first + 1, 1e-12);
        assert_false(signbit(tick[0]));
        assert_near(tick[n - 1], cases[i].last, 1e-12);
    }
}

/* ---- tests ------------------------------------------------------------------------------ */

static void test_pipeline(void **state)
{
    (void)state;
    Made m;
    make(&m, SETTINGS(COMMON, "parallel.pp=4", "parallel.tp=2", "parallel.dp=8"), cluster_line,
         1e12, false);
    check_page(m.page.at);
    check_fetches_nothing(m.page.at);
    json_t *json = json_loads(m.json.at, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    check_leaf(m.page.at, "plan", json);
    json_decref(json);
    assert_true(m.outlook.has_fleet);
    check_headline(&m);
    /* 4 ranks, 8 micro-batches, forward and backward; sums of gradients and update */
    assert_int_equal(m.timeline.n, 4 * (8 * 2 + 2));
    assert_near(m.timeline.step_s, m.outlook.plan.time.step_s - m.outlook.plan.time.part.jitter_s,
                1e-9);
    for (int i = 0; i < 2; i++) {
        const TimelineWindow *w = &m.timeline.window[i];
        assert_int_equal(w->layers, 2);
        assert_true(w->n > 20 && w->end_s > w->begin_s);
        bool exchanges = false;
        for (int k = 0; k < w->n; k++) exchanges |= w->event[k].track == 1 + MESH_TP;
        assert_true(exchanges);
    }
    done(&m);
}

/* Hundreds of micro-batches on 16 ranks make no page that a browser chokes on. */
static void test_large(void **state)
{
    (void)state;
    Made m;
    make(&m,
         SETTINGS(COMMON, "parallel.pp=16", "parallel.dp=4", "train.batch=2048",
                  "parallel.schedule=1f1b"),
         cluster_line, 0, false);
    check_page(m.page.at);
    assert_true(m.timeline.n == 16 * (512 * 2 + 2));
    assert_true(m.page.n < 2000000);
    done(&m);
}

static void test_search(void **state)
{
    (void)state;
    Made m;
    make(&m, SETTINGS(COMMON), cluster_line, 1e12, true);
    check_page(m.page.at);
    assert_non_null(strstr(m.page.at, "What the search found"));
    size_t least = SIZE_MAX, best = m.found.plan[0].memory[m.found.plan[0].largest].total;
    for (int i = 0; i < m.found.n; i++) {
        size_t bytes = m.found.plan[i].memory[m.found.plan[i].largest].total;
        least = bytes < least ? bytes : least;
    }
    assert_true((double)least < 0.7 * (double)best); /* the front was planned too */
    done(&m);
}

/* Without a fleet, a budget, a pipeline, a search; and what does not fit. */
static void test_bare(void **state)
{
    (void)state;
    Made m;
    make(&m,
         SETTINGS("model={preset: llama3-nano}", "data=[{synthetic: uniform}]", "train.seq=64",
                  "train.batch=4"),
         "cpu", 0, false);
    assert_false(m.outlook.has_fleet);
    check_page(m.page.at);
    check_fetches_nothing(m.page.at);
    done(&m);
    make(&m,
         SETTINGS("model=llama3.1-8b", "data=[{synthetic: uniform}]", "train.batch=64",
                  "train.micro_batch=1", "parallel.dp=64"),
         cluster_line, 1e12, false);
    assert_false(m.outlook.plan.fits);
    assert_non_null(strstr(m.page.at, "<b>does not fit</b>"));
    check_page(m.page.at);
    done(&m);
}

static void test_escapes(void **state)
{
    (void)state;
    Made m;
    make(&m, SETTINGS(COMMON, "parallel.dp=8"), cluster_line, 0, false);
    m.outlook.plan.config.model.preset = "<b>&\"\x01 name";
    m.outlook.plan.cluster = "</p><script>";
    m.cluster.name = m.cluster.about = "\"><i>";
    write_page(&m);
    check_page(m.page.at);
    assert_non_null(strstr(m.page.at, "&lt;b&gt;&amp;&quot; name"));
    assert_null(strstr(m.page.at, "<script"));
    assert_null(strstr(m.page.at, "<i>"));
    done(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pipeline), cmocka_unit_test(test_large),
        cmocka_unit_test(test_search),   cmocka_unit_test(test_bare),
        cmocka_unit_test(test_escapes),  cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
