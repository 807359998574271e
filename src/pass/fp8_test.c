/* Which products become ones of 8 bits, what is quantised for them, how often, and as what. */
#include "base/testing.h"
#include "pass/pass.h"

enum { BATCH = 2, SEQ = 32, WIDTH = 48, FFN = 64, VOCAB = 32 };

static int count(const Graph *g, const char *op, const char *words)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++) {
        Str text = {0};
        const Node *node = &g->node[i];
        if (node->op->attr_text) node->op->attr_text(node->attr, &text);
        n += !strcmp(node->op->name, op) && (!words || (text.at && strstr(text.at, words)));
        str_deinit(&text);
    }
    return n;
}

static int count_in(const Graph *g, const char *op, Phase phase)
{
    int n = 0;
    for (int i = 1; i < g->n_nodes; i++)
        n += !strcmp(g->node[i].op->name, op) && g->node[i].phase == phase;
    return n;
}

static ValueId weight(Graph *g, const char *name, int64_t out, Axis axis, int64_t in, Axis in_axis)
{
    char master[32];
    Shape shape = shape_make(2, (int64_t[]){out, in}, (Axis[]){axis, in_axis});
    snprintf(master, sizeof master, "%s.f32", name);
    ValueId m = graph_state(g, master, DTYPE_F32, shape, STATE_PARAM),
            w = graph_state(g, name, DTYPE_BF16, shape, STATE_COPY);
    graph_value(g, w)->master = m;
    return w;
}

static ValueId tokens(Graph *g, const char *name, DType dtype, int64_t width)
{
    int64_t dim[] = {BATCH, SEQ, width};
    Axis axis[] = {AXIS_BATCH, AXIS_SEQ, AXIS_EMBED};
    return graph_input(g, name, dtype, shape_make(width ? 3 : 2, dim, axis));
}

/* y = w2 gelu(w1 x) in layer 0, and the loss of a head behind it, differentiated. */
static Graph *feed_forward(int64_t ffn, Recompute recompute, bool sums)
{
    Graph *g = graph_create("test");
    ParamGrads grads;
    ValueId x = tokens(g, "x", DTYPE_BF16, WIDTH), h, a, y, loss, nll;
    graph_set_layer(g, 0);
    assert_ok(op_linear(g, x, weight(g, "w1", ffn, AXIS_FFN, WIDTH, AXIS_EMBED), &h));
    assert_ok(op_activation(g, h, ACTIVATION_GELU, &a));
    assert_ok(op_linear(g, a, weight(g, "w2", WIDTH, AXIS_EMBED, ffn, AXIS_FFN), &y));
    graph_set_layer(g, -1);
    assert_ok(op_linear_cross_entropy(g, y, weight(g, "head", VOCAB, AXIS_ANY, WIDTH, AXIS_EMBED),
                                      tokens(g, "targets", DTYPE_I32, 0),
                                      tokens(g, "weights", DTYPE_F32, 0), 0, &loss, &nll));
    graph_output(g, "loss", loss);
    assert_ok(pass_autodiff(g, "loss", &grads));
    assert_ok(pass_recompute(&g, recompute, false, &grads));
    if (sums) assert_ok(pass_accumulate(g, &grads));
    for (int i = 0; i < grads.n && !sums; i++) {
        char name[32];
        snprintf(name, sizeof name, "grad %d", i);
        graph_output(g, name, grads.at[i].grad);
    }
    param_grads_deinit(&grads);
    return g;
}

static void test_products(void **state)
{
    (void)state;
    for (int scaling = FP8_ROW; scaling <= FP8_BLOCK; scaling++) {
        Graph *g = feed_forward(FFN, RECOMPUTE_NONE, false);
        assert_ok(pass_fp8(&g, (Fp8)scaling));
        assert_ok(graph_verify(g, "fp8"));
        assert_int_equal(count(g, "linear", NULL) + count(g, "linear_dx", NULL) +
                             count(g, "linear_dw", NULL),
                         0);
        assert_int_equal(count(g, "linear_8", NULL), 5); /* nobody wants the gradient of x */
        assert_int_equal(count(g, "linear_8", "f32"), 2);
        /* x by rows, and by columns in the backward pass, since inputs stay anyway; a by both at
         * once; w1, w2 by rows, w2 by columns; dy by both; the gradient of h by columns */
        assert_int_equal(count(g, "quantise", NULL), 8);
        assert_int_equal(count(g, "quantise", "rows columns"), 2);
        assert_int_equal(count(g, "quantise", "f8_e5m2"), 2);
        assert_int_equal(count(g, "quantise", "square"), scaling == FP8_BLOCK ? 3 : 0);
        assert_int_equal(count(g, "quantise", "by row"), scaling == FP8_ROW ? 8 : 0);
        assert_int_equal(count_in(g, "quantise", PHASE_FORWARD), 4);
        graph_destroy(g);
    }
}

static void test_nothing_is_done(void **state)
{
    (void)state;
    Graph *g = feed_forward(FFN, RECOMPUTE_NONE, false);
    Str before = {0}, after = {0};
    graph_dump(g, &before);
    assert_ok(pass_fp8(&g, FP8_NONE));
    graph_dump(g, &after);
    assert_string_equal(before.at, after.at);
    str_deinit(&before);
    str_deinit(&after);
    graph_destroy(g);
}

/* What the backward pass makes again are values, not gradients; and nothing is kept for it. */
static void test_recompute(void **state)
{
    (void)state;
    Graph *g = feed_forward(FFN, RECOMPUTE_FULL, false);
    assert_ok(pass_fp8(&g, FP8_BLOCK));
    assert_int_equal(count(g, "linear_8", NULL), 6); /* h once more */
    assert_int_equal(count(g, "quantise", "f8_e5m2"), 2);
    assert_int_equal(count_in(g, "quantise", PHASE_FORWARD), 4);
    for (int i = 1; i < g->n_nodes; i++)
        for (int k = 0; k < g->node[i].n_in; k++) {
            const Value *in = graph_value(g, g->node[i].in[k]);
            if (g->node[i].phase == PHASE_FORWARD || in->kind != VALUE_TEMP) continue;
            if (graph_node(g, in->producer)->phase == PHASE_FORWARD)
                assert_int_not_equal(dtype_bytes(in->dtype), 1);
        }
    graph_destroy(g);
}

/* Sizes that tensor cores do not have stay bf16, product by product. */
static void test_sizes(void **state)
{
    (void)state;
    Graph *g = feed_forward(FFN + 8, RECOMPUTE_NONE, false);
    assert_ok(pass_fp8(&g, FP8_BLOCK));
    assert_int_equal(count(g, "linear_8", NULL), 0);
    assert_int_equal(count(g, "linear", NULL), 2);
    assert_int_equal(count(g, "quantise", NULL), 0);
    graph_destroy(g);
}

static void test_sums_of_gradients(void **state)
{
    (void)state;
    Graph *g = feed_forward(FFN, RECOMPUTE_NONE, true);
    assert_ok(pass_fp8(&g, FP8_BLOCK));
    assert_ok(pass_fuse(&g, false));
    assert_ok(graph_verify(g, "fuse"));
    assert_int_equal(count(g, "linear_8_accumulate", NULL), 2);
    assert_int_equal(count(g, "linear_8", NULL), 3);
    graph_destroy(g);
}

/* On a rank of two the verifier finds everything where the cutting rules say. */
static void test_places(void **state)
{
    (void)state;
    static const struct {
        MeshAxis axis;
        bool sequence;
        int products;
    } cases[] = {{MESH_DP, false, 5},
                 {MESH_FSDP, false, 5},
                 {MESH_TP, false, 5},
                 {MESH_TP, true, 5},
                 {MESH_CP, false, 5}};
    for (int i = 0; i < COUNT_OF(cases); i++)
        for (int scaling = FP8_ROW; scaling <= FP8_BLOCK; scaling++) {
            Layout layout = {.sequence = cases[i].sequence};
            layout.mesh.size[cases[i].axis] = 2;
            layout.mesh.coord[cases[i].axis] = 1;
            Graph *g = feed_forward(FFN, RECOMPUTE_NONE, true);
            assert_ok(pass_layout(&g, &layout, NULL));
            assert_ok(pass_fp8(&g, (Fp8)scaling));
            assert_ok(graph_verify(g, "fp8"));
            assert_int_equal(count(g, "linear_8", NULL), cases[i].products);
            graph_destroy(g);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),          cmocka_unit_test(test_nothing_is_done),
        cmocka_unit_test(test_recompute),         cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_sums_of_gradients), cmocka_unit_test(test_places)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
