/* The update: grad_norm, clip_factor, adamw, accumulate, assign, expert_bias_update. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int64_t sizes[] = {1, 17, 3000, 140001};

/* ---- norm and clipping ------------------------------------------------------------------ */

static void reference_norm(const void *user, double *const *in, double *const *out)
{
    (void)user;
    double sum = 0;
    for (int k = 0; k < COUNT_OF(sizes); k++)
        for (int64_t i = 0; i < sizes[k]; i++) sum += in[k][i] * in[k][i];
    out[0][0] = sqrt(sum);
}

/* Rounded sums, and the exact ones of canonical graphs. */
static void check_grad_norm(bool canonical)
{
    OpTest *t = optest_create(1);
    ValueId g[COUNT_OF(sizes)], norm;
    t->graph->canonical = canonical;
    for (int k = 0; k < COUNT_OF(sizes); k++) /* large values: squares beyond f32 */
        g[k] = optest_normal(t, k == 2 ? DTYPE_BF16 : DTYPE_F32, SHAPE(sizes[k]), 1e25);
    optest_ok(op_grad_norm(t->graph, COUNT_OF(sizes), g, &norm));
    optest_plain_output(t, norm);
    optest_check(t, reference_norm, NULL, 1e-7);
    optest_destroy(t);
}

static void test_grad_norm(void **state)
{
    (void)state;
    check_grad_norm(false);
    check_grad_norm(true);
}

static float factor_for(double norm, double clip)
{
    OpTest *t = optest_create(1);
    double hyper[HYPER_COUNT] = {0};
    hyper[HYPER_CLIP] = clip;
    ValueId n = optest_data(t, DTYPE_F32, SCALAR, &norm), factor;
    ValueId h = optest_data(t, DTYPE_F32, SHAPE(HYPER_COUNT), hyper);
    optest_ok(op_clip_factor(t->graph, n, h, &factor));
    float result[2];
    for (int gpu = 0; gpu < 2; gpu++) {
        OpRun run;
        Target target = {
            .isa = ISA_GENERIC, .threads = 1, .gpu = gpu && optest_gpu_available(t->graph)};
        assert_true(optest_run(&run, t, target, 0));
        result[gpu] = *(const float *)optest_run_tensor(&run, factor).data;
        optest_run_end(&run);
    }
    optest_destroy(t);
    assert_memory_equal(&result[0], &result[1], sizeof *result);
    return result[0];
}

static void test_clip_factor(void **state)
{
    (void)state;
    assert_true(factor_for(4, 1) == 0.25f);
    assert_true(factor_for(0.5, 1) == 1);
    assert_true(factor_for(4, 0) == 1); /* no limit */
    assert_true(isnan(factor_for(NAN, 1)));
    assert_true(isnan(factor_for(INFINITY, 0)));
}

/* ---- adamw ------------------------------------------------------------------------------ */

typedef struct Update {
    int64_t n;
    AdamWAttr attr;
    bool copy;
} Update;

static const double start_hyper[HYPER_COUNT] = {
    [HYPER_LR] = 0.01,    [HYPER_BIAS1] = 0.19, [HYPER_BIAS2] = 0.0975, [HYPER_BETA1] = 0.9,
    [HYPER_BETA2] = 0.95, [HYPER_EPS] = 1e-3,   [HYPER_DECAY] = 0.1,
};

/* in: w, m, v, grad, factor, hyper, copy; out: w, m, v, grad, copy */
static void reference_adamw(const void *user, double *const *in, double *const *out)
{
    const Update *u = user;
    const double *h = in[5];
    bool skip = !isfinite(in[4][0]);
    for (int64_t i = 0; i < u->n; i++) {
        double g = in[3][i] * in[4][0], w = in[0][i];
        double m = h[HYPER_BETA1] * in[1][i] + (1 - h[HYPER_BETA1]) * g;
        double v = h[HYPER_BETA2] * in[2][i] + (1 - h[HYPER_BETA2]) * g * g;
        double step = m / h[HYPER_BIAS1] / (sqrt(v / h[HYPER_BIAS2]) + h[HYPER_EPS]);
        double fresh = w - h[HYPER_LR] * (step + (u->attr.decay ? h[HYPER_DECAY] * w : 0));
        out[0][i] = skip ? w : fresh;
        out[1][i] = skip ? in[1][i] : m;
        out[2][i] = skip ? in[2][i] : v;
        out[3][i] = u->attr.zero_grad ? 0 : in[3][i];
        if (u->copy) out[4][i] = skip ? in[6][i] : fresh;
    }
}

static void check_adamw(Update u, DType grad_dtype, DType copy_dtype, double factor)
{
    OpTest *t = optest_create((uint64_t)u.n);
    Shape shape = SHAPE(u.n);
    double *start = xcalloc((size_t)u.n, sizeof *start);
    ValueId s[4], copy = NO_VALUE;
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < u.n; i++) start[i] = rng_normal(7, (uint64_t)(4 * i + k));
        for (int64_t i = 0; i < u.n && k == 2; i++) start[i] = fabs(start[i]);
        s[k] = optest_state(t, k == 3 ? grad_dtype : DTYPE_F32, shape, STATE_PARAM, start);
    }
    ValueId f = optest_data(t, DTYPE_F32, SCALAR, &factor);
    ValueId h = optest_data(t, DTYPE_F32, SHAPE(HYPER_COUNT), start_hyper);
    if (u.copy) copy = optest_state(t, copy_dtype, shape, STATE_COPY, NULL);
    optest_ok(op_adamw(t->graph, s[0], s[1], s[2], s[3], copy, f, h, u.attr));
    for (int k = 0; k < 4; k++) {
        Node *node = graph_node(t->graph, (NodeId){t->graph->n_nodes - 1});
        optest_plain_output(t, k == 3 && !u.attr.zero_grad ? s[3] : node->out[k]);
    }
    if (u.copy)
        optest_plain_output(t, graph_node(t->graph, (NodeId){t->graph->n_nodes - 1})->out[4]);
    optest_check(t, reference_adamw, &u, u.copy && copy_dtype == DTYPE_BF16 ? 5e-3 : 2e-6);
    optest_destroy(t);
    free(start);
}

static void test_adamw(void **state)
{
    (void)state;
    for (int k = 0; k < COUNT_OF(sizes); k++) {
        int64_t n = sizes[k];
        check_adamw((Update){n, {.decay = true}, false}, DTYPE_F32, DTYPE_F32, 1);
        check_adamw((Update){n, {.decay = false, .zero_grad = true}, true}, DTYPE_F32, DTYPE_BF16,
                    0.5);
        check_adamw((Update){n, {.decay = true}, true}, DTYPE_BF16, DTYPE_BF16, 0.5);
        check_adamw((Update){n, {.decay = true}, true}, DTYPE_BF16, DTYPE_F32, 2);
    }
}

static void test_adamw_skips_bad_steps(void **state)
{
    (void)state;
    check_adamw((Update){33, {.decay = true, .zero_grad = true}, true}, DTYPE_F32, DTYPE_BF16, NAN);
    check_adamw((Update){33, {.decay = true}, false}, DTYPE_F32, DTYPE_F32, INFINITY);
}

/* ---- states ----------------------------------------------------------------------------- */

static void reference_sum(const void *user, double *const *in, double *const *out)
{
    int64_t n = *(const int64_t *)user;
    for (int64_t i = 0; i < n; i++) out[0][i] = in[0][i] + in[1][i] + in[2][i];
}

/* Twice, as two micro-batches do. */
static void test_accumulate(void **state)
{
    (void)state;
    for (int k = 0; k < COUNT_OF(sizes); k++) {
        OpTest *t = optest_create(2);
        Shape shape = SHAPE(sizes[k]);
        double *start = xcalloc((size_t)sizes[k], sizeof *start);
        for (int64_t i = 0; i < sizes[k]; i++) start[i] = (double)i;
        ValueId s = optest_state(t, DTYPE_F32, shape, STATE_GRAD, start), sum;
        ValueId x = optest_normal(t, DTYPE_F32, shape, 1.0),
                y = optest_normal(t, DTYPE_BF16, shape, 1.0);
        optest_ok(op_accumulate(t->graph, s, x, &sum));
        optest_ok(op_accumulate(t->graph, sum, y, &sum));
        optest_plain_output(t, sum);
        optest_check(t, reference_sum, &sizes[k], 1e-6);
        optest_destroy(t);
        free(start);
    }
}

/* Micro-batches 0 to 3 of four: the last leaves ((0 + 1) + (2 + 3)) in the uppermost state. */
static void reference_leaf(const void *user, double *const *in, double *const *out)
{
    int64_t n = *(const int64_t *)user;
    for (int64_t i = 0; i < n; i++) out[0][i] = in[2][i] + in[4][i] + in[6][i] + in[8][i];
}

static void test_accumulate_leaf(void **state)
{
    (void)state;
    for (int k = 0; k < 2 * COUNT_OF(sizes); k++) {
        OpTest *t = optest_create(2);
        Shape shape = SHAPE(sizes[k / 2]);
        ValueId sum = optest_state(t, DTYPE_F32, shape, STATE_GRAD, NULL),
                part = optest_state(t, DTYPE_F32, shape, STATE_GRAD_PART, NULL);
        for (int m = 0; m < 4; m++) {
            ValueId x = optest_normal(t, k % 2 ? DTYPE_BF16 : DTYPE_F32, shape, 1.0);
            ValueId micro = optest_data(t, DTYPE_I32, SHAPE(1), (double[]){m});
            optest_ok(op_accumulate_leaf(t->graph, sum, x, micro, 1, &part, &sum));
            part = graph_node(t->graph, (NodeId){t->graph->n_nodes - 1})->out[1];
        }
        optest_plain_output(t, sum);
        optest_check(t, reference_leaf, &sizes[k / 2], 1e-6);
        optest_destroy(t);
    }
}

/* in: state, x; out: state */
static void reference_assign(const void *user, double *const *in, double *const *out)
{
    memcpy(out[0], in[1], sizeof **in * (size_t) * (const int64_t *)user);
}

static void test_assign(void **state)
{
    (void)state;
    const DType dtypes[] = {DTYPE_F32, DTYPE_BF16};
    int64_t n = 5 * 37;
    for (int i = 0; i < 4; i++) {
        OpTest *t = optest_create(2);
        ValueId s = optest_state(t, dtypes[i & 1], SHAPE(5, 37), STATE_COPY, NULL);
        ValueId x = optest_normal(t, dtypes[i >> 1], SHAPE(5, 37), 1.0);
        optest_pitch(t, x, 1, 40);
        optest_ok(op_assign(t->graph, s, x));
        optest_plain_output(t, graph_node(t->graph, (NodeId){1})->out[0]);
        optest_check(t, reference_assign, &n, 5e-3);
        optest_destroy(t);
    }
    OpTest *t = optest_create(2);
    ValueId s = optest_state(t, DTYPE_I32, SHAPE(5, 37), STATE_BUFFER, NULL);
    optest_ok(op_assign(t->graph, s, optest_integers(t, SHAPE(5, 37), -9, 9)));
    optest_plain_output(t, graph_node(t->graph, (NodeId){1})->out[0]);
    optest_check(t, reference_assign, &n, 0);
    optest_destroy(t);
}

/* Loads 4 1 1 0 0 0 of mean 1: directions -1 0 0 1 1 1 of mean 1/3. */
static void reference_bias(const void *user, double *const *in, double *const *out)
{
    const double move[6] = {-4.0 / 3, -1.0 / 3, -1.0 / 3, 2.0 / 3, 2.0 / 3, 2.0 / 3};
    for (int i = 0; i < 6; i++) {
        out[0][i] = in[0][i] + *(const double *)user * move[i];
        out[1][i] = 0;
    }
}

static void test_expert_bias_update(void **state)
{
    (void)state;
    OpTest *t = optest_create(2);
    double hyper[HYPER_COUNT] = {[HYPER_BIAS_RATE] = 0.125}, rate = 0.125;
    ValueId bias = optest_state(t, DTYPE_F32, SHAPE(6), STATE_BUFFER,
                                (double[]){0, 1, 0, 0, 0, -0.5});
    ValueId load = optest_state(t, DTYPE_F32, SHAPE(6), STATE_LOAD, (double[]){4, 1, 1, 0, 0, 0});
    optest_ok(op_expert_bias_update(t->graph, bias, load,
                                    optest_data(t, DTYPE_F32, SHAPE(HYPER_COUNT), hyper)));
    optest_ok(op_clear(t->graph, load));
    optest_plain_output(t, graph_node(t->graph, (NodeId){1})->out[0]);
    optest_plain_output(t, graph_node(t->graph, (NodeId){2})->out[0]);
    optest_check(t, reference_bias, &rate, 1e-6);
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grad_norm),  cmocka_unit_test(test_clip_factor),
        cmocka_unit_test(test_adamw),      cmocka_unit_test(test_adamw_skips_bad_steps),
        cmocka_unit_test(test_accumulate), cmocka_unit_test(test_accumulate_leaf),
        cmocka_unit_test(test_assign),     cmocka_unit_test(test_expert_bias_update),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
