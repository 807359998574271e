#include "ops/optest.h"

typedef struct Sizes {
    int64_t n, i, o;
} Sizes;

static double tolerance(DType dtype) { return dtype == DTYPE_BF16 ? 1e-2 : 3e-6; }

static void reference(const void *user, double *const *in, double *const *out)
{
    const Sizes *s = user;
    const double *x = in[0], *w = in[1];
    for (int64_t r = 0; r < s->n; r++)
        for (int64_t o = 0; o < s->o; o++) {
            double sum = 0;
            for (int64_t i = 0; i < s->i; i++) sum += x[r * s->i + i] * w[o * s->i + i];
            out[0][r * s->o + o] = sum;
        }
}

/* pitch 0: contiguous; else so many elements more than a row */
static void check(DType dtype, DType out_dtype, Sizes s, int64_t pitch)
{
    OpTest *t = optest_create((uint64_t)(s.n * 7 + s.i * 3 + s.o));
    ValueId x = optest_normal(t, dtype, SHAPE(s.n, s.i), 1.0);
    ValueId w = optest_normal(t, dtype, SHAPE(s.o, s.i), 1.0), y;
    if (pitch) optest_pitch(t, x, 1, s.i + pitch);
    optest_ok(op_linear_as(t->graph, x, w, out_dtype, &y));
    if (pitch) optest_pitch(t, y, 1, s.o + 2 * pitch);
    optest_output(t, y);
    optest_check_grad(t, reference, &s, tolerance(dtype));
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    static const Sizes sizes[] = {{1, 1, 1},    {3, 17, 5},  {7, 41, 9},  {17, 63, 33},
                                  {16, 64, 32}, {63, 3, 40}, {1, 70, 36}, {29, 2, 31}};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            check(dtype, dtype, sizes[i], 0);
            check(dtype, dtype, sizes[i], 5);
            if (bf16) check(dtype, DTYPE_F32, sizes[i], 3);
        }
}

/* x [n i] w [i o]: a weight that is published as [in out] */
static void reference_in_out(const void *user, double *const *in, double *const *out)
{
    const Sizes *s = user;
    for (int64_t r = 0; r < s->n; r++)
        for (int64_t o = 0; o < s->o; o++) {
            double sum = 0;
            for (int64_t i = 0; i < s->i; i++) sum += in[0][r * s->i + i] * in[1][i * s->o + o];
            out[0][r * s->o + o] = sum;
        }
}

static void test_in_out_weight(void **state)
{
    (void)state;
    static const Sizes sizes[] = {{1, 1, 1}, {3, 17, 5}, {17, 63, 33}, {16, 64, 32}};
    for (int i = 0; i < 2 * COUNT_OF(sizes); i++) {
        DType dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        Sizes s = sizes[i / 2];
        OpTest *t = optest_create((uint64_t)i);
        ValueId x = optest_normal(t, dtype, SHAPE(s.n, s.i), 1.0);
        ValueId w = optest_normal(t, dtype, SHAPE(s.i, s.o), 1.0), y;
        optest_pitch(t, x, 1, s.i + 3);
        optest_ok(op_linear_dx(t->graph, x, w, &y));
        optest_output(t, y);
        optest_check_grad(t, reference_in_out, &s, tolerance(dtype));
        optest_destroy(t);
    }
}

/* Enough of every axis for several blocks of k, of columns and of rows, and for a team. */
static void test_many_blocks(void **state)
{
    (void)state;
    check(DTYPE_F32, DTYPE_F32, (Sizes){5, 270, 40}, 0);
    check(DTYPE_F32, DTYPE_F32, (Sizes){230, 7, 450}, 0);
    check(DTYPE_BF16, DTYPE_BF16, (Sizes){230, 7, 450}, 0);
    check(DTYPE_BF16, DTYPE_F32, (Sizes){9, 1090, 5}, 2);
    check(DTYPE_BF16, DTYPE_BF16, (Sizes){101, 1090, 3},
          2);                                            /* bf16 sums of two blocks, kept aside */
    check(DTYPE_F32, DTYPE_F32, (Sizes){9, 2300, 3}, 0); /* more than a group of blocks */
    check(DTYPE_F32, DTYPE_F32, (Sizes){14, 512, 3}, 0); /* lines 2 KiB apart: copied */
    check(DTYPE_BF16, DTYPE_BF16, (Sizes){14, 1024, 3}, 0);
}

static void reference_dw(const void *user, double *const *in, double *const *out)
{
    const Sizes *s = user;
    for (int64_t o = 0; o < s->o; o++)
        for (int64_t i = 0; i < s->i; i++) {
            double sum = in[2] ? in[2][o * s->i + i] : 0;
            for (int64_t r = 0; r < s->n; r++) sum += in[0][r * s->o + o] * in[1][r * s->i + i];
            out[0][o * s->i + i] = sum;
        }
}

static void test_dw_accumulate(void **state)
{
    (void)state;
    static const Sizes sizes[] = {{1, 1, 1}, {5, 3, 17}, {33, 64, 63}, {1200, 14, 40}};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            Sizes s = sizes[i];
            DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            OpTest *t = optest_create((uint64_t)i + 1);
            ValueId dy = optest_normal(t, dtype, SHAPE(s.n, s.o), 1.0);
            ValueId x = optest_normal(t, dtype, SHAPE(s.n, s.i), 1.0), sum;
            double *start = ARENA_ARRAY(&t->arena, double, s.o *s.i);
            for (int64_t j = 0; j < s.o * s.i; j++) start[j] = (double)(j % 7) - 3;
            ValueId acc = optest_state(t, DTYPE_F32, SHAPE(s.o, s.i), STATE_GRAD, start);
            optest_pitch(t, dy, 1, s.o + 3);
            optest_pitch(t, x, 1, s.i + 6);
            optest_ok(op_linear_dw_accumulate(t->graph, dy, x, acc, &sum));
            optest_output(t, sum);
            optest_check(t, reference_dw, &s, tolerance(DTYPE_F32));
            optest_destroy(t);
        }
}

static void test_leading_axes(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 5, 12), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(7, 12), 1.0), y;
    optest_ok(op_linear(t->graph, x, w, &y));
    Shape wanted = SHAPE(2, 5, 7);
    assert_true(shape_equal(&graph_value(t->graph, y)->shape, &wanted));
    optest_output(t, y);
    optest_check_grad(t, reference, &(Sizes){10, 12, 7}, tolerance(DTYPE_F32));
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Graph *g = t->graph;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(5, 4), 1.0), y;
    optest_refused(op_linear(g, x, w, &y), ERR_SHAPE, "do not fit the weight");
    ValueId half = optest_normal(t, DTYPE_BF16, SHAPE(5, 3), 1.0);
    optest_refused(op_linear(g, x, half, &y), ERR_ARG, "both are bf16");
    ValueId w3 = optest_normal(t, DTYPE_F32, SHAPE(5, 3), 1.0);
    optest_refused(op_linear_as(g, x, w3, DTYPE_BF16, &y), ERR_ARG, "output of bf16");
    optest_refused(op_linear_dw(g, x, w3, &y), ERR_SHAPE, "not the same rows");
    optest_refused(op_linear_dw_accumulate(g, x, x, w3, &y), ERR_SHAPE, "state is");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients), cmocka_unit_test(test_in_out_weight),
        cmocka_unit_test(test_many_blocks),          cmocka_unit_test(test_dw_accumulate),
        cmocka_unit_test(test_leading_axes),         cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
