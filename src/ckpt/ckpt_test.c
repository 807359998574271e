/* Checkpoints: save, find, load, retention, the lock, snapshots. */
#include "ckpt/ckpt_testkit.h"

static void test_fresh_run_has_none(void **state)
{
    (void)state;
    char *root = scratch_create();
    Ckpt *found = (Ckpt *)root;
    assert_ok(ckpt_find(root, &found));
    assert_null(found);
    scratch_destroy(root);
}

static void test_save_and_load(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 3}, &store));
    assert_ok(tiny_save_step(store, s, 1000));
    assert_ok(tiny_save_step(store, s, 2000));
    Ckpt *found;
    assert_ok(ckpt_find(root, &found));
    assert_int_equal(ckpt_step(found), 2000);
    assert_true(ckpt_has_manifest(found));
    assert_string_equal(ckpt_run_json(found),
                        "{\"data\":{\"position\":12345},\"lr\":0.10000000000000001}");
    assert_int_equal(modeldir_count(ckpt_model(found)), TINY_MODEL);
    assert_int_equal(ckpt_optimizer_count(found), TINY_OPTIMIZER);
    memset(s->memory, 0xee, s->bytes);
    tiny_fill(s, 7);
    assert_ok(ckpt_load(found, &s->tensors));
    assert_true(tiny_is(s, 2000));
    ckpt_close(found);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

static void test_same_step_again(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    assert_ok(tiny_save_step(store, s, 5));
    tiny_fill(s, 6);
    CkptSave save = tiny_save(s, 5);
    assert_ok(ckpt_save(store, &save));
    Ckpt *found;
    assert_ok(ckpt_find(root, &found));
    tiny_fill(s, 9);
    assert_ok(ckpt_load(found, &s->tensors));
    assert_true(tiny_is(s, 6));
    ckpt_close(found);
    ckpt_store_close(store);
    Arena arena = {0};
    DirEntries entries;
    assert_ok(dir_list(&arena, root, &entries)); /* latest, lock, the step */
    assert_int_equal(entries.n, 3);
    arena_deinit(&arena);
    tiny_destroy(s);
    scratch_destroy(root);
}

static void test_keep(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 1}, &store)); /* 2 at least */
    for (int64_t step = 1; step <= 5; step++) assert_ok(tiny_save_step(store, s, step));
    Arena arena = {0};
    int64_t *steps;
    int n;
    assert_ok(steps_list(&arena, root, &steps, &n));
    assert_int_equal(n, 2);
    assert_int_equal(steps[0], 5);
    assert_int_equal(steps[1], 4);
    arena_deinit(&arena);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

/* What `latest` names stays, even when it is older than all that would be kept. */
static void test_keep_latest(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    for (int64_t step = 10; step <= 12; step++) assert_ok(tiny_save_step(store, s, step));
    assert_ok(tiny_save_step(store, s, 3));
    assert_int_equal(tiny_load_newest(root), 3);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

/* A damaged one does not count as kept. */
static void test_keep_counts_verified(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    assert_ok(tiny_save_step(store, s, 1));
    assert_ok(tiny_save_step(store, s, 2));
    ckpt_store_close(store);
    Arena arena = {0};
    assert_int_equal(truncate(arena_printf(&arena, "%s/step-00000002/config.json", root), 3), 0);
    assert_ok(
        ckpt_store_open(root, (CkptOptions){.keep = 2}, &store)); /* a new process: nothing known */
    assert_ok(tiny_save_step(store, s, 3));
    assert_true(dir_exists(arena_printf(&arena, "%s/step-00000001", root)));
    assert_ok(tiny_save_step(store, s, 4));
    assert_false(dir_exists(arena_printf(&arena, "%s/step-00000001", root)));
    arena_deinit(&arena);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

static void test_two_jobs(void **state)
{
    (void)state;
    char *root = scratch_create();
    CkptStore *store, *second;
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    double start = clock_s();
    assert_int_equal(ckpt_store_open(root, (CkptOptions){0}, &second), ERR_REFUSED);
    assert_true(clock_s() - start < 1);
    char owner[64];
    snprintf(owner, sizeof owner, "process %d on ", (int)getpid());
    assert_non_null(strstr(status_message(), owner));
    ckpt_store_close(store);
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &second)); /* the lock went with its owner */
    ckpt_store_close(second);
    scratch_destroy(root);
}

/* What is stored is what was there when ckpt_snapshot returned, whatever is written afterwards. */
static void test_snapshot_isolation(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    CkptResult result;
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    tiny_fill(s, 1);
    CkptSave save = tiny_save(s, 1);
    assert_int_equal(ckpt_snapshot(store, &save), ERR_ARG); /* no buffer yet */
    assert_ok(tiny_reserve(store, s));
    assert_false(ckpt_poll(store, &result));
    for (int64_t step = 1; step <= 50; step++) {
        tiny_fill(s, step);
        save = tiny_save(s, step);
        assert_ok(ckpt_snapshot(store, &save));
        memset(s->memory, 0x55, s->bytes);
        assert_true(ckpt_busy_s(store) < 60);
        assert_true(ckpt_wait(store, &result));
        assert_int_equal(result.step, step);
        assert_int_equal(result.status, OK);
        assert_true(result.bytes > s->bytes);
        assert_int_equal(tiny_load_newest(root), step);
    }
    assert_false(ckpt_wait(store, &result)); /* each result once */
    assert_true(ckpt_busy_s(store) == 0);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

/* While one save is under way the next is refused at once, not queued and not waited for. */
static void test_snapshot_while_busy(void **state)
{
    (void)state;
    char *root = scratch_create();
    int64_t count = 4 << 20;
    NamedTensor large = {"w", tensor_make(xcalloc((size_t)count, 4), DTYPE_F32,
                                          shape_make(1, &count, (Axis[]){AXIS_ANY}))};
    Arena arena = {0};
    CkptShare share = ckpt_share_whole(&arena, &(CkptTensors){.model = &large, .n_model = 1});
    CkptStore *store;
    CkptResult result;
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    assert_ok(ckpt_reserve(store, share.parts, share.n_parts));
    assert_int_equal(ckpt_reserved_bytes(store), ckpt_snapshot_bytes(share.parts, share.n_parts));
    bool refused = false;
    for (int64_t step = 1; step <= 20 && !refused; step++) {
        assert_ok(ckpt_snapshot(store, &(CkptSave){.step = step, .share = &share}));
        refused = ckpt_snapshot(store, &(CkptSave){.step = 99, .share = &share}) == ERR_ARG;
        while (ckpt_wait(store, &result)) assert_int_equal(result.status, OK);
    }
    assert_true(refused);
    ckpt_store_close(store);
    free(large.tensor.data);
    arena_deinit(&arena);
    scratch_destroy(root);
}

static void test_snapshot_reports_failure(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    CkptResult result;
    assert_ok(ckpt_store_open(root, (CkptOptions){.keep = 2}, &store));
    assert_ok(tiny_reserve(store, s));
    tiny_fill(s, 1);
    CkptSave save = tiny_save(s, 1);
    log_set_level(LOG_SILENT);
    assert_ok(fault_set("fsync:3"));
    assert_ok(ckpt_snapshot(store, &save));
    assert_true(ckpt_wait(store, &result));
    assert_int_equal(result.status, ERR_IO);
    assert_non_null(strstr(result.message, "cannot sync"));
    assert_ok(fault_set(NULL));
    log_set_level(LOG_INFO);
    assert_ok(ckpt_snapshot(store, &save)); /* afresh */
    assert_true(ckpt_wait(store, &result));
    assert_int_equal(result.status, OK);
    assert_int_equal(tiny_load_newest(root), 1);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

static void test_reserve_without_memory(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    assert_ok(fault_set("tensor_alloc:1"));
    assert_int_equal(tiny_reserve(store, s), ERR_MEMORY);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

/* Nothing is left to the kernel's leisure: each of the six files, the directory before it gets its
 * name, the parent after, then `latest` and the parent once more. */
static void test_everything_is_synced(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    assert_ok(fault_set(NULL)); /* counts from zero */
    assert_ok(tiny_save_step(store, s, 1));
    assert_int_equal(fault_count("fsync"), 6 + 1 + 1 + 2);
    assert_int_equal(fault_count("rename"), 1 + 1);
    assert_ok(
        fault_set("fsync:8")); /* the parent's: the step must have its name, and lose it again */
    log_set_level(LOG_SILENT);
    assert_int_equal(tiny_save_step(store, s, 2), ERR_IO);
    log_set_level(LOG_INFO);
    assert_int_equal(fault_count("rename"), 1 + 1);
    assert_int_equal(tiny_load_newest(root), 1);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

static void test_bad_saves(void **state)
{
    (void)state;
    char *root = scratch_create();
    TinyState *s = tiny_create();
    CkptStore *store;
    assert_ok(ckpt_store_open(root, (CkptOptions){0}, &store));
    tiny_fill(s, 1);
    static const char *const names[] = {"../config.json", "",        "a/b", "manifest.json",
                                        "x.safetensors",  ".hidden", "\xff"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        CkptFile file = {names[i], {(const uint8_t *)"x", 1}};
        CkptSave save = tiny_save(s, 1);
        save.files = &file;
        save.n_files = 1;
        assert_int_equal(ckpt_save(store, &save), ERR_ARG);
    }
    static const char *const run[] = {"", "[]", "{\"a\":1,\"a\":2}", "{", "nonsense"};
    for (int i = 0; i < COUNT_OF(run); i++) {
        CkptSave save = tiny_save(s, 1);
        save.run_json = run[i];
        assert_int_equal(ckpt_save(store, &save), ERR_FORMAT);
    }
    Shape real =
        s->model[0].tensor.shape; /* more than any disk has: said before a byte is written */
    s->model[0].tensor.shape.dim[0] = (int64_t)1 << 50;
    CkptSave huge = tiny_save(s, 1);
    assert_int_equal(ckpt_save(store, &huge), ERR_IO);
    assert_non_null(strstr(status_message(), "free, a checkpoint needs"));
    s->model[0].tensor.shape = real;
    s->model[0].name = s->model[2].name; /* two tensors of one name */
    CkptSave save = tiny_save(s, 1);
    assert_int_equal(ckpt_save(store, &save), ERR_ARG);
    assert_int_equal(tiny_load_newest(root), -1);
    ckpt_store_close(store);
    tiny_destroy(s);
    scratch_destroy(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fresh_run_has_none),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_same_step_again),
        cmocka_unit_test(test_keep),
        cmocka_unit_test(test_keep_latest),
        cmocka_unit_test(test_keep_counts_verified),
        cmocka_unit_test(test_two_jobs),
        cmocka_unit_test(test_snapshot_isolation),
        cmocka_unit_test(test_snapshot_while_busy),
        cmocka_unit_test(test_snapshot_reports_failure),
        cmocka_unit_test(test_reserve_without_memory),
        cmocka_unit_test(test_everything_is_synced),
        cmocka_unit_test(test_bad_saves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
