/* Copies in memory: one slot is whole at any moment, a file is used again by the next start, and
 * what is damaged, were it by a single bit, or of another model is refused. */
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

static void flip(const char *path, off_t at, int bits)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte = (uint8_t)(byte ^ bits);
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
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
    /* any byte of the file's head may be anything: no crash, and nothing outside is read */
    const char *path = list[0].path;
    for (off_t at = 0; at < 4096; at += at < 128 ? 1 : 509) {
        flip(path, at, 0x90);
        assert_ok(ckpt_copies_find(&b->arena, b->dir, RUN, &list, &n));
        for (int i = 0; i < n; i++)
            if (ckpt_copy_open(&list[i], &b->share, &view) == OK) ckpt_copy_view_close(&view);
        flip(path, at, 0x90);
    }
    assert_int_equal(found(b), 1u << 1);
    assert_int_equal(truncate(path, 5000), 0);
    assert_int_equal(found(b), 0);
    bench_destroy(b);
}

/* The tensor of which this byte of the file is a part, "" in head and index, NULL where nothing is
 * that is used. */
static const char *what_is_at(const Bench *b, const CkptCopyView *view, off_t at)
{
    const char *byte = (const char *)view->map + at;
    if (byte >= (const char *)view->map + 4096 && byte < (const char *)(view->run + view->n_runs))
        return "";
    for (int64_t k = 0; k < view->n_runs; k++) {
        const CkptCopyRun *run = &view->run[k];
        const char *first = view->data + run->at;
        if (byte >= first && byte < first + run->n * run->element_bytes)
            return b->share.tensors[run->tensor].name;
    }
    return NULL;
}

/* A bit that turned over is found, wherever it is; the sentence names copy and tensor. */
static void test_flipped_bits(void **state)
{
    (void)state;
    Bench *b = bench_create();
    CkptCopy *copy;
    CkptCopyFound *list;
    CkptCopyView view, damaged;
    int n, in_tensors = 0;
    assert_ok(ckpt_copy_create(&b->name, b->bytes, -1, &copy));
    take(b, copy, 1);
    ckpt_copy_close(copy, false);
    assert_ok(ckpt_copies_find(&b->arena, b->dir, RUN, &list, &n));
    assert_ok(ckpt_copy_open(&list[0], &b->share, &view));
    off_t slot = (off_t)(b->bytes - 4096) / 2;
    for (uint64_t trial = 0; trial < 10000; trial++) {
        off_t at = 4096 + (off_t)rng_below(1, trial, (uint64_t)slot);
        const char *tensor = what_is_at(b, &view, at);
        flip(list[0].path, at, 1 << trial % 8);
        Status status = ckpt_copy_open(&list[0], &b->share, &damaged);
        if (status == OK) ckpt_copy_view_close(&damaged);
        if ((status == OK) != (tensor == NULL))
            fail_msg("byte %lld: status %d", (long long)at, (int)status);
        flip(list[0].path, at, 1 << trial % 8);
        if (!tensor) continue;
        in_tensors += *tensor != 0;
        assert_non_null(
            strstr(status_message(), "the copy in memory of rank 0 of 1 after step 1, "));
        assert_non_null(strstr(status_message(), list[0].path));
        assert_non_null(strstr(status_message(), *tensor ? tensor : "head or index"));
    }
    assert_true(in_tensors > 1000);
    ckpt_copy_view_close(&view);
    assert_int_equal(found(b), 1u << 1);
    bench_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots_take_turns), cmocka_unit_test(test_a_keeper),
        cmocka_unit_test(test_used_again),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_flipped_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
