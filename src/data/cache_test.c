/* Shards: damaged ones are built again, changed inputs make others, no fault leaves half of one. */
#include "data/data_testkit.h"

static char *shard_path(const Data *data)
{
    return xstrdup(data->source[0].split[DATA_TRAIN].shard[0].map.path);
}

static void test_damaged_shards_are_built_again(void **state)
{
    Bench *b = *state;
    write_text(b, "damage/a.txt", "some words to be damaged");
    write_text(b, "damage/b.txt", "and others");
    Data *data = open_path(b, "damage");
    char *path = shard_path(data);
    Bytes good;
    assert_int_equal(file_read(&b->arena, path, 1 << 20, &good), OK);
    data_close(data);
    for (size_t i = 0; i < good.n; i++) { /* every byte of it, one at a time */
        uint8_t *bytes = arena_copy(&b->arena, good.at, good.n);
        bytes[i] ^= 0xff;
        damage(path, bytes, good.n);
        Shard shard;
        if (data_shard_open(path, &shard) ==
            OK) { /* an id: found by the hash, or as out of range when read */
            assert_true(i >= 64 + 8 * (size_t)(shard.info.n_docs + 1));
            assert_int_equal(data_shard_verify(&shard), ERR_FORMAT);
            data_shard_close(&shard);
        } else if (i % 16 == 0) {
            data = open_path(b, "damage");
            data_close(data);
            Bytes again;
            assert_int_equal(file_read(&b->arena, path, 1 << 20, &again), OK);
            assert_int_equal(again.n, good.n);
            assert_memory_equal(again.at, good.at, good.n);
        }
    }
    assert_int_equal(file_write_atomic(path, good.at, good.n / 2), OK);
    data = open_path(b, "damage");
    assert_int_equal(data_verify(data), OK);
    data_close(data);
    assert_int_equal(file_unlink(path), OK);
    data_close(open_path(b, "damage"));
    uint8_t *bytes = arena_copy(&b->arena, good.at, good.n);
    bytes[good.n - 1] = 0xff; /* an id out of the vocabulary is a sentence when it is read */
    assert_int_equal(file_write_atomic(path, bytes, good.n), OK);
    data = open_path(b, "damage");
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 1, .micro_batch = 1, .seq = 64});
    Rows r = rows_create(1, 64);
    assert_int_equal(data_fill(loader, 0, 0, &r.batch), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "vocabulary"));
    data_loader_destroy(loader);
    data_close(data);
    rows_destroy(&r);
    free(path);
}

static void test_cache_follows_its_inputs(void **state)
{
    Bench *b = *state;
    write_text(b, "follow/a.txt", "first");
    write_text(b, "follow/b.txt", "second");
    Data *data = open_path(b, "follow");
    char *first = shard_path(data);
    data_close(data);
    data = open_path(b, "follow");
    char *same = shard_path(data);
    assert_string_equal(first, same);
    data_close(data);
    write_text(b, "follow/b.txt", "changed");
    data = open_path(b, "follow");
    char *other = shard_path(data);
    assert_string_not_equal(first, other);
    data_close(data);
    free(first);
    free(same);
    free(other);
}

/* Whatever call fails while shards are built: a sentence, nothing half made, and the next try
 * works. */
static void test_every_fault_of_a_build(void **state)
{
    Bench *b = *state;
    static const char *const points[] = {"open",   "read",  "write", "fsync",
                                         "rename", "close", "mkdir", "map"};
    DataSource source = {.path = at(b, "one"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    options.cache_dir = at(b, "faults");
    write_text(b, "one/a.txt", "one text");
    write_text(b, "one/b.txt", "another");
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int n = 1, failed = 1; failed; n++) {
            Data *data = NULL;
            assert_true(n < 100);
            assert_int_equal(fault_set(arena_printf(&b->arena, "%s:%d", points[p], n)), OK);
            Status status = data_open(&options, &data);
            failed = fault_count(points[p]) >= n;
            assert_int_equal(fault_set(NULL), OK);
            if (status == OK)
                data_close(data);
            else
                assert_true(failed && strlen(status_message()) > 5);
            assert_int_equal(data_open(&options, &data), OK);
            assert_int_equal(data_verify(data), OK);
            data_close(data);
            assert_int_equal(dir_remove_tree(options.cache_dir), OK);
        }
}

static void test_threads_do_not_matter(void **state)
{
    Bench *b = *state;
    DataSource source = {.path = at(b, "texts"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    uint64_t hash[2];
    for (int i = 0; i < 2; i++) {
        Data *data;
        options.threads = 1 + 2 * i;
        options.cache_dir = at(b, i ? "three" : "single");
        assert_int_equal(data_open(&options, &data), OK);
        hash[i] = data->source[0].split[DATA_TRAIN].shard[0].info.hash;
        data_close(data);
    }
    assert_true(hash[0] == hash[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damaged_shards_are_built_again),
        cmocka_unit_test(test_cache_follows_its_inputs),
        cmocka_unit_test(test_every_fault_of_a_build),
        cmocka_unit_test(test_threads_do_not_matter),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
