/* quantise: every bit beside rounding in double precision, for all formats, scalings and sizes, and
 * what is at the ends of both formats. */
#include "ops/quantise_testkit.h"

typedef struct Case {
    int64_t rows, width;
    DType dtype;
    ScalingUnit scaling;
    int64_t more; /* elements between rows of x */
} Case;

static void compare(const OpRun *run, ValueId v, const double *expected, const char *what)
{
    double *got = optest_run_values(run, v);
    for (int64_t i = 0; i < optest_count(run->t, v); i++)
        if (got[i] != expected[i] && !(isnan(got[i]) && isnan(expected[i])))
            fail_msg("%s on %s: element %lld is %.9g, not %.9g", what,
                     optest_target_name(&run->target), (long long)i, got[i], expected[i]);
    free(got);
}

static void check_side(const OpRun *run, const Scaled *side, const KitLines *lines, DType dtype,
                       const char *what)
{
    char name[32];
    double *q = xcalloc((size_t)(lines->n * lines->width), sizeof *q),
           *scale = xcalloc((size_t)optest_count(run->t, side->scale), sizeof *scale);
    kit_quantise(lines, dtype, side->scaling, q, scale);
    snprintf(name, sizeof name, "%s' scales", what);
    compare(run, side->scale, scale, name);
    compare(run, side->q, q, what);
    free(q);
    free(scale);
}

/* which: rows, columns, both. On every target, with one thread and several. */
static void check_values(const Case *c, const double *values, int which)
{
    OpTest *t = optest_create((uint64_t)(c->rows * 1000 + c->width));
    ValueId x = values ? optest_data(t, DTYPE_BF16, SHAPE(c->rows, c->width), values)
                       : optest_normal(t, DTYPE_BF16, SHAPE(c->rows, c->width), 3.0);
    Scaled rows, columns;
    if (c->more) optest_pitch(t, x, 1, c->width + c->more);
    optest_ok(op_quantise(t->graph, x, c->dtype, c->scaling, which == 1 ? NULL : &rows,
                          which == 0 ? NULL : &columns));
    optest_ok(graph_verify(t->graph, "building the test"));
    const double *data = t->input.at[0].data;
    KitLines by_row = kit_rows(data, c->rows, c->width),
             by_column = kit_columns(data, c->rows, c->width);
    for (int i = 0; i < 2 * OPTEST_TARGETS; i++) {
        OpRun run;
        Target target;
        if (!optest_target(t, i / 2, i % 2 ? 3 : 1, &target)) continue;
        if (!optest_run(&run, t, target, 0)) fail_msg("%s", run.fault);
        if (which != 1) check_side(&run, &rows, &by_row, c->dtype, "rows");
        if (which != 0) check_side(&run, &columns, &by_column, c->dtype, "columns");
        optest_run_end(&run);
    }
    optest_destroy(t);
}

static void test_values(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {3, 17}, {16, 128}, {130, 129}, {5, 300}, {260, 33}};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int k = 0; k < 6; k++)
            check_values(&(Case){sizes[i][0], sizes[i][1], k % 2 ? DTYPE_F8_E5M2 : DTYPE_F8_E4M3,
                                 (ScalingUnit)(k / 2), i % 2 ? 0 : 5},
                         NULL, (i + k) % 3);
}

/* Rows of zeros, of numbers so small that 448 over them is infinite, of the largest there are, of
 * what is no number; ties; and a few of them among others. */
static void test_ends(void **state)
{
    (void)state;
    enum { ROWS = 12, WIDTH = 20 };
    double x[ROWS][WIDTH] = {{0}};
    for (int k = 0; k < WIDTH; k++) {
        x[1][k] = ldexp(k + 1, -133); /* subnormal in bf16 */
        x[2][k] = ldexp(k % 3, -120);
        x[3][k] = (k % 2 ? -1 : 1) * 3.3e38 / (k + 1);
        x[4][k] = k == 7 ? (double)INFINITY : k;
        x[5][k] = k == 3 ? (double)NAN : k;
        x[6][k] = (double)NAN;
        /* the scale is one: ties go to the even neighbour, the smallest of all to zero */
        static const double ties[] = {448,      17,     19,  -17,     -19,      0.5,
                                      1.0625,   1.1875, 26,  0x1p-10, 0x1.8p-9, 0x1.4p-8,
                                      -0x1p-10, 240,    248, 232};
        x[7][k] = k < COUNT_OF(ties) ? ties[k] : 0;
        static const double wide[] = {57344,   4.5,       5.5,      -4.5,  36864, 45056,
                                      0x1p-17, 0x1.8p-16, -0x1p-17, 1.125, 1.375};
        x[8][k] = k < COUNT_OF(wide) ? wide[k] : 0;
        x[9][k] = k == 0 ? 1e30 : 1e-30; /* one outlier: the others vanish */
        x[10][k] = -0.0;
        x[11][k] = k - 10;
    }
    for (int k = 0; k < 6; k++)
        check_values(
            &(Case){ROWS, WIDTH, k % 2 ? DTYPE_F8_E5M2 : DTYPE_F8_E4M3, (ScalingUnit)(k / 2), 0},
            x[0], 2);
}

/* The formats' error: half a step of the mantissa, for what is not far below the largest. */
static void test_error(void **state)
{
    (void)state;
    enum { N = 64, WIDTH = 256 };
    OpTest *t = optest_create(5);
    ValueId x = optest_normal(t, DTYPE_BF16, SHAPE(N, WIDTH), 1.0);
    KitLines lines = kit_rows(t->input.at[0].data, N, WIDTH);
    for (int k = 0; k < 6; k++) {
        DType dtype = k % 2 ? DTYPE_F8_E5M2 : DTYPE_F8_E4M3;
        double *rounded = kit_rounded(&lines, dtype, (ScalingUnit)(k / 2)), most = 0;
        for (int64_t i = 0; i < N * WIDTH; i++) {
            double v = optest_at(t, x, i);
            if (fabs(v) > 0.01) most = fmax(most, fabs(rounded[i] - v) / fabs(v));
        }
        assert_true(most < (k % 2 ? 0.1251 : 0.0626) && most > (k % 2 ? 0.1 : 0.05));
        free(rounded);
    }
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Scaled rows;
    ValueId wide = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0),
            x = optest_normal(t, DTYPE_BF16, SHAPE(2, 3), 1.0);
    optest_refused(op_quantise(t->graph, wide, DTYPE_F8_E4M3, SCALING_ROW, &rows, NULL), ERR_ARG,
                   "x must be bf16");
    optest_refused(op_quantise(t->graph, x, DTYPE_F16, SCALING_ROW, &rows, NULL), ERR_ARG,
                   "only f8_e4m3 or f8_e5m2");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_ends),
                                       cmocka_unit_test(test_error),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
