/* Choices of algorithms: as text, in a file that several write, tried out once. */
#include "base/testing.h"
#include "gpu/choices.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64];
static Arena arena;

static int make_dir(void **state)
{
    (void)state;
    log_set_level(LOG_SILENT);
    snprintf(dir, sizeof dir, "/tmp/drover-choices-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    arena_deinit(&arena);
    return dir_remove_tree(dir) == OK ? 0 : -1;
}

static Algorithm numbered(int i)
{
    Algorithm a = {{0}};
    for (int k = 0; k < ALGORITHM_BYTES; k++) a.byte[k] = (uint8_t)(i * 31 + k * 7);
    a.byte[0] = (uint8_t)i;
    return a;
}

static Str three_choices(void)
{
    ChoiceTable t = {0};
    Str text = {0};
    for (int i = 2; i >= 0; i--) {
        Algorithm a = numbered(i);
        choice_add(&t, (const char *const[]){"card: a", "card: b", "card: c"}[i], &a, 1.5 * i);
    }
    choice_table_write(&t, &text);
    choice_table_deinit(&t);
    return text;
}

static int read_text(ChoiceTable *t, const char *text, size_t n)
{
    return choice_table_read(t, (Bytes){(const uint8_t *)text, n});
}

static void test_text(void **state)
{
    (void)state;
    Str text = three_choices(), again = {0};
    ChoiceTable t = {0};
    assert_int_equal(read_text(&t, text.at, text.n), 0);
    assert_int_equal(t.choice.n, 3);
    for (int i = 0; i < 3; i++) {
        Algorithm a = numbered(i);
        const Choice *c = t.choice.at[i];
        assert_string_equal(c->key, ((const char *const[]){"card: a", "card: b", "card: c"}[i]));
        assert_memory_equal(&c->algorithm, &a, sizeof a);
        assert_near(c->us, 1.5 * i, 1e-9);
    }
    choice_table_write(&t, &again);
    assert_string_equal(text.at, again.at);
    choice_table_deinit(&t);
    str_deinit(&text);
    str_deinit(&again);
}

/* Whatever byte is damaged, no other choice is taken for one that was written, and at most one is
 * lost; with another first line, or none, all are. */
static void test_damage(void **state)
{
    (void)state;
    Str text = three_choices();
    size_t first = strcspn(text.at, "\n");
    for (size_t at = 0; at < text.n; at++) {
        ChoiceTable t = {0};
        text.at[at] ^= 1;
        int bad = read_text(&t, text.at, text.n);
        text.at[at] ^= 1;
        assert_true(bad > 0);
        assert_int_equal(t.choice.n, at <= first                              ? 0
                                     : text.at[at] == '\n' && at + 1 < text.n ? 1
                                                                              : 2);
        for (size_t i = 0; i < t.choice.n; i++) {
            Algorithm a = numbered(t.choice.at[i]->key[6] - 'a');
            assert_memory_equal(&t.choice.at[i]->algorithm, &a, sizeof a);
        }
        choice_table_deinit(&t);
    }
    for (size_t n = 0; n < text.n; n++) { /* cut off anywhere */
        ChoiceTable t = {0};
        (void)read_text(&t, text.at, n);
        assert_true(t.choice.n < 3);
        choice_table_deinit(&t);
    }
    str_deinit(&text);
}

/* ---- choosing ----------------------------------------------------------------------------- */

/* An algorithm is so many fills of a buffer; the fewest are the fastest. */
typedef struct Work {
    Gpu *gpu;
    GpuStream *stream;
    void *memory;
    int runs, refused; /* refused: this one is an error */
    bool may;
    const char *path;
    Choice got;
    Status status;
    pthread_t thread;
} Work;

enum { BYTES = 1 << 20 };

static Status fill_often(void *context, const Algorithm *algorithm)
{
    Work *w = context;
    w->runs++;
    if (algorithm->byte[0] == w->refused) return fail(ERR_DEVICE, "refused");
    for (int i = 0; i < algorithm->byte[0]; i++) TRY(gpu_fill(w->stream, w->memory, i, BYTES));
    return OK;
}

static bool may(void *context, const Algorithm *algorithm)
{
    (void)algorithm;
    return ((Work *)context)->may;
}

static Status choose(Work *w, const char *key, const int *fills, int n)
{
    Algorithm candidate[8];
    Choice *choice;
    for (int i = 0; i < n; i++) candidate[i] = numbered(fills[i]);
    TRY(gpu_open(0, &w->gpu));
    TRY(gpu_stream_create(w->gpu, &w->stream));
    TRY(gpu_alloc(w->gpu, BYTES, "a test", &w->memory));
    gpu_product_tune(w->gpu, w->path);
    w->runs = 0;
    w->status = gpu_choose(w->stream, key, &(Candidates){candidate, n, fill_often, may, w},
                           &choice);
    if (w->status == OK) w->got = *choice;
    gpu_free(w->gpu, w->memory);
    gpu_stream_destroy(w->stream);
    gpu_close(w->gpu);
    return w->status;
}

#define NEED_GPU()                                                                                 \
    if (!gpu_count(NULL)) skip()

static const int fills[] = {60, 4, 30};

static void test_choose(void **state)
{
    (void)state;
    NEED_GPU();
    Work w = {.path = arena_printf(&arena, "%s/deep/er/products", dir), .may = true};
    assert_ok(choose(&w, "shape 1", fills, 3));
    assert_int_equal(w.got.algorithm.byte[0], 4);
    assert_true(w.runs > 5 && w.got.us > 0);
    assert_ok(choose(&w, "shape 1", (const int[]){60}, 1)); /* it stays, whatever there is now */
    assert_int_equal(w.got.algorithm.byte[0], 4);
    assert_int_equal(w.runs, 0);
    w.refused = 4;
    assert_ok(choose(&w, "shape 2", fills, 3));
    assert_int_equal(w.got.algorithm.byte[0], 30);
    w.refused = 30; /* nothing is left */
    assert_int_equal(choose(&w, "shape 3", (const int[]){30}, 1), ERR_DEVICE);
    w.may = false; /* the library says that it is none */
    assert_ok(choose(&w, "shape 1", (const int[]){60, 9}, 2));
    assert_int_equal(w.got.algorithm.byte[0], 9);
    w.may = true;
    assert_ok(choose(&w, "shape 1", fills, 3));
    assert_int_equal(w.got.algorithm.byte[0], 9);
    assert_int_equal(w.runs, 0);
    assert_ok(choose(&w, "shape 2", fills, 3)); /* others are still there */
    assert_int_equal(w.runs, 0);
}

/* A file that is something else, or damaged, is written anew; a place where none can be written
 * hinders nobody. */
static void test_bad_files(void **state)
{
    (void)state;
    NEED_GPU();
    Work w = {.path = arena_printf(&arena, "%s/other", dir), .may = true};
    assert_ok(file_write_atomic(w.path, "model: llama\n", 13));
    assert_ok(choose(&w, "shape", fills, 3));
    assert_int_equal(w.got.algorithm.byte[0], 4);
    assert_ok(choose(&w, "shape", fills, 3));
    assert_int_equal(w.runs, 0);
    w.path = "/proc/nowhere/products";
    assert_ok(choose(&w, "shape", fills, 3));
    assert_int_equal(w.got.algorithm.byte[0], 4);
    static const char *const points[] = {"open", "read", "write", "fsync", "rename", "mkdir"};
    for (int i = 0; i < COUNT_OF(points); i++) {
        w.path = arena_printf(&arena, "%s/fault%d", dir, i);
        assert_ok(choose(&w, "shape 0", fills, 3));
        assert_ok(fault_set(arena_printf(&arena, "%s:1+", points[i])));
        assert_ok(choose(&w, "shape", fills, 3));
        assert_int_equal(w.got.algorithm.byte[0], 4);
        assert_ok(fault_set(NULL));
    }
}

static void *choose_alone(void *opaque)
{
    Work *w = opaque;
    static const int alike[] = {5, 5, 5, 5};
    Status status = choose(w, w->path[0] ? "shape" : "", alike, 4);
    (void)status;
    return NULL;
}

/* Ranks that start at once: one of them tries, the others wait for it and take what it found. */
static void test_at_once(void **state)
{
    (void)state;
    NEED_GPU();
    enum { N = 6 };
    Work w[N];
    const char *path = arena_printf(&arena, "%s/at-once", dir);
    int tried = 0;
    for (int i = 0; i < N; i++) {
        w[i] = (Work){.path = path, .may = true};
        assert_int_equal(pthread_create(&w[i].thread, NULL, choose_alone, &w[i]), 0);
    }
    for (int i = 0; i < N; i++) pthread_join(w[i].thread, NULL);
    for (int i = 0; i < N; i++) {
        assert_ok(w[i].status);
        assert_memory_equal(&w[i].got.algorithm, &w[0].got.algorithm, sizeof(Algorithm));
        tried += w[i].runs > 0;
    }
    assert_int_equal(tried, 1);
}

/* What another rank tells counts, also for what was chosen here before, until all have agreed. */
static void test_tell_and_hear(void **state)
{
    (void)state;
    NEED_GPU();
    Gpu *gpu;
    Str mine = {0}, theirs = three_choices();
    assert_ok(gpu_open(0, &gpu));
    assert_false(gpu_product_tell(gpu, &mine));
    Algorithm a = numbered(9), b = numbered(1);
    Choice *kept = choice_add(&gpu_choices(gpu)->used, "card: b", &a, 1);
    assert_true(gpu_product_tell(gpu, &mine));
    assert_non_null(strstr(mine.at, "card: b"));
    assert_ok(gpu_product_hear(gpu, (Bytes){(const uint8_t *)theirs.at, theirs.n}));
    assert_memory_equal(&kept->algorithm, &b, sizeof b);
    assert_ok(gpu_product_hear(gpu, (Bytes){(const uint8_t *)mine.at, mine.n})); /* too late */
    assert_memory_equal(&kept->algorithm, &b, sizeof b);
    assert_false(gpu_product_tell(gpu, &mine));
    assert_int_equal(gpu_product_hear(gpu, (Bytes){(const uint8_t *)"x", 1}), ERR_COMM);
    gpu_close(gpu);
    str_deinit(&mine);
    str_deinit(&theirs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),    cmocka_unit_test(test_damage),
        cmocka_unit_test(test_choose),  cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_at_once), cmocka_unit_test(test_tell_and_hear),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
