/* Checkpoints of several ranks, which are threads here: whatever the layout that writes them, the
 * bytes of every file are the same; each rank writes an equal share; training goes on meanwhile;
 * what one rank cannot write, or finds damaged, none of them uses. */
#include "train/train_testkit.h"

static void damage(const char *path, int64_t from_end)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    off_t at = lseek(fd, (off_t)-from_end, SEEK_END);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* ---- tests ------------------------------------------------------------------------------ */

/* A rank's share is what it must be: all shares together are the checkpoint, and those of ranks
 * that hold the same differ by the rounding of a piece at most. */
static void check_shares(const Job *job, uint64_t all)
{
    uint64_t sum = 0, most = 0;
    for (int r = 0; r < job->n; r++) {
        sum += job->share_bytes[r];
        if (job->share_bytes[r] > most) most = job->share_bytes[r];
    }
    if (sum < all || sum > all + all / 20)
        fail_msg("%s: %llu bytes are written, not %llu", job->layout, (unsigned long long)sum,
                 (unsigned long long)all);
    if (!strstr(job->layout, "pp") && (double)most > 1.15 * (double)all / job->n)
        fail_msg("%s: one rank writes %llu of %llu bytes", job->layout, (unsigned long long)most,
                 (unsigned long long)all);
}

/* One rank trains two steps. Then layout after layout loads what the one before has written, and
 * writes it again. */
static void every_layout_writes_the_same_bytes(const char *name, const char *model,
                                               const char *precision, const char *const *layouts,
                                               int n)
{
    Arena arena = {0};
    DirEntries entries;
    Bytes *content;
    Job first = {.name = name, .model = model, .layout = "", .steps = 2, .more = {precision}};
    assert_ok(run(&first));
    const char *path = step_path(&arena, name, 2);
    read_dir(&arena, path, &entries, &content);
    assert_true(entries.n >= 6);
    for (int i = 0; i < n; i++) {
        Job job = {.name = name,
                   .model = model,
                   .layout = layouts[i],
                   .steps = 2,
                   .again = true,
                   .more = {precision}};
        assert_ok(run(&job));
        assert_int_equal(job.step, 2);
        assert_same_files(layouts[i], &entries, content, path);
        check_shares(&job, first.share_bytes[0]);
    }
    arena_deinit(&arena);
}

static void test_llama4(void **state)
{
    (void)state;
    static const char *const layouts[] = {"dp=2",
                                          "tp=2",
                                          "fsdp=4",
                                          "pp=2",
                                          "tp=4",
                                          "ep=2",
                                          "fsdp=2 tp=2",
                                          "cp=2",
                                          "ep=4",
                                          "pp=4",
                                          "dp=2 ep=2 tp=2",
                                          "pp=2 fsdp=2",
                                          "ep=2 fsdp=2",
                                          "pp=2 ep=2 tp=2",
                                          "dp=4",
                                          "",
                                          "dp=2 fsdp=2 cp=2 tp=2",
                                          "cp=4 context=ring",
                                          "dp=2 zero=1",
                                          "dp=2 zero=2 tp=2",
                                          "dp=4 zero=3",
                                          "dp=2 zero=1 ep=2",
                                          "pp=2 dp=2 zero=2",
                                          "pp=2 schedule=zb-v",
                                          "pp=2 tp=2 schedule=interleaved"};
    every_layout_writes_the_same_bytes("llama4", llama4, "train.precision=f32", layouts,
                                       COUNT_OF(layouts));
}

static void test_llama3(void **state)
{
    (void)state;
    static const char *const layouts[] = {"tp=4",        "fsdp=8", "dp=2 tp=2", "fsdp=4 tp=2",
                                          "cp=2 fsdp=2", "pp=2",   "pp=2 tp=2"};
    every_layout_writes_the_same_bytes("llama3", llama3, "train.precision=f32", layouts,
                                       COUNT_OF(layouts));
}

/* What is computed with is bf16, what is saved are the f32 masters. */
static void test_bf16(void **state)
{
    (void)state;
    static const char *const layouts[] = {"tp=2", "fsdp=2",           "dp=2 zero=1",
                                          "pp=2", "dp=2 zero=2 tp=2", ""};
    every_layout_writes_the_same_bytes("bf16", llama4, "train.precision=bf16", layouts,
                                       COUNT_OF(layouts));
}

static void test_grok1(void **state)
{
    (void)state;
    static const char *const layouts[] = {"ep=2",        "tp=2",      "ep=4",
                                          "ep=2 fsdp=2", "ep=2 tp=2", "pp=2 ep=2"};
    every_layout_writes_the_same_bytes("grok1", grok1, "train.precision=f32", layouts,
                                       COUNT_OF(layouts));
}

/* What is written while steps go on is what was there when the save began. */
static void test_training_goes_on(void **state)
{
    (void)state;
    Arena arena = {0};
    DirEntries entries;
    Bytes *content;
    const char *every = "checkpoint.every=3", *keep = "checkpoint.keep=9";
    Job async = {.name = "async",
                 .model = llama4,
                 .layout = "fsdp=2 tp=2",
                 .steps = 10,
                 .more = {every, keep}};
    Job sync = {.name = "sync",
                .model = llama4,
                .layout = "fsdp=2 tp=2",
                .steps = 10,
                .more = {every, keep, "checkpoint.async=false"}};
    assert_ok(run(&async));
    assert_ok(run(&sync));
    static const int64_t steps[] = {3, 6, 9, 10};
    for (int i = 0; i < COUNT_OF(steps); i++) {
        read_dir(&arena, step_path(&arena, "async", steps[i]), &entries, &content);
        assert_same_files("checkpoint.async=false", &entries, content,
                          step_path(&arena, "sync", steps[i]));
    }
    Bytes metrics; /* how long the loop was held is said */
    assert_ok(
        file_read(&arena, arena_printf(&arena, "%s/async/metrics.jsonl", shop), 1 << 20, &metrics));
    assert_non_null(strstr((const char *)metrics.at, "\"stall_s\": "));
    assert_non_null(strstr((const char *)metrics.at, "\"interval_s\": "));
    arena_deinit(&arena);
}

/* A call of a save fails on one of the ranks: training goes on, nothing of that save is left, the
 * last one is good. */
static void test_a_rank_that_cannot_write(void **state)
{
    (void)state;
    static const char *const faults[] = {"write:4", "write:9", "reserve:1",
                                         "fsync:4", "fsync:6", "read:9"};
    for (int i = 0; i < COUNT_OF(faults); i++) {
        Arena arena = {0};
        Bytes metrics;
        const char *name = arena_printf(&arena, "full-%d", i);
        Job job = {.name = name,
                   .model = llama4,
                   .layout = "dp=2 tp=2",
                   .steps = 9,
                   .more = {"checkpoint.every=4", "checkpoint.keep=9"},
                   .fault = faults[i]};
        assert_ok(run(&job));
        assert_false(dir_exists(step_path(&arena, name, 4)));
        assert_true(dir_exists(step_path(&arena, name, 8)) &&
                    dir_exists(step_path(&arena, name, 9)));
        assert_ok(file_read(&arena, arena_printf(&arena, "%s/%s/metrics.jsonl", shop, name),
                            1 << 20, &metrics));
        assert_non_null(strstr((const char *)metrics.at, "checkpoint_failed"));
        Job next = {.name = name, .model = llama4, .layout = "tp=2", .steps = 9, .again = true};
        assert_ok(run(&next));
        assert_int_equal(next.step, 9);
        arena_deinit(&arena);
    }
}

/* A rank cannot even begin: all hear of it at the next meeting, and training goes on without
 * checkpoints. */
static void test_a_rank_that_cannot_begin(void **state)
{
    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        Arena arena = {0};
        const char *name = rank ? "crippled-1" : "crippled-0";
        Job job = {.name = name,
                   .model = llama4,
                   .layout = "fsdp=2",
                   .steps = 9,
                   .more = {"checkpoint.every=2"},
                   .crippled = 1 + rank};
        assert_int_equal(run(&job), ERR_IO); /* of the last save */
        if (!strstr(status_message(), "no snapshot buffer")) fail_msg("%s", status_message());
        assert_false(dir_exists(step_path(&arena, name, 8)) ||
                     dir_exists(step_path(&arena, name, 9)));
        arena_deinit(&arena);
    }
}

/* Storage does not answer one of the ranks for a second: steps go on, and it is said. */
static void test_storage_that_hangs(void **state)
{
    (void)state;
    static const char *const layouts[] = {"", "dp=2"};
    for (int i = 0; i < COUNT_OF(layouts); i++) {
        Arena arena = {0};
        Bytes metrics;
        const char *name = i ? "hangs-2" : "hangs-1";
        Job job = {.name = name,
                   .model = llama4,
                   .layout = layouts[i],
                   .steps = 12,
                   .more = {"checkpoint.every=6", "log.every=1"},
                   .fault = "write_hang:3",
                   .alarm_s = 1e-6}; /* the steps behind a save take milliseconds */
        assert_ok(run(&job));
        assert_ok(file_read(&arena, arena_printf(&arena, "%s/%s/metrics.jsonl", shop, name),
                            1 << 20, &metrics));
        const char *late = strstr((const char *)metrics.at, "checkpoint_late"),
                   *done = strstr((const char *)metrics.at, "\"event\": \"checkpoint\"");
        assert_true(late && done && late < done);
        assert_non_null(strstr(late, "is still at it"));
        const char *step = strstr(late,
                                  "\n{\"step\": "); /* before it was written, steps were done */
        assert_true(step && step < done);
        assert_true(dir_exists(step_path(&arena, name, 6)) &&
                    dir_exists(step_path(&arena, name, 12)));
        arena_deinit(&arena);
    }
}

/* What is loaded is of this step; and it is saved again. */
static void expect(Job *again, const char *layout, int64_t step)
{
    again->layout = layout;
    assert_ok(run(again));
    assert_int_equal(again->step, step);
}

/* Steps 8, 6 and 4 are damaged each in its way: all ranks go on from what is good. */
static void test_damaged_and_foreign(void **state)
{
    (void)state;
    Arena arena = {0};
    const char *keep = "checkpoint.keep=9", *every = "checkpoint.every=2";
    Job job = {.name = "damaged",
               .model = llama4,
               .layout = "ep=2 tp=2",
               .steps = 8,
               .more = {every, keep}};
    Job other = {
        .name = "other", .model = llama4, .layout = "dp=2", .steps = 2, .more = {"train.seed=5"}};
    assert_ok(run(&job));
    assert_ok(run(&other));
    static const char *const layouts[] = {"fsdp=4", "pp=2 tp=2", "ep=2 tp=2", "tp=4"};
    const char *eight = step_path(&arena, "damaged", 8), *six = step_path(&arena, "damaged", 6),
               *foreign = step_path(&arena, "other", 2);
    const char *model = "model-00001-of-00001.safetensors",
               *optimizer = "optimizer-00001-of-00001.safetensors";
    Bytes bytes;
    Job again = {.name = "damaged", .model = llama4, .steps = 99, .again = true, .more = {keep}};
    expect(&again, layouts[0], 8);
    damage(path_join(&arena, eight, model), 5000); /* a bit of some tensor, which one rank holds */
    expect(&again, layouts[1], 6);
    assert_ok(dir_remove_tree(path_join(&arena, eight, "")));
    damage(path_join(&arena, six, optimizer), 70);
    expect(&again, layouts[2], 4);
    const char *four = step_path(&arena, "damaged",
                                 4); /* a file of another run, of the same size */
    assert_ok(file_read(&arena, path_join(&arena, foreign, optimizer), 1 << 28, &bytes));
    assert_ok(file_write_atomic(path_join(&arena, four, optimizer), bytes.at, bytes.n));
    expect(&again, layouts[3], 2);
    const char *two = step_path(&arena, "damaged",
                                2); /* the last good one loses a file: the run is refused */
    assert_ok(file_unlink(path_join(&arena, two, model)));
    again.layout = "dp=4";
    assert_int_equal(run(&again), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "none of its"));
    arena_deinit(&arena);
}

/* Another model's checkpoint is refused, not passed over. */
static void test_another_model(void **state)
{
    (void)state;
    Job job = {.name = "mine", .model = llama4, .layout = "dp=2", .steps = 1};
    Job wider = {.name = "mine",
                 .model = llama4,
                 .layout = "pp=2",
                 .steps = 2,
                 .more = {"model.intermediate_size=32"}};
    assert_ok(run(&job));
    assert_int_equal(run(&wider), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "give the run another name"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama4),
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_grok1),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_training_goes_on),
        cmocka_unit_test(test_a_rank_that_cannot_write),
        cmocka_unit_test(test_a_rank_that_cannot_begin),
        cmocka_unit_test(test_storage_that_hangs),
        cmocka_unit_test(test_damaged_and_foreign),
        cmocka_unit_test(test_another_model),
    };
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
