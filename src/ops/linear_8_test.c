/* linear_8 and its three uses in a layer, beside double precision: what quantise rounds is rounded
 * there as well, the rest is exact. */
#include "ops/quantise_testkit.h"

typedef struct Layer {
    int64_t n, i, o;
    ScalingUnit scaling; /* of x and dy */
    ScalingUnit weight;  /* of w */
    DType gradient;
} Layer;

/* y [a b] = sum over the lines' elements. */
static void product(const KitLines *a, DType a_type, ScalingUnit a_scaling, const KitLines *b,
                    DType b_type, ScalingUnit b_scaling, double *y)
{
    double *x = kit_rounded(a, a_type, a_scaling), *w = kit_rounded(b, b_type, b_scaling);
    for (int64_t r = 0; r < a->n; r++)
        for (int64_t c = 0; c < b->n; c++) {
            double sum = 0;
            for (int64_t k = 0; k < a->width; k++) sum += x[r * a->width + k] * w[c * b->width + k];
            y[r * b->n + c] = sum;
        }
    free(x);
    free(w);
}

/* in: x, w, dy, a state; out: y, y in f32, dx, dw, the state with dw. */
static void reference(const void *user, double *const *in, double *const *out)
{
    const Layer *l = user;
    KitLines x = kit_rows(in[0], l->n, l->i), w = kit_rows(in[1], l->o, l->i),
             dy = kit_rows(in[2], l->n, l->o), x_t = kit_columns(in[0], l->n, l->i),
             w_t = kit_columns(in[1], l->o, l->i), dy_t = kit_columns(in[2], l->n, l->o);
    product(&x, DTYPE_F8_E4M3, l->scaling, &w, DTYPE_F8_E4M3, l->weight, out[0]);
    product(&x, DTYPE_F8_E4M3, l->scaling, &w, DTYPE_F8_E4M3, l->weight, out[1]);
    product(&dy, l->gradient, l->scaling, &w_t, DTYPE_F8_E4M3, l->weight, out[2]);
    product(&dy_t, l->gradient, l->scaling, &x_t, DTYPE_F8_E4M3, l->scaling, out[3]);
    for (int64_t j = 0; j < l->o * l->i; j++) out[4][j] = in[3][j] + out[3][j];
}

static void check(Layer l)
{
    OpTest *t = optest_create((uint64_t)(l.n + l.i + l.o));
    Graph *g = t->graph;
    ValueId x = optest_normal(t, DTYPE_BF16, SHAPE(2, l.n / 2, l.i), 1.0);
    ValueId w = optest_normal(t, DTYPE_BF16, SHAPE(l.o, l.i), 0.02);
    ValueId dy = optest_normal(t, DTYPE_BF16, SHAPE(2, l.n / 2, l.o), 1e-4);
    ValueId state = optest_state(t, DTYPE_F32, SHAPE(l.o, l.i), STATE_GRAD, NULL);
    Scaled x_rows, x_columns, w_rows, w_columns, dy_rows, dy_columns;
    ValueId y, wide, dx, dw, sum;
    optest_ok(op_quantise(g, x, DTYPE_F8_E4M3, l.scaling, &x_rows, &x_columns));
    optest_ok(op_quantise(g, w, DTYPE_F8_E4M3, l.weight, &w_rows, NULL));
    optest_ok(op_quantise(g, w, DTYPE_F8_E4M3, l.weight, NULL, &w_columns));
    optest_ok(op_quantise(g, dy, l.gradient, l.scaling, &dy_rows, &dy_columns));
    optest_ok(op_linear_8(g, &x_rows, &w_rows, DTYPE_BF16, &y));
    optest_ok(op_linear_8(g, &x_rows, &w_rows, DTYPE_F32, &wide));
    optest_ok(op_linear_8(g, &dy_rows, &w_columns, DTYPE_BF16, &dx));
    optest_ok(op_linear_8(g, &dy_columns, &x_columns, DTYPE_F32, &dw));
    optest_ok(op_linear_8_accumulate(g, &dy_columns, &x_columns, state, &sum));
    Shape wanted = SHAPE(l.o, l.i);
    assert_true(shape_equal(&graph_value(g, dw)->shape, &wanted));
    const ValueId all[] = {y, wide, dx, dw, sum};
    for (int i = 0; i < COUNT_OF(all); i++) optest_plain_output(t, all[i]);
    optest_check(t, reference, &l, 1e-2);
    optest_destroy(t);
}

static void test_three_products(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{16, 16, 16}, {32, 144, 48}, {144, 272, 32}};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        const int64_t *s = sizes[i];
        check((Layer){s[0], s[1], s[2], SCALING_BLOCK, SCALING_SQUARE, DTYPE_F8_E5M2});
        check((Layer){s[0], s[1], s[2], SCALING_ROW, SCALING_ROW, DTYPE_F8_E5M2});
        if (i == 1) check((Layer){s[0], s[1], s[2], SCALING_BLOCK, SCALING_BLOCK, DTYPE_F8_E4M3});
    }
}

/* f32 results alone, which the first test's tolerance for bf16 would not tell apart. */
static void reference_wide(const void *user, double *const *in, double *const *out)
{
    const Layer *l = user;
    KitLines x = kit_rows(in[0], l->n, l->i), w = kit_rows(in[1], l->o, l->i);
    product(&x, l->gradient, l->scaling, &w, DTYPE_F8_E4M3, l->weight, out[0]);
}

/* Tensor cores sum 8 bits with some 14 of mantissa until a sum goes on in f32 (DeepSeek-V3, 2024,
 * 3.3.2). */
static double wide_tolerance(void) { return gpu_is_emulated() ? 1e-6 : 2e-3; }

static void test_sums_are_wide(void **state)
{
    (void)state;
    static const Layer layers[] = {{16, 272, 144, SCALING_BLOCK, SCALING_SQUARE, DTYPE_F8_E4M3},
                                   {48, 400, 32, SCALING_ROW, SCALING_ROW, DTYPE_F8_E5M2}};
    for (int i = 0; i < COUNT_OF(layers); i++) {
        const Layer *l = &layers[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId x = optest_normal(t, DTYPE_BF16, SHAPE(l->n, l->i), 1.0),
                w = optest_normal(t, DTYPE_BF16, SHAPE(l->o, l->i), 1.0), y;
        Scaled a, b;
        optest_ok(op_quantise(t->graph, x, l->gradient, l->scaling, &a, NULL));
        optest_ok(op_quantise(t->graph, w, DTYPE_F8_E4M3, l->weight, &b, NULL));
        optest_ok(op_linear_8(t->graph, &a, &b, DTYPE_F32, &y));
        optest_plain_output(t, y);
        optest_check(t, reference_wide, l, wide_tolerance());
        optest_destroy(t);
    }
}

static Scaled eight(OpTest *t, int64_t rows, int64_t width, DType dtype, ScalingUnit scaling)
{
    Scaled s;
    ValueId x = optest_normal(t, DTYPE_BF16, SHAPE(rows, width), 1.0);
    optest_ok(op_quantise(t->graph, x, dtype, scaling, &s, NULL));
    return s;
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Graph *g = t->graph;
    ValueId y;
    Scaled a = eight(t, 16, 32, DTYPE_F8_E4M3, SCALING_BLOCK),
           wide = eight(t, 16, 48, DTYPE_F8_E4M3, SCALING_BLOCK),
           odd = eight(t, 24, 32, DTYPE_F8_E4M3, SCALING_BLOCK),
           e5m2 = eight(t, 16, 32, DTYPE_F8_E5M2, SCALING_BLOCK),
           row = eight(t, 16, 32, DTYPE_F8_E4M3, SCALING_ROW),
           square = eight(t, 16, 32, DTYPE_F8_E4M3, SCALING_SQUARE);
    optest_ok(op_linear_8(g, &a, &square, DTYPE_BF16, &y));
    optest_ok(op_linear_8(g, &a, &e5m2, DTYPE_BF16, &y));
    optest_refused(op_linear_8(g, &a, &wide, DTYPE_BF16, &y), ERR_SHAPE, "do not fit");
    optest_refused(op_linear_8(g, &a, &odd, DTYPE_BF16, &y), ERR_SHAPE, "multiples of 16");
    optest_refused(op_linear_8(g, &odd, &a, DTYPE_BF16, &y), ERR_SHAPE, "multiples of 16");
    optest_refused(op_linear_8(g, &e5m2, &e5m2, DTYPE_BF16, &y), ERR_ARG, "at least is f8_e4m3");
    optest_refused(op_linear_8(g, &square, &square, DTYPE_BF16, &y), ERR_ARG, "a by square");
    optest_refused(op_linear_8(g, &row, &square, DTYPE_BF16, &y), ERR_ARG, "a by row, b by square");
    optest_refused(op_linear_8(g, &a, &row, DTYPE_BF16, &y), ERR_ARG, "a by block, b by row");
    row.scaling = SCALING_SQUARE;
    optest_refused(op_linear_8(g, &a, &row, DTYPE_BF16, &y), ERR_SHAPE, "the scale of b");
    optest_refused(op_linear_8(g, &a, &square, DTYPE_F16, &y), ERR_ARG, "only f32 or bf16");
    ValueId state_ = optest_state(t, DTYPE_F32, SHAPE(16, 32), STATE_GRAD, NULL);
    optest_refused(op_linear_8_accumulate(g, &a, &a, state_, &y), ERR_SHAPE, "the state");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_three_products),
                                       cmocka_unit_test(test_sums_are_wide),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
