/* Copies in memory: a run that dies goes on from the step of its last copies, under its own layout and any other, with
 * one of its hosts gone, and without a checkpoint on the disk. */
#include "train/train_testkit.h"

static char memory[96]; /* stands for the memory file system of every host */

static void fresh_memory(void)
{
    snprintf(memory, sizeof memory, "%s/memory", shop);
    assert_ok(dir_remove_tree(memory));
    assert_ok(dir_create(memory));
}

/* With a copy after every other step and none on the disk, killed in some collective. */
static void die(const char *name, const char *layout, int ranks_here, const char *fault)
{
    char where[128];
    snprintf(where, sizeof where, "checkpoint.memory_dir=%s", memory);
    Job job = {.name = name, .model = llama4, .layout = layout, .steps = 40, .ranks_here = ranks_here, .fault = fault,
               .more = {"checkpoint.every=0", "checkpoint.memory_every=2", where}};
    assert_int_equal(run(&job), ERR_COMM);
}

/* Loads what there is and saves it at once; returns its step. */
static int64_t save_again(const char *name, const char *layout)
{
    char where[128];
    snprintf(where, sizeof where, "checkpoint.memory_dir=%s", memory);
    Job job = {.name = name, .model = llama4, .layout = layout, .steps = 40, .again = true, .more = {"checkpoint.memory_every=2", where}};
    assert_ok(run(&job));
    return job.step;
}

static int count_files(void)
{
    Arena arena = {0};
    DirEntries entries;
    assert_ok(dir_list(&arena, memory, &entries));
    int n = entries.n;
    arena_deinit(&arena);
    return n;
}

/* The files of an undisturbed run after that step, which saved every one. */
static void assert_as_calm(const char *layout, const char *name, int64_t step)
{
    Arena arena = {0};
    DirEntries entries;
    Bytes *content;
    char *calm = arena_printf(&arena, "calm-%s", layout);
    for (char *c = calm; *c; c++)
        if (*c == ' ' || *c == '=') *c = '-';
    Job job = {.name = calm, .model = llama4, .layout = layout, .steps = 40, .more = {"checkpoint.every=2", "checkpoint.keep=99"}};
    if (!dir_exists(step_path(&arena, calm, 40))) assert_ok(run(&job));
    read_dir(&arena, step_path(&arena, calm, step), &entries, &content);
    assert_same_files(name, &entries, content, step_path(&arena, name, step));
    arena_deinit(&arena);
}

static void test_any_layout(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after, *fault; /* some way into the run: dp exchanges little, in buckets */
    } cases[] = {{"fsdp=2 tp=2", "fsdp=2 tp=2", "comm:2000"}, {"fsdp=2 tp=2", "pp=2 ep=2", "comm:2000"},
                 {"dp=4", "tp=2", "comm:500"}, {"ep=2 tp=2", "", "comm:2000"}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Arena arena = {0};
        const char *name = arena_printf(&arena, "any-%d", i);
        fresh_memory();
        die(name, cases[i].before, 0, cases[i].fault);
        assert_true(count_files() > 0);
        int64_t step = save_again(name, cases[i].after);
        if (step < 2 || step % 2) fail_msg("%s: goes on from step %lld", cases[i].before, (long long)step);
        assert_as_calm(cases[i].before, name, step);
        arena_deinit(&arena);
    }
}

/* Two hosts of two ranks. All that lay with the ranks of one of them is gone. */
static void test_a_host_is_lost(void **state)
{
    (void)state;
    for (int lost = 0; lost < 2; lost++) {
        Arena arena = {0};
        DirEntries entries;
        const char *name = arena_printf(&arena, "host-%d", lost);
        fresh_memory();
        die(name, "fsdp=2 tp=2", 2, "comm:2000");
        assert_ok(dir_list(&arena, memory, &entries));
        assert_int_equal(entries.n, 8); /* of each rank its own and its neighbour's */
        for (int i = 0; i < entries.n; i++) {
            int keeper = entries.name[i][strlen(entries.name[i]) - 1] - '0';
            if (keeper / 2 == lost) assert_ok(file_unlink(path_join(&arena, memory, entries.name[i])));
        }
        int64_t step = save_again(name, "tp=2");
        assert_true(step >= 2);
        assert_as_calm("fsdp=2 tp=2", name, step);
        arena_deinit(&arena);
    }
}

/* Both hosts lost what they had of one rank: there is nothing to go on from but the beginning. */
static void test_not_whole(void **state)
{
    (void)state;
    Arena arena = {0};
    DirEntries entries;
    fresh_memory();
    die("hole", "fsdp=2 tp=2", 2, "comm:2000");
    assert_ok(dir_list(&arena, memory, &entries));
    for (int i = 0; i < entries.n; i++)
        if (strstr(entries.name[i], "-3-of-4-")) assert_ok(file_unlink(path_join(&arena, memory, entries.name[i])));
    assert_int_equal(save_again("hole", "tp=2"), 0);
    arena_deinit(&arena);
}

/* Dies and goes on, again and again; the last checkpoint has the bytes of a run that never died, and nothing is left in
 * memory. What is on the disk wins when it is newer. */
static void test_to_the_end(void **state)
{
    (void)state;
    char where[128], fault[32];
    fresh_memory();
    snprintf(where, sizeof where, "checkpoint.memory_dir=%s", memory);
    int64_t last = 0;
    for (int i = 0; i < 6; i++) {
        snprintf(fault, sizeof fault, "comm:%d", 1100 + 333 * i);
        Job job = {.name = "end", .model = llama4, .layout = "fsdp=2 tp=2", .steps = 40, .ranks_here = 2, .fault = fault,
                   .more = {"checkpoint.every=0", "checkpoint.memory_every=2", where}};
        Status status = run(&job);
        assert_true(job.step >= last);
        last = job.step;
        if (status == OK) break;
    }
    assert_true(last > 2);
    Job job = {.name = "end", .model = llama4, .layout = "fsdp=2 tp=2", .steps = 40, .ranks_here = 2,
               .more = {"checkpoint.every=0", "checkpoint.memory_every=2", where}};
    assert_ok(run(&job));
    assert_true(job.step >= last);
    assert_as_calm("fsdp=2 tp=2", "end", 40);
    assert_int_equal(count_files(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_layout),
        cmocka_unit_test(test_a_host_is_lost),
        cmocka_unit_test(test_not_whole),
        cmocka_unit_test(test_to_the_end),
    };
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
