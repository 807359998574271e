/* Which attention the library is given, what plans count on, and that kernels decide as plans do.
 */
#include "gpu/attention.h"
#include "ops/attention/attention_gpu.h"
#include "ops/kernel.h"
#include "ops/optest.h"

#include <string.h>

CUDA_DECLARE(attention);
CUDA_DECLARE(attention_grad);

typedef struct Nodes {
    Graph *graph;
    NodeId forward, gradient;
} Nodes;

static Nodes build(const AttentionAttr *attr, DType dtype, const Shape *q, const Shape *k)
{
    Nodes n = {.graph = graph_create("attention")};
    Shape pos = SHAPE(q->dim[0], q->dim[1]);
    ValueId in[7] = {graph_input(n.graph, "q", dtype, *q), graph_input(n.graph, "k", dtype, *k),
                     graph_input(n.graph, "v", dtype, *k),
                     graph_input(n.graph, "pos", DTYPE_I32, pos)},
            out[3];
    optest_ok(graph_add(n.graph, &op_def_attention, attr, in, 4, out));
    n.forward = graph_value(n.graph, out[0])->producer;
    in[ATTENTION_O] = out[0];
    in[ATTENTION_LSE] = out[1];
    in[ATTENTION_DO] = graph_input(n.graph, "do", dtype, *q);
    optest_ok(graph_add(n.graph, &op_def_attention_grad, attr, in, 7, out));
    n.gradient = graph_value(n.graph, out[0])->producer;
    return n;
}

static size_t workspace(const Nodes *n, NodeId id)
{
    const Node *node = graph_node(n->graph, id);
    return node->op->gpu_workspace(n->graph, node);
}

/* words: what the refusal must say; NULL: there is none. */
static void check(AttentionAttr attr, DType dtype, Shape q, Shape k, const char *words)
{
    Nodes n = build(&attr, dtype, &q, &k);
    AttentionLibrary l = op_attention_library(n.graph, graph_node(n.graph, n.forward));
    assert_true(l.asked == attr.library && !l.gradient);
    if (words) assert_non_null(l.refusal);
    if (words) assert_non_null(strstr(l.refusal, words));
    if (!words) assert_null(l.refusal);
    bool taken = attr.library && !words;
    assert_true((workspace(&n, n.forward) > 0) == taken);
    size_t own = attention_grad_space(&q).bytes, pairs = 2;
    for (int i = 0; i < 3; i++) pairs *= (size_t)q.dim[i];
    pairs *= (size_t)q.dim[1];
    if (taken)
        assert_true(workspace(&n, n.gradient) >= pairs);
    else
        assert_true(workspace(&n, n.gradient) == own);
    graph_destroy(n.graph);
}

static void test_who_takes_what(void **state)
{
    (void)state;
    Shape q = SHAPE(2, 256, 8, 64), k = SHAPE(2, 256, 2, 64);
    AttentionAttr attr = {.scale = 0.125f, .library = true};
    check(attr, DTYPE_BF16, q, k, NULL);
    check(attr, DTYPE_F32, q, k, "bf16");
    attr.chunk = 32;
    check(attr, DTYPE_BF16, q, k, NULL);
    attr.softcap = 30;
    check(attr, DTYPE_BF16, q, k, "soft cap");
    attr = (AttentionAttr){.scale = 0.125f, .alibi = 8, .library = true};
    check(attr, DTYPE_BF16, q, k, "ALiBi");
    attr = (AttentionAttr){.scale = 0.125f, .slice = {.split = 128, .first = 128}, .library = true};
    check(attr, DTYPE_BF16, q, SHAPE(2, 512, 2, 64), "whole sequences");
    attr = (AttentionAttr){.scale = 0.125f, .library = true};
    check(attr, DTYPE_BF16, SHAPE(1, 64, 4, 80), SHAPE(1, 64, 4, 80), "64 or 128");
    check(attr, DTYPE_BF16, SHAPE(1, 1, 4, 64), SHAPE(1, 1, 4, 64), "nothing to attend to");
    attr.library = false;
    check(attr, DTYPE_BF16, q, k, NULL);
}

/* Llama 3 8B at 8,192 tokens: attention is the library's, its gradient would take 4 GiB. */
static void test_gradients_too_large(void **state)
{
    (void)state;
    Shape q = SHAPE(1, 8192, 32, 128), k = SHAPE(1, 8192, 8, 128);
    AttentionAttr attr = {.scale = 0.125f, .library = true};
    Nodes n = build(&attr, DTYPE_BF16, &q, &k);
    AttentionLibrary l = op_attention_library(n.graph, graph_node(n.graph, n.gradient));
    assert_true(l.asked && l.gradient);
    assert_non_null(strstr(l.refusal, "more than 1 GiB"));
    assert_null(op_attention_library(n.graph, graph_node(n.graph, n.forward)).refusal);
    assert_true(workspace(&n, n.gradient) == attention_grad_space(&q).bytes);
    graph_destroy(n.graph);
}

static void test_parts(void **state)
{
    (void)state;
    Graph *g = graph_create("parts");
    AttentionPart part = {
        .of = {.scale = 0.125f, .library = true}, .parts = 1, .sums = 1, .axis = MESH_CP};
    ValueId q = graph_input(g, "q", DTYPE_BF16, SHAPE(1, 64, 4, 64)),
            pos = graph_input(g, "pos", DTYPE_I32, SHAPE(1, 64)), out[2];
    optest_ok(op_attention_part(g, (ValueId[]){q, q, q, pos, NO_VALUE, NO_VALUE}, &part, out));
    const Node *node = graph_node(g, graph_value(g, out[0])->producer);
    AttentionLibrary l = op_attention_library(g, node);
    assert_true(l.asked && !l.gradient);
    assert_non_null(strstr(l.refusal, "come in parts"));
    graph_destroy(g);
}

/* ---- what kernels decide ------------------------------------------------------------------ */

static Tensor tensor(void *data, Shape shape, int64_t pitch)
{
    Tensor t = {.data = data, .dtype = DTYPE_BF16, .shape = shape};
    t.stride[3] = 1;
    t.stride[2] = shape.dim[3];
    t.stride[1] = pitch;
    t.stride[0] = pitch * shape.dim[1];
    return t;
}

/* Whether the kernel of attention, or of its gradient, prepares the library for rows so far apart,
 * `shift` bytes from where memory is aligned. */
static bool prepares(GpuStream *stream, char *memory, int64_t pitch, size_t shift, bool gradient)
{
    Shape q = SHAPE(1, 16, 2, 64);
    AttentionAttr attr = {.scale = 0.125f, .library = true};
    Tensor in[7], out[3];
    for (int i = 0; i < 7; i++) in[i] = tensor(memory + shift, q, pitch);
    for (int i = 0; i < 3; i++) out[i] = tensor(memory, q, pitch);
    KernelArgs args = {.attr = &attr,
                       .in = in,
                       .out = out,
                       .n_in = gradient ? 7 : 4,
                       .n_out = gradient ? 3 : 2,
                       .stream = stream};
    AttentionShapes shapes = {DTYPE_BF16, &q, &q};
    args.workspace_bytes = attention_library_bytes(&shapes, gradient);
    const Kernel *kernel = gradient ? &cuda_attention_grad : &cuda_attention;
    optest_ok(kernel->prepare(&args));
    bool taken = args.state != NULL;
    kernel->release(&args);
    return taken;
}

static void test_kernels_decide(void **state)
{
    (void)state;
    Gpu *gpu = NULL;
    GpuStream *stream = NULL;
    void *memory = NULL;
    if (!gpu_count(NULL) || gpu_open(0, &gpu) != OK || gpu_attention_can(gpu) != OK) {
        gpu_close(gpu);
        skip();
    }
    optest_ok(gpu_stream_create(gpu, &stream));
    optest_ok(gpu_alloc(gpu, 1 << 16, "a test", &memory));
    for (int gradient = 0; gradient < 2; gradient++) {
        assert_true(prepares(stream, memory, 128, 0, gradient));
        assert_true(prepares(stream, memory, 136, 64, gradient));
        assert_false(prepares(stream, memory, 131, 0, gradient));
        assert_false(prepares(stream, memory, 128, 8, gradient));
    }
    gpu_free(gpu, memory);
    gpu_stream_destroy(stream);
    gpu_close(gpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_takes_what),
        cmocka_unit_test(test_gradients_too_large),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_kernels_decide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
