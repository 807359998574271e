#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>

typedef struct Case {
    int64_t rows, width;
    DType dtype;
    bool bias;
} Case;

static const float eps = 1e-3f;

static double moments(const double *x, int64_t n, double *root)
{
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    *root = 1 / sqrt(squares / (double)n + (double)eps);
    return mean;
}

/* b NULL: none */
static void normalise(const double *x, const double *w, const double *b, int64_t n, double *y)
{
    double root, mean = moments(x, n, &root);
    for (int64_t i = 0; i < n; i++) y[i] = w[i] * (x[i] - mean) * root + (b ? b[i] : 0);
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t r = 0; r < c->rows; r++)
        normalise(in[0] + r * c->width, in[1], c->bias ? in[2] : NULL, c->width,
                  out[0] + r * c->width);
}

/* Of two numbers a norm leaves the signs: no slope is left to compare. */
static const Case cases[] = {
    {1, 3, DTYPE_F32, true},      {3, 17, DTYPE_F32, false},   {21, 64, DTYPE_F32, true},
    {150, 130, DTYPE_F32, false}, {5, 131, DTYPE_F32, true},   {1, 3, DTYPE_BF16, false},
    {3, 17, DTYPE_BF16, true},    {21, 64, DTYPE_BF16, false}, {150, 130, DTYPE_BF16, true},
};

static double tolerance(DType dtype) { return dtype == DTYPE_BF16 ? 1e-2 : 5e-6; }

static ValueId bias_of(OpTest *t, const Case *c)
{
    return c->bias ? optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0) : NO_VALUE;
}

static void test_layernorm(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId x = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
        ValueId w = optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0), b = bias_of(t, c), y;
        optest_ok(op_layernorm(t->graph, x, w, b, eps, &y));
        if (i % 2) optest_pitch(t, x, 1, c->width + 3), optest_pitch(t, y, 1, c->width + 5);
        optest_output(t, y);
        optest_check_grad(t, reference, c, tolerance(c->dtype));
        optest_destroy(t);
    }
}

/* A mean that is large beside the deviation: the mean of squares minus the square of the mean would
 * have lost everything. */
static void test_large_mean(void **state)
{
    (void)state;
    enum { N = 37 };
    double x[N];
    for (int i = 0; i < N; i++) x[i] = 4096 + (i % 5 - 2) * 0.25;
    Case c = {1, N, DTYPE_F32, false};
    OpTest *t = optest_create(3);
    ValueId data = optest_data(t, DTYPE_F32, SHAPE(1, N), x), y;
    ValueId w = optest_normal(t, DTYPE_F32, SHAPE(N), 1.0);
    optest_ok(op_layernorm(t->graph, data, w, NO_VALUE, eps, &y));
    optest_output(t, y);
    optest_check(t, reference, &c, 1e-3); /* the mean itself is rounded to 2.4e-4 */
    optest_destroy(t);
}

/* out: h, y */
static void reference_add(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t i = 0; i < c->rows * c->width; i++) out[0][i] = in[0][i] + in[1][i];
    for (int64_t r = 0; r < c->rows; r++)
        normalise(out[0] + r * c->width, in[2], c->bias ? in[3] : NULL, c->width,
                  out[1] + r * c->width);
}

static void test_add_layernorm(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId in[4], h, y;
        in[0] = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
        in[1] = optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
        in[2] = optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0);
        in[3] = bias_of(t, c);
        optest_ok(op_add_layernorm(t->graph, in, eps, &h, &y));
        optest_output(t, h);
        optest_output(t, y);
        optest_check_grad(t, reference_add, c, 2 * tolerance(c->dtype));
        optest_destroy(t);
    }
}

/* The fused node gives the bits of add, then layernorm. */
static void test_fused_has_the_same_bits(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        OpTest *t = optest_create(5);
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        ValueId in[4] = {optest_normal(t, dtype, SHAPE(9, 67), 1.0),
                         optest_normal(t, dtype, SHAPE(9, 67), 1.0),
                         optest_normal(t, DTYPE_F32, SHAPE(67), 1.0),
                         optest_normal(t, DTYPE_F32, SHAPE(67), 1.0)};
        ValueId sum, y, h, z;
        optest_ok(op_add(t->graph, in[0], in[1], &sum));
        optest_ok(op_layernorm(t->graph, sum, in[2], in[3], eps, &y));
        optest_ok(op_add_layernorm(t->graph, in, eps, &h, &z));
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

/* in: dy, x, w, residual; out: dx with the residual added, dw, db */
static void reference_residual(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    double n = (double)c->width;
    for (int64_t i = 0; i < c->width; i++) out[1][i] = out[2][i] = 0;
    for (int64_t r = 0; r < c->rows; r++) {
        const double *dy = in[0] + r * c->width, *x = in[1] + r * c->width;
        double root, mean = moments(x, c->width, &root), gradients = 0, products = 0;
        for (int64_t i = 0; i < c->width; i++) {
            gradients += dy[i] * in[2][i];
            products += dy[i] * in[2][i] * (x[i] - mean) * root;
        }
        for (int64_t i = 0; i < c->width; i++) {
            double normal = (x[i] - mean) * root;
            out[0][r * c->width + i] = in[3][r * c->width + i] +
                                       root * (dy[i] * in[2][i] - gradients / n -
                                               normal * products / n);
            out[1][i] += dy[i] * normal;
            out[2][i] += dy[i];
        }
    }
}

static void check_residual(const Case *c)
{
    OpTest *t = optest_create((uint64_t)c->width);
    ValueId in[4], out[3];
    for (int k = 0; k < 4; k++)
        in[k] = k == 2 ? optest_normal(t, DTYPE_F32, SHAPE(c->width), 1.0)
                       : optest_normal(t, c->dtype, SHAPE(c->rows, c->width), 1.0);
    optest_ok(op_layernorm_grad(t->graph, in, eps, true, out));
    for (int k = 0; k < 3; k++) optest_plain_output(t, out[k]);
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
    check_residual(&(Case){5, 26000, DTYPE_BF16, true});
    check_residual(&(Case){5, 25999, DTYPE_F32, true});
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
    ValueId w = optest_normal(t, DTYPE_F32, SHAPE(3), 1.0),
            wide = optest_normal(t, DTYPE_F32, SHAPE(4), 1.0);
    optest_refused(op_layernorm(t->graph, x, wide, NO_VALUE, eps, &y), ERR_SHAPE,
                   "w is [any=4] and must have 3 elements");
    optest_refused(op_layernorm(t->graph, x, w, wide, eps, &y), ERR_SHAPE,
                   "b is [any=4] and must have 3 elements");
    optest_refused(op_layernorm(t->graph, optest_integers(t, SHAPE(2, 3), 0, 9), w, w, eps, &y),
                   ERR_ARG, "f32 or bf16");
    optest_refused(
        op_layernorm(t->graph, optest_normal(t, DTYPE_F32, SHAPE(2, 0), 1.0), w, w, eps, &y),
        ERR_SHAPE, "no elements");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layernorm),         cmocka_unit_test(test_large_mean),
        cmocka_unit_test(test_add_layernorm),     cmocka_unit_test(test_fused_has_the_same_bits),
        cmocka_unit_test(test_residual_is_added), cmocka_unit_test(test_wide_rows),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
