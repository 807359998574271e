/* Does the harness see what it is there to see? Small wrong ops, each with one fault. */
#include "ops/optest.h"

#include <string.h>

/* y = 2 x, done right, or with one fault at a time. */
typedef enum Fault {
    RIGHT,
    WRONG_VALUE,
    WRONG_GRADIENT,
    MISSING_GRADIENT,
    WRITES_OUTSIDE,
    LEAVES_ONE_OUT,
    DEPENDS_ON_THREADS,
    WRITES_INPUT,
    READS_OUTSIDE,
    WRONG_IN_PLACE,
    WRONG_ON_AVX2,
} Fault;

extern const OpDef test_op;

static Status infer(InferCtx *ctx)
{
    ctx->out[0] = (InferOut){
        .dtype = ctx->in[0]->dtype, .shape = ctx->in[0]->shape, .wanted = true, .alias = -1};
    return OK;
}

static Status grad(GradCtx *ctx)
{
    Fault fault = *(const Fault *)graph_node(ctx->graph, ctx->node)->attr;
    if (fault == MISSING_GRADIENT) return OK;
    return op_scale(ctx->graph, ctx->dout[0], fault == WRONG_GRADIENT ? 2.01f : 2.0f, &ctx->din[0]);
}

static Status run_as(KernelArgs *args, bool avx2)
{
    Fault fault = *(const Fault *)args->attr;
    float *x = args->in[0].data, *y = args->out[0].data;
    int64_t n = tensor_count(&args->out[0]);
    if (fault == WRONG_IN_PLACE) y[0] = 0; /* before x[0] is read */
    for (int64_t i = fault == LEAVES_ONE_OUT; i < n; i++) y[i] = 2 * x[i];
    if (fault == WRONG_VALUE) y[n - 1] *= 1.001f;
    if (fault == WRITES_OUTSIDE) y[n] = 1;
    if (fault == DEPENDS_ON_THREADS && args->threads == 3) y[0] *= 1.0000001f;
    if (fault == WRITES_INPUT) x[0] += 1;
    if (fault == READS_OUTSIDE) y[0] += 0 * x[n];
    if (fault == WRONG_ON_AVX2 && avx2) y[0] = 0;
    return OK;
}
static Status run_plain(KernelArgs *args) { return run_as(args, false); }
static Status run_avx2(KernelArgs *args) { return run_as(args, true); }

static const Kernel kernel = {.run = run_plain}, kernel_avx2 = {.run = run_avx2};

const OpDef test_op = {
    .name = "test_op",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_bytes = sizeof(Fault),
    .inplace = 1,
    .infer = infer,
    .grad = grad,
    .cpu = {&kernel, &kernel_avx2, &kernel, &kernel},
};

static void reference(const void *user, double *const *in, double *const *out)
{
    int64_t n = *(const int64_t *)user;
    for (int64_t i = 0; i < n; i++) out[0][i] = 2 * in[0][i];
}

/* The sentence for an op with this fault, which must contain `words`; NULL: none is expected. */
static void expect(Fault fault, const char *words, int64_t n)
{
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(n), 1.0), y;
    optest_ok(graph_add(t->graph, &test_op, &fault, &x, 1, &y));
    optest_output(t, y);
    const char *found = optest_fault(t, reference, &n, 1e-6, true);
    if (!words && found) fail_msg("nothing is wrong, but: %s", found);
    if (words && !found) fail_msg("fault %d was not seen", (int)fault);
    if (words && !strstr(found, words)) fail_msg("\"%s\" does not say \"%s\"", found, words);
    optest_destroy(t);
}

static void test_right_op_passes(void **state)
{
    (void)state;
    expect(RIGHT, NULL, 7);
    expect(RIGHT, NULL, 300); /* gradients by samples */
}

static void test_wrong_values_are_seen(void **state)
{
    (void)state;
    expect(WRONG_VALUE, "output 0: element 6", 7);
    expect(LEAVES_ONE_OUT, "output 0: element 0", 7);
    if (optest_isa_available(ISA_AVX2)) expect(WRONG_ON_AVX2, "avx2: output 0", 7);
}

static void test_wrong_gradients_are_seen(void **state)
{
    (void)state;
    expect(WRONG_GRADIENT, "gradient of input 0", 7);
    expect(WRONG_GRADIENT, "gradient of input 0", 300);
    expect(MISSING_GRADIENT, "gradient of input 0", 7);
}

static void test_wrong_memory_use_is_seen(void **state)
{
    (void)state;
    expect(WRITES_INPUT, "an input was written to", 7);
    expect(WRONG_IN_PLACE, "in place", 7);
#if !defined(__SANITIZE_ADDRESS__) /* which sees these first, and ends the program */
    expect(WRITES_OUTSIDE, "wrote outside a tensor", 7);
    expect(READS_OUTSIDE, "output 0: element 0", 7);
#endif
}

static void test_thread_dependence_is_seen(void **state)
{
    (void)state;
    expect(DEPENDS_ON_THREADS, "other bits with 3 threads", 7);
}

/* A write into the gap between rows of a strided output. */
static void test_gaps_are_guarded(void **state)
{
    (void)state;
    Fault fault = RIGHT; /* it takes the output as contiguous */
    int64_t n = 6;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(2, 3), 1.0), y;
    optest_ok(graph_add(t->graph, &test_op, &fault, &x, 1, &y));
    optest_pitch(t, y, 1, 5);
    optest_output(t, y);
    const char *found = optest_fault(t, reference, &n, 1e-6, false);
    assert_non_null(found);
    assert_non_null(strstr(found, "between the rows"));
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_op_passes),
        cmocka_unit_test(test_wrong_values_are_seen),
        cmocka_unit_test(test_wrong_gradients_are_seen),
        cmocka_unit_test(test_wrong_memory_use_is_seen),
        cmocka_unit_test(test_thread_dependence_is_seen),
        cmocka_unit_test(test_gaps_are_guarded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
