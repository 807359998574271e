/* Logits of every golden model, read from its Hugging Face directory, against those of the
 * reference implementation: at most 1e-4 apart in f32. */
#include "cli/cli.h" /* before cmocka, which has a macro called fail */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN SOURCE_DIR "/tests/golden"

#define check_ok(call)                                                                             \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s: %s", #call, status_message());                             \
    } while (0)

typedef struct Case {
    Arena arena;
    const char *dir;
    InferModel model;
    IdRows rows;
    float *expected; /* [rows, n, vocab] */
    int64_t n_expected;
} Case;

static void open_case(Case *c, const char *name)
{
    *c = (Case){0};
    c->dir = path_join(&c->arena, GOLDEN, name);
    check_ok(infer_model_open(c->dir, &c->model));
    check_ok(ids_read(&c->arena, path_join(&c->arena, c->dir, "ids.json"), &c->rows));
    Safetensors *file;
    check_ok(safetensors_open(path_join(&c->arena, c->dir, "expected.safetensors"), &file));
    const SafetensorsEntry *entry = safetensors_find(file, "logits");
    assert_non_null(entry);
    c->n_expected = shape_count(&entry->shape);
    c->expected = malloc(sizeof(float) * (size_t)c->n_expected);
    check_ok(safetensors_read(entry, 0, c->n_expected, DTYPE_F32, c->expected));
    safetensors_close(file);
}

static void close_case(Case *c)
{
    infer_model_deinit(&c->model);
    free(c->expected);
    arena_deinit(&c->arena);
}

static double worst_difference(const float *a, const float *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; /* NaN counts as worst */
    }
    return worst;
}

static double run_case(Case *c, InferOptions options)
{
    Infer *infer;
    int64_t n = (int64_t)c->rows.row[0].n, row = n * c->model.config.vocab;
    assert_int_equal(c->n_expected, c->rows.n * row);
    options.logits_tokens = n;
    check_ok(infer_create(&c->model, options, &infer));
    double worst = 0;
    for (int i = 0; i < c->rows.n; i++) {
        const float *logits;
        check_ok(infer_logits(infer, c->rows.row[i].at, n, &logits));
        double d = worst_difference(logits, c->expected + i * row, row);
        if (!(d <= worst)) worst = d;
    }
    infer_destroy(infer);
    return worst;
}

static int for_each(double limit, InferOptions options)
{
    Arena arena = {0};
    DirEntries entries;
    int n = 0;
    check_ok(dir_list(&arena, GOLDEN, &entries));
    for (int i = 0; i < entries.n; i++) {
        if (!dir_exists(path_join(&arena, GOLDEN, entries.name[i]))) continue;
        Case c;
        open_case(&c, entries.name[i]);
        double worst = run_case(&c, options);
        print_message("%-28s %.2g\n", entries.name[i], worst);
        if (!(worst <= limit)) fail_msg("%s: logits differ by %g", entries.name[i], worst);
        close_case(&c);
        n++;
    }
    arena_deinit(&arena);
    return n;
}

static void test_f32(void **state)
{
    (void)state;
    assert_true(for_each(1e-4, (InferOptions){.threads = 2}) >= 43);
}

/* bf16 has 8 bits of mantissa and logits reach 8; routing may tip, so only a coarse bound holds. */
static void test_bf16_is_near(void **state)
{
    (void)state;
    Case c;
    open_case(&c, "llama3-gqa");
    double worst = run_case(&c,
                            (InferOptions){.threads = 2, .dtype_set = true, .dtype = DTYPE_BF16});
    close_case(&c);
    print_message("bf16 llama3-gqa %.2g\n", worst);
    assert_true(worst > 0 && worst < 0.25);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32),
                                       cmocka_unit_test(test_bf16_is_near)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
