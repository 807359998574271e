/* Copies in memory: a run that dies goes on from the step of its last copies, under its own layout
 * and any other, with one of its hosts gone, with bits of them changed, and without a checkpoint on
 * the disk. */
#include "train/train_testkit.h"

static char memory[96]; /* stands for the memory file system of every host */

static void fresh_memory(void)
{
    snprintf(memory, sizeof memory, "%s/memory", shop);
    assert_ok(dir_remove_tree(memory));
    assert_ok(dir_create(memory));
}

static const char *const two_hosts = "node0:2,node1:2";

/* With a copy after every other step, killed in some collective. */
static void die_with(const char *name, const char *layout, const char *hosts, const char *fault,
                     const char *disk)
{
    char where[128];
    snprintf(where, sizeof where, "checkpoint.memory_dir=%s", memory);
    Job job = {.name = name,
               .model = llama4,
               .layout = layout,
               .steps = 40,
               .hosts = hosts,
               .fault = fault,
               .more = {disk, "checkpoint.memory_every=2", where}};
    Status status = run(&job);
    assert_true(status == ERR_COMM ||
                status == ERR_DEVICE); /* who it was, or what the others make of it */
}

/* And none on the disk. */
static void die(const char *name, const char *layout, const char *hosts, const char *fault)
{
    die_with(name, layout, hosts, fault, "checkpoint.every=0");
}

/* Loads what there is and saves it at once; returns its step. */
static int64_t save_again(const char *name, const char *layout)
{
    char where[128];
    snprintf(where, sizeof where, "checkpoint.memory_dir=%s", memory);
    Job job = {.name = name,
               .model = llama4,
               .layout = layout,
               .steps = 40,
               .again = true,
               .more = {"checkpoint.memory_every=2", where}};
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
    Job job = {.name = calm,
               .model = llama4,
               .layout = layout,
               .steps = 40,
               .more = {"checkpoint.every=2", "checkpoint.keep=99"}};
    if (!dir_exists(step_path(&arena, calm, 40))) assert_ok(run(&job));
    read_dir(&arena, step_path(&arena, calm, step), &entries, &content);
    assert_same_files(name, &entries, content, step_path(&arena, name, step));
    arena_deinit(&arena);
}

static void test_any_layout(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after,
            *fault; /* some way into the run: dp exchanges little, in buckets */
    } cases[] = {{"fsdp=2 tp=2", "fsdp=2 tp=2", "comm:2000"},
                 {"fsdp=2 tp=2", "pp=2 ep=2", "comm:2000"},
                 {"dp=4", "tp=2", "comm:500"},
                 {"ep=2 tp=2", "", "comm:2000"}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Arena arena = {0};
        const char *name = arena_printf(&arena, "any-%d", i);
        fresh_memory();
        die(name, cases[i].before, NULL, cases[i].fault);
        assert_true(count_files() > 0);
        int64_t step = save_again(name, cases[i].after);
        if (step < 2 || step % 2)
            fail_msg("%s: goes on from step %lld", cases[i].before, (long long)step);
        assert_as_calm(cases[i].before, name, step);
        arena_deinit(&arena);
    }
}

/* All that lay with the ranks of one host is gone. A rank of a host with more than half of all has
 * no keeper, if there is none for it. */
static void test_a_host_is_lost(void **state)
{
    (void)state;
    static const struct {
        const char *hosts, *lost; /* lost: the ranks that kept something there */
        int files;
    } cases[] = {{"node0:2,node1:2", "01", 8},
                 {"node0:2,node1:2", "23", 8},
                 {"node0:1,node1:2,node2:1", "12", 8},
                 {"node0:3,node1:1", "3", 6}};
    for (int k = 0; k < COUNT_OF(cases); k++) {
        Arena arena = {0};
        DirEntries entries;
        const char *name = arena_printf(&arena, "host-%d", k);
        fresh_memory();
        die(name, "fsdp=2 tp=2", cases[k].hosts, "comm:2000");
        assert_ok(dir_list(&arena, memory, &entries));
        assert_int_equal(entries.n, cases[k].files);
        for (int i = 0; i < entries.n; i++)
            if (strchr(cases[k].lost, entries.name[i][strlen(entries.name[i]) - 1]))
                assert_ok(file_unlink(path_join(&arena, memory, entries.name[i])));
        int64_t step = save_again(name, "tp=2");
        assert_true(step >= 2);
        assert_as_calm("fsdp=2 tp=2", name, step);
        arena_deinit(&arena);
    }
}

/* ---- bits that turn over ---------------------------------------------------------------- */

/* The last byte of a slot that is not zero belongs to some tensor. */
static void flip_slot(const CkptCopyFound *f)
{
    Arena arena = {0};
    Bytes file;
    assert_ok(file_read(&arena, f->path, 1 << 24, &file));
    size_t slot = (file.n - 4096) / 2, at = 4096 + (size_t)(f->slot + 1) * slot;
    while (!file.at[--at]) continue;
    uint8_t byte = file.at[at] ^ 0x10;
    int fd = open(f->path, O_WRONLY);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
    arena_deinit(&arena);
}

/* In the copies of rank 3 with these keepers, of steps from `from` on; returns the newest step that
 * there is. */
static int64_t flip_copies(const char *keepers, int64_t from)
{
    Arena arena = {0};
    DirEntries entries;
    CkptCopyFound *found;
    int n, flipped = 0;
    int64_t newest = -1;
    assert_ok(dir_list(&arena, memory, &entries));
    assert_ok(ckpt_copies_find(
        &arena, memory, strtoull(entries.name[0] + strlen("drover-copy-"), NULL, 16), &found, &n));
    for (int i = 0; i < n; i++) newest = max_i64(newest, found[i].step);
    for (int i = 0; i < n; i++) {
        if (found[i].rank != 3 || !strchr(keepers, '0' + found[i].keeper) ||
            found[i].step < newest + from)
            continue;
        flip_slot(&found[i]);
        flipped++;
    }
    assert_true(flipped > 0);
    arena_deinit(&arena);
    return newest;
}

/* The keeper's copy takes the place of a damaged one; where that is damaged too, an older step
 * does; where all of them are, the disk. Never is a changed bit used. */
static void test_flipped_bits(void **state)
{
    (void)state;
    static const struct {
        const char *keepers; /* whose copies of rank 3 are damaged */
        int64_t from;        /* from the newest step on: of which steps */
        int64_t lost;        /* steps between the newest and what is gone on from; -1: the disk */
    } cases[] = {{"3", -2, 0}, {"1", -2, 0}, {"13", 0, 2}, {"13", -2, -1}};
    for (int k = 0; k < COUNT_OF(cases); k++) {
        Arena arena = {0};
        const char *name = arena_printf(&arena, "bits-%d", k);
        fresh_memory();
        die_with(name, "fsdp=2 tp=2", two_hosts, "train.forward:113",
                 "checkpoint.every=8"); /* of four ranks, in step 29 */
        int64_t newest = flip_copies(cases[k].keepers, cases[k].from),
                step = save_again(name, k % 2 ? "tp=2" : "fsdp=2 tp=2");
        if (cases[k].lost < 0 ? step < 8 || step % 8 || step >= newest
                              : step != newest - cases[k].lost)
            fail_msg("case %d: goes on from step %lld, the newest copies are of %lld", k,
                     (long long)step, (long long)newest);
        assert_as_calm("fsdp=2 tp=2", name, step);
        arena_deinit(&arena);
    }
}

/* ---- not enough, and enough ------------------------------------------------------------- */

/* Both hosts lost what they had of one rank: there is nothing to go on from but the beginning. */
static void test_not_whole(void **state)
{
    (void)state;
    Arena arena = {0};
    DirEntries entries;
    fresh_memory();
    die("hole", "fsdp=2 tp=2", two_hosts, "comm:2000");
    assert_ok(dir_list(&arena, memory, &entries));
    for (int i = 0; i < entries.n; i++)
        if (strstr(entries.name[i], "-3-of-4-"))
            assert_ok(file_unlink(path_join(&arena, memory, entries.name[i])));
    assert_int_equal(save_again("hole", "tp=2"), 0);
    arena_deinit(&arena);
}

/* Dies and goes on, again and again; the last checkpoint has the bytes of a run that never died,
 * and nothing is left in memory. What is on the disk wins when it is newer. */
static void test_to_the_end(void **state)
{
    (void)state;
    char where[128], fault[32];
    fresh_memory();
    snprintf(where, sizeof where, "checkpoint.memory_dir=%s", memory);
    int64_t last = 0;
    for (int i = 0; i < 6; i++) {
        snprintf(fault, sizeof fault, "comm:%d", 1100 + 333 * i);
        Job job = {.name = "end",
                   .model = llama4,
                   .layout = "fsdp=2 tp=2",
                   .steps = 40,
                   .hosts = two_hosts,
                   .fault = fault,
                   .more = {"checkpoint.every=0", "checkpoint.memory_every=2", where}};
        Status status = run(&job);
        assert_true(job.step >= last);
        last = job.step;
        if (status == OK) break;
    }
    assert_true(last > 2);
    Job job = {.name = "end",
               .model = llama4,
               .layout = "fsdp=2 tp=2",
               .steps = 40,
               .hosts = two_hosts,
               .more = {"checkpoint.every=0", "checkpoint.memory_every=2", where}};
    assert_ok(run(&job));
    assert_true(job.step >= last);
    assert_as_calm("fsdp=2 tp=2", "end", 40);
    assert_int_equal(count_files(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_layout),   cmocka_unit_test(test_a_host_is_lost),
        cmocka_unit_test(test_flipped_bits), cmocka_unit_test(test_not_whole),
        cmocka_unit_test(test_to_the_end),
    };
    return cmocka_run_group_tests(tests, make_shop, remove_shop);
}
