/* Placements: what the builder and the verifier refuse, and what sharding puts in by itself. */
#include "pass/pass_internal.h"
#include "pass/shard.h"

#include "base/testing.h"

static Shape matrix(int64_t rows, Axis a, int64_t columns, Axis b)
{
    return shape_make(2, (int64_t[]){rows, columns}, (Axis[]){a, b});
}

static ValueId weight(Graph *g, const char *name, Shape shape)
{
    return graph_state(g, name, DTYPE_F32, shape, STATE_PARAM);
}

/* y = norm(down(silu(gate x) up x)): the feed-forward of a layer. */
static Graph *feed_forward(void)
{
    Graph *g = graph_create("ffn");
    ValueId x = graph_input(
        g, "x", DTYPE_F32,
        shape_make(3, (int64_t[]){4, 8, 16}, (Axis[]){AXIS_BATCH, AXIS_SEQ, AXIS_EMBED}));
    ValueId gate, up, y;
    ValueId norm = weight(g, "norm", shape_make(1, (int64_t[]){16}, (Axis[]){AXIS_EMBED}));
    assert_int_equal(
        op_linear(g, x, weight(g, "gate", matrix(32, AXIS_FFN, 16, AXIS_EMBED)), &gate), OK);
    assert_int_equal(op_linear(g, x, weight(g, "up", matrix(32, AXIS_FFN, 16, AXIS_EMBED)), &up),
                     OK);
    assert_int_equal(op_swiglu(g, gate, up, &y), OK);
    assert_int_equal(op_linear(g, y, weight(g, "down", matrix(16, AXIS_EMBED, 32, AXIS_FFN)), &y),
                     OK);
    assert_int_equal(op_rmsnorm(g, y, norm, 1e-5f, &y), OK);
    graph_output(g, "y", y);
    return g;
}

static int count(const Graph *g, const char *op)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) n += node_is(&g->node[i], op);
    return n;
}

static Graph *sharded(bool sequence)
{
    Graph *g = feed_forward();
    ShardPlan plan = {
        .axis = MESH_TP, .n = 2, .rank = 1, .state_axes = 1u << AXIS_FFN, .sequence = sequence};
    assert_int_equal(pass_shard(&g, &plan), OK);
    assert_int_equal(graph_verify(g, "sharding"), OK);
    return g;
}

static void test_one_reduction(void **state)
{
    (void)state;
    Graph *g = sharded(false);
    assert_int_equal(count(g, "all_reduce"), 1);
    assert_int_equal(count(g, "reduce_scatter") + count(g, "all_gather") + count(g, "cut"), 0);
    assert_int_equal(graph_value(g, graph_find_state(g, "gate"))->shape.dim[0], 16);
    assert_int_equal(graph_value(g, graph_find_state(g, "down"))->shape.dim[1], 16);
    assert_int_equal(graph_value(g, graph_find_state(g, "norm"))->shape.dim[0], 16);
    graph_destroy(g);
}

static void test_sequence(void **state)
{
    (void)state;
    Graph *g = sharded(true); /* the sum is scattered along the sequence, the output gathered */
    assert_int_equal(count(g, "reduce_scatter"), 1);
    assert_int_equal(count(g, "all_gather"), 1);
    assert_int_equal(count(g, "all_reduce"), 0);
    graph_destroy(g);
}

static void says(const char *words)
{
    if (!strstr(status_message(), words)) fail_msg("'%s' is not in: %s", words, status_message());
}

/* A graph of rank 0 of 2 with a partial sum in it. */
static Graph *with_partial(ValueId *sum)
{
    Graph *g = graph_create("partial");
    g->mesh.size[MESH_TP] = 2;
    ValueId x = graph_input(g, "x", DTYPE_F32, matrix(4, AXIS_BATCH, 8, AXIS_FFN));
    ValueId w = weight(g, "w", matrix(16, AXIS_EMBED, 8, AXIS_FFN));
    graph_value(g, x)->place[MESH_TP] = graph_value(g, w)->place[MESH_TP] = (Place){PLACE_CUT, 1};
    assert_int_equal(op_linear(g, x, w, sum), OK);
    assert_int_equal(graph_value(g, *sum)->place[MESH_TP].kind, PLACE_PARTIAL);
    return g;
}

static void test_missing_reduction(void **state)
{
    (void)state;
    ValueId sum, y;
    Graph *g = with_partial(&sum);
    ValueId w = weight(g, "norm", shape_make(1, (int64_t[]){16}, (Axis[]){AXIS_EMBED}));
    assert_int_not_equal(op_rmsnorm(g, sum, w, 1e-5f, &y), OK);
    says("lies partial along tp and must lie same");
    graph_destroy(g);
    g = with_partial(&sum);
    ValueId same = graph_input(g, "same", DTYPE_F32, matrix(4, AXIS_BATCH, 16, AXIS_EMBED));
    assert_int_not_equal(op_add(g, same, sum, &y), OK); /* would count `same` twice */
    graph_destroy(g);
}

static void test_doubled_reduction(void **state)
{
    (void)state;
    ValueId sum, once, twice;
    Graph *g = with_partial(&sum);
    assert_int_equal(op_all_reduce(g, MESH_TP, sum, &once), OK);
    assert_int_equal(graph_value(g, once)->place[MESH_TP].kind, PLACE_SAME);
    assert_int_not_equal(op_all_reduce(g, MESH_TP, once, &twice), OK);
    says("doubled");
    graph_destroy(g);
}

/* A node whose placement was changed behind the builder's back. */
static void test_verifier_sees_places(void **state)
{
    (void)state;
    Graph *g = sharded(false);
    for (int i = 1; i < g->n_values; i++)
        if (g->value[i].kind == VALUE_TEMP && g->value[i].place[MESH_TP].kind == PLACE_PARTIAL)
            g->value[i].place[MESH_TP] = (Place){PLACE_SAME, 0};
    assert_int_not_equal(graph_verify(g, "damage"), OK);
    graph_destroy(g);
}

static void test_what_does_not_divide(void **state)
{
    (void)state;
    Graph *g = feed_forward();
    ShardPlan plan = {.axis = MESH_TP, .n = 3, .state_axes = 1u << AXIS_FFN};
    assert_int_equal(pass_shard(&g, &plan), ERR_REFUSED);
    says("32 ffn");
    says("parallel.tp 3");
    graph_destroy(g);
}

/* Flat: the weight is a run of elements; readers get it gathered. */
static void test_flat(void **state)
{
    (void)state;
    Graph *g = feed_forward();
    ShardPlan plan = {
        .axis = MESH_FSDP, .n = 4, .rank = 3, .input_axes = 1u << AXIS_BATCH, .flat = true};
    assert_int_equal(pass_shard(&g, &plan), OK);
    assert_int_equal(count(g, "all_gather"), 4);
    const Value *gate = graph_value(g, graph_find_state(g, "gate"));
    assert_int_equal(gate->shape.rank, 1);
    assert_int_equal(gate->shape.dim[0], 32 * 16 / 4);
    assert_int_equal(shape_count(&gate->whole), 32 * 16);
    assert_int_equal(graph_value(g, graph_find_input(g, "x"))->shape.dim[0], 1);
    graph_destroy(g);
}

/* A state that a rank holds whole, changed by what it has a part of: the part of the state would be
 * a copy. */
static void test_change_of_a_copy(void **state)
{
    (void)state;
    for (int cut = 0; cut < 2; cut++) {
        Graph *g = graph_create("cache");
        Axis axes[] = {AXIS_BATCH, AXIS_SEQ, AXIS_KV_HEADS, AXIS_HEAD_DIM},
             held[] = {AXIS_BATCH, AXIS_CACHE, AXIS_KV_HEADS, AXIS_HEAD_DIM},
             table[] = {AXIS_BATCH, AXIS_ANY};
        ValueId k = graph_input(g, "k", DTYPE_F32, shape_make(4, (int64_t[]){4, 1, 2, 8}, axes)),
                out[2], cache[2];
        ValueId pos = graph_input(g, "pos", DTYPE_I32, shape_make(2, (int64_t[]){4, 1}, axes));
        for (int i = 0; i < 2; i++)
            cache[i] = graph_state(g, i ? "v" : "k cache", DTYPE_F32,
                                   shape_make(4, (int64_t[]){6, 16, 2, 8}, held),
                                   cut ? STATE_CACHE : STATE_BUFFER);
        CachePages pages = {
            .k = cache[0],
            .v = cache[1],
            .table = graph_input(g, "pages", DTYPE_I32, shape_make(2, (int64_t[]){4, 3}, table)),
            .copy = graph_input(g, "copy", DTYPE_I32, shape_make(1, (int64_t[]){4}, axes))};
        assert_int_equal(op_cache_append(g, k, k, pos, pages, &out[0], &out[1]), OK);
        ShardPlan plan = {.axis = MESH_DP, .n = 2, .rank = 1, .input_axes = 1u << AXIS_BATCH};
        if (cut) {
            assert_int_equal(pass_shard(&g, &plan), OK);
            assert_int_equal(graph_value(g, graph_find_state(g, "v"))->shape.dim[0], 3);
        } else {
            assert_int_equal(pass_shard(&g, &plan), ERR_ARG);
            assert_non_null(strstr(status_message(), "the change would be lost"));
        }
        graph_destroy(g);
    }
}

/* Two weight gradients of a cut batch: what add makes of summands is a summand, and is reduced;
 * add_whole takes nothing but what has been. */
static void test_sums_of_sums(void **state)
{
    (void)state;
    static Status (*const add[])(Graph *, ValueId, ValueId, ValueId *) = {op_add, op_add_whole};
    for (int k = 0; k < COUNT_OF(add); k++) {
        Graph *g = graph_create("two gradients");
        ValueId x = graph_input(g, "x", DTYPE_F32, matrix(4, AXIS_BATCH, 16, AXIS_EMBED)), dw[2], y;
        for (int i = 0; i < 2; i++)
            assert_int_equal(op_linear_dw(g,
                                          graph_input(g, i ? "b" : "a", DTYPE_F32,
                                                      matrix(4, AXIS_BATCH, 8, AXIS_FFN)),
                                          x, &dw[i]),
                             OK);
        assert_int_equal(add[k](g, dw[0], dw[1], &y), OK);
        graph_output(g, "y", y);
        ShardPlan plan = {.axis = MESH_DP, .n = 2, .rank = 1, .input_axes = 1u << AXIS_BATCH};
        assert_int_equal(pass_shard(&g, &plan), OK);
        assert_int_equal(graph_verify(g, "sharding"), OK);
        assert_int_equal(count(g, "all_reduce"), 1 + k);
        graph_destroy(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_reduction),
        cmocka_unit_test(test_sequence),
        cmocka_unit_test(test_missing_reduction),
        cmocka_unit_test(test_doubled_reduction),
        cmocka_unit_test(test_verifier_sees_places),
        cmocka_unit_test(test_what_does_not_divide),
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_change_of_a_copy),
        cmocka_unit_test(test_sums_of_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
