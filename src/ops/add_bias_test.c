/* add_bias and its gradient, and how both are cut. */
#include "graph/graph.h"
#include "ops/optest.h"

typedef struct Size {
    int64_t rows, width;
} Size;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Size *size = user;
    for (int64_t i = 0; i < size->rows * size->width; i++)
        out[0][i] = in[0][i] + in[1][i % size->width];
}

static void check(Size size, DType dtype, int64_t more)
{
    OpTest *t = optest_create((uint64_t)(size.rows * 100 + size.width));
    ValueId x = optest_normal(t, dtype, SHAPE(size.rows, size.width), 1.0), y;
    ValueId b = optest_normal(t, DTYPE_F32, SHAPE(size.width), 1.0);
    if (more) optest_pitch(t, x, 1, size.width + more);
    optest_ok(op_add_bias(t->graph, x, b, &y));
    if (more) optest_pitch(t, y, 1, size.width + 2 * more);
    optest_output(t, y);
    optest_check_grad(t, reference, &size, dtype == DTYPE_BF16 ? 1e-2 : 2e-6);
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    static const Size sizes[] = {{1, 1}, {3, 17}, {21, 64}, {150, 130}, {700, 5}};
    for (int i = 0; i < 2 * COUNT_OF(sizes); i++)
        check(sizes[i / 2], i % 2 ? DTYPE_BF16 : DTYPE_F32, i % 3 ? 0 : 3);
}

static void reference_sum(const void *user, double *const *in, double *const *out)
{
    const Size *size = user;
    for (int64_t i = 0; i < size->width; i++) {
        out[0][i] = 0;
        for (int64_t r = 0; r < size->rows; r++) out[0][i] += in[0][r * size->width + i];
    }
}

/* The gradient arrives as a part of a wider one. */
static void test_strided_gradient(void **state)
{
    (void)state;
    Size size = {37, 19};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        OpTest *t = optest_create(3);
        ValueId dy = optest_normal(t, bf16 ? DTYPE_BF16 : DTYPE_F32, SHAPE(37, 19), 1.0), db;
        optest_pitch(t, dy, 1, 50);
        optest_ok(op_bias_grad(t->graph, dy, &db));
        optest_output(t, db);
        optest_check(t, reference_sum, &size, 2e-6);
        optest_destroy(t);
    }
}

/* ---- cuts ------------------------------------------------------------------------------- */

typedef struct Lie {
    Place x, b, want_x, want_b, y;
} Lie;

static void check_lie(const OpTest *t, ValueId x, ValueId b, const Lie *lie, bool sequence)
{
    const Value *in[2] = {graph_value(t->graph, x), graph_value(t->graph, b)};
    Place place[2] = {lie->x, lie->b}, want[2];
    CutCtx c = {.graph = t->graph,
                .op = op_find("add_bias"),
                .axis = MESH_TP,
                .n = 2,
                .sequence = sequence,
                .n_in = 2,
                .in = in,
                .place = place,
                .want = want};
    optest_ok(graph_cut(&c));
    assert_true(place_equal(want[0], lie->want_x));
    assert_true(place_equal(want[1], lie->want_b));
    assert_true(place_equal(c.out[0], lie->y));
}

/* With cut columns the bias is cut; a sum of summands is made first, whole or cut along the
 * sequence, so that the bias is added once. */
static void test_cuts(void **state)
{
    (void)state;
    const Place same = {PLACE_SAME, 0}, partial = {PLACE_PARTIAL, 0};
    OpTest *t = optest_create(1);
    ValueId b = optest_normal(t, DTYPE_F32, SHAPE(8), 1.0);
    Shape shape = shape_make(3, (int64_t[]){2, 4, 8}, (Axis[]){AXIS_BATCH, AXIS_SEQ, AXIS_FFN});
    ValueId x = optest_normal(t, DTYPE_F32, shape, 1.0);
    check_lie(
        t, x, b,
        &(Lie){{PLACE_CUT, 2}, {PLACE_CUT, 0}, {PLACE_CUT, 2}, {PLACE_CUT, 0}, {PLACE_CUT, 2}},
        false);
    check_lie(t, x, b, &(Lie){partial, same, same, same, same}, false);
    check_lie(t, x, b, &(Lie){partial, same, {PLACE_CUT, 1}, same, {PLACE_CUT, 1}}, true);
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
    optest_refused(op_add_bias(t->graph, x, optest_normal(t, DTYPE_F32, SHAPE(4), 1.0), &y),
                   ERR_SHAPE, "must have 3 elements");
    optest_refused(op_add_bias(t->graph, x, optest_normal(t, DTYPE_BF16, SHAPE(3), 1.0), &y),
                   ERR_ARG, "b must be f32");
    optest_refused(op_bias_grad(t->graph, optest_integers(t, SHAPE(2, 3), 0, 9), &y), ERR_ARG,
                   "dy must be f32 or bf16");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_strided_gradient),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
