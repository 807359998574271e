/* What an exchange costs is told of all that is exchanged, on whichever side of it that lies. */
#include "base/testing.h"
#include "ops/ops.h"

enum { RANKS = 4, ROWS = 24, WIDTH = 10 };

static Cost cost_of_last(const Graph *g)
{
    const Node *node = &g->node[g->n_nodes - 1];
    return node->op->cost(g, node);
}

static void test_costs(void **state)
{
    (void)state;
    Graph *g = graph_create("exchanges");
    g->mesh.size[MESH_TP] = RANKS;
    const double bytes = ROWS * WIDTH * sizeof(float);
    Shape shape = shape_make(2, (int64_t[]){ROWS, WIDTH}, NULL);
    ValueId x = graph_input(g, "x", DTYPE_F32, shape), part, whole, sum,
            summand = graph_input(g, "summand", DTYPE_F32, shape);
    graph_value(g, summand)->place[MESH_TP] = (Place){PLACE_PARTIAL, 0};
    assert_ok(op_cut(g, MESH_TP, x, 0, &part));
    graph_value(g, part)->place[MESH_TP] = (Place){PLACE_CUT, 0};
    assert_int_equal(graph_value(g, part)->shape.dim[0], ROWS / RANKS);

    assert_ok(op_all_gather(g, MESH_TP, part, &whole));
    Cost c = cost_of_last(g);
    assert_int_equal(graph_value(g, whole)->shape.dim[0], ROWS);
    assert_true(c.exchange == COMM_ALL_GATHER && c.axes == 1u << MESH_TP);
    assert_near(c.whole_bytes, bytes, 1e-12);

    assert_ok(op_reduce_scatter(g, MESH_TP, summand, 0, &part));
    c = cost_of_last(g);
    assert_true(c.exchange == COMM_REDUCE_SCATTER);
    assert_near(c.whole_bytes, bytes, 1e-12);

    assert_ok(op_all_reduce(g, MESH_TP, summand, &sum));
    c = cost_of_last(g);
    assert_true(c.exchange == COMM_ALL_REDUCE);
    assert_near(c.whole_bytes, bytes, 1e-12);
    graph_destroy(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_costs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
