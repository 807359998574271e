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
        assert_ok(pass_fuse(&g, false));
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
        assert_ok(pass_fuse(&g, false));
        assert_ok(graph_verify(g, "fuse"));
        assert_int_equal(g->n_nodes, 2);
        assert_int_equal(g->node[1].n_in, 4);
        graph_destroy(g);
    }
}

/* ---- the loss and its gradient ---------------------------------------------------------- */

static ValueId tokens(Graph *g, const char *name, DType dtype)
{
    return graph_input(g, name, dtype,
                       shape_make(2, (int64_t[]){4, 3}, (Axis[]){AXIS_BATCH, AXIS_SEQ}));
}

/* The loss of a rank of two that have parts of the head, up to its update. */
static Graph *loss_of_sharded_head(void)
{
    Graph *g = graph_create("test");
    ParamGrads grads;
    ValueId loss, nll;
    Layout layout = {.mesh.size[MESH_FSDP] = 2};
    ValueId x = graph_input(
        g, "x", DTYPE_F32,
        shape_make(3, (int64_t[]){4, 3, 16}, (Axis[]){AXIS_BATCH, AXIS_SEQ, AXIS_EMBED}));
    ValueId head = graph_state(g, "head", DTYPE_F32,
                               shape_make(2, (int64_t[]){32, 16}, (Axis[]){AXIS_VOCAB, AXIS_EMBED}),
                               STATE_PARAM);
    assert_ok(op_linear_cross_entropy(g, x, head, tokens(g, "targets", DTYPE_I32),
                                      tokens(g, "weights", DTYPE_F32), 0, &loss, &nll));
    graph_output(g, "loss", loss);
    assert_ok(pass_autodiff(g, "loss", &grads));
    assert_ok(pass_optimizer(g, &grads));
    param_grads_deinit(&grads);
    assert_ok(pass_fsdp(&g, &layout, NULL));
    assert_int_equal(count_nodes(g, "all_gather"), 2); /* forward, and again backward */
    return g;
}

static Phase phase_of(const Graph *g, const char *op)
{
    int i = 1;
    while (strcmp(g->node[i].op->name, op) != 0) i++;
    return g->node[i].phase;
}

/* The head is gathered once for both; of a pipeline in the backward phase, since what the forward
 * phase leaves is kept for every micro-batch that is under way. */
static void loss_of_gathered_head(void **state)
{
    (void)state;
    for (int apart = 0; apart < 2; apart++) {
        Graph *g = loss_of_sharded_head();
        assert_ok(pass_fuse(&g, apart));
        assert_ok(pass_prune(&g));
        assert_ok(graph_verify(g, "fuse"));
        assert_int_equal(count_nodes(g, "linear_cross_entropy"), 0);
        assert_int_equal(count_nodes(g, "linear_cross_entropy_grad"), 1);
        assert_int_equal(count_nodes(g, "all_gather"), 1);
        assert_int_equal(phase_of(g, "all_gather"), apart ? PHASE_BACKWARD : PHASE_FORWARD);
        graph_destroy(g);
    }
}

/* Another weight is gathered for the gradient: they stay two. */
static void loss_of_another_head(void **state)
{
    (void)state;
    Graph *g = graph_create("test");
    ValueId in[2], loss, nll, again, dx, dw, one;
    ValueId x = graph_input(
        g, "x", DTYPE_F32,
        shape_make(3, (int64_t[]){4, 3, 16}, (Axis[]){AXIS_BATCH, AXIS_SEQ, AXIS_EMBED}));
    ValueId targets = tokens(g, "targets", DTYPE_I32), weights = tokens(g, "weights", DTYPE_F32);
    for (int i = 0; i < 2; i++) {
        ValueId part = graph_state(
            g, i ? "b" : "a", DTYPE_F32,
            shape_make(2, (int64_t[]){32, 16}, (Axis[]){AXIS_VOCAB, AXIS_EMBED}), STATE_PARAM);
        Value *v = graph_value(g, part);
        v->whole = v->shape;
        v->shape = shape_make(1, (int64_t[]){256}, NULL);
        stride_contiguous(&v->shape, v->stride);
        v->place[MESH_FSDP] = (Place){PLACE_CUT, PLACE_FLAT};
        g->mesh.size[MESH_FSDP] = 2;
        assert_ok(op_all_gather(g, MESH_FSDP, part, &in[i]));
    }
    assert_ok(op_linear_cross_entropy(g, x, in[0], targets, weights, 0, &loss, &nll));
    g->phase = PHASE_BACKWARD;
    assert_ok(op_fill(g, DTYPE_F32, shape_make(0, NULL, NULL), 1, &one));
    assert_ok(op_linear_cross_entropy_grad(g, x, in[1], targets, weights, one, 0, &again, &nll, &dx,
                                           &dw));
    graph_output(g, "loss", loss);
    graph_output(g, "dw", dw);
    assert_ok(pass_fuse(&g, false));
    assert_int_equal(count_nodes(g, "linear_cross_entropy"), 1);
    assert_int_equal(count_nodes(g, "all_gather"), 2);
    graph_destroy(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sum_and_norm), cmocka_unit_test(gradient_and_sum),
        cmocka_unit_test(loss_of_gathered_head), cmocka_unit_test(loss_of_another_head)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
