#include "ops/optest.h"

#include <math.h>

typedef struct Sizes {
    int64_t n, dim, vocab;
    double z_loss;
} Sizes;

/* in: x, w, targets, weights; out: loss, nll */
static void reference(const void *user, double *const *in, double *const *out)
{
    const Sizes *s = user;
    out[0][0] = 0;
    for (int64_t r = 0; r < s->n; r++) {
        double most = -INFINITY, sum = 0, hit = 0;
        int64_t target = (int64_t)in[2][r];
        for (int pass = 0; pass < 2; pass++)
            for (int64_t v = 0; v < s->vocab; v++) {
                double z = 0;
                for (int64_t i = 0; i < s->dim; i++)
                    z += in[0][r * s->dim + i] * in[1][v * s->dim + i];
                if (pass == 0) most = fmax(most, z);
                if (pass == 1) sum += exp(z - most);
                if (v == target) hit = z;
            }
        double lse = most + log(sum);
        out[1][r] = target < 0 ? 0 : lse - hit;
        if (target >= 0) out[0][0] += in[3][r] * (lse - hit + s->z_loss * lse * lse);
    }
}

static void check(DType dtype, Sizes s, int64_t pitch, bool grad)
{
    OpTest *t = optest_create((uint64_t)(s.n + s.dim * 5 + s.vocab));
    ValueId x = optest_normal(t, dtype, SHAPE(s.n, s.dim), 1.0), loss, nll;
    ValueId w = optest_normal(t, dtype, SHAPE(s.vocab, s.dim), 1.0);
    double *target = ARENA_ARRAY(&t->arena, double, s.n),
           *weight = ARENA_ARRAY(&t->arena, double, s.n);
    for (int64_t r = 0; r < s.n; r++) {
        target[r] = r % 5 == 3 ? -1 : (double)((r * 31 + 2) % s.vocab);
        weight[r] = r % 7 == 2 ? 0 : 0.25 * (double)(r % 3 + 1);
    }
    ValueId targets = optest_data(t, DTYPE_I32, SHAPE(s.n), target);
    ValueId weights = optest_data(t, DTYPE_F32, SHAPE(s.n), weight);
    optest_no_grad(t, weights);
    if (pitch) optest_pitch(t, x, 1, s.dim + pitch);
    optest_ok(
        op_linear_cross_entropy(t->graph, x, w, targets, weights, (float)s.z_loss, &loss, &nll));
    optest_output(t, loss);
    optest_plain_output(t, nll);
    double tolerance = dtype == DTYPE_BF16 ? 2e-2 : 1e-5;
    if (grad)
        optest_check_grad(t, reference, &s, tolerance);
    else
        optest_check(t, reference, &s, tolerance);
    optest_destroy(t);
}

static void test_values_and_gradients(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        check(dtype, (Sizes){1, 1, 2, 0}, 0, true);
        check(dtype, (Sizes){5, 3, 17, 0}, 4, true);
        check(dtype, (Sizes){37, 6, 40, 0.01}, 0, true);
        check(dtype, (Sizes){9, 4, 600, 0.001}, 0, true); /* several chunks of words */
    }
}

/* More tokens than a block holds, so that dw is summed over blocks. */
static void test_blocks_of_tokens(void **state)
{
    (void)state;
    check(DTYPE_F32, (Sizes){1100, 3, 20, 0}, 0, true);
    check(DTYPE_BF16, (Sizes){1031, 2, 20, 0.01}, 2, true);
    check(DTYPE_F32, (Sizes){70, 4, 17000, 0}, 0, false);
}

/* Logits far apart: nothing overflows, a hopeless target still gets its gradient. */
static void test_far_logits(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    enum { VOCAB = 600 };
    double w[VOCAB] = {[0] = 300, [599] = -300};
    ValueId x = optest_data(t, DTYPE_F32, SHAPE(2, 1), (double[]){1, -1}), loss, nll;
    ValueId wv = optest_data(t, DTYPE_F32, SHAPE(VOCAB, 1), w);
    ValueId targets = optest_data(t, DTYPE_I32, SHAPE(2), (double[]){599, 599});
    ValueId weights = optest_data(t, DTYPE_F32, SHAPE(2), (double[]){1, 1});
    optest_no_grad(t, weights);
    optest_ok(op_linear_cross_entropy(t->graph, x, wv, targets, weights, 0, &loss, &nll));
    optest_output(t, loss);
    optest_plain_output(t, nll);
    optest_check_grad(t, reference, &(Sizes){2, 1, VOCAB, 0}, 1e-5);
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    Graph *g = t->graph;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(4, 3), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(5, 3), 1.0);
    ValueId targets = optest_integers(t, SHAPE(4), 0, 5),
            weights = optest_normal(t, DTYPE_F32, SHAPE(4), 1.0), a, b;
    ValueId narrow = optest_normal(t, DTYPE_F32, SHAPE(5, 2), 1.0),
            few = optest_integers(t, SHAPE(3), 0, 5);
    optest_refused(op_linear_cross_entropy(g, x, narrow, targets, weights, 0, &a, &b), ERR_SHAPE,
                   "do not fit");
    optest_refused(op_linear_cross_entropy(g, x, w, few, weights, 0, &a, &b), ERR_SHAPE, "targets");
    optest_refused(op_linear_cross_entropy(g, x, w, weights, weights, 0, &a, &b), ERR_ARG,
                   "targets must be i32");
    optest_refused(op_linear_cross_entropy(g, x, w, targets, targets, 0, &a, &b), ERR_ARG,
                   "weights must be f32");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients),
        cmocka_unit_test(test_blocks_of_tokens),
        cmocka_unit_test(test_far_logits),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
