/* Schedules, the policy for bad steps, event files. */
#include "train/metrics.h"
#include "train/train.h"
#include "base/testing.h"

#include <math.h>
#include <unistd.h>

static void near(double got, double want)
{
    if (fabs(got - want) > 1e-12 + 1e-9 * fabs(want)) fail_msg("%.12g, not %.12g", got, want);
}

static void schedules(void **state)
{
    (void)state;
    Schedule s = {
        .kind = RUN_WSD, .lr = 1, .min_ratio = 0.1, .steps = 100, .warmup = 10, .decay_steps = 20};
    near(schedule_lr(&s, 0), 0.1);
    near(schedule_lr(&s, 9), 1);
    near(schedule_lr(&s, 50), 1);
    near(schedule_lr(&s, 80), 1);
    near(schedule_lr(&s, 90), 0.55);
    near(schedule_lr(&s, 100), 0.1);
    s.kind = RUN_COSINE;
    near(schedule_lr(&s, 4), 0.5);
    near(schedule_lr(&s, 10), 1);
    near(schedule_lr(&s, 55), 0.55);
    near(schedule_lr(&s, 100), 0.1);
    s.warmup = 90; /* longer than what is left: still a straight rise */
    for (int i = 0; i < 90; i++) near(schedule_lr(&s, i), (i + 1) / 90.0);
    s.steps = 50; /* the run ends while it warms up */
    for (int i = 0; i < 50; i++) near(schedule_lr(&s, i), (i + 1) / 90.0);
    s.kind = RUN_CONSTANT;
    near(schedule_lr(&s, 99), 1);
}

static void bad_steps(void **state)
{
    (void)state;
    const char *why;
    BadSteps p = {.spike_factor = 3, .max_skips = 2, .skip_nonfinite = true};
    for (int i = 0; i < 30; i++) assert_int_equal(bad_steps_judge(&p, 2.0, 1.0, &why), STEP_GOOD);
    assert_int_equal(bad_steps_judge(&p, 6.1, 1.0, &why), STEP_SKIP);
    assert_string_equal(why, "the loss jumped");
    near(p.mean_loss, 2);
    assert_int_equal(bad_steps_judge(&p, NAN, 1.0, &why), STEP_SKIP);
    assert_int_equal(bad_steps_judge(&p, 2.0, INFINITY, &why), STEP_STOP);
    assert_int_equal(bad_steps_judge(&p, 2.0, 1.0, &why), STEP_GOOD);
    assert_int_equal(p.n_in_a_row, 0);
    assert_int_equal(p.n_skipped, 3);
    p.skip_nonfinite = false;
    assert_int_equal(bad_steps_judge(&p, NAN, 1.0, &why), STEP_STOP);
}

static void crc_of_known_bytes(void **state)
{
    (void)state;
    uint8_t zeros[32] = {0};
    assert_int_equal(crc32c(zeros, sizeof zeros), 0x8a9136aa);
    assert_int_equal(crc32c("123456789", 9), 0xe3069283);
}

/* Every record's checksums hold, and the scalar is where the format says. */
static void event_file_reads_back(void **state)
{
    (void)state;
    char dir[] = "/tmp/drover-events-XXXXXX";
    assert_non_null(mkdtemp(dir));
    EventFile file;
    assert_int_equal(event_file_open(dir, 5, &file), OK);
    const char *tag = "train/loss";
    assert_int_equal(event_file_scalars(&file, 6, 1, &tag, &(double){1.5}), OK);
    Arena arena = {0};
    Bytes bytes;
    assert_int_equal(file_read(&arena, file.path, 1 << 20, &bytes), OK);
    int records = 0;
    for (size_t at = 0; at < bytes.n; records++) {
        uint64_t n;
        uint32_t crc, want;
        memcpy(&n, bytes.at + at, 8);
        memcpy(&crc, bytes.at + at + 8, 4);
        want = crc32c(bytes.at + at, 8);
        assert_int_equal(crc, (want >> 15 | want << 17) + 0xa282ead8u);
        memcpy(&crc, bytes.at + at + 12 + n, 4);
        want = crc32c(bytes.at + at + 12, n);
        assert_int_equal(crc, (want >> 15 | want << 17) + 0xa282ead8u);
        at += 16 + n;
    }
    assert_int_equal(records, 3); /* version, start of the session, scalar */
    assert_non_null(memmem(bytes.at, bytes.n, "\x0a\x0atrain/loss\x15\x00\x00\xc0\x3f", 17));
    event_file_close(&file);
    arena_deinit(&arena);
    assert_int_equal(dir_remove_tree(dir), OK);
}

static void metrics_survive_a_lost_directory(void **state)
{
    (void)state;
    char dir[] = "/tmp/drover-metrics-XXXXXX";
    assert_non_null(mkdtemp(dir));
    log_set_level(LOG_SILENT);
    Metrics *m = metrics_open(dir, false, 0);
    StepMetrics s = {.step = 1, .loss = 2, .mfu = NAN, .val_loss = NAN, .val_bits_per_byte = NAN};
    metrics_step(m, &s);
    metrics_event(m, "note", 1, "say \"hi\"\n");
    assert_int_equal(fault_set("write:1"), OK);
    s.step = 2;
    metrics_step(m, &s); /* lost, as on a full disk */
    assert_int_equal(fault_set(NULL), OK);
    s.step = 3;
    metrics_step(m, &s);
    metrics_close(m);
    Arena arena = {0};
    Bytes text;
    assert_int_equal(file_read(&arena, path_join(&arena, dir, "metrics.jsonl"), 1 << 20, &text),
                     OK);
    assert_non_null(strstr((const char *)text.at, "{\"step\": 1, \"tokens\": 0, \"loss\": 2,"));
    assert_non_null(strstr((const char *)text.at, "\"text\": \"say \\\"hi\\\"\\u000a\"}"));
    assert_null(strstr((const char *)text.at,
                       "\"step\": 2, \"tokens\": 0, \"loss\": 2, \"grad_norm\": 0, \"lr\": 0, "
                       "\"step_s\": 0, \"tokens_per_s\": 0, \"mfu\": null"));
    assert_non_null(strstr((const char *)text.at, "\n{\"step\": 3")); /* on a line of its own */
    arena_deinit(&arena);
    assert_int_equal(dir_remove_tree(dir), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules),
        cmocka_unit_test(bad_steps),
        cmocka_unit_test(crc_of_known_bytes),
        cmocka_unit_test(event_file_reads_back),
        cmocka_unit_test(metrics_survive_a_lost_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
