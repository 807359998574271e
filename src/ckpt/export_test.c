/* Exports: bits as they were or rounded as they should be, what is refused, and nothing left behind
 * whatever fails. */
#include "ckpt/ckpt_testkit.h"

#include <math.h>

enum { ELEMENTS = 37 * 8 };

static const char *source(char *scratch, Arena *arena, TinyState *state)
{
    const char *path = path_join(arena, scratch, "source");
    float *numbers = state->model[0].tensor.data;
    for (int i = 0; i < ELEMENTS; i++) numbers[i] = (float)i / 7 - 20;
    assert_ok(modeldir_write(path, state->model, TINY_MODEL, 0));
    return path;
}

static int list(const ModelDir *dir, DType dtype, ExportTensor *out)
{
    for (int i = 0; i < modeldir_count(dir); i++)
        out[i] = export_entry(modeldir_at(dir, i),
                              dtype == DTYPE_COUNT ? modeldir_at(dir, i)->dtype : dtype);
    return modeldir_count(dir);
}

/* Directories of `scratch` that the tests did not ask for. */
static int leftovers(const char *scratch)
{
    Arena arena = {0};
    DirEntries entries;
    int n = 0;
    assert_ok(dir_list(&arena, scratch, &entries));
    for (int i = 0; i < entries.n; i++) n += strcmp(entries.name[i], "source") != 0;
    arena_deinit(&arena);
    return n;
}

static void bits_stay_and_others_round(void **unused)
{
    (void)unused;
    Arena arena = {0};
    char *scratch = scratch_create();
    TinyState *state = tiny_create();
    ModelDir *dir, *made;
    ExportTensor tensors[TINY_MODEL];
    assert_ok(modeldir_open(source(scratch, &arena, state), &dir));
    static const DType types[] = {DTYPE_COUNT, DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (int t = 0; t < COUNT_OF(types); t++) {
        const char *path = arena_printf(&arena, "%s/made-%d/", scratch, t);
        CkptFile file = {"config.json", {(const uint8_t *)"{}", 2}};
        Export what = {.tensors = tensors,
                       .n = list(dir, types[t], tensors),
                       .files = &file,
                       .n_files = 1,
                       .shard_bytes = 600};
        assert_ok(modeldir_export(path, &what));
        assert_ok(modeldir_open(path, &made));
        for (int i = 0; i < TINY_MODEL; i++) {
            const SafetensorsEntry *from = modeldir_at(dir, i),
                                   *to = modeldir_find(made, from->name);
            DType want = types[t] == DTYPE_COUNT ? from->dtype : types[t];
            uint8_t a[4 * ELEMENTS], b[4 * ELEMENTS];
            int64_t n = shape_count(&from->shape);
            assert_non_null(to);
            assert_int_equal(to->dtype, want);
            assert_true(shape_equal(&to->shape, &from->shape));
            assert_ok(safetensors_read(from, 0, n, want, a));
            assert_ok(safetensors_read(to, 0, n, want, b));
            assert_memory_equal(a, b, (size_t)n * dtype_bytes(want));
        }
        modeldir_close(made);
        assert_int_equal(modeldir_export(path, &what), ERR_REFUSED); /* it is there now */
    }
    modeldir_close(dir);
    tiny_destroy(state);
    scratch_destroy(scratch);
    arena_deinit(&arena);
}

static void f16_says_what_it_cannot_hold(void **unused)
{
    (void)unused;
    Arena arena = {0};
    char *scratch = scratch_create();
    TinyState *state = tiny_create();
    ModelDir *dir;
    ExportTensor tensors[TINY_MODEL];
    float *numbers = state->model[0].tensor.data;
    const char *path = source(scratch, &arena, state);
    numbers[5] = INFINITY; /* none before, none after: fine */
    numbers[11] = -70000;
    assert_ok(dir_remove_tree(path));
    assert_ok(modeldir_write(path, state->model, TINY_MODEL, 0));
    assert_ok(modeldir_open(path, &dir));
    Export what = {.tensors = tensors, .n = list(dir, DTYPE_F16, tensors)};
    assert_int_equal(modeldir_export(path_join(&arena, scratch, "made"), &what), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "model.embed_tokens.weight[11] is -70000"));
    assert_int_equal(leftovers(scratch), 0);
    modeldir_close(dir);
    tiny_destroy(state);
    scratch_destroy(scratch);
    arena_deinit(&arena);
}

/* The first, second, ... call of each kind fails, until none is left to fail. */
static void whatever_fails_leaves_nothing(void **unused)
{
    (void)unused;
    static const char *const points[] = {"write", "fsync", "rename", "close", "mkdir", "read"};
    Arena arena = {0};
    char *scratch = scratch_create();
    TinyState *state = tiny_create();
    ModelDir *dir;
    ExportTensor tensors[TINY_MODEL];
    const char *path = source(scratch, &arena, state), *made = path_join(&arena, scratch, "made");
    const char *copy = path_join(&arena, path, "model.safetensors.index.json");
    assert_ok(modeldir_open(path, &dir));
    Export what = {
        .tensors = tensors, .n = list(dir, DTYPE_COUNT, tensors), .copies = &copy, .n_copies = 1};
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int n = 1;; n++) {
            assert_true(n < 100);
            assert_ok(fault_set(arena_printf(&arena, "%s:%d", points[p], n)));
            Status status = modeldir_export(made, &what);
            bool reached = fault_count(points[p]) >= n;
            assert_ok(fault_set(NULL));
            if (status == OK)
                assert_ok(dir_remove_tree(made));
            else if (dir_exists(made)) /* renamed, but not known to be durable: whole, and said to
                                          have failed */
                assert_ok(dir_remove_tree(made));
            if (!reached) break;
            assert_int_equal(leftovers(scratch), 0);
        }
    modeldir_close(dir);
    tiny_destroy(state);
    scratch_destroy(scratch);
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_stay_and_others_round),
        cmocka_unit_test(f16_says_what_it_cannot_hold),
        cmocka_unit_test(whatever_fails_leaves_nothing),
    };
    log_set_level(LOG_SILENT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
