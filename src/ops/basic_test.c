/* Views and element-wise ops: reshape, split, concat, add, scale, cast, fill. */
#include "ops/optest.h"

#include <stdlib.h>
#include <string.h>

static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16};
static double tolerance(DType dtype) { return dtype == DTYPE_BF16 ? 5e-3 : 1e-6; }

/* ---- element-wise ----------------------------------------------------------------------- */

static void reference_add(const void *user, double *const *in, double *const *out)
{
    int64_t n = *(const int64_t *)user;
    for (int64_t i = 0; i < n; i++) out[0][i] = in[0][i] + in[1][i];
}

static void check_add(DType dtype, int64_t tokens, int64_t heads, int64_t width, bool strided)
{
    OpTest *t = optest_create((uint64_t)(tokens + width));
    int64_t n = tokens * heads * width;
    ValueId a = optest_normal(t, dtype, SHAPE(1, tokens, heads, width), 1.0);
    ValueId b = optest_normal(t, dtype, SHAPE(1, tokens, heads, width), 1.0), y;
    optest_ok(op_add(t->graph, a, b, &y));
    if (strided) {
        optest_pitch(t, a, 2, heads * width + 7);
        optest_pitch(t, y, 2, heads * width + 1);
    }
    optest_output(t, y);
    optest_check_grad(t, reference_add, &n, tolerance(dtype));
    optest_destroy(t);
}

static void test_add(void **state)
{
    (void)state;
    for (int d = 0; d < COUNT_OF(dtypes); d++) {
        check_add(dtypes[d], 1, 1, 1, false);
        check_add(dtypes[d], 3, 2, 17, false);
        check_add(dtypes[d], 3, 2, 17, true);
        check_add(dtypes[d], 1, 2, 16, true);
        check_add(dtypes[d], 301, 2, 67, true); /* parallel */
        check_add(dtypes[d], 301, 2, 67, false);
    }
}

/* x + x: one value as both operands, its gradient the sum of both */
static void reference_twice(const void *user, double *const *in, double *const *out)
{
    int64_t n = *(const int64_t *)user;
    for (int64_t i = 0; i < n; i++) out[0][i] = 2 * in[0][i];
}

static void test_add_to_itself(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    int64_t n = 19;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(n), 1.0), y;
    optest_ok(op_add(t->graph, x, x, &y));
    optest_output(t, y);
    optest_check_grad(t, reference_twice, &n, 1e-6);
    optest_destroy(t);
}

static void test_scale(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * COUNT_OF(dtypes); i++) {
        OpTest *t = optest_create(1);
        int d = i / 2;
        int64_t width = i % 2 ? 80 : 77, n = 5 * width;
        ValueId x = optest_normal(t, dtypes[d], SHAPE(5, width), 1.0), y;
        optest_pitch(t, x, 1, i % 2 ? 96 : 80);
        optest_ok(op_scale(t->graph, x, 2.0f, &y));
        optest_output(t, y);
        optest_check_grad(t, reference_twice, &n, tolerance(dtypes[d]));
        optest_destroy(t);
    }
}

static void reference_copy(const void *user, double *const *in, double *const *out)
{
    memcpy(out[0], in[0], sizeof **in * (size_t) * (const int64_t *)user);
}

static void test_cast(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * COUNT_OF(dtypes); i++) {
        OpTest *t = optest_create(1);
        int d = i / 2;
        int64_t width = i % 2 ? 48 : 45, n = 3 * width;
        ValueId x = optest_normal(t, dtypes[d], SHAPE(3, width), 1.0), y, same;
        optest_ok(op_cast(t->graph, x, dtypes[1 - d], &y));
        optest_ok(op_cast(t->graph, x, dtypes[d], &same));
        assert_int_equal(same.id, x.id); /* no node for nothing */
        optest_output(t, y);
        optest_check_grad(t, reference_copy, &n, tolerance(DTYPE_BF16));
        optest_destroy(t);
    }
}

/* The rounding is that of the scalar function, ties and special values included. */
static void test_cast_rounds_to_nearest_even(void **state)
{
    (void)state;
    const double values[] = {1.00390625, 1.01171875, -1.00390625, 3.4e38,   -3.4e38,
                             1e-40,      0,          65536.5,     1.0078125};
    enum { N = COUNT_OF(values) };
    OpTest *t = optest_create(1);
    ValueId x = optest_data(t, DTYPE_F32, SHAPE(N), values), y;
    optest_ok(op_cast(t->graph, x, DTYPE_BF16, &y));
    for (Isa isa = ISA_GENERIC; isa < ISA_COUNT; isa++) {
        if (!optest_isa_available(isa)) continue;
        OpRun run;
        assert_true(optest_run(&run, t, (Target){.isa = isa, .threads = 1}, 0));
        double *got = optest_run_values(&run, y);
        for (int i = 0; i < N; i++) {
            if (values[i] == 1e-40) continue; /* bf16 instructions take subnormals as zero */
            if (got[i] != optest_round(DTYPE_BF16, values[i]))
                fail_msg("%s: %g became %g", isa_name(isa), values[i], got[i]);
        }
        free(got);
        optest_run_end(&run);
    }
    optest_destroy(t);
}

static void reference_fill(const void *user, double *const *in, double *const *out)
{
    (void)in;
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; i < *(const int64_t *)user; i++) out[k][i] = -3;
}

static void test_fill(void **state)
{
    (void)state;
    for (int64_t width = 16; width < 18; width++) {
        OpTest *t = optest_create(1);
        ValueId y[3], z;
        int64_t n = 3 * width;
        optest_ok(op_fill(t->graph, DTYPE_F32, SHAPE(3, width), -3.0f, &y[0]));
        optest_ok(op_fill(t->graph, DTYPE_BF16, SHAPE(3, width), -3.0f, &y[1]));
        optest_ok(op_fill(t->graph, DTYPE_I32, SHAPE(3, width), -3.0f, &y[2]));
        for (int k = 0; k < 3; k++) optest_plain_output(t, y[k]);
        optest_check(t, reference_fill, &n, 0);
        optest_refused(op_fill(t->graph, DTYPE_I64, SHAPE(3), 0, &z), ERR_ARG, "not i64");
        optest_destroy(t);
    }
}

/* ---- views and concat ------------------------------------------------------------------- */

static void reference_parts(const void *user, double *const *in, double *const *out)
{
    (void)user; /* x [3, 12] in parts of 5, 3 and 4; the second is no output */
    for (int r = 0; r < 3; r++) {
        memcpy(out[0] + r * 5, in[0] + r * 12, 5 * sizeof(double));
        memcpy(out[1] + r * 4, in[0] + r * 12 + 8, 4 * sizeof(double));
    }
}

/* A part without a gradient gets zeros; a part of a part is right too. */
static void test_split(void **state)
{
    (void)state;
    for (int d = 0; d < COUNT_OF(dtypes); d++) {
        OpTest *t = optest_create(1);
        ValueId x = optest_normal(t, dtypes[d], SHAPE(3, 12), 1.0), outer[2], part[2], y[2];
        optest_ok(op_split(t->graph, x, 2, (int64_t[]){5, 7}, NULL, outer));
        optest_ok(op_split(t->graph, outer[1], 2, (int64_t[]){3, 4}, NULL, part));
        optest_ok(op_scale(t->graph, outer[0], 1.0f, &y[0]));
        optest_ok(op_scale(t->graph, part[1], 1.0f, &y[1]));
        optest_output(t, y[0]);
        optest_output(t, y[1]);
        optest_check_grad(t, reference_parts, NULL, tolerance(dtypes[d]));
        optest_destroy(t);
    }
}

/* n operands: number k has (k + 1) each columns. */
typedef struct Parts {
    int n, each;
} Parts;

static void reference_concat(const void *user, double *const *in, double *const *out)
{
    const Parts *p = user;
    int width = p->n * (p->n + 1) / 2 * p->each, column = 0;
    for (int k = 0; k < p->n; k++) {
        int columns = (k + 1) * p->each;
        for (int r = 0; r < 4; r++)
            memcpy(out[0] + r * width + column, in[k] + r * columns,
                   (size_t)columns * sizeof(double));
        column += columns;
    }
}

static void test_concat(void **state)
{
    (void)state;
    for (int n = 1; n < 17; n += 3) /* beyond NODE_MAX_OUT its gradient splits more than once */
        for (int i = 0; i < 2 * COUNT_OF(dtypes); i++) {
            OpTest *t = optest_create(1);
            DType dtype = dtypes[i / 2];
            Parts p = {n, i % 2 ? 8 : 1};
            ValueId x[17], y;
            for (int k = 0; k < n; k++)
                x[k] = optest_normal(t, dtype, SHAPE(2, 2, (k + 1) * p.each), 1.0);
            for (int k = 0; k < n; k += 2) optest_pitch(t, x[k], 1, (k + 4) * p.each);
            optest_ok(op_concat(t->graph, n, x, &y));
            optest_output(t, y);
            optest_check_grad(t, reference_concat, &p, tolerance(dtype));
            optest_destroy(t);
        }
}

/* [2, 3, 8] of pitch 11 seen as [2, 3, 2, 4], and contiguous ones under any shape */
static void test_reshape(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    int64_t n = 48;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3, 8), 1.0), heads, y, flat;
    optest_pitch(t, x, 1, 11);
    optest_ok(op_reshape(t->graph, x, SHAPE(2, 3, 2, 4), &heads));
    assert_int_equal(graph_value(t->graph, heads)->stride[1], 11);
    assert_int_equal(graph_value(t->graph, heads)->stride[2], 4);
    optest_ok(op_scale(t->graph, heads, 1.0f, &y));
    optest_ok(op_reshape(t->graph, y, SHAPE(48, 1), &flat));
    optest_output(t, flat);
    optest_check_grad(t, reference_copy, &n, 1e-6);
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Graph *g = t->graph;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 6), 1.0), y[NODE_MAX_OUT];
    ValueId narrow = optest_normal(t, DTYPE_F32, SHAPE(3, 6), 1.0);
    optest_refused(op_reshape(g, x, SHAPE(5), y), ERR_SHAPE, "5 elements, not 12");
    optest_refused(op_split(g, x, 2, (int64_t[]){3, 4}, NULL, y), ERR_SHAPE, "part 1 of width 4");
    optest_refused(op_split(g, x, 2, (int64_t[]){3, 2}, NULL, y), ERR_SHAPE,
                   "5 elements together, not 6");
    optest_refused(op_split(g, x, NODE_MAX_OUT + 1, (int64_t[]){3, 2}, NULL, y), ERR_ARG,
                   "13 parts");
    optest_refused(op_concat(g, 2, (ValueId[]){x, narrow}, y), ERR_SHAPE, "a part is");
    optest_refused(op_add(g, x, narrow, y), ERR_SHAPE, "b is");
    optest_refused(op_cast(g, x, DTYPE_I32, y), ERR_ARG, "y cannot be i32");
    optest_pitch(t, x, 1, 9);
    optest_refused(op_reshape(g, x, SHAPE(12), y), ERR_SHAPE, "do not lie one behind the other");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_add_to_itself),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_cast),
        cmocka_unit_test(test_cast_rounds_to_nearest_even),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_concat),
        cmocka_unit_test(test_reshape),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
