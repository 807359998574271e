/* Activations and their gradients against the formulas in double precision. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>

static double gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }
static double gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}
static double relu2(double x) { return x > 0 ? x * x : 0; }

static double (*const functions[])(double) = {
    [ACTIVATION_GELU] = gelu, [ACTIVATION_GELU_TANH] = gelu_tanh, [ACTIVATION_RELU2] = relu2};

typedef struct Size {
    ActivationKind kind;
    int64_t rows, width;
} Size;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Size *size = user;
    for (int64_t i = 0; i < size->rows * size->width; i++)
        out[0][i] = functions[size->kind](in[0][i]);
}

static void check(Size size, DType dtype, double deviation, int64_t more)
{
    OpTest *t = optest_create((uint64_t)(size.rows * 100 + size.width));
    ValueId x = optest_normal(t, dtype, SHAPE(size.rows, size.width), deviation), y;
    if (more) optest_pitch(t, x, 1, size.width + more);
    optest_ok(op_activation(t->graph, x, size.kind, &y));
    if (more) optest_pitch(t, y, 1, size.width + 2 * more);
    optest_output(t, y);
    optest_check_grad(t, reference, &size, dtype == DTYPE_BF16 ? 1e-2 : 2e-6);
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * COUNT_OF(functions); i++) {
        DType dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        ActivationKind kind = (ActivationKind)(i / 2);
        check((Size){kind, 1, 1}, dtype, 1, 0);
        check((Size){kind, 3, 17}, dtype, 1, 3);
        check((Size){kind, 5, 64}, dtype, 10, 0);   /* far into both tails */
        check((Size){kind, 131, 301}, dtype, 1, 0); /* more than one piece, more than one thread */
    }
}

/* The exact form keeps its relative precision in the tail, where 1 + erf would be all rounding. */
static void test_tail(void **state)
{
    (void)state;
    enum { N = 19 };
    double at[N];
    for (int i = 0; i < N; i++) at[i] = -0.5 * i;
    OpTest *t = optest_create(2);
    ValueId x = optest_data(t, DTYPE_F32, SHAPE(N), at), y;
    optest_ok(op_activation(t->graph, x, ACTIVATION_GELU, &y));
    for (Isa isa = ISA_GENERIC; isa < ISA_COUNT; isa++) {
        if (!optest_isa_available(isa)) continue;
        OpRun run;
        assert_true(optest_run(&run, t, (Target){.isa = isa, .threads = 1}, 0));
        double *got = optest_run_values(&run, y);
        for (int i = 0; i < N; i++) {
            double want = gelu(at[i]);
            if (!(fabs(got[i] - want) <= 4e-6 * fabs(want)))
                fail_msg("gelu(%g) is %.9g, not %.9g", at[i], got[i], want);
        }
        free(got);
        optest_run_end(&run);
    }
    optest_destroy(t);
}

/* Where powers would overflow, value and slope are those of x and of zero. */
static void reference_extremes(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int i = 0; i < 6; i++) out[0][i] = in[0][i] > 0 ? in[1][i] : 0;
}

static void test_extremes(void **state)
{
    (void)state;
    const double far[6] = {1e3, -1e3, 3e12, -3e12, 1e20, -1e20};
    for (int i = 0; i < 2; i++) {
        OpTest *t = optest_create(4);
        ValueId x = optest_data(t, DTYPE_F32, SHAPE(6), far), dx;
        ValueId dy = optest_normal(t, DTYPE_F32, SHAPE(6), 1.0);
        optest_ok(
            op_activation_grad(t->graph, x, dy, i ? ACTIVATION_GELU_TANH : ACTIVATION_GELU, &dx));
        optest_output(t, dx);
        optest_check(t, reference_extremes, NULL, 1e-6);
        optest_destroy(t);
    }
}

/* What is no number stays none: a diverged run must show. */
static void test_not_a_number(void **state)
{
    (void)state;
    const double none[1] = {(double)NAN};
    for (int kind = 0; kind < COUNT_OF(functions); kind++) {
        OpTest *t = optest_create(4);
        ValueId x = optest_data(t, DTYPE_F32, SHAPE(1), none), y;
        optest_ok(op_activation(t->graph, x, (ActivationKind)kind, &y));
        for (Isa isa = ISA_GENERIC; isa < ISA_COUNT; isa++) {
            if (!optest_isa_available(isa)) continue;
            OpRun run;
            assert_true(optest_run(&run, t, (Target){.isa = isa, .threads = 1}, 0));
            double *got = optest_run_values(&run, y);
            assert_true(isnan(got[0]));
            free(got);
            optest_run_end(&run);
        }
        optest_destroy(t);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
    ValueId whole = optest_integers(t, SHAPE(2, 3), 0, 5);
    optest_refused(op_activation(t->graph, whole, ACTIVATION_GELU, &y), ERR_ARG,
                   "must be f32 or bf16");
    optest_refused(op_activation(t->graph, x, (ActivationKind)3, &y), ERR_ARG, "no kind 3");
    optest_refused(op_activation_grad(t->graph, x, whole, ACTIVATION_RELU2, &y), ERR_ARG,
                   "dy must be f32");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
