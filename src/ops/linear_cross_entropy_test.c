/* linear_cross_entropy, and the same in two steps: vocab_stats and vocab_loss. */
#include "ops/optest.h"

#include <math.h>

typedef struct Sizes {
    int64_t n, dim, vocab;
    double z_loss;
} Sizes;

/* How the loss is made: by linear_cross_entropy, or in two steps from one part of the vocabulary,
 * or so many. */
enum { FUSED = -1, ONE_PART = 0 };

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

static void build(OpTest *t, const ValueId in[4], int parts, float z_loss, ValueId *loss,
                  ValueId *nll)
{
    ValueId stats;
    if (parts == FUSED) {
        optest_ok(op_linear_cross_entropy(t->graph, in[0], in[1], in[2], in[3], z_loss, loss, nll));
        return;
    }
    optest_ok(op_vocab_stats(t->graph, in[0], in[1], in[2], parts, &stats));
    optest_ok(op_vocab_loss(t->graph, stats, in[2], in[3], z_loss, loss, nll));
}

static void check_by(int parts, DType dtype, Sizes s, int64_t pitch, bool grad)
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
    build(t, (ValueId[]){x, w, targets, weights}, parts, (float)s.z_loss, &loss, &nll);
    optest_output(t, loss);
    optest_plain_output(t, nll);
    double tolerance = dtype == DTYPE_BF16 ? 2e-2 : 1e-5;
    if (grad)
        optest_check_grad(t, reference, &s, tolerance);
    else
        optest_check(t, reference, &s, tolerance);
    optest_destroy(t);
}

static void check(DType dtype, Sizes s, int64_t pitch, bool grad)
{
    check_by(FUSED, dtype, s, pitch, grad);
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
        check(dtype, (Sizes){3, 2, 2602, 0.01}, 0, true); /* a GPU's row in several steps */
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

static void test_two_steps(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int parts = ONE_PART; parts <= 4; parts += 2) {
            DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            check_by(parts, dtype, (Sizes){5, 3, 20, 0}, 4, true);
            check_by(parts, dtype, (Sizes){37, 6, 40, 0.01}, 0, true);
            check_by(parts, dtype, (Sizes){2, 2, 2604, 0}, 0, true);
            check_by(parts, dtype, (Sizes){1031, 2, 20, 0.01}, 2, true);
        }
}

/* in: x, w, targets; out: stats */
static void reference_stats(const void *user, double *const *in, double *const *out)
{
    enum { DIM = 3, WORDS = 10, FIRST = 7 };
    int64_t n = *(const int64_t *)user;
    for (int64_t r = 0; r < n; r++) {
        double *to = out[0] + r * 3, logit[WORDS];
        for (int v = 0; v < WORDS; v++) {
            logit[v] = 0;
            for (int i = 0; i < DIM; i++) logit[v] += in[0][r * DIM + i] * in[1][v * DIM + i];
        }
        int64_t own = (int64_t)in[2][r] - FIRST;
        to[0] = logit[0], to[1] = 0, to[2] = own >= 0 && own < WORDS ? logit[own] : 0;
        for (int v = 1; v < WORDS; v++) to[0] = fmax(to[0], logit[v]);
        for (int v = 0; v < WORDS; v++) to[1] += exp(logit[v] - to[0]);
    }
}

/* A rank that holds words 7 to 16: some targets are elsewhere. */
static void test_part_of_words(void **state)
{
    (void)state;
    struct {
        int64_t first, parts; /* as in vocab_loss.h */
    } attr = {7, 0};
    int64_t n = 40;
    OpTest *t = optest_create(2);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(n, 3), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(10, 3), 1.0), stats;
    ValueId targets = optest_integers(t, SHAPE(n), -1, 20);
    optest_ok(
        graph_add(t->graph, op_find("vocab_stats"), &attr, (ValueId[]){x, w, targets}, 3, &stats));
    optest_output(t, stats);
    optest_check(t, reference_stats, &n, 1e-5);
    optest_destroy(t);
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
        cmocka_unit_test(test_two_steps),
        cmocka_unit_test(test_part_of_words),
        cmocka_unit_test(test_far_logits),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
