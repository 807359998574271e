/* Run files: what is accepted, what each refusal says, and that a resolved file reads back the
 * same. */
#include "run/run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static Status parse(const char *text, RunConfig *config)
{
    return run_config_parse((Bytes){(const uint8_t *)text, strlen(text)}, "demo.yaml", NULL, 0,
                            config);
}

static Status parse_with(const char *text, const char *override, RunConfig *config)
{
    return run_config_parse((Bytes){(const uint8_t *)text, strlen(text)}, "demo.yaml", &override, 1,
                            config);
}

static void test_three_lines(void **state)
{
    (void)state;
    RunConfig c;
    assert_int_equal(parse("name: tiny\nmodel: llama4-nano\ndata: /usr/include\n", &c), OK);
    assert_string_equal(c.name, "tiny");
    assert_string_equal(c.dir, "runs/tiny");
    assert_string_equal(c.model.preset, "llama4-nano");
    assert_string_equal(c.model.fields_json, "{}");
    assert_int_equal(c.n_sources, 1);
    assert_string_equal(c.sources[0].path, "/usr/include");
    assert_string_equal(c.sources[0].key, "text");
    assert_true(c.sources[0].weight == 1.0);
    assert_int_equal(c.train.batch, 16);
    assert_int_equal(c.train.micro_batch, 16);
    assert_int_equal(c.train.warmup, 10);
    assert_true(c.train.lr == 3e-4);
    assert_int_equal(c.dataset.line_limit, 64 << 20);
    run_config_deinit(&c);
}

static void test_design_example(void **state)
{
    (void)state;
    RunConfig c;
    Status status = parse(
        "name: demo\nmodel:\n  model_type: llama4_text\n  hidden_size: 384\n  rope_theta: 5e5\n  "
        "tie: true\n"
        "  x: null\n  moe_layers: [1, 3]\n  s: \"7\"\n"
        "tokenizer: {train: {vocab_size: 8192}}\n"
        "data:\n  - {path: \"/usr/include/**/*.h\", weight: 3}\n  - notes.txt\n"
        "train: {steps: 1e3, batch: 32, micro_batch: 8, seq: 128, precision: bf16, lr: 1e-3, "
        "schedule: cosine,\n"
        "  warmup: 20, recompute: selective, canonical: true, memory_limit: 2GiB}\n"
        "parallel: {dp: 1, schedule: gpipe}\ncheckpoint: {every: 50, keep: 2}\n",
        &c);
    if (status != OK) fail_msg("%s", status_message());
    assert_string_equal(
        c.model.fields_json,
        "{\"model_type\": \"llama4_text\", \"hidden_size\": 384, \"rope_theta\": 500000.0, "
        "\"tie\": true, \"x\": null, \"moe_layers\": [1, 3], \"s\": \"7\"}");
    assert_int_equal(c.tokenizer.vocab_size, 8192);
    assert_int_equal(c.n_sources, 2);
    assert_string_equal(c.sources[1].path, "notes.txt");
    assert_true(c.sources[0].weight == 3.0);
    assert_int_equal(c.train.steps, 1000);
    assert_int_equal(c.train.precision, RUN_BF16);
    assert_int_equal(c.train.schedule, RUN_COSINE);
    assert_int_equal(c.train.recompute, RUN_RECOMPUTE_SELECTIVE);
    assert_true(c.train.canonical);
    assert_true(c.train.memory_limit == (int64_t)2 << 30);
    assert_string_equal(c.parallel.schedule, "gpipe");
    run_config_deinit(&c);
}

static void test_overrides(void **state)
{
    (void)state;
    static const char text[] =
        "model: llama4-nano\ndata: [{path: a, weight: 1}, {path: b}]\ntrain: {lr: 1e-3}\n";
    RunConfig c;
    assert_int_equal(parse_with(text, "train.lr=2e-3", &c), OK);
    assert_true(c.train.lr == 2e-3);
    run_config_deinit(&c);
    assert_int_equal(parse_with(text, "data=*.txt", &c), OK);
    assert_int_equal(c.n_sources, 1);
    assert_string_equal(c.sources[0].path, "*.txt");
    run_config_deinit(&c);
    assert_int_equal(parse_with(text, "data.1.weight=2.5", &c), OK);
    assert_true(c.sources[1].weight == 2.5);
    run_config_deinit(&c);
    assert_int_equal(parse_with(text, "model.num_hidden_layers=4", &c), OK);
    assert_string_equal(c.model.preset, "llama4-nano");
    assert_string_equal(c.model.fields_json, "{\"num_hidden_layers\": 4}");
    run_config_deinit(&c);
    assert_int_equal(parse_with(text, "model.moe_layers=[1, 3]", &c), OK);
    assert_string_equal(c.model.fields_json, "{\"moe_layers\": [1, 3]}");
    run_config_deinit(&c);
    assert_int_equal(parse_with(text, "tokenizer.train.vocab_size=1000", &c), OK);
    assert_int_equal(c.tokenizer.vocab_size, 1000);
    run_config_deinit(&c);
}

/* Each refusal names what and where: all of the `says` must stand in the sentence. */
static const struct Refusal {
    const char *text, *override;
    Status status;
    const char *says[4];
} refusals[] = {
    {"name: a\ntrain:\n  stps: 5\n", NULL, ERR_ARG, {"demo.yaml:3", "train.stps", "train.steps"}},
    {"lr: 1e-3\n", NULL, ERR_ARG, {"demo.yaml:1", "'lr'", "train.lr"}},
    {"trian: {lr: 1}\n", NULL, ERR_ARG, {"'trian'", "mean train?"}},
    {"train: {lr: fast}\n",
     NULL,
     ERR_ARG,
     {"demo.yaml:1", "train.lr is fast", "a number", "1e-12 to 10"}},
    {"train: {lr: 11}\n", NULL, ERR_ARG, {"train.lr is 11", "1e-12 to 10"}},
    {"train: {lr: .nan}\n", NULL, ERR_ARG, {"train.lr is .nan", "a number"}},
    {"train: {lr: nan}\n", NULL, ERR_ARG, {"train.lr is nan", "a number"}},
    {"train: {steps: 1.5}\n", NULL, ERR_ARG, {"train.steps is 1.5", "a whole number"}},
    {"train: {steps: \"200\"}\n", NULL, ERR_ARG, {"the text \"200\"", "a whole number"}},
    {"train: {steps: 99999999999999999999}\n", NULL, ERR_ARG, {"train.steps"}},
    {"train: {steps: [1, 2]}\n", NULL, ERR_ARG, {"train.steps is a list"}},
    {"train: {steps: }\n", NULL, ERR_ARG, {"train.steps is empty"}},
    {"train: {seq: 0}\n", NULL, ERR_ARG, {"train.seq is 0", "1 to 16777216 tokens"}},
    {"train: {canonical: yes}\n", NULL, ERR_ARG, {"train.canonical is yes", "true or false"}},
    {"train: {precision: fp16}\n",
     NULL,
     ERR_ARG,
     {"train.precision is fp16", "auto, f32, bf16 or fp8"}},
    {"train: {fp8_scaling: tensor}\n",
     NULL,
     ERR_ARG,
     {"train.fp8_scaling is tensor", "row or block"}},
    {"train: {memory_limit: 5 apples}\n", NULL, ERR_ARG, {"train.memory_limit", "8GiB"}},
    {"train: 5\n", NULL, ERR_ARG, {"demo.yaml:1", "train is a section"}},
    {"train:\n  lr: 1\n  seq: 8\n  lr: 2\n",
     NULL,
     ERR_ARG,
     {"demo.yaml:4", "'lr' stands twice", "line 2"}},
    {"train: {batch: 10, micro_batch: 4}\n",
     NULL,
     ERR_REFUSED,
     {"micro_batch 4", "does not divide", "batch 10", "demo.yaml:1"}},
    {"train: {batch: 4, micro_batch: 8}\n", NULL, ERR_REFUSED, {"does not divide"}},
    {"train:\n  steps: 5\n  warmup: 6\n",
     NULL,
     ERR_REFUSED,
     {"demo.yaml:3", "warmup 6", "steps 5"}},
    {"train: {steps: 100, warmup: 50, decay: 0.6}\n",
     NULL,
     ERR_REFUSED,
     {"train.decay 0.6", "exceed"}},
    {"parallel: {tp: 0}\n", NULL, ERR_ARG, {"parallel.tp is 0", "ranks"}},
    {"model: {preset: a, from: b}\n", NULL, ERR_REFUSED, {"model.from", "model.preset"}},
    {"model: [a]\n", NULL, ERR_ARG, {"model is a list"}},
    {"model: {hidden_size: .inf}\n", NULL, ERR_ARG, {".inf is no finite"}},
    {"tokenizer: {path: a, train: {vocab_size: 500}}\n",
     NULL,
     ERR_REFUSED,
     {"tokenizer.path", "tokenizer.train"}},
    {"tokenizer: {train: {vocab_size: 100}}\n", NULL, ERR_ARG, {"vocab_size is 100", "288 to"}},
    {"data: [{weight: 1}]\n", NULL, ERR_ARG, {"demo.yaml:1", "names no path"}},
    {"data:\n- {path: a, wieght: 2}\n", NULL, ERR_ARG, {"demo.yaml:2", "wieght", "weight?"}},
    {"data: [{path: a, weight: -1}]\n", NULL, ERR_ARG, {"data[].weight is -1"}},
    {"data: [{path: a, synthetic: uniform}]\n", NULL, ERR_REFUSED, {"not both"}},
    {"data: [a, {synthetic: uniform}]\n", NULL, ERR_REFUSED, {"cannot be mixed"}},
    {"name: ../up\n", NULL, ERR_ARG, {"../up", "file name"}},
    {"- a\n- b\n", NULL, ERR_ARG, {"demo.yaml:1", "a list"}},
    {"just text\n", NULL, ERR_ARG, {"single text"}},
    {"a: &x 1\nb: *x\n", NULL, ERR_ARG, {"demo.yaml:1", "anchors"}},
    {"data: *.txt\n", NULL, ERR_ARG, {"demo.yaml:1", "quotes"}},
    {"name: !!str a\n", NULL, ERR_ARG, {"tags"}},
    {"name: a\n---\nname: b\n", NULL, ERR_ARG, {"demo.yaml:2", "second document"}},
    {"name: [a\n", NULL, ERR_ARG, {"demo.yaml:"}},
    {"name: a\n\ttrain: 1\n", NULL, ERR_ARG, {"demo.yaml:2"}},
    {"name: \"a\\0b\"\n", NULL, ERR_ARG, {"zero byte"}},
    {"name: \xff\n", NULL, ERR_ARG, {"demo.yaml"}},
    {"? [a]\n: b\n", NULL, ERR_ARG, {"a key must be"}},
    {"", "train.lr", ERR_ARG, {"key=value"}},
    {"", "train.lr=abc", ERR_ARG, {"'train.lr=abc' on the command line", "train.lr is abc"}},
    {"", "train..lr=1", ERR_ARG, {"empty"}},
    {"", "tarin.lr=1", ERR_ARG, {"'tarin'", "mean train?"}},
    {"data: [a]\n", "data.1.weight=2", ERR_ARG, {"0 to 0"}},
    {"data: [a]\n", "data.x.weight=2", ERR_ARG, {"number of an element"}},
    {"", "train={lr: ", ERR_ARG, {"command line"}},
    {"", "name=\xff", ERR_ARG, {"UTF-8"}},
};

static void test_refusals(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(refusals); i++) {
        const struct Refusal *r = &refusals[i];
        RunConfig c;
        Status status = r->override ? parse_with(r->text, r->override, &c) : parse(r->text, &c);
        if (status != r->status)
            fail_msg("%s%s gave %s", r->text, r->override ? r->override : "", status_name(status));
        for (int k = 0; k < 4 && r->says[k]; k++)
            if (!strstr(status_message(), r->says[k]))
                fail_msg("for %s%s the sentence lacks '%s': %s", r->text,
                         r->override ? r->override : "", r->says[k], status_message());
        assert_null(strchr(status_message(), '\n'));
    }
}

static void test_depth_and_size(void **state)
{
    (void)state;
    RunConfig c;
    Str text = {0};
    str_add(&text, "model: {x: ");
    for (int i = 0; i < 100000; i++) str_add(&text, "[");
    assert_int_equal(parse(text.at, &c), ERR_ARG);
    assert_non_null(strstr(status_message(), "24 deep"));
    str_clear(&text);
    for (int i = 0; i < 5000; i++) str_printf(&text, "k%d: 1\n", i);
    assert_int_equal(parse(text.at, &c), ERR_ARG);
    assert_non_null(strstr(status_message(), "4096 keys"));
    str_clear(&text);
    while (text.n <= 1 << 20)
        str_add(&text, "# long comment, again and again, until the file is too large\n");
    assert_int_equal(parse(text.at, &c), ERR_ARG);
    assert_non_null(strstr(status_message(), "at most 1048576"));
    str_deinit(&text);
}

static void assert_same_bits(const RunConfig *a, const RunConfig *b)
{
    Str one = {0}, two = {0};
    run_config_text(a, &one);
    run_config_text(b, &two);
    assert_string_equal(one.at, two.at);
    for (int i = 0; i < run_setting_count(); i++) {
        const Setting *s = run_setting(i);
        const char *x = (const char *)a + s->offset, *y = (const char *)b + s->offset;
        if (!strncmp(s->name, "data[].", 7)) continue;
        if (s->type == SETTING_FLOAT) assert_memory_equal(x, y, sizeof(double));
        if (s->type == SETTING_INT || s->type == SETTING_BYTES)
            assert_memory_equal(x, y, sizeof(int64_t));
    }
    assert_int_equal(a->n_sources, b->n_sources);
    for (int i = 0; i < a->n_sources; i++) {
        assert_string_equal(a->sources[i].path, b->sources[i].path);
        assert_true(a->sources[i].weight == b->sources[i].weight);
    }
    assert_string_equal(a->model.fields_json, b->model.fields_json);
    str_deinit(&one);
    str_deinit(&two);
}

static void test_resolved_file_reads_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "name: a\n",
        "model: nano\ntokenizer: some/path\ndata: [{path: 'x: \"y\" \\ # z', weight: 0.1}, b]\n",
        "model: {from: dir, a: {b: [1, 2.5, x, \"7\", null, {c: true}]}, d: 1e-5}\ntrain: {lr: "
        "1.2345678901234567e-4}\n",
        "data: [{synthetic: uniform}]\ntrain: {steps: 1000000, warmup: 0, decay: "
        "0.33333333333333331}\n",
        "name: \"\xc3\xa9t\xc3\xa9\"\ndir: \"tab\\there\"\n",
    };
    char path[] = "/tmp/drover-run-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < COUNT_OF(texts); i++) {
        RunConfig first, second;
        if (parse(texts[i], &first) != OK) fail_msg("%s", status_message());
        assert_int_equal(run_config_write(&first, path), OK);
        if (run_config_load(path, NULL, 0, &second) != OK) fail_msg("%s", status_message());
        assert_same_bits(&first, &second);
        run_config_deinit(&first);
        run_config_deinit(&second);
    }
    unlink(path);
    RunConfig c;
    assert_int_equal(run_config_load("/nonexistent/run.yaml", NULL, 0, &c), ERR_IO);
    assert_int_equal(run_config_load(NULL, NULL, 0, &c), OK);
    assert_string_equal(c.name, "run");
    run_config_deinit(&c);
}

static void test_table_is_sound(void **state)
{
    (void)state;
    for (int i = 0; i < run_setting_count(); i++) {
        const Setting *s = run_setting(i);
        assert_ptr_equal(run_setting_find(s->name), s);
        assert_true(strlen(s->sentence) > 3);
        assert_null(strchr(s->sentence, '|')); /* would break the table of the page */
        assert_int_equal(s->choices != NULL, s->type == SETTING_CHOICE);
    }
    Str help = {0};
    run_settings_help(&help);
    for (char *line = help.at, *end; (end = strchr(line, '\n')); line = end + 1)
        assert_true(end - line <= 100);
    str_deinit(&help);
}

/* docs/run-file.md is made from the table: DROVER_UPDATE_DOCS=1 writes it anew. */
static void test_page_matches_table(void **state)
{
    (void)state;
    static const char path[] = SOURCE_DIR "/docs/run-file.md";
    Str text = {0};
    run_settings_markdown(&text);
    if (getenv("DROVER_UPDATE_DOCS"))
        assert_int_equal(file_write_atomic(path, text.at, text.n), OK);
    Arena arena = {0};
    Bytes page;
    assert_int_equal(file_read(&arena, path, 1 << 20, &page), OK);
    if (strcmp((const char *)page.at, text.at) != 0)
        fail_msg("docs/run-file.md is not what the table says; DROVER_UPDATE_DOCS=1 "
                 "build/run_run_test writes it");
    arena_deinit(&arena);
    str_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_lines),    cmocka_unit_test(test_design_example),
        cmocka_unit_test(test_overrides),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_depth_and_size), cmocka_unit_test(test_resolved_file_reads_back),
        cmocka_unit_test(test_table_is_sound), cmocka_unit_test(test_page_matches_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
