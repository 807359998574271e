/* The trace of a step: instructions of every rank as they ran, and exchanges that go on beside
 * them. */
#include "shop.h"

#include <jansson.h>

enum { RANKS = 2 };

/* Two ranks of a run with a trace; the events. */
static json_t *traced(const char *name, const char *overlap)
{
    Arena arena = {0};
    RunConfig config;
    const char *file = arena_printf(&arena, "%s/%s.json", shop, name);
    const char *more[] = {"train.steps=5", "checkpoint.every=0",
                          "parallel.dp=2", "parallel.bucket=20000",
                          overlap,         arena_printf(&arena, "log.trace=%s", file)};
    assert_ok(load(name, more, COUNT_OF(more), &config));
    train_ranks(&config);
    run_config_deinit(&config);
    json_error_t error;
    json_t *root = json_load_file(file, JSON_REJECT_DUPLICATES, &error);
    if (!root) fail_msg("%s: %s", file, error.text);
    json_t *events = json_incref(json_object_get(root, "traceEvents"));
    json_decref(root);
    arena_deinit(&arena);
    return events;
}

static const char *text_of(const json_t *event, const char *key)
{
    const char *text = json_string_value(json_object_get(event, key));
    return text ? text : "";
}
static double number_of(const json_t *event, const char *key)
{
    return json_number_value(json_object_get(event, key));
}
static bool is_interval(const json_t *event) { return !strcmp(text_of(event, "ph"), "X"); }
static bool is_instr(const json_t *event)
{
    return is_interval(event) && json_object_get(json_object_get(event, "args"), "op") != NULL;
}

/* Instructions of the same rank that lie inside the event's interval. */
static int instructions_inside(const json_t *events, const json_t *event)
{
    double begin = number_of(event, "ts"), end = begin + number_of(event, "dur");
    const json_t *other;
    size_t i;
    int n = 0;
    json_array_foreach((json_t *)(uintptr_t)events, i, other)
    {
        if (!is_instr(other) || number_of(other, "pid") != number_of(event, "pid")) continue;
        bool product = !strncmp(text_of(json_object_get(other, "args"), "op"), "linear", 6);
        n += product && number_of(other, "ts") >= begin &&
             number_of(other, "ts") + number_of(other, "dur") <= end;
    }
    return n;
}

/* Sums of gradients with products inside their intervals, of all and of both ranks. */
static void count_hidden(const json_t *events, int hidden[RANKS], int *sums)
{
    const json_t *event;
    size_t i;
    *sums = 0;
    json_array_foreach((json_t *)(uintptr_t)events, i, event)
    {
        if (!is_interval(event) || is_instr(event) ||
            strcmp(text_of(event, "cat"), "all_reduce") != 0)
            continue;
        if (strcmp(text_of(json_object_get(event, "args"), "group"), "dp") != 0) continue;
        ++*sums;
        hidden[(int)number_of(event, "pid")] += instructions_inside(events, event) > 0;
    }
}

/* Intervals of one track never overlap, and each rank and track has a name. */
static void check_tracks(json_t *events)
{
    json_t *a, *b;
    size_t i, j;
    int named = 0, instrs[RANKS] = {0};
    json_array_foreach(events, i, a)
    {
        if (!strcmp(text_of(a, "ph"), "M")) named += !strcmp(text_of(a, "name"), "process_name");
        if (!is_interval(a)) continue;
        assert_true(number_of(a, "dur") >= 0 && number_of(a, "ts") > -1e3 && *text_of(a, "name"));
        instrs[(int)number_of(a, "pid")] += is_instr(a);
        if (is_instr(a)) continue; /* as they come, one after the other */
        json_array_foreach(events, j, b)
        {
            if (j <= i || !is_interval(b) || number_of(a, "pid") != number_of(b, "pid") ||
                number_of(a, "tid") != number_of(b, "tid"))
                continue;
            double gap = number_of(b, "ts") - (number_of(a, "ts") + number_of(a, "dur"));
            assert_true(gap > -0.01 ||
                        number_of(b, "ts") + number_of(b, "dur") <= number_of(a, "ts") + 0.01);
        }
    }
    assert_int_equal(named, RANKS);
    assert_true(instrs[0] > 100 && instrs[0] == instrs[1]);
}

static void test_trace(void **state)
{
    (void)state;
    int hidden[RANKS] = {0}, sums;
    json_t *events = traced("trace", "parallel.overlap=true");
    check_tracks(events);
    count_hidden(events, hidden, &sums);
    assert_true(sums >= 2 * RANKS * 3); /* two steps, several buckets in each */
    assert_true(hidden[0] >= 4 && hidden[1] >= 4);
    json_decref(events);
}

/* The same without overlap: no sum has a product beside it. */
static void test_blocking(void **state)
{
    (void)state;
    int hidden[RANKS] = {0}, sums;
    json_t *events = traced("blocking", "parallel.overlap=false");
    count_hidden(events, hidden, &sums);
    assert_true(sums > 0 && hidden[0] + hidden[1] == 0);
    json_decref(events);
}

/* metrics.jsonl says of each step what it waited, by kind. */
static void test_exposed(void **state)
{
    (void)state;
    Arena arena = {0};
    Bytes text;
    assert_ok(file_read(&arena, arena_printf(&arena, "%s/runs/trace/metrics.jsonl", shop), 1 << 20,
                        &text));
    int steps = 0, exposed = 0;
    char *save, *copy = arena_printf(&arena, "%.*s", (int)text.n, (const char *)text.at);
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *json = json_loads(line, 0, NULL);
        assert_non_null(json);
        const json_t *kinds = json_object_get(json, "exposed_s");
        steps += json_object_get(json, "loss") != NULL;
        exposed += kinds && number_of(kinds, "all_reduce") > 0 &&
                   number_of(kinds, "all_reduce") < number_of(json, "step_s");
        json_decref(json);
    }
    assert_int_equal(steps, 5);
    assert_int_equal(exposed, 5);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trace),
                                       cmocka_unit_test(test_blocking),
                                       cmocka_unit_test(test_exposed)};
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
