/* l2norm and its gradient against double precision. */
#include "ops/optest.h"

#include <math.h>

typedef struct Case {
    int64_t rows, d;
} Case;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t r = 0; r < c->rows; r++) {
        const double *x = in[0] + r * c->d;
        double sum = 0;
        for (int64_t i = 0; i < c->d; i++) sum += x[i] * x[i];
        for (int64_t i = 0; i < c->d; i++)
            out[0][r * c->d + i] = x[i] / sqrt(sum / (double)c->d + 1e-5);
    }
}

static void check(int64_t d, DType dtype, int64_t pitch)
{
    Case c = {.rows = 2 * 5 * 3, .d = d};
    OpTest *t = optest_create((uint64_t)d);
    ValueId x = optest_normal(t, dtype, SHAPE(2, 5, 3, d), 1.0), y;
    optest_ok(op_l2norm(t->graph, x, 1e-5f, &y));
    if (pitch) {
        optest_pitch(t, x, 2, pitch);
        optest_pitch(t, y, 2, pitch + 1);
    }
    optest_output(t, y);
    optest_check_grad(t, reference, &c, dtype == DTYPE_F32 ? 5e-6 : 2e-2);
    optest_destroy(t);
}

static void test_rows(void **state)
{
    (void)state;
    static const int64_t d[] = {2, 7, 16, 33, 64, 128};
    for (int i = 0; i < COUNT_OF(d); i++) {
        check(d[i], DTYPE_F32, 0);
        check(d[i], DTYPE_BF16, 0);
        check(d[i], DTYPE_F32, 5 * d[i] + 1);
        check(d[i], DTYPE_BF16, 5 * d[i] + 1);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId y;
    optest_refused(op_l2norm(t->graph, optest_integers(t, SHAPE(2, 2), 0, 4), 1e-5f, &y), ERR_SHAPE,
                   "f32 or bf16");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
