/* What pass_fuse joins, by the names of the nodes that are left. */
#include "pass/pass.h"
#include "ops/ops.h"

#include "base/testing.h"

static int count_nodes(const Graph *g, const char *op)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) n += !strcmp(g->node[i].op->name, op);
    return n;
}

static ValueId input(Graph *g, const char *name)
{
    return graph_input(g, name, DTYPE_F32, shape_make(2, (int64_t[]){3, 5}, NULL));
}

static ValueId weight(Graph *g, const char *name)
{
    return graph_state(g, name, DTYPE_F32, shape_make(1, (int64_t[]){5}, NULL), STATE_PARAM);
}

/* A residual sum and the norm after it: one node, of either norm, with a bias or without. */
static void sum_and_norm(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        Graph *g = graph_create("test");
        ValueId h, y, w = weight(g, "w"), b = kind == 2 ? weight(g, "b") : NO_VALUE;
        assert_ok(op_add(g, input(g, "x"), input(g, "z"), &h));
        assert_ok(kind ? op_layernorm(g, h, w, b, 1e-5f, &y) : op_rmsnorm(g, h, w, 1e-5f, &y));
        graph_output(g, "h", h);
        graph_output(g, "y", y);
        assert_ok(pass_fuse(&g));
        assert_ok(graph_verify(g, "fuse"));
        assert_int_equal(g->n_nodes, 2); /* index 0 is none */
        assert_int_equal(count_nodes(g, kind ? "add_layernorm" : "add_rmsnorm"), 1);
        graph_destroy(g);
    }
}

/* The norm's gradient and the sum that it goes into. */
static void gradient_and_sum(void **state)
{
    (void)state;
    for (int layer_norm = 0; layer_norm < 2; layer_norm++) {
        Graph *g = graph_create("test");
        ValueId x = input(g, "x"), dy = input(g, "dy"), w = weight(g, "w"), out[3], sum;
        if (layer_norm)
            assert_ok(op_layernorm_grad(g, (ValueId[]){dy, x, w, NO_VALUE}, 1e-5f, true, out));
        else
            assert_ok(op_rmsnorm_grad(g, dy, x, w, NO_VALUE, 1e-5f, &out[0], &out[1]));
        assert_ok(op_add(g, input(g, "residual"), out[0], &sum));
        graph_output(g, "dx", sum);
        graph_output(g, "dw", out[1]);
        if (layer_norm) graph_output(g, "db", out[2]);
        assert_ok(pass_fuse(&g));
        assert_ok(graph_verify(g, "fuse"));
        assert_int_equal(g->n_nodes, 2);
        assert_int_equal(g->node[1].n_in, 4);
        graph_destroy(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sum_and_norm),
                                       cmocka_unit_test(gradient_and_sum)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
