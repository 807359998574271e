/* swiglu and geglu and their gradients against the formulas in double precision. */
#include "ops/optest.h"

#include <math.h>

static double silu(double x) { return x / (1 + exp(-x)); }
static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

typedef struct Unit {
    double (*f)(double);
    Status (*add)(Graph *g, ValueId gate, ValueId up, ValueId *y);
} Unit;

static const Unit units[] = {{silu, op_swiglu}, {gelu, op_geglu}};

typedef struct Size {
    const Unit *unit;
    int64_t rows, width;
} Size;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Size *size = user;
    for (int64_t i = 0; i < size->rows * size->width; i++)
        out[0][i] = size->unit->f(in[0][i]) * in[1][i];
}

static void check(const Unit *unit, DType dtype, int64_t rows, int64_t width, double deviation)
{
    OpTest *t = optest_create((uint64_t)(rows * 100 + width));
    Size size = {unit, rows, width};
    ValueId gate = optest_normal(t, dtype, SHAPE(rows, width), deviation);
    ValueId up = optest_normal(t, dtype, SHAPE(rows, width), 1.0), y;
    optest_ok(unit->add(t->graph, gate, up, &y));
    optest_output(t, y);
    optest_check_grad(t, reference, &size, dtype == DTYPE_BF16 ? 1e-2 : 2e-6);
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        const Unit *unit = &units[i / 2];
        DType dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        check(unit, dtype, 1, 1, 1);
        check(unit, dtype, 3, 17, 1);
        check(unit, dtype, 5, 64, 10);   /* saturated gates */
        check(unit, dtype, 131, 301, 1); /* more than one piece, more than one thread */
    }
}

/* in: rows of gate and up side by side */
static void reference_split(const void *user, double *const *in, double *const *out)
{
    const Size *size = user;
    for (int64_t i = 0; i < size->rows; i++) {
        const double *gate = &in[0][2 * i * size->width], *up = gate + size->width;
        for (int64_t j = 0; j < size->width; j++)
            out[0][i * size->width + j] = size->unit->f(gate[j]) * up[j];
    }
}

/* gate and up as views of one product, y with a pitch; the gradient joins again */
static void test_strided(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        OpTest *t = optest_create(3);
        Size size = {&units[i / 2], 7, 33};
        ValueId both = optest_normal(t, i % 2 ? DTYPE_BF16 : DTYPE_F32, SHAPE(7, 66), 1.0), part[2],
                y;
        optest_pitch(t, both, 1, 70);
        optest_ok(op_split(t->graph, both, 2, (int64_t[]){33, 33}, NULL, part));
        optest_ok(size.unit->add(t->graph, part[0], part[1], &y));
        optest_pitch(t, y, 1, 40);
        optest_output(t, y);
        optest_check_grad(t, reference_split, &size, i % 2 ? 1e-2 : 2e-6);
        optest_destroy(t);
    }
}

/* Where powers of the gate would overflow, value and slope are those of x and of zero. */
static void reference_extremes(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int i = 0; i < 6; i++) {
        double gate = in[0][i], up = in[1][i], dy = in[2][i];
        out[0][i] = gate > 0 ? dy * up : 0;
        out[1][i] = gate > 0 ? dy * gate : 0;
    }
}

static void test_extremes(void **state)
{
    (void)state;
    OpTest *t = optest_create(4);
    const double far[6] = {1e3, -1e3, 3e12, -3e12, 1e20, -1e20};
    ValueId gate = optest_data(t, DTYPE_F32, SHAPE(6), far), dgate, dup;
    ValueId up = optest_normal(t, DTYPE_F32, SHAPE(6), 1.0),
            dy = optest_normal(t, DTYPE_F32, SHAPE(6), 1.0);
    optest_ok(op_geglu_grad(t->graph, gate, up, dy, &dgate, &dup));
    optest_output(t, dgate);
    optest_output(t, dup);
    optest_check(t, reference_extremes, NULL, 1e-6);
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(units); i++) {
        OpTest *t = optest_create(1);
        ValueId a = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
        optest_refused(units[i].add(t->graph, a, optest_normal(t, DTYPE_F32, SHAPE(2, 4), 1.0), &y),
                       ERR_SHAPE, "up is");
        optest_refused(
            units[i].add(t->graph, a, optest_normal(t, DTYPE_BF16, SHAPE(2, 3), 1.0), &y), ERR_ARG,
            "up must be f32");
        ValueId whole = optest_integers(t, SHAPE(2, 3), 0, 5);
        optest_refused(units[i].add(t->graph, whole, whole, &y), ERR_ARG, "must be f32 or bf16");
        optest_destroy(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_strided),
        cmocka_unit_test(test_extremes), /* geglu's */
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
