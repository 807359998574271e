/* Which leaves are whose, and which products are made in chunks. */
#include "base/testing.h"
#include "pass/pass.h"

#include <string.h>

/* ---- leaves ----------------------------------------------------------------------------- */

enum { MAX_LEAVES = 256 };

/* What is summed together first holds neighbours: every stage of the sum an aligned block of
 * leaves. */
static void check_block(const int64_t *leaf, int n)
{
    for (int i = 0; i < n; i++) assert_true(leaf[i] / n == leaf[0] / n);
}

static void check_leaves(Layout layout, int n_micro)
{
    bool seen[MAX_LEAVES] = {false};
    int ep = mesh_size(&layout.mesh, MESH_EP), fsdp = mesh_size(&layout.mesh, MESH_FSDP),
        dp = mesh_size(&layout.mesh, MESH_DP), n = 0;
    for (int d = 0; d < dp; d++) {
        int64_t of_dp[MAX_LEAVES];
        int n_dp = 0;
        for (int m = 0; m < n_micro; m++) {
            int64_t of_micro[MAX_LEAVES];
            int n_m = 0;
            for (int f = 0; f < fsdp; f++) {
                int64_t of_ep[MAX_LEAVES];
                for (int e = 0; e < ep; e++, n++) {
                    layout.mesh.coord[MESH_DP] = d, layout.mesh.coord[MESH_FSDP] = f,
                    layout.mesh.coord[MESH_EP] = e;
                    of_ep[e] = of_micro[n_m++] = of_dp[n_dp++] = layout_leaf(&layout, n_micro, m);
                    assert_true(of_ep[e] >= 0 && of_ep[e] < (int64_t)dp * n_micro * fsdp * ep &&
                                !seen[of_ep[e]]);
                    seen[of_ep[e]] = true;
                    assert_true(of_ep[e] == of_ep[0] + e); /* ranks are summed in their order */
                    assert_true(
                        of_ep[e] - layout_leaf(&layout, n_micro, 0) ==
                        m * (layout_leaf(&layout, n_micro, 1) - layout_leaf(&layout, n_micro, 0)));
                }
                check_block(of_ep, ep);
            }
            check_block(of_micro, n_m);
        }
        if (layout.zero < 2) check_block(of_dp, n_dp); /* what dp sums last */
    }
    assert_int_equal(n, dp * n_micro * fsdp * ep);
}

static void test_leaves(void **state)
{
    (void)state;
    for (int i = 0; i < 81; i++) {
        Layout layout = {.mesh = {.size = {[MESH_DP] = 1 << i % 3,
                                           [MESH_FSDP] = 1 << i / 3 % 3,
                                           [MESH_EP] = 1 << i / 9 % 3,
                                           [MESH_TP] = 3}}};
        for (layout.zero = 0; layout.zero < 3; layout.zero += 2)
            if (layout.zero == 0 || mesh_size(&layout.mesh, MESH_FSDP) == 1)
                check_leaves(layout, 1 << i / 27 % 3);
    }
}

/* ---- chunks ----------------------------------------------------------------------------- */

static Shape matrix(int64_t rows, Axis row, int64_t columns, Axis column)
{
    return shape_make(2, (int64_t[]){rows, columns}, (Axis[]){row, column});
}

static int count(const Graph *g, const char *op)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) n += g->node[i].op == op_find(op);
    return n;
}

/* y = down (up x), bf16: what is summed over ffn is in chunks, with a cast behind; what is summed
 * over embed is not. */
static Status make(int64_t ffn, int chunks, Graph **out)
{
    Graph *g = graph_create("mlp");
    ValueId x = graph_input(g, "x", DTYPE_BF16, matrix(6, AXIS_BATCH, 16, AXIS_EMBED)), h, y, dh,
            dx;
    ValueId up = graph_state(g, "up", DTYPE_BF16, matrix(ffn, AXIS_FFN, 16, AXIS_EMBED),
                             STATE_PARAM);
    ValueId down = graph_state(g, "down", DTYPE_BF16, matrix(16, AXIS_EMBED, ffn, AXIS_FFN),
                               STATE_PARAM);
    assert_int_equal(op_linear(g, x, up, &h), OK);
    assert_int_equal(op_linear(g, h, down, &y), OK);
    assert_int_equal(op_linear_dx(g, y, down, &dh), OK);
    assert_int_equal(op_linear_dx(g, dh, up, &dx), OK);
    graph_output(g, "dx", dx);
    *out = g;
    return pass_canonical(out, &(Layout){.chunks = chunks}, NULL);
}

static void test_chunks(void **state)
{
    (void)state;
    Graph *g;
    assert_int_equal(make(24, 8, &g), OK);
    assert_int_equal(count(g, "linear"), 1);
    assert_int_equal(count(g, "linear_dx"), 1);
    assert_int_equal(count(g, "chunked_linear"), 1);
    assert_int_equal(count(g, "chunked_linear_dx"), 1);
    assert_int_equal(count(g, "cast"), 2);
    assert_int_equal(graph_value(g, graph_find_output(g, "dx"))->dtype, DTYPE_BF16);
    graph_destroy(g);
    assert_int_equal(make(24, 0, &g), OK); /* no such mode */
    assert_int_equal(count(g, "linear"), 2);
    graph_destroy(g);
    assert_int_equal(make(20, 8, &g), ERR_REFUSED);
    assert_non_null(strstr(
        status_message(),
        "train.canonical_chunks 8 does not divide the 20 columns over which down is summed"));
    graph_destroy(g);
}

/* Along tp a canonical graph makes partial sums whole before they are added to anything; otherwise
 * they may wait. */
static void test_no_sum_waits(void **state)
{
    (void)state;
    for (int canonical = 0; canonical < 2; canonical++) {
        Graph *g = graph_create("sums");
        ValueId x = graph_input(g, "x", DTYPE_F32, matrix(6, AXIS_BATCH, 16, AXIS_FFN)), a, b, y;
        ValueId v = graph_state(g, "v", DTYPE_F32, matrix(8, AXIS_EMBED, 16, AXIS_FFN),
                                STATE_PARAM);
        ValueId w = graph_state(g, "w", DTYPE_F32, matrix(8, AXIS_EMBED, 16, AXIS_FFN),
                                STATE_PARAM);
        Layout layout = {.mesh = {.size = {[MESH_TP] = 2}}};
        g->canonical = canonical;
        assert_int_equal(op_linear(g, x, v, &a), OK);
        assert_int_equal(op_linear(g, x, w, &b), OK);
        assert_int_equal(op_add(g, a, b, &y), OK);
        graph_output(g, "y", y);
        assert_int_equal(pass_tensor(&g, &layout, NULL), OK);
        assert_int_equal(count(g, "all_reduce"), canonical ? 2 : 1);
        assert_int_equal(graph_verify(g, "tensor"), OK);
        graph_destroy(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_leaves), cmocka_unit_test(test_chunks),
                                       cmocka_unit_test(test_no_sum_waits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
