#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>

typedef struct Case {
    int64_t rows, width;
    DType dtype;
} Case;

static const float eps = 1e-3f;

static void normalise(const double *x, const double *w, int64_t n, double *y)
{
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    for (int64_t i = 0; i < n; i++) y[i] = w[i] * x[i] / sqrt(squares / (double)n + (double)eps);
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t r = 0; r < c->rows; r++)
        normalise(in[0] + r * c->width, in[1], c->width, out[0] + r * c->width);
}

static const Case cases[] = {
    {1, 2, DTYPE_F32},  {3, 17, DTYPE_F32},  {21, 64, DTYPE_F32},  {150, 130, DTYPE_F32},
    {1, 2, DTYPE_BF16}, {3, 17, DTYPE_BF16}, {21, 64, DTYPE_BF16}, {150, 130, DTYPE_BF16},
};

static double tolerance(DType dtype) { return dtype == DTYPE_BF16 ? 1e-2 : 5e-6; }

static void test_rmsnorm(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId x = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
        ValueId w = optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0), y;
        optest_ok(op_rmsnorm(t->graph, x, w, eps, &y));
        if (i % 2) optest_pitch(t, x, 1, c->width + 3), optest_pitch(t, y, 1, c->width + 5);
        optest_output(t, y);
        optest_check_grad(t, reference, c, tolerance(c->dtype));
        optest_destroy(t);
    }
}

/* out: h, y */
static void reference_add(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t i = 0; i < c->rows * c->width; i++) out[0][i] = in[0][i] + in[1][i];
    for (int64_t r = 0; r < c->rows; r++)
        normalise(out[0] + r * c->width, in[2], c->width, out[1] + r * c->width);
}

static void test_add_rmsnorm(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId a = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
        ValueId b = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
        ValueId w = optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0), h, y;
        optest_ok(op_add_rmsnorm(t->graph, a, b, w, eps, &h, &y));
        optest_output(t, h);
        optest_output(t, y);
        optest_check_grad(t, reference_add, c, 2 * tolerance(c->dtype));
        optest_destroy(t);
    }
}

/* The fused node gives the bits of add, then rmsnorm. */
static void test_fused_has_the_same_bits(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        OpTest *t = optest_create(5);
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        ValueId a = optest_normal(t, dtype, SHAPE(9, 67), 1.0),
                b = optest_normal(t, dtype, SHAPE(9, 67), 1.0);
        ValueId w = optest_normal(t, DTYPE_F32, SHAPE(67), 1.0), sum, y, h, z;
        optest_ok(op_add(t->graph, a, b, &sum));
        optest_ok(op_rmsnorm(t->graph, sum, w, eps, &y));
        optest_ok(op_add_rmsnorm(t->graph, a, b, w, eps, &h, &z));
        for (Isa isa = ISA_GENERIC; isa < ISA_COUNT; isa++) {
            if (!optest_isa_available(isa)) continue;
            OpRun run;
            assert_true(optest_run(&run, t, (Target){.isa = isa, .threads = 1}, 0));
            double *first = optest_run_values(&run, y), *second = optest_run_values(&run, z);
            assert_memory_equal(first, second, sizeof *first * 9 * 67);
            free(first);
            free(second);
            optest_run_end(&run);
        }
        optest_destroy(t);
    }
}

/* in: dy, x, w, residual; out: dx with the residual added, dw */
static void reference_residual(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t i = 0; i < c->width; i++) out[1][i] = 0;
    for (int64_t r = 0; r < c->rows; r++) {
        const double *dy = in[0] + r * c->width, *x = in[1] + r * c->width;
        double squares = 0, products = 0, n = (double)c->width;
        for (int64_t i = 0; i < c->width; i++) {
            squares += x[i] * x[i];
            products += dy[i] * in[2][i] * x[i];
        }
        double root = 1 / sqrt(squares / n + (double)eps);
        for (int64_t i = 0; i < c->width; i++) {
            out[0][r * c->width + i] = in[3][r * c->width + i] + root * dy[i] * in[2][i] -
                                       x[i] * root * root * root * products / n;
            out[1][i] += dy[i] * x[i] * root;
        }
    }
}

static void check_residual(const Case *c)
{
    OpTest *t = optest_create((uint64_t)c->width);
    ValueId dy = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
    ValueId x = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
    ValueId w = optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0), dx, dw;
    ValueId residual = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
    optest_ok(op_rmsnorm_grad(t->graph, dy, x, w, residual, eps, &dx, &dw));
    optest_plain_output(t, dx);
    optest_plain_output(t, dw);
    optest_check(t, reference_residual, c, tolerance(c->dtype));
    optest_destroy(t);
}

static void test_residual_is_added(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) check_residual(&cases[i]);
}

/* Too wide for the shared memory of a GPU. */
static void test_wide_rows(void **state)
{
    (void)state;
    check_residual(&(Case){5, 52000, DTYPE_BF16});
    check_residual(&(Case){5, 51999, DTYPE_F32});
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
    ValueId w = optest_normal(t, DTYPE_F32, SHAPE(4), 1.0);
    optest_refused(op_rmsnorm(t->graph, x, w, eps, &y), ERR_SHAPE, "must have 3 elements");
    optest_refused(op_rmsnorm(t->graph, optest_integers(t, SHAPE(2, 4), 0, 9), w, eps, &y), ERR_ARG,
                   "f32 or bf16");
    optest_refused(op_rmsnorm(t->graph, optest_normal(t, DTYPE_F32, SHAPE(2, 0), 1.0), w, eps, &y),
                   ERR_SHAPE, "no elements");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_add_rmsnorm),
        cmocka_unit_test(test_fused_has_the_same_bits),
        cmocka_unit_test(test_residual_is_added),
        cmocka_unit_test(test_wide_rows),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
