/* Stages of a pipeline, weights that two of them read, and the gradients of weights as a phase of
 * their own. */
#include "pass/pass_internal.h"

#include "base/testing.h"

enum { LAYERS = 4, WIDTH = 16, WORDS = 8 };

static Shape matrix(int64_t rows, Axis a, int64_t columns, Axis b)
{
    return shape_make(2, (int64_t[]){rows, columns}, (Axis[]){a, b});
}

static ValueId weight(Graph *g, const char *name, Shape shape)
{
    return graph_state(g, name, DTYPE_F32, shape, STATE_PARAM);
}

/* h + down(up h), after a norm. */
static ValueId layer(Graph *g, int i, ValueId h)
{
    ValueId x, y;
    graph_set_layer(g, i);
    ValueId norm = weight(g, arena_printf(&g->arena, "%d.norm", i),
                          shape_make(1, (int64_t[]){WIDTH}, (Axis[]){AXIS_EMBED}));
    assert_ok(op_rmsnorm(g, h, norm, 1e-5f, &x));
    assert_ok(op_linear(
        g, x,
        weight(g, arena_printf(&g->arena, "%d.up", i), matrix(32, AXIS_FFN, WIDTH, AXIS_EMBED)),
        &x));
    assert_ok(op_linear(
        g, x,
        weight(g, arena_printf(&g->arena, "%d.down", i), matrix(WIDTH, AXIS_EMBED, 32, AXIS_FFN)),
        &x));
    assert_ok(op_add(g, h, x, &y));
    return y;
}

enum { MICRO_BATCHES = 4 };

/* With summed gradients; the head is the embedding. */
static Graph *make_whole(bool canonical)
{
    Graph *g = graph_create("whole");
    ParamGrads grads;
    g->canonical = canonical;
    ValueId h, loss, nll;
    Shape tokens = shape_make(2, (int64_t[]){2, 4}, (Axis[]){AXIS_BATCH, AXIS_SEQ});
    ValueId ids = graph_input(g, "ids", DTYPE_I32, tokens),
            targets = graph_input(g, "targets", DTYPE_I32, tokens);
    ValueId weights = graph_input(g, "weights", DTYPE_F32, tokens),
            table = weight(g, "table", matrix(WORDS, AXIS_VOCAB, WIDTH, AXIS_EMBED));
    assert_ok(op_embed(g, ids, table, DTYPE_F32, &h));
    for (int i = 0; i < LAYERS; i++) h = layer(g, i, h);
    graph_set_layer(g, -1);
    assert_ok(op_linear_cross_entropy(g, h, table, targets, weights, 0, &loss, &nll));
    graph_output(g, "loss", loss);
    assert_ok(pass_autodiff(g, "loss", &grads));
    assert_ok(canonical ? pass_accumulate_leaves(g, MICRO_BATCHES, &grads)
                        : pass_accumulate(g, &grads));
    param_grads_deinit(&grads);
    return g;
}

static Graph *whole_graph(void) { return make_whole(false); }

static int count(const Graph *g, const char *op, int phase)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++)
        n += node_is(&g->node[i], op) && (phase < 0 || (int)g->node[i].phase == phase);
    return n;
}

/* One stage of a schedule's, on the rank that has it. */
static Graph *stage_graph(const Graph *whole, const Pipeline *p, int stage)
{
    Layout layout = {.pipeline = p};
    Graph *g;
    layout.mesh.size[MESH_PP] = p->n_ranks;
    layout.mesh.coord[MESH_PP] = p->rank_of[stage];
    assert_ok(pass_pipeline(whole, &layout, stage, false, &g));
    assert_ok(graph_verify(g, "the cut"));
    return g;
}

static int twin_of(const Graph *g, const char *state)
{
    ValueId v = graph_find_state(g, state);
    return value_ok(v) && graph_value(g, v)->role != STATE_NONE ? graph_value(g, v)->twin : -1;
}

static void test_tied(void **state)
{
    (void)state;
    Graph *whole = whole_graph();
    Pipeline *p;
    assert_ok(pipeline_create("1f1b", 2, 1, 4, &p));
    Graph *first = stage_graph(whole, p, 0), *last = stage_graph(whole, p, 1);
    assert_int_equal(twin_of(first, "table"), 2); /* rank 1 holds it too */
    assert_int_equal(twin_of(last, "table"), 1);
    assert_int_equal(twin_of(first, "table.grad"), 2);
    assert_int_equal(graph_value(last, graph_find_state(last, "table.grad"))->place[MESH_PP].kind,
                     PLACE_PARTIAL);
    assert_int_equal(twin_of(first, "0.up"), 0);
    assert_int_equal(twin_of(first, "3.up"), -1); /* the other stage's */
    assert_int_equal(count(first, "send", -1),
                     1); /* h there, its gradient back; nothing of the table */
    assert_int_equal(count(first, "recv", -1), 1);
    assert_int_equal(count(first, "embed_grad", -1), 1);
    assert_int_equal(count(last, "embed_grad", -1), 0);
    graph_destroy(first);
    graph_destroy(last);
    pipeline_destroy(p);
    graph_destroy(whole);
}

/* Like a V: both stages of the table lie on rank 0, and the last rank hands over to itself. */
static void test_v(void **state)
{
    (void)state;
    Graph *whole = whole_graph();
    Pipeline *p;
    assert_ok(pipeline_create("zb-v", 2, 2, 4, &p));
    for (int s = 0; s < 4; s++) {
        Graph *g = stage_graph(whole, p, s);
        assert_int_equal(count(g, "send", -1) + count(g, "put", -1), s == 0 || s == 3 ? 1 : 2);
        assert_int_equal(count(g, "put", -1), s == 1 || s == 2 ? 1 : 0);
        assert_int_equal(count(g, "take", -1), s == 1 || s == 2 ? 1 : 0);
        if (s == 0 || s == 3) assert_int_equal(twin_of(g, "table"), 0);
        graph_destroy(g);
    }
    pipeline_destroy(p);
    graph_destroy(whole);
}

/* In the update the gradient that two ranks have is read as a sum: without it the verifier says no.
 */
static void test_update(void **state)
{
    (void)state;
    Graph *whole = whole_graph();
    Pipeline *p;
    assert_ok(pipeline_create("1f1b", 2, 1, 4, &p));
    for (int s = 0; s < 2; s++) {
        Graph *g = stage_graph(whole, p, s), *update;
        Layout layout = {.pipeline = p};
        layout.mesh.size[MESH_PP] = 2;
        layout.mesh.coord[MESH_PP] = s;
        assert_ok(pass_optimizer_alone(g, &layout, &update));
        assert_ok(graph_verify(update, "the optimizer"));
        assert_int_equal(count(update, "join_stages", -1), 1);
        for (int i = 1; i < update->n_nodes;
             i++) /* three weights of each of two layers, and the table on rank 0 */
            if (node_is(&update->node[i], "grad_norm"))
                assert_int_equal(update->node[i].n_in, s == 0 ? 7 : 6);
        for (int i = 1; i < update->n_nodes; i++) {
            Node *node = &update->node[i];
            if (!node_is(node, "adamw") ||
                strcmp(graph_value(update, node->in[0])->name, "table") != 0)
                continue;
            node->in[3] = graph_find_state(update, "table.grad");
        }
        assert_int_equal(graph_verify(update, "a join was taken out"), ERR_ARG);
        assert_non_null(strstr(status_message(), "a reduction or a gathering is missing"));
        graph_destroy(update);
        graph_destroy(g);
    }
    pipeline_destroy(p);
    graph_destroy(whole);
}

/* In canonical mode the two gradients of the table are sums of their own: each stage has one, and
 * two ranks join them, or one rank adds them. */
static void test_canonical(void **state)
{
    (void)state;
    Graph *whole = make_whole(true), *update;
    Pipeline *p;
    Layout layout = {.mesh.size[MESH_PP] = 2};
    assert_ok(pipeline_create("1f1b", 2, 1, MICRO_BATCHES, &p));
    layout.pipeline = p;
    for (int s = 0; s < 2; s++) {
        Graph *g = stage_graph(whole, p, s);
        const char *own = s ? "table.grad" : "table.grad2",
                   *other = s ? "table.grad2" : "table.grad";
        assert_int_equal(twin_of(g, own), 2 - s);
        assert_int_equal(twin_of(g, other), -1);
        assert_int_equal(graph_value(g, graph_find_state(g, own))->place[MESH_PP].kind,
                         PLACE_PARTIAL);
        layout.mesh.coord[MESH_PP] = s;
        assert_ok(pass_optimizer_alone(g, &layout, &update));
        assert_ok(graph_verify(update, "the optimizer"));
        assert_int_equal(count(update, "join_stages", -1), 1);
        assert_int_equal(count(update, "add_whole", -1), 0);
        graph_destroy(update);
        graph_destroy(g);
    }
    pipeline_destroy(p);
    assert_ok(pipeline_create("zb-v", 2, 2, MICRO_BATCHES, &p));
    Graph *stage[2] = {stage_graph(whole, p, 0), stage_graph(whole, p, 3)};
    Graph *all = pass_pipeline_states(stage, 2);
    layout = (Layout){.mesh.size[MESH_PP] = 2, .pipeline = p};
    assert_ok(pass_optimizer_alone(all, &layout, &update));
    assert_ok(graph_verify(update, "the optimizer"));
    assert_int_equal(count(update, "join_stages", -1), 0);
    assert_int_equal(count(update, "add_whole", -1), 1);
    assert_int_equal(count(update, "adamw", -1),
                     7); /* three weights of two layers, and the table */
    assert_int_equal(count(update, "clear", -1), 8);
    graph_destroy(update);
    graph_destroy(all);
    for (int s = 0; s < 2; s++) graph_destroy(stage[s]);
    pipeline_destroy(p);
    graph_destroy(whole);
}

static void check_split(Graph *g, int first_layer)
{
    assert_ok(pass_fuse(&g, true));
    assert_ok(pass_prune(&g));
    int dw = count(g, "linear_dw", -1) + count(g, "linear_dw_accumulate", -1);
    assert_ok(pass_split_backward(&g));
    assert_ok(graph_verify(g, "the split"));
    assert_int_equal(dw, 4); /* two of each of two layers */
    assert_int_equal(
        count(g, "linear_dw", PHASE_WEIGHTS) + count(g, "linear_dw_accumulate", PHASE_WEIGHTS), dw);
    assert_int_equal(count(g, "linear_dx", PHASE_BACKWARD),
                     4); /* of the first layer too: the embedding wants it */
    assert_int_equal(count(g, "rmsnorm_grad", PHASE_BACKWARD), 2);
    assert_int_equal(count(g, "embed_grad", PHASE_WEIGHTS), first_layer == 0);
    assert_int_equal(count(g, "send", PHASE_WEIGHTS) + count(g, "recv", PHASE_WEIGHTS), 0);
    for (int i = 2; i < g->n_nodes; i++) assert_true(g->node[i].phase >= g->node[i - 1].phase);
    graph_destroy(g);
}

static void test_split(void **state)
{
    (void)state;
    Graph *whole = whole_graph();
    Pipeline *p;
    assert_ok(pipeline_create("zb-h1", 2, 1, 4, &p));
    check_split(stage_graph(whole, p, 0), 0);
    check_split(stage_graph(whole, p, 1), 2);
    pipeline_destroy(p);
    graph_destroy(whole);
}

/* More stages than layers, and a weight on three ranks. */
static void test_refusals(void **state)
{
    (void)state;
    Graph *whole = whole_graph(), *g;
    Pipeline *p;
    Layout layout = {0};
    assert_ok(pipeline_create("interleaved", 4, 2, 4, &p));
    layout.pipeline = p;
    layout.mesh.size[MESH_PP] = 4;
    assert_int_equal(pass_pipeline(whole, &layout, 0, false, &g), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "cannot be shared out over 8 stages"));
    pipeline_destroy(p);
    ValueId y;
    assert_ok(pipeline_create("1f1b", 4, 1, 4, &p));
    layout.pipeline = p;
    graph_set_layer(whole, 1);
    whole->phase = PHASE_BACKWARD;
    assert_ok(op_scale(whole, graph_find_state(whole, "table"), 2, &y));
    assert_int_equal(pass_pipeline(whole, &layout, 0, false, &g), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "table is read on more than two ranks"));
    pipeline_destroy(p);
    graph_destroy(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tied),   cmocka_unit_test(test_v),
        cmocka_unit_test(test_update), cmocka_unit_test(test_canonical),
        cmocka_unit_test(test_split),  cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
