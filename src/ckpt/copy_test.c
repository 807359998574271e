/* Copies in memory: one slot is whole at any moment, a file is used again by the next start, and what is damaged or of
 * another model is refused. */
#include "ckpt/ckpt_testkit.h"

#include <fcntl.h>
#include <sys/stat.h>

enum { RUN = 77 };

typedef struct Bench {
    Arena arena;
    char *dir;
    TinyState *state;
    CkptShare share;
    size_t bytes;
    CkptCopyName name;
} Bench;

static Bench *bench_create(void)
{
    Bench *b = xcalloc(1, sizeof *b);
    b->dir = scratch_create();
    b->state = tiny_create();
    b->share = ckpt_share_whole(&b->arena, &b->state->tensors);
    b->bytes = ckpt_copy_bytes(b->share.parts, b->share.n_parts, b->share.n_tensors);
    b->name = (CkptCopyName){
        .dir = b->dir, .run = RUN, .start = 5, .rank = 0, .ranks = 1, .keeper = 0};
    return b;
}

static void bench_destroy(Bench *b)
{
    tiny_destroy(b->state);
    arena_deinit(&b->arena);
    scratch_destroy(b->dir);
    free(b);
}

static void take(Bench *b, CkptCopy *copy, int64_t step)
{
    tiny_fill(b->state, step);
    assert_ok(ckpt_copy_take(copy, &b->share, step, "{\"step\": 1}"));
}

/* The steps that are whole, as bits; each is what was taken. */
static unsigned found(Bench *b)
{
    CkptCopyFound *list;
    int n;
    unsigned steps = 0;
    assert_ok(ckpt_copies_find(&b->arena, b->dir, RUN, &list, &n));
    for (int i = 0; i < n; i++) {
        CkptCopyView view;
        TinyState *want = tiny_create();
        tiny_fill(want, list[i].step);
        CkptShare share = ckpt_share_whole(&b->arena, &want->tensors);
        assert_ok(ckpt_copy_open(&list[i], &b->share, &view));
        assert_string_equal(view.run_json, "{\"step\": 1}");
        for (int64_t k = 0; k < view.n_runs; k++) {
            const CkptCopyRun *run = &view.run[k];
            const char *whole = share.parts[run->tensor].data;
            assert_memory_equal(view.data + run->at, whole + run->first * run->element_bytes,
                                (size_t)run->n * (size_t)run->element_bytes);
        }
        ckpt_copy_view_close(&view);
        tiny_destroy(want);
        steps |= 1u << list[i].step;
    }
    return steps;
}

static void test_slots_take_turns(void **state)
{
    (void)state;
    Bench *b = bench_create();
    CkptCopy *copy;
    size_t n;
    assert_ok(ckpt_copy_create(&b->name, b->bytes, -1, &copy));
    assert_int_equal(found(b), 0);
    take(b, copy, 1);
    assert_int_equal(found(b), 1u << 1);
    take(b, copy, 2);
    assert_int_equal(found(b), 1u << 1 | 1u << 2);
    take(b, copy, 3);
    assert_int_equal(found(b), 1u << 2 | 1u << 3);
    /* begun and not ended: the newest stays */
    assert_non_null(ckpt_copy_receive(copy, &n));
    assert_int_equal(found(b), 1u << 3);
    ckpt_copy_close(copy, false);
    assert_int_equal(found(b), 1u << 3);
    bench_destroy(b);
}

static void test_a_keeper(void **state)
{
    (void)state;
    Bench *b = bench_create();
    CkptCopy *own, *kept;
    size_t from, to;
    assert_ok(ckpt_copy_create(&b->name, b->bytes, -1, &own));
    b->name.keeper = 1;
    assert_ok(ckpt_copy_create(&b->name, b->bytes, -1, &kept));
    take(b, own, 4);
    const void *slot = ckpt_copy_slot(own, &from);
    void *room = ckpt_copy_receive(kept, &to);
    assert_int_equal(from, to);
    memcpy(room, slot, to);
    ckpt_copy_close(own, true);
    assert_int_equal(found(b), 0);
    ckpt_copy_received(kept, 4);
    assert_int_equal(found(b), 1u << 4);
    ckpt_copy_close(kept, true);
    assert_int_equal(found(b), 0);
    bench_destroy(b);
}

/* The next start: the step that it goes on from stays until the one after the next is taken. */
static void test_used_again(void **state)
{
    (void)state;
    for (int64_t keep = -1; keep <= 3; keep++) {
        Bench *b = bench_create();
        CkptCopy *copy;
        assert_ok(ckpt_copy_create(&b->name, b->bytes, -1, &copy));
        for (int64_t step = 1; step <= 3; step++) take(b, copy, step);
        ckpt_copy_close(copy, false);
        assert_ok(ckpt_copy_create(&b->name, b->bytes, keep, &copy));
        unsigned stays = keep == 2 || keep == 3 ? 1u << keep : 0;
        assert_int_equal(found(b), stays);
        take(b, copy, 5);
        assert_int_equal(found(b), stays | 1u << 5);
        take(b, copy, 6);
        assert_int_equal(found(b), 1u << 5 | 1u << 6);
        ckpt_copy_close(copy, false);
        assert_ok(ckpt_copy_create(&b->name, b->bytes + 2 * 4096, 6, &copy)); /* of another size */
        assert_int_equal(found(b), 0);
        ckpt_copy_close(copy, true);
        bench_destroy(b);
    }
}

static void test_refused(void **state)
{
    (void)state;
    Bench *b = bench_create();
    CkptCopy *copy;
    CkptCopyFound *list;
    CkptCopyView view;
    int n;
    assert_ok(fault_set("tensor_alloc:1"));
    assert_int_equal(ckpt_copy_create(&b->name, b->bytes, -1, &copy), ERR_MEMORY);
    assert_ok(fault_set(NULL));
    assert_ok(ckpt_copy_create(&b->name, b->bytes, -1, &copy));
    take(b, copy, 1);
    assert_ok(ckpt_copies_find(&b->arena, b->dir, RUN, &list, &n));
    assert_int_equal(n, 1);
    CkptTensor other = b->share.tensors[0],
               *tensors = arena_copy(&b->arena, b->share.tensors,
                                     sizeof other * (size_t)b->share.n_tensors);
    tensors[0].shape.dim[0]++;
    CkptShare wider = b->share;
    wider.tensors = tensors;
    assert_int_equal(ckpt_copy_open(&list[0], &wider, &view), ERR_FORMAT);
    ckpt_copy_close(copy, false);
    /* any byte of the heads and of the index may be anything: no crash, and nothing outside is read */
    const char *path = list[0].path;
    int fd = open(path, O_RDWR), opened = 0;
    for (off_t at = 0; at < 3 * 4096; at += at < 128 || at % 4096 < 64 ? 1 : 509) {
        uint8_t good, bad;
        assert_int_equal(pread(fd, &good, 1, at), 1);
        bad = (uint8_t)(good ^ 0x90);
        assert_int_equal(pwrite(fd, &bad, 1, at), 1);
        assert_ok(ckpt_copies_find(&b->arena, b->dir, RUN, &list, &n));
        for (int i = 0; i < n; i++) {
            if (ckpt_copy_open(&list[i], &b->share, &view) != OK) continue;
            opened++;
            ckpt_copy_view_close(&view);
        }
        assert_int_equal(pwrite(fd, &good, 1, at), 1);
    }
    assert_true(opened > 0);
    close(fd);
    assert_int_equal(found(b), 1u << 1);
    assert_int_equal(truncate(path, 5000), 0);
    assert_int_equal(found(b), 0);
    bench_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots_take_turns),
        cmocka_unit_test(test_a_keeper),
        cmocka_unit_test(test_used_again),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
