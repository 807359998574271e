/* expert_plan, expert_dispatch and expert_collect on one rank, where they are copies of the rows
 * that are there. Between ranks: expert_ranks_test.c,
 * tests/layout_test.c. */
#include "ops/optest.h"

#include <math.h>
#include <string.h>

enum { EXPERTS = 3, ROWS = 9 };
/* two rows are behind all experts', and one expert has none */
static const double offsets[EXPERTS + 1] = {0, 4, 4, 7};

static void reference_plan(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int e = 0; e <= EXPERTS; e++) out[0][e] = out[1][e] = in[0][e];
}

static void test_plan(void **state)
{
    (void)state;
    for (int canonical = 0; canonical < 2; canonical++) {
        OpTest *t = optest_create(1);
        t->graph->canonical = canonical;
        ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), table, owned;
        optest_ok(op_expert_plan(t->graph, at, &table, &owned));
        optest_plain_output(t, table);
        optest_plain_output(t, owned);
        optest_check(t, reference_plan, NULL, 0);
        optest_destroy(t);
    }
}

/* in: offsets, rows */
static void reference_rows(const void *user, double *const *in, double *const *out)
{
    int64_t width = *(const int64_t *)user;
    for (int64_t i = 0; i < ROWS * width; i++)
        out[0][i] = i < (int64_t)offsets[EXPERTS] * width ? in[1][i] : (double)NAN;
}

typedef Status (*Builder)(Graph *g, ValueId rows, ValueId table, bool columns, ValueId *y);
static const Builder builders[] = {op_expert_dispatch, op_expert_collect};

/* Rows that are moved 16, 4 and 2 bytes at a time on a GPU. */
static void test_rows(void **state)
{
    (void)state;
    static const int64_t widths[] = {5, 8, 2500};
    for (int i = 0; i < 4 * COUNT_OF(widths); i++) {
        int64_t width = widths[i / 4];
        OpTest *t = optest_create((uint64_t)i);
        ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), table, owned, y;
        ValueId rows = optest_normal(t, i % 2 ? DTYPE_BF16 : DTYPE_F32, SHAPE(ROWS, width), 1.0);
        optest_ok(op_expert_plan(t->graph, at, &table, &owned));
        optest_ok(builders[i / 2 % 2](t->graph, rows, table, false, &y));
        optest_output(t, y);
        optest_check(t, reference_rows, &width, 0);
        optest_destroy(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plan), cmocka_unit_test(test_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
