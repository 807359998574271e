/* ring_sum: whole parts and halves, on the way and last, odd sizes, rows with gaps. */
#include "ops/ring_sum.h"
#include "ops/collective.h"
#include "ops/optest.h"

typedef struct Case {
    int64_t batch, tokens, heads, d;
    int halves;
    bool last;
    DType x;
} Case;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t half = c->tokens / 2, row = c->heads * c->d, x_tokens = half * halves_count(c->halves);
    int64_t first = c->halves == HALF_SECOND ? half : 0;
    for (int64_t i = 0; i < c->batch * c->tokens * row; i++) {
        int64_t b = i / row / c->tokens, t = i / row % c->tokens - first;
        out[0][i] = in[0][i] +
                    (t >= 0 && t < x_tokens ? in[1][(b * x_tokens + t) * row + i % row] : 0);
    }
}

static void check_case(Case c, bool strided)
{
    OpTest *t = optest_create((uint64_t)(c.tokens * 31 + c.halves));
    ValueId sum = optest_normal(t, DTYPE_F32, SHAPE(c.batch, c.tokens, c.heads, c.d), 1.0), y;
    ValueId x = optest_normal(
        t, c.x, SHAPE(c.batch, c.tokens / 2 * halves_count(c.halves), c.heads, c.d), 1.0);
    RingSumAttr attr = {
        .axis = MESH_CP, .hop = 1, .halves = c.halves, .part = 1, .parts = c.last ? 2 : 3};
    optest_ok(op_ring_sum(t->graph, sum, x, &attr, &y));
    assert_int_equal(graph_value(t->graph, y)->dtype, c.last ? c.x : DTYPE_F32);
    if (strided) {
        optest_pitch(t, sum, 2, c.heads * c.d + 5);
        optest_pitch(t, y, 2, c.heads * c.d + 5);
    }
    optest_output(t, y);
    optest_check(t, reference, &c, c.last && c.x == DTYPE_BF16 ? 8e-3 : 1e-6);
    optest_destroy(t);
}

static void test_sums(void **state)
{
    (void)state;
    static const int64_t d[] = {1, 8, 20, 33};
    for (int i = 0; i < 3 * 2 * 2 * COUNT_OF(d); i++) {
        Case c = {.batch = 1 + i % 2,
                  .tokens = 2 * (1 + i % 5),
                  .heads = 1 + i % 3,
                  .d = d[i / 12],
                  .halves = i % 3 + 1,
                  .last = i / 3 % 2,
                  .x = i / 6 % 2 ? DTYPE_BF16 : DTYPE_F32};
        check_case(c, false);
        check_case(c, true);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId sum = optest_normal(t, DTYPE_F32, SHAPE(1, 6, 2, 4), 1.0),
            half = optest_normal(t, DTYPE_F32, SHAPE(1, 3, 2, 4), 1.0), y;
    ValueId low = optest_normal(t, DTYPE_BF16, SHAPE(1, 6, 2, 4), 1.0);
    RingSumAttr attr = {.axis = MESH_CP, .hop = 1, .halves = HALF_BOTH, .part = 1, .parts = 2};
    optest_refused(op_ring_sum(t->graph, sum, half, &attr, &y), ERR_SHAPE,
                   "x is [any=1 any=3 any=2 any=4] and must be");
    optest_refused(op_ring_sum(t->graph, low, sum, &attr, &y), ERR_ARG, "the sum must be f32");
    attr.part = 2;
    optest_refused(op_ring_sum(t->graph, sum, sum, &attr, &y), ERR_SHAPE, "summand 2 of 2");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
