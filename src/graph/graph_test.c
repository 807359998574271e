/* Graphs: what the builder makes, what the verifier refuses, what a dump says. The ops are the
 * test's own. */
#include "graph/graph.h"
#include "base/testing.h"

static Status infer_same(InferCtx *ctx)
{
    if (ctx->in[0]->dtype != ctx->in[ctx->n_in - 1]->dtype) return fail(ERR_ARG, "dtypes differ");
    ctx->out[0].dtype = ctx->in[0]->dtype;
    ctx->out[0].shape = ctx->in[0]->shape;
    return OK;
}

static Status infer_in_place(InferCtx *ctx)
{
    TRY(infer_same(ctx));
    ctx->out[0].alias = 0;
    return OK;
}

static Status infer_column(InferCtx *ctx) /* the left half of the last axis, as a view */
{
    const Value *x = ctx->in[0];
    ctx->out[0].dtype = x->dtype;
    ctx->out[0].shape = x->shape;
    ctx->out[0].shape.dim[x->shape.rank - 1] /= 2;
    ctx->out[0].alias = 0;
    ctx->out[0].strided = true;
    memcpy(ctx->out[0].stride, x->stride, sizeof x->stride);
    return OK;
}

static void factor_text(const void *attr, Str *out)
{
    str_printf(out, "factor %d", *(const int *)attr);
}

static const OpDef op_sum = {
    .name = "sum", .min_in = 1, .max_in = 2, .n_out = 1, .infer = infer_same};
static const OpDef op_times = {.name = "times",
                               .min_in = 1,
                               .max_in = 1,
                               .n_out = 1,
                               .infer = infer_same,
                               .attr_bytes = sizeof(int),
                               .attr_text = factor_text};
static const OpDef op_update = {.name = "update",
                                .min_in = 2,
                                .max_in = 2,
                                .n_out = 1,
                                .infer = infer_in_place,
                                .flags = OP_EFFECT};
static const OpDef op_column = {.name = "column",
                                .min_in = 1,
                                .max_in = 1,
                                .n_out = 1,
                                .infer = infer_column,
                                .flags = OP_VIEW};

static Shape matrix(void)
{
    return shape_make(2, (int64_t[]){2, 4}, (Axis[]){AXIS_TOKENS, AXIS_EMBED});
}

static ValueId add(Graph *g, const OpDef *op, const void *attr, ValueId a, ValueId b)
{
    ValueId in[2] = {a, b}, out;
    if (graph_add(g, op, attr, in, op->max_in > 1 ? 2 : 1, &out) != OK)
        fail_msg("%s", status_message());
    return out;
}

static void dump_is_stable(void **state)
{
    (void)state;
    Graph *g = graph_create("t");
    ValueId x = graph_input(g, "x", DTYPE_F32, matrix()),
            w = graph_state(g, "w", DTYPE_F32, matrix(), STATE_PARAM);
    graph_set_layer(g, 3);
    graph_set_scope(g, "mlp");
    ValueId y = add(g, &op_sum, NULL, x, w);
    y = add(g, &op_times, &(int){7}, y, NO_VALUE);
    graph_output(g, "y", y);
    Str text = {0};
    graph_dump(g, &text);
    assert_string_equal(text.at,
                        "graph t\n"
                        "  input x : f32[tokens=2 embed=4]\n"
                        "  state w : f32[tokens=2 embed=4]\n"
                        "forward:\n"
                        "  %3 = sum(x, w) : f32[tokens=2 embed=4]  # mlp layer 3\n"
                        "  %4 = times(%3) {factor 7} : f32[tokens=2 embed=4]  # mlp layer 3\n"
                        "  output y = %4\n");
    str_deinit(&text);
    assert_int_equal(graph_verify(g, "building"), OK);
    graph_destroy(g);
}

/* Operands that are left out have index 0: looking there must find nothing, not what memory held
 * before. */
static void nothing_is_zero(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        void *dirt = memset(xmalloc(sizeof(Value) * 256), 0xa5, sizeof(Value) * 256);
        free(dirt);
        Graph *g = graph_create("t");
        graph_input(g, "x", DTYPE_F32, matrix());
        static const Value none;
        assert_memory_equal(graph_value(g, NO_VALUE), &none, sizeof none);
        graph_destroy(g);
    }
}

static void refusals_name_the_place(void **state)
{
    (void)state;
    Graph *g = graph_create("t");
    ValueId in[2] = {graph_input(g, "x", DTYPE_F32, matrix()),
                     graph_input(g, "z", DTYPE_BF16, matrix())},
            out;
    graph_set_layer(g, 2);
    assert_int_equal(graph_add(g, &op_sum, NULL, in, 2, &out), ERR_ARG);
    assert_non_null(
        strstr(status_message(),
               "layer 2 sum(x f32 [tokens=2 embed=4], z bf16 [tokens=2 embed=4]): dtypes differ"));
    assert_int_equal(graph_add(g, &op_sum, NULL, in, 0, &out), ERR_ARG);
    in[1] = NO_VALUE;
    assert_int_equal(graph_add(g, &op_sum, NULL, in, 2, &out), ERR_ARG);
    assert_int_equal(g->n_nodes, 1); /* nothing was added */
    graph_destroy(g);
}

static void verifier_finds_what_is_broken(void **state)
{
    (void)state;
    Graph *g = graph_create("t");
    ValueId x = graph_input(g, "x", DTYPE_F32, matrix()),
            w = graph_state(g, "w", DTYPE_F32, matrix(), STATE_BUFFER);
    ValueId a = add(g, &op_sum, NULL, x, w), b = add(g, &op_sum, NULL, a, x);
    assert_int_equal(graph_verify(g, "p"), OK);

    g->node[1].in[0] = b; /* reads what comes later */
    assert_int_equal(graph_verify(g, "p"), ERR_ARG);
    assert_non_null(strstr(status_message(), "made later"));
    g->node[1].in[0] = x;

    graph_value(g, b)->shape.dim[0] = 5;
    assert_int_equal(graph_verify(g, "p"), ERR_ARG);
    graph_value(g, b)->shape.dim[0] = 2;

    ValueId fresh = add(g, &op_update, NULL, w, a);
    assert_int_equal(graph_verify(g, "p"), OK);
    add(g, &op_sum, NULL, fresh, x);
    assert_int_equal(graph_verify(g, "p"), OK);
    add(g, &op_sum, NULL, w, x); /* the old version of w is gone */
    assert_int_equal(graph_verify(g, "p"), ERR_ARG);
    assert_non_null(strstr(status_message(), "overwritten"));
    graph_destroy(g);
}

static void strides_only_where_read(void **state)
{
    (void)state;
    Graph *g = graph_create("t");
    ValueId x = graph_input(g, "x", DTYPE_F32, matrix()),
            half = add(g, &op_column, NULL, x, NO_VALUE);
    assert_int_equal(graph_value(g, half)->stride[0], 4);
    assert_int_equal(graph_root(g, half).id, x.id);
    assert_int_equal(graph_verify(g, "p"), OK);
    add(g, &op_times, &(int){2}, half, NO_VALUE); /* times reads contiguous operands only */
    assert_int_equal(graph_verify(g, "p"), ERR_ARG);
    assert_non_null(strstr(status_message(), "strides"));
    graph_destroy(g);
}

static void rewriting_keeps_the_rest(void **state)
{
    (void)state;
    Graph *g = graph_create("t");
    ValueId x = graph_input(g, "x", DTYPE_F32, matrix()),
            w = graph_state(g, "w", DTYPE_F32, matrix(), STATE_PARAM);
    ValueId m = graph_state(g, "w.m", DTYPE_F32, matrix(), STATE_ADAM_M);
    graph_value(g, m)->master = w;
    ValueId a = add(g, &op_sum, NULL, x, w), b = add(g, &op_times, &(int){2}, a, NO_VALUE),
            c = add(g, &op_sum, NULL, b, x);
    graph_output(g, "c", c);
    Rewrite r;
    rewrite_begin(&r, g);
    assert_int_equal(rewrite_copy_node(&r, (NodeId){1}), OK);
    rewrite_set(&r, b, rewrite_get(&r, a)); /* the product is dropped */
    assert_int_equal(rewrite_copy_node(&r, (NodeId){3}), OK);
    assert_int_equal(rewrite_end(&r, &g), OK);
    assert_int_equal(g->n_nodes, 3);
    assert_int_equal(graph_verify(g, "rewrite"), OK);
    assert_int_equal(graph_value(g, graph_find_state(g, "w.m"))->master.id,
                     graph_find_state(g, "w").id);

    rewrite_begin(&r, g);
    assert_int_equal(rewrite_end(&r, &g), ERR_ARG); /* the output got lost; g is as before */
    assert_int_equal(g->n_nodes, 3);
    graph_destroy(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_zero),         cmocka_unit_test(dump_is_stable),
        cmocka_unit_test(refusals_name_the_place), cmocka_unit_test(verifier_finds_what_is_broken),
        cmocka_unit_test(strides_only_where_read), cmocka_unit_test(rewriting_keeps_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
