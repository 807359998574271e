/* What a run may live through: killed at every call of a save, killed at any time, every call of a
 * save failing, the disk full at every write. After each: the newest checkpoint or the one before
 * it loads, value by value, the directory is clean again after the next start, and the next save
 * works. */
#include "ckpt/ckpt_testkit.h"

#include <signal.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>

static const char *const points[] = {"open",  "read",   "write", "fsync", "rename",
                                     "close", "unlink", "mkdir", "map",   "reserve"};

/* ---- the process that is killed --------------------------------------------------------- */

/* Saves one step and ends. */
static int child_save(const char *root, int64_t step)
{
    CkptStore *store;
    TinyState *s = tiny_create();
    log_set_level(LOG_SILENT);
    if (ckpt_store_open(root, (CkptOptions){.keep = 2}, &store) != OK) return 1;
    if (tiny_save_step(store, s, step) != OK) return 1;
    ckpt_store_close(store);
    tiny_destroy(s);
    return 0;
}

/* Saves step after step from snapshots until it is killed. */
static int child_loop(const char *root, int64_t step)
{
    CkptStore *store;
    CkptResult result;
    TinyState *s = tiny_create();
    log_set_level(LOG_SILENT);
    if (ckpt_store_open(root, (CkptOptions){.keep = 2}, &store) != OK) return 1;
    if (tiny_reserve(store, s) != OK) return 1;
    for (;; step++) {
        tiny_fill(s, step);
        CkptSave save = tiny_save(s, step);
        if (ckpt_snapshot(store, &save) != OK) return 1;
        tiny_fill(s, step + 1000);
        if (!ckpt_wait(store, &result) || result.status != OK) return 1;
    }
}

static pid_t start_child(const char *role, const char *root, int64_t step, const char *fault)
{
    char step_text[32], variable[64];
    snprintf(step_text, sizeof step_text, "%lld", (long long)step);
    snprintf(variable, sizeof variable, "FAULT=%s", fault);
    char *const arguments[] = {(char *)(uintptr_t) "crash_test", (char *)(uintptr_t)role,
                               (char *)(uintptr_t)root, step_text, NULL};
    char *const environment[] = {variable, (char *)(uintptr_t) "OMP_NUM_THREADS=1", NULL};
    pid_t pid;
    assert_int_equal(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environment), 0);
    return pid;
}

/* ---- helpers ---------------------------------------------------------------------------- */

static void save_steps(const char *root, int64_t first, int64_t last)
{
    CkptStore *store;
    TinyState *s = tiny_create();
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    for (int64_t step = first; step <= last; step++) assert_ok(tiny_save_step(store, s, step));
    ckpt_store_close(store);
    tiny_destroy(s);
}

/* Nothing temporary is left, `latest` and one more are there, and the run goes on. */
static void check_goes_on(const char *root, int64_t next)
{
    save_steps(root, next, next);
    assert_int_equal(tiny_load_newest(root), next);
    assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
    assert_true(ckpt_count_names(root, "step-") >= 2);
}

/* ---- killed ----------------------------------------------------------------------------- */

/* Steps 1 and 2 are there; the process that saves `step` is killed at the k-th call of the point.
 * False when it has fewer calls. */
static bool kill_at(const char *point, int k, int64_t step)
{
    char *root = scratch_create(), fault[64];
    int how;
    save_steps(root, 1, 2);
    snprintf(fault, sizeof fault, "%s:%d:kill", point, k);
    pid_t pid = start_child("--save", root, step, fault);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    bool killed = WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL;
    if (!killed) assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    int64_t newest = tiny_load_newest(root);
    /* the step before it only while the same step is being replaced */
    bool good = killed ? newest == 2 || newest == step || (step == 2 && newest == 1)
                       : newest == step;
    if (!good) fail_msg("killed at %s: newest is %lld", fault, (long long)newest);
    CkptStore *store; /* the next start puts back what was set aside */
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    assert_true(ckpt_step_loads(root, 2));
    assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
    ckpt_store_close(store);
    check_goes_on(root, 4);
    scratch_destroy(root);
    return killed;
}

static void test_kill_at_every_call(void **state)
{
    (void)state;
    int kills = 0;
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int k = 1; kill_at(points[p], k, 3); k++) kills++;
    assert_true(kills > 60); /* the counting itself works */
}

static void test_kill_while_replacing(void **state)
{
    (void)state;
    int kills = 0;
    for (int k = 1; kill_at("rename", k, 2); k++) kills++;
    for (int k = 1; kill_at("unlink", k, 2); k++) kills++;
    assert_true(kills >= 4);
}

static void sleep_us(int64_t us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
}

/* A run saves as fast as it can and is killed at a random time, again and again, while another
 * process reads: what is found never goes back and there are always two to fall back on. */
static void test_kill_at_any_time(void **state)
{
    (void)state;
    enum { ROUNDS = 40 };
    char *root = scratch_create();
    uint64_t key = rng_key(1, "crash");
    int64_t newest = 2;
    save_steps(root, 1, 2);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        int how;
        pid_t pid = start_child("--loop", root, newest + 1, "");
        int64_t us = (int64_t)rng_below(key, round, 30000);
        double end = clock_s() + (double)us * 1e-6;
        if (round % 2) sleep_us(us);
        while (clock_s() < end) {
            int64_t seen = tiny_load_newest(root); /* while checkpoints are made and removed */
            if (seen < newest)
                fail_msg("found %lld after %lld: %s", (long long)seen, (long long)newest,
                         status_message());
            newest = seen;
        }
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &how, 0), pid);
        assert_true(WIFSIGNALED(how));
        int64_t found = tiny_load_newest(root);
        assert_true(found >= newest);
        newest = found;
        assert_true(ckpt_count_names(root, "step-") >= 2);
    }
    check_goes_on(root, newest + 2);
    scratch_destroy(root);
}

/* ---- failing calls ---------------------------------------------------------------------- */

/* One call fails: the save reports it (or it was one whose failure does no harm), what was there
 * stays, nothing is left behind, and the next save works. False when there are fewer calls. */
static bool fail_at(const char *point, int k, int64_t step)
{
    char *root = scratch_create(), fault[64];
    CkptStore *store;
    TinyState *s = tiny_create();
    save_steps(root, 1, 2);
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    snprintf(fault, sizeof fault, "%s:%d", point, k);
    assert_ok(fault_set(fault));
    Status status = tiny_save_step(store, s, step);
    bool complete = status == OK || strstr(status_message(), " is complete");
    int64_t calls = fault_count(point);
    assert_ok(fault_set(NULL));
    if (status != OK) {
        assert_true(strlen(status_message()) > 10);
        assert_true(ckpt_step_loads(root, 1) && ckpt_step_loads(root, 2));
        assert_int_equal(ckpt_count_names(root, ".tmp-"), 0);
        if (!strcmp(point, "fsync")) assert_int_equal(calls, k); /* not tried again */
    } else {
        assert_true(ckpt_step_loads(root, step));
    }
    int64_t newest = tiny_load_newest(root);
    /* a save that fails while it moves `latest` may or may not have moved it */
    bool good = status == OK ? newest == step : newest == 2 || (complete && newest == step);
    if (!good) fail_msg("%s: newest is %lld", fault, (long long)newest);
    assert_ok(tiny_save_step(store, s, 4));
    assert_int_equal(tiny_load_newest(root), 4);
    assert_int_equal(ckpt_count_names(root, "tmp-"), 0);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
    return calls >= k;
}

static void test_fail_at_every_call(void **state)
{
    (void)state;
    int failures = 0;
    log_set_level(LOG_SILENT);
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int k = 1; fail_at(points[p], k, 3); k++) failures++;
    for (int k = 1; fail_at("rename", k, 2); k++) failures++; /* a step that is there already */
    for (int k = 1; fail_at("fsync", k, 2); k++) failures++;
    log_set_level(LOG_INFO);
    assert_true(failures > 60);
}

/* ---- the disk is full ------------------------------------------------------------------- */

enum { MANY = 230 };

/* A save with a write of its own for each of many tensors. */
static Status save_many(CkptStore *store, int64_t step, const float *data)
{
    NamedTensor tensors[MANY];
    char names[MANY][16];
    Axis axis[] = {AXIS_ANY};
    for (int i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "w%d", i);
        tensors[i] = (NamedTensor){names[i], tensor_make((void *)(uintptr_t)data, DTYPE_F32,
                                                         shape_make(1, (int64_t[]){64}, axis))};
    }
    Arena arena = {0};
    CkptShare share = ckpt_share_whole(&arena, &(CkptTensors){.model = tensors, .n_model = MANY});
    Status status = ckpt_save(store, &(CkptSave){.step = step, .share = &share});
    arena_deinit(&arena);
    return status;
}

static void test_disk_full_at_every_write(void **state)
{
    (void)state;
    char *root = scratch_create(), fault[64];
    float data[64] = {1};
    CkptStore *store;
    int failures = 0;
    /* runs are not put together: a write for each tensor */
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2, .write_bytes = 1}, &store));
    assert_ok(save_many(store, 1, data));
    log_set_level(LOG_SILENT);
    for (int k = 1;; k++) {
        snprintf(fault, sizeof fault, "write:%d", k);
        assert_ok(fault_set(fault));
        Status status = save_many(store, 2, data);
        assert_ok(fault_set(NULL));
        if (status == OK) break;
        failures++;
        assert_non_null(strstr(status_message(), "No space left"));
        assert_int_equal(ckpt_count_names(root, ".tmp-"), 0);
        /* only the last write, that of `latest`, comes after the checkpoint is complete */
        Arena arena = {0};
        Ckpt *first;
        if (dir_exists(path_join(&arena, root, "step-00000002")))
            assert_ok(dir_remove_tree(path_join(&arena, root, "step-00000002")));
        assert_ok(ckpt_open(path_join(&arena, root, "step-00000001"), CKPT_VERIFY_HASHES, &first));
        ckpt_close(first);
        arena_deinit(&arena);
    }
    log_set_level(LOG_INFO);
    assert_true(failures > 200);
    assert_ok(save_many(store, 3, data)); /* there is room again */
    ckpt_store_close(store);
    scratch_destroy(root);
}

static void set_ballast(const char *path, size_t bytes)
{
    static const char zeros[4096];
    int fd;
    assert_ok(file_create(path, &fd));
    for (size_t done = 0; done < bytes; done += sizeof zeros)
        if (file_write(fd, zeros, sizeof zeros, path) != OK) break;
    assert_ok(file_close(fd, path));
}

/* The same on a real file system of 512 kB that has less and less left. */
static void test_small_disk(void **state)
{
    (void)state;
    char *dir = scratch_create();
    if (mount("drover-test", dir, "tmpfs", 0, "size=512k") != 0) {
        scratch_destroy(dir);
        skip();
    }
    Arena arena = {0};
    const char *root = path_join(&arena, dir, "ckpt"), *ballast = path_join(&arena, dir, "ballast");
    float data[64] = {1};
    CkptStore *store;
    int failed = 0, saved = 0;
    log_set_level(LOG_SILENT);
    /* runs are not put together: a write for each tensor */
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2, .write_bytes = 1}, &store));
    assert_ok(save_many(store, 1, data));
    int64_t newest = 1;
    for (size_t pages = 40; pages < 128; pages++) {
        set_ballast(ballast, pages * 4096);
        Status status = save_many(store, newest + 1, data);
        failed += status != OK;
        saved += status == OK;
        if (status == OK) newest++;
        assert_int_equal(ckpt_count_names(root, ".tmp-"), 0);
        Ckpt *found;
        assert_ok(file_unlink(ballast));
        assert_ok(ckpt_find(root, &found));
        assert_true(ckpt_step(found) >= newest);
        newest = ckpt_step(found);
        ckpt_close(found);
    }
    log_set_level(LOG_INFO);
    assert_ok(save_many(store, newest + 1, data));
    ckpt_store_close(store);
    assert_int_equal(umount(dir), 0);
    assert_true(failed > 5 && saved > 5);
    arena_deinit(&arena);
    scratch_destroy(dir);
}

int main(int argc, char **argv)
{
    int64_t step;
    if (argc == 4 && parse_i64(argv[3], &step))
        return !strcmp(argv[1], "--save") ? child_save(argv[2], step) : child_loop(argv[2], step);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kill_at_every_call),
        cmocka_unit_test(test_kill_while_replacing),
        cmocka_unit_test(test_kill_at_any_time),
        cmocka_unit_test(test_fail_at_every_call),
        cmocka_unit_test(test_disk_full_at_every_write),
        cmocka_unit_test(test_small_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
