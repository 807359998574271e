/* expert_unite and expert_divide on one rank, where both are copies of the rows that are there, and
 * what they refuse. Between ranks: expert_ranks_test.c, tests/layout_test.c. */
#include "ops/optest.h"

#include <math.h>
#include <string.h>

enum { EXPERTS = 3, ROWS = 9, WIDTH = 6 };
/* two rows are behind all experts', and one expert has none */
static const double offsets[EXPERTS + 1] = {0, 4, 4, 7};

static void reference(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int i = 0; i < ROWS * WIDTH; i++)
        out[0][i] = i < (int)offsets[EXPERTS] * WIDTH ? in[1][i] : (double)NAN;
}

typedef Status (*Builder)(Graph *g, ValueId rows, ValueId owned, ValueId *y);
static const Builder builders[] = {op_expert_unite, op_expert_divide};

static void test_copies(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * COUNT_OF(builders); i++) {
        OpTest *t = optest_create((uint64_t)i);
        ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), y;
        ValueId rows = optest_normal(t, i % 2 ? DTYPE_BF16 : DTYPE_F32, SHAPE(ROWS, WIDTH), 1.0);
        optest_ok(builders[i / 2](t->graph, rows, at, &y));
        optest_output(t, y);
        optest_check(t, reference, NULL, 0);
        optest_destroy(t);
    }
}

/* as in expert_columns.c */
typedef struct Columns {
    int n, rank;
} Columns;

static void test_shapes(void **state)
{
    (void)state;
    Graph *g = graph_create("columns");
    Shape owned = shape_make(1, (int64_t[]){EXPERTS + 1}, NULL),
          shape = shape_make(2, (int64_t[]){ROWS, WIDTH}, NULL);
    ValueId at = graph_input(g, "owned", DTYPE_I32, owned),
            x = graph_input(g, "x", DTYPE_F32, shape), y;
    Columns three = {3, 1}, four = {4, 0};
    optest_ok(graph_add(g, op_find("expert_unite"), &three, (ValueId[]){x, at}, 2, &y));
    assert_int_equal(graph_value(g, y)->shape.dim[1], 3 * WIDTH);
    optest_ok(graph_add(g, op_find("expert_divide"), &three, (ValueId[]){x, at}, 2, &y));
    assert_int_equal(graph_value(g, y)->shape.dim[1], WIDTH / 3);
    Cost c = op_find("expert_divide")->cost(g, &g->node[g->n_nodes - 1]);
    assert_true(c.exchange == COMM_REDUCE_SCATTER && c.axes == 1u << MESH_TP);
    assert_true(c.whole_bytes == (double)(ROWS * WIDTH * sizeof(float)));
    assert_int_equal(graph_add(g, op_find("expert_divide"), &four, (ValueId[]){x, at}, 2, &y),
                     ERR_SHAPE);
    assert_non_null(strstr(status_message(), "cannot be cut into 4 equal parts"));
    assert_int_equal(op_expert_unite(g, x, x, &y), ERR_ARG);
    graph_destroy(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
