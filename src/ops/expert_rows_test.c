/* expert_sort, expert_gather, expert_combine and their gradients. */
#include "ops/optest.h"

#include <stdlib.h>
#include <string.h>

typedef struct Case {
    int64_t tokens, k, experts, width;
    DType dtype;
    bool factor, base;
} Case;

static const Case cases[] = {
    {1, 1, 1, 1, DTYPE_F32, true, false},     {5, 1, 4, 17, DTYPE_F32, true, true},
    {21, 2, 3, 33, DTYPE_F32, true, true},    {21, 2, 3, 33, DTYPE_F32, false, false},
    {9, 11, 16, 8, DTYPE_F32, true, false},   {200, 2, 8, 130, DTYPE_F32, true, true},
    {21, 2, 3, 33, DTYPE_BF16, true, true},   {5, 1, 4, 17, DTYPE_BF16, false, false},
    {200, 1, 8, 130, DTYPE_BF16, true, true}, {700, 2, 5, 3, DTYPE_F32, true, true},
    {40, 3, 5, 272, DTYPE_BF16, true, true},
};

static int64_t n_rows(const Case *c) { return c->tokens * c->k + c->experts * EXPERT_ROW_ALIGN; }
static double tolerance(const Case *c) { return c->dtype == DTYPE_BF16 ? 1e-2 : 2e-6; }

/* ---- sort ------------------------------------------------------------------------------- */

/* Straight from the words of the contract: experts in order, pairs of each in token order. */
static void sort_pairs(const Case *c, const double *choice, double *offsets, double *source,
                       double *place, double *load)
{
    int64_t row = 0;
    for (int64_t r = 0; r < n_rows(c); r++) source[r] = -1;
    for (int64_t e = 0; e < c->experts; e++) {
        offsets[e] = (double)row;
        load[e] = 0;
        for (int64_t i = 0; i < c->tokens * c->k; i++) {
            if ((int64_t)choice[i] != e) continue;
            source[row] = (double)i;
            place[i] = (double)row++;
            load[e]++;
        }
        while (row % EXPERT_ROW_ALIGN) row++;
    }
    offsets[c->experts] = (double)row;
}

static void reference_sort(const void *user, double *const *in, double *const *out)
{
    sort_pairs(user, in[0], out[0], out[1], out[2], out[3]);
}

static void test_sort(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId choice = optest_integers(t, SHAPE(1, c->tokens, c->k), 0, c->experts), out[4];
        optest_ok(op_expert_sort(t->graph, choice, c->experts, &out[0], &out[1], &out[2], &out[3]));
        for (int k = 0; k < 4; k++) optest_plain_output(t, out[k]);
        optest_check(t, reference_sort, c, 0);
        optest_destroy(t);
    }
}

static void test_sort_refuses_unknown_experts(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId out[4];
    optest_ok(op_expert_sort(t->graph, optest_data(t, DTYPE_I32, SHAPE(2, 1), (double[]){0, 3}), 3,
                             &out[0], &out[1], &out[2], &out[3]));
    OpRun run;
    assert_false(optest_run(&run, t, (Target){.isa = ISA_GENERIC, .threads = 1}, 0));
    assert_non_null(strstr(run.fault, "choice 1 is expert 3 of 3"));
    optest_run_end(&run);
    optest_destroy(t);
}

/* ---- gather and combine ----------------------------------------------------------------- */

typedef struct Sorted {
    const Case *c;
    double *source, *place, *offsets, *load;
} Sorted;

static Sorted sorted_of(const Case *c, const OpTest *t, ValueId choice)
{
    Sorted s = {.c = c};
    int64_t pairs = c->tokens * c->k;
    double *values = xcalloc((size_t)pairs, sizeof *values);
    for (int64_t i = 0; i < pairs; i++) values[i] = optest_at(t, choice, i);
    s.source = xcalloc((size_t)n_rows(c), sizeof(double));
    s.place = xcalloc((size_t)pairs, sizeof(double));
    s.offsets = xcalloc((size_t)c->experts + 1, sizeof(double));
    s.load = xcalloc((size_t)c->experts, sizeof(double));
    sort_pairs(c, values, s.offsets, s.source, s.place, s.load);
    free(values);
    return s;
}

static void sorted_free(Sorted *s)
{
    free(s->source);
    free(s->place);
    free(s->offsets);
    free(s->load);
}

/* in: choice, x [, score]; out: rows */
static void reference_gather(const void *user, double *const *in, double *const *out)
{
    const Sorted *s = user;
    for (int64_t r = 0; r < n_rows(s->c); r++)
        for (int64_t i = 0; i < s->c->width; i++) {
            int64_t from = (int64_t)s->source[r];
            out[0][r * s->c->width + i] = from < 0 ? 0
                                                   : (s->c->factor ? in[2][from] : 1) *
                                                         in[1][from / s->c->k * s->c->width + i];
        }
}

static void test_gather(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        ValueId choice = optest_integers(t, SHAPE(1, c->tokens, c->k), 0, c->experts), sort[4],
                rows;
        ValueId x = optest_normal(t, c->dtype, SHAPE(1, c->tokens, c->width), 1.0),
                score = NO_VALUE;
        if (c->factor) score = optest_normal(t, DTYPE_F32, SHAPE(1, c->tokens, c->k), 1.0);
        optest_ok(
            op_expert_sort(t->graph, choice, c->experts, &sort[0], &sort[1], &sort[2], &sort[3]));
        optest_ok(op_expert_gather(t->graph, x, score, sort[1], sort[2], &rows));
        optest_output(t, rows);
        if (i % 2) optest_pitch(t, x, 1, c->width + 3);
        Sorted s = sorted_of(c, t, choice);
        optest_check_grad(t, reference_gather, &s, tolerance(c));
        sorted_free(&s);
        optest_destroy(t);
    }
}

/* in: choice, rows [, weight] [, base]; out: y */
static void reference_combine(const void *user, double *const *in, double *const *out)
{
    const Sorted *s = user;
    const Case *c = s->c;
    const double *base = c->base ? in[c->factor ? 3 : 2] : NULL;
    for (int64_t t = 0; t < c->tokens; t++)
        for (int64_t i = 0; i < c->width; i++) {
            double sum = base ? base[t * c->width + i] : 0;
            for (int64_t j = t * c->k; j < (t + 1) * c->k; j++)
                sum += (c->factor ? in[2][j] : 1) * in[1][(int64_t)s->place[j] * c->width + i];
            out[0][t * c->width + i] = sum;
        }
}

static void test_combine(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const Case *c = &cases[i];
        OpTest *t = optest_create((uint64_t)i);
        Shape tokens = SHAPE(1, c->tokens, c->width);
        ValueId choice = optest_integers(t, SHAPE(1, c->tokens, c->k), 0, c->experts), sort[4], y;
        ValueId rows = optest_normal(t, c->dtype, SHAPE(n_rows(c), c->width), 1.0),
                weight = NO_VALUE, base = NO_VALUE;
        if (c->factor) weight = optest_normal(t, DTYPE_F32, SHAPE(1, c->tokens, c->k), 1.0);
        if (c->base) base = optest_normal(t, c->dtype, tokens, 1.0);
        optest_ok(
            op_expert_sort(t->graph, choice, c->experts, &sort[0], &sort[1], &sort[2], &sort[3]));
        optest_ok(op_expert_combine(t->graph, rows, sort[1], sort[2], weight, base, tokens, &y));
        optest_output(t, y);
        if (i % 2) optest_pitch(t, y, 1, c->width + 3);
        Sorted s = sorted_of(c, t, choice);
        optest_check_grad(t, reference_combine, &s, tolerance(c));
        sorted_free(&s);
        optest_destroy(t);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Graph *g = t->graph;
    ValueId choice = optest_integers(t, SHAPE(3, 2), 0, 2), sort[4], y;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(3, 4), 1.0),
            other = optest_normal(t, DTYPE_F32, SHAPE(5, 4), 1.0);
    ValueId score = optest_normal(t, DTYPE_F32, SHAPE(3, 1), 1.0);
    optest_refused(op_expert_sort(g, x, 2, &sort[0], &sort[1], &sort[2], &sort[3]), ERR_ARG,
                   "choice must be i32");
    optest_refused(op_expert_sort(g, choice, 0, &sort[0], &sort[1], &sort[2], &sort[3]), ERR_ARG,
                   "0 experts");
    optest_ok(op_expert_sort(g, choice, 2, &sort[0], &sort[1], &sort[2], &sort[3]));
    optest_refused(op_expert_gather(g, other, NO_VALUE, sort[1], sort[2], &y), ERR_SHAPE,
                   "place is");
    optest_refused(op_expert_gather(g, x, score, sort[1], sort[2], &y), ERR_SHAPE, "score is");
    optest_refused(op_expert_combine(g, x, sort[1], sort[2], NO_VALUE, NO_VALUE, SHAPE(3, 5), &y),
                   ERR_SHAPE, "must be rows of 5");
    optest_refused(op_expert_combine(g, x, sort[1], sort[2], NO_VALUE, other, SHAPE(3, 4), &y),
                   ERR_SHAPE, "base is");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sort),     cmocka_unit_test(test_sort_refuses_unknown_experts),
        cmocka_unit_test(test_gather),   cmocka_unit_test(test_combine),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
