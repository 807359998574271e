/* grouped_linear and its gradients against plain loops in double precision, in both layouts of the
 * weight. */
#include "ops/optest.h"

#include <math.h>

enum { MAX_EXPERTS = 5 };

typedef struct Sizes {
    int64_t experts, i, o, slack; /* slack: rows past the last expert's */
    int64_t count[MAX_EXPERTS];
} Sizes;

typedef struct Case {
    Sizes sizes;
    ExpertLayout layout;
} Case;

/* Where W_e[i, o] lies in the weight. */
static int64_t weight_at(const Case *c, int64_t e, int64_t i, int64_t o)
{
    const Sizes *s = &c->sizes;
    return e * s->i * s->o + (c->layout == EXPERTS_OUT_IN ? o * s->i + i : i * s->o + o);
}

static Shape weight_shape(const Case *c)
{
    const Sizes *s = &c->sizes;
    return c->layout == EXPERTS_OUT_IN ? SHAPE(s->experts, s->o, s->i)
                                       : SHAPE(s->experts, s->i, s->o);
}

static int64_t rows_of(const Sizes *s)
{
    int64_t n = 0;
    for (int64_t e = 0; e < s->experts; e++) n += s->count[e];
    return n;
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    const Sizes *s = &c->sizes;
    int64_t row = 0;
    for (int64_t e = 0; e < s->experts; e++)
        for (int64_t end = row + s->count[e]; row < end; row++)
            for (int64_t o = 0; o < s->o; o++) {
                double sum = 0;
                for (int64_t i = 0; i < s->i; i++)
                    sum += in[0][row * s->i + i] * in[1][weight_at(c, e, i, o)];
                out[0][row * s->o + o] = sum;
            }
    for (; row < rows_of(s) + s->slack; row++)
        for (int64_t o = 0; o < s->o; o++) out[0][row * s->o + o] = NAN;
}

static ValueId offsets_of(OpTest *t, const Sizes *s)
{
    double at[MAX_EXPERTS + 1] = {0};
    for (int64_t e = 0; e < s->experts; e++) at[e + 1] = at[e] + (double)s->count[e];
    return optest_data(t, DTYPE_I32, SHAPE(s->experts + 1), at);
}

static void check_layout(DType dtype, Sizes s, ExpertLayout layout, int64_t pitch)
{
    Case c = {s, layout};
    OpTest *t = optest_create((uint64_t)(s.i * 3 + s.o));
    ValueId x = optest_normal(t, dtype, SHAPE(rows_of(&s) + s.slack, s.i), 1.0), y;
    ValueId w = optest_normal(t, dtype, weight_shape(&c), 1.0), offsets = offsets_of(t, &s);
    if (pitch) optest_pitch(t, x, 1, s.i + pitch);
    optest_ok(op_grouped_linear(t->graph, x, w, offsets, layout, &y));
    if (pitch) optest_pitch(t, y, 1, s.o + 2 * pitch);
    optest_output(t, y);
    double tolerance = dtype == DTYPE_BF16 ? 1e-2 : 3e-6;
    /* what lies past the experts' rows is nobody's, and so is its gradient */
    if (s.slack)
        optest_check(t, reference, &c, tolerance);
    else
        optest_check_grad(t, reference, &c, tolerance);
    optest_destroy(t);
}

static void check(DType dtype, Sizes s, int64_t pitch)
{
    check_layout(dtype, s, EXPERTS_IN_OUT, pitch);
    check_layout(dtype, s, EXPERTS_OUT_IN, pitch);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    static const Sizes sizes[] = {
        {1, 1, 1, 0, {16}},
        {3, 5, 17, 0, {16, 0, 32}},
        {4, 17, 3, 0, {0, 48, 16, 0}},
        {2, 33, 70, 0, {32, 16}},
        {5, 6, 40, 48, {16, 0, 64, 16, 0}},
        {2, 4, 3, 16, {0, 0}},
        {2, 4, 32, 0, {128, 160}},
        {4, 4, 32, 0, {128, 160, 48, 80}},
        {3, 4, 32, 0, {16, 32, 16}}, /* lines as long as half a vector, a vector, two */
        {3, 32, 8, 0, {16, 32, 16}},
        {3, 8, 16, 0, {16, 32, 16}},
        {3, 16, 4, 0, {16, 32, 16}},
    };
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check(bf16 ? DTYPE_BF16 : DTYPE_F32, sizes[i], 0);
            check(bf16 ? DTYPE_BF16 : DTYPE_F32, sizes[i], 3);
        }
}

/* Several items an expert, several blocks of k, experts far from even. */
static void test_many_items(void **state)
{
    (void)state;
    check(DTYPE_F32, (Sizes){3, 300, 3, 0, {16, 32, 0}}, 0);
    check(DTYPE_BF16, (Sizes){2, 7, 450, 16, {1040, 16}}, 0);
    check(DTYPE_F32, (Sizes){2, 450, 9, 16, {16, 560}}, 2);
    for (int bf16 = 0; bf16 < 2; bf16++) { /* 16 bytes at a time on a GPU */
        check(bf16 ? DTYPE_BF16 : DTYPE_F32, (Sizes){2, 168, 24, 0, {144, 16}}, 0);
        check(bf16 ? DTYPE_BF16 : DTYPE_F32, (Sizes){2, 24, 136, 0, {16, 144}}, 0);
    }
}

/* in: dy, x; out: dw */
static void reference_dw(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    const Sizes *s = &c->sizes;
    int64_t row = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        for (int64_t k = 0; k < s->i * s->o; k++) out[0][e * s->i * s->o + k] = 0;
        for (int64_t end = row + s->count[e]; row < end; row++)
            for (int64_t i = 0; i < s->i; i++)
                for (int64_t o = 0; o < s->o; o++)
                    out[0][weight_at(c, e, i, o)] += in[1][row * s->i + i] * in[0][row * s->o + o];
    }
}

static void check_dw_layout(DType dtype, Sizes s, ExpertLayout layout, int64_t gap)
{
    Case c = {s, layout};
    OpTest *t = optest_create(9);
    ValueId dy = optest_normal(t, dtype, SHAPE(rows_of(&s) + s.slack, s.o), 1.0), dw;
    ValueId x = optest_normal(t, dtype, SHAPE(rows_of(&s) + s.slack, s.i), 1.0),
            offsets = offsets_of(t, &s);
    optest_pitch(t, dy, 1, s.o + gap);
    optest_ok(op_grouped_linear_dw(t->graph, dy, x, offsets,
                                   (ExpertWeight){weight_shape(&c), layout}, &dw));
    optest_output(t, dw);
    optest_check(t, reference_dw, &c, 3e-6);
    optest_destroy(t);
}

static void check_dw(DType dtype, Sizes s)
{
    check_dw_layout(dtype, s, EXPERTS_IN_OUT, 5);
    check_dw_layout(dtype, s, EXPERTS_OUT_IN, 5);
}

static void test_dw(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        check_dw(dtype, (Sizes){3, 5, 17, 16, {32, 0, 16}});
        check_dw(dtype, (Sizes){2, 401, 3, 0, {16, 48}});
        /* one expert's rows are one block of k, all rows together are two shorter ones */
        check_dw(dtype, (Sizes){2, 6, 33, 0, {bf16 ? 512 : 256, 16}});
        check_dw(dtype, (Sizes){4, 30, 410, 0, {0, 0, 640, 16}});
    }
}

/* What GPUs of compute capability 9.0 do by their own instructions: more tiles than blocks of
 * threads, 128 and 256 columns wide, contractions longer than the ring of stages, edges on all
 * sides. */
static void test_wide_tiles(void **state)
{
    (void)state;
    for (int layout = 0; layout < 2; layout++) {
        check_layout(DTYPE_BF16, (Sizes){3, 392, 320, 16, {144, 0, 272}}, layout, 8);
        check_layout(DTYPE_BF16, (Sizes){2, 328, 456, 16, {144, 48}}, layout, 8);
        check_dw_layout(DTYPE_BF16, (Sizes){3, 136, 264, 0, {208, 0, 336}}, layout, 8);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Graph *g = t->graph;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(32, 3), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(2, 3, 5), 1.0), y;
    ValueId offsets = optest_integers(t, SHAPE(3), 0, 1), few = optest_integers(t, SHAPE(2), 0, 1);
    ValueId wide = optest_normal(t, DTYPE_F32, SHAPE(2, 4, 5), 1.0),
            half = optest_normal(t, DTYPE_BF16, SHAPE(2, 3, 5), 1.0);
    optest_refused(op_grouped_linear(g, x, wide, offsets, EXPERTS_IN_OUT, &y), ERR_SHAPE,
                   "do not fit the experts' weight");
    optest_refused(op_grouped_linear(g, x, w, offsets, EXPERTS_OUT_IN, &y), ERR_SHAPE,
                   "whose axis 2 they meet");
    optest_refused(op_grouped_linear(g, x, w, few, EXPERTS_IN_OUT, &y), ERR_SHAPE, "offsets");
    optest_refused(op_grouped_linear(g, x, half, offsets, EXPERTS_IN_OUT, &y), ERR_ARG,
                   "w must be f32");
    ExpertWeight like = {graph_value(g, w)->shape, EXPERTS_IN_OUT};
    optest_refused(op_grouped_linear_dw(g, x, x, offsets, like, &y), ERR_SHAPE, "do not fit");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_many_items),
        cmocka_unit_test(test_dw),
        cmocka_unit_test(test_wide_tiles),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
