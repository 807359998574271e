/* softcap and its gradient against tanh in double precision. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>

typedef struct Case {
    int64_t n;
    double cap;
} Case;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t i = 0; i < c->n; i++) out[0][i] = c->cap * tanh(in[0][i] / c->cap);
}

static void check(DType dtype, int64_t rows, int64_t width, double deviation, double cap)
{
    OpTest *t = optest_create((uint64_t)(rows * 100 + width));
    Case c = {rows * width, cap};
    ValueId x = optest_normal(t, dtype, SHAPE(rows, width), deviation), y;
    optest_pitch(t, x, 1, width + 3);
    optest_ok(op_softcap(t->graph, x, (float)cap, &y));
    optest_pitch(t, y, 1, width + 1);
    optest_output(t, y);
    optest_check_grad(t, reference, &c, dtype == DTYPE_BF16 ? 1e-2 : 2e-6);
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        check(dtype, 1, 1, 1, 30);
        check(dtype, 3, 17, 1, 30);   /* nearly as they were: small values keep their digits */
        check(dtype, 5, 64, 40, 8);   /* most of them capped */
        check(dtype, 131, 301, 2, 2); /* more than one piece, more than one thread */
    }
}

/* Small and large values to a few units in the last place, each by itself. */
static void test_digits(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    double x[64];
    for (int i = 0; i < 64; i++) x[i] = (i % 2 ? -1 : 1) * ldexp(1 + i / 64.0, i / 2 - 24);
    ValueId in = optest_data(t, DTYPE_F32, SHAPE(64), x), y;
    optest_ok(op_softcap(t->graph, in, 4.0f, &y));
    for (Isa isa = ISA_GENERIC; isa < ISA_COUNT; isa++) {
        if (!optest_isa_available(isa)) continue;
        OpRun run;
        assert_true(optest_run(&run, t, (Target){.isa = isa, .threads = 1}, 0));
        double *got = optest_run_values(&run, y);
        for (int i = 0; i < 64; i++) {
            double want = 4 * tanh(x[i] / 4);
            if (!(fabs(got[i] - want) <= 3e-7 * fabs(want)))
                fail_msg("softcap(%.9g) is %.9g, not %.9g", x[i], got[i], want);
        }
        free(got);
        optest_run_end(&run);
    }
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId a = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
    optest_refused(op_softcap(t->graph, a, 0, &y), ERR_ARG, "must be positive");
    optest_refused(op_softcap(t->graph, a, NAN, &y), ERR_ARG, "must be positive");
    optest_refused(op_softcap(t->graph, optest_integers(t, SHAPE(2), 0, 5), 1, &y), ERR_ARG,
                   "must be f32 or bf16");
    optest_refused(op_softcap_grad(t->graph, a, optest_normal(t, DTYPE_F32, SHAPE(3), 1.0), 1, &y),
                   ERR_SHAPE, "dy is");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_digits),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
