/* repeat_heads and its gradient against double precision; of ranks that share the copies, each
 * makes its own, and their gradients add up to the whole one's. */
#include "ops/optest.h"
#include "ops/repeat_heads.h"

#include <math.h>

extern const OpDef op_def_repeat_heads, op_def_repeat_heads_grad;

typedef struct Case {
    int64_t tokens, heads, copies, d;
} Case;

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t t = 0; t < c->tokens; t++)
        for (int64_t j = 0; j < c->heads * c->copies; j++)
            for (int64_t i = 0; i < c->d; i++)
                out[0][(t * c->heads * c->copies + j) * c->d + i] =
                    in[0][(t * c->heads + j / c->copies) * c->d + i];
}

static void check(int64_t heads, int64_t copies, int64_t d, DType dtype, int64_t pitch)
{
    Case c = {.tokens = 2 * 5, .heads = heads, .copies = copies, .d = d};
    OpTest *t = optest_create((uint64_t)(heads * 100 + d));
    ValueId x = optest_normal(t, dtype, SHAPE(2, 5, heads, d), 1.0), y;
    optest_ok(op_repeat_heads(t->graph, x, copies, &y));
    if (pitch) optest_pitch(t, x, 2, pitch);
    optest_output(t, y);
    optest_check_grad(t, reference, &c, dtype == DTYPE_F32 ? 1e-6 : 1e-2);
    optest_destroy(t);
}

static void test_heads(void **state)
{
    (void)state;
    static const int64_t d[] = {2, 7, 16, 33, 64, 128};
    for (int i = 0; i < COUNT_OF(d); i++)
        for (int64_t heads = 1; heads < 4; heads++)
            for (int64_t copies = 1; copies < 5; copies++) {
                check(heads, copies, d[i], DTYPE_F32, 0);
                check(heads, copies, d[i], DTYPE_BF16, 0);
                check(heads, copies, d[i], DTYPE_F32, heads * d[i] + 3);
            }
}

/* ---- the parts of ranks ----------------------------------------------------------------- */

typedef struct Part {
    int64_t tokens, heads, copies, d, first, made;
} Part;

static void part_of_copies(const void *user, double *const *in, double *const *out)
{
    const Part *p = user;
    for (int64_t t = 0; t < p->tokens; t++)
        for (int64_t j = 0; j < p->made; j++)
            for (int64_t i = 0; i < p->d; i++)
                out[0][(t * p->made + j) * p->d + i] =
                    in[0][(t * p->heads + (p->first + j) / p->copies) * p->d + i];
}

static void part_of_gradient(const void *user, double *const *in, double *const *out)
{
    const Part *p = user;
    for (int64_t k = 0; k < p->tokens * p->heads * p->d; k++) out[0][k] = 0;
    for (int64_t t = 0; t < p->tokens; t++)
        for (int64_t j = 0; j < p->made; j++)
            for (int64_t i = 0; i < p->d; i++)
                out[0][(t * p->heads + (p->first + j) / p->copies) * p->d + i] +=
                    in[0][(t * p->made + j) * p->d + i];
}

static void test_parts(void **state)
{
    (void)state;
    enum { HEADS = 3, COPIES = 4, D = 20, RANKS = 6 };
    for (int rank = 0; rank < RANKS; rank++) {
        Part p = {3, HEADS, COPIES, D, rank * 2, 2};
        RepeatHeadsAttr attr = {HEADS, COPIES, p.first, p.made, false};
        OpTest *t = optest_create(3);
        ValueId x = optest_normal(t, DTYPE_F32, SHAPE(1, 3, HEADS, D), 1.0), y;
        optest_ok(graph_add(t->graph, &op_def_repeat_heads, &attr, &x, 1, &y));
        optest_output(t, y);
        optest_check(t, part_of_copies, &p, 1e-6);
        optest_destroy(t);
        t = optest_create(4);
        x = optest_normal(t, DTYPE_F32, SHAPE(1, 3, p.made, D), 1.0);
        optest_ok(graph_add(t->graph, &op_def_repeat_heads_grad, &attr, &x, 1, &y));
        optest_output(t, y);
        optest_check(t, part_of_gradient, &p, 1e-6);
        optest_destroy(t);
    }
}

/* In a canonical graph the sums of bf16 are f32, so that ranks can go on with them. */
static void test_f32_sums(void **state)
{
    (void)state;
    enum { HEADS = 2, COPIES = 4, D = 33 };
    Part p = {3, HEADS, COPIES, D, 0, HEADS * COPIES};
    OpTest *t = optest_create(5);
    ValueId x = optest_normal(t, DTYPE_BF16, SHAPE(1, 3, p.made, D), 1.0), y;
    RepeatHeadsAttr attr = {HEADS, COPIES, 0, p.made, true};
    optest_ok(graph_add(t->graph, &op_def_repeat_heads_grad, &attr, &x, 1, &y));
    assert_int_equal(graph_value(t->graph, y)->dtype, DTYPE_F32);
    optest_output(t, y);
    optest_check(t, part_of_gradient, &p, 1e-6);
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId y, x = optest_normal(t, DTYPE_F32, SHAPE(2, 3, 4), 1.0);
    optest_refused(op_repeat_heads(t->graph, x, 2, &y), ERR_SHAPE, "3 axes");
    x = optest_normal(t, DTYPE_F32, SHAPE(2, 3, 4, 5), 1.0);
    optest_refused(op_repeat_heads(t->graph, x, 0, &y), ERR_SHAPE, "0 copies");
    optest_refused(op_repeat_heads(t->graph, x, 1024, &y), ERR_SHAPE, "1024 copies");
    RepeatHeadsAttr attr = {.heads = 3, .copies = 2, .made = 6};
    optest_refused(graph_add(t->graph, &op_def_repeat_heads, &attr, &x, 1, &y), ERR_SHAPE,
                   "wanted [B S 3 d]");
    x = optest_integers(t, SHAPE(2, 2, 2, 2), 0, 4);
    optest_refused(op_repeat_heads(t->graph, x, 2, &y), ERR_ARG, "f32 or bf16");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_heads), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_f32_sums),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
