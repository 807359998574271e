/* route and router_loss. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>

typedef struct Case {
    int64_t tokens, experts;
    int k;
    RouterScore kind;
    bool bias;
    double aux, z;
} Case;

static double log_sum_exp(const double *x, int64_t n)
{
    double highest = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++) highest = fmax(highest, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - highest);
    return highest + log(sum);
}

/* ---- route ------------------------------------------------------------------------------ */

static void choose(const Case *c, const double *logits, const double *bias, double *choice)
{
    bool taken[512] = {false};
    for (int j = 0; j < c->k; j++) {
        int64_t best = -1;
        for (int64_t e = 0; e < c->experts; e++) {
            if (taken[e]) continue;
            float key = (float)logits[e] + (bias ? (float)bias[e] : 0);
            float rival = best < 0 ? 0 : (float)logits[best] + (bias ? (float)bias[best] : 0);
            if (best < 0 || key > rival) best = e;
        }
        taken[best] = true;
        choice[j] = (double)best;
    }
}

/* in: logits [, bias]; out: choice, score. Small steps do not change the choice. */
static void reference_route(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *logits = in[0] + t * c->experts;
        choose(c, logits, c->bias ? in[1] : NULL, out[0] + t * c->k);
        double lse = log_sum_exp(logits, c->experts);
        for (int j = 0; j < c->k; j++) {
            double logit = logits[(int64_t)out[0][t * c->k + j]];
            out[1][t * c->k + j] = c->kind == ROUTER_SIGMOID ? 1 / (1 + exp(-logit))
                                                             : exp(logit - lse);
        }
    }
}

static void check_route(Case c)
{
    OpTest *t = optest_create((uint64_t)c.experts);
    ValueId logits = optest_normal(t, DTYPE_F32, SHAPE(1, c.tokens, c.experts), 1.0),
            bias = NO_VALUE, choice, score;
    if (c.bias) bias = optest_normal(t, DTYPE_F32, SHAPE(c.experts), 1.0);
    optest_ok(op_route(t->graph, logits, bias, c.k, c.kind, &choice, &score));
    optest_output(t, choice);
    optest_output(t, score);
    optest_check_grad(t, reference_route, &c, 1e-5);
    optest_destroy(t);
}

static void test_route(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++)
        for (int bias = 0; bias < 2; bias++) {
            check_route(
                (Case){.tokens = 1, .experts = 1, .k = 1, .kind = (RouterScore)kind, .bias = bias});
            check_route(
                (Case){.tokens = 9, .experts = 5, .k = 2, .kind = (RouterScore)kind, .bias = bias});
            check_route((Case){
                .tokens = 7, .experts = 16, .k = 1, .kind = (RouterScore)kind, .bias = bias});
            check_route((Case){
                .tokens = 3, .experts = 33, .k = 33, .kind = (RouterScore)kind, .bias = bias});
            check_route((Case){
                .tokens = 130, .experts = 256, .k = 4, .kind = (RouterScore)kind, .bias = bias});
        }
}

/* Equal logits: the lowest expert first. Infinities and NaN: distinct experts, inside the range. */
static void test_ties_and_odd_logits(void **state)
{
    (void)state;
    const double rows[4][6] = {{1, 3, 3, 0, 3, 0},
                               {0, 0, 0, 0, 0, 0},
                               {-INFINITY, -INFINITY, -INFINITY, -INFINITY, 2, -INFINITY},
                               {NAN, NAN, 1, NAN, NAN, NAN}};
    const double expected[4][3] = {{1, 2, 4}, {0, 1, 2}, {4, 0, 1}, {2, 0, 1}};
    OpTest *t = optest_create(1);
    ValueId logits = optest_data(t, DTYPE_F32, SHAPE(4, 6), rows[0]), choice, score;
    optest_ok(op_route(t->graph, logits, NO_VALUE, 3, ROUTER_SIGMOID, &choice, &score));
    for (int i = 0; i < OPTEST_TARGETS; i++) {
        OpRun run;
        Target target;
        if (!optest_target(t, i, 1, &target)) continue;
        assert_true(optest_run(&run, t, target, 0));
        double *got = optest_run_values(&run, choice);
        assert_memory_equal(got, expected, sizeof expected);
        free(got);
        optest_run_end(&run);
    }
    optest_destroy(t);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId logits = optest_normal(t, DTYPE_F32, SHAPE(2, 4), 1.0), a, b;
    optest_refused(op_route(t->graph, logits, NO_VALUE, 5, ROUTER_SIGMOID, &a, &b), ERR_ARG,
                   "5 choices among 4");
    ValueId wide = optest_normal(t, DTYPE_F32, SHAPE(1, 2000), 1.0);
    optest_refused(op_route(t->graph, wide, NO_VALUE, 1, ROUTER_SIGMOID, &a, &b), ERR_UNSUPPORTED,
                   "2000 experts");
    ValueId half = optest_normal(t, DTYPE_BF16, SHAPE(2, 4), 1.0);
    optest_refused(op_route(t->graph, half, NO_VALUE, 1, ROUTER_SIGMOID, &a, &b), ERR_ARG,
                   "logits must be f32");
    optest_destroy(t);
}

/* ---- router_loss ------------------------------------------------------------------------ */

/* in: logits, choice, weights; out: loss */
static void reference_loss(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    double *chosen = xcalloc((size_t)c->experts, sizeof *chosen),
           *mean_p = xcalloc((size_t)c->experts, sizeof *mean_p);
    double n = 0, z = 0, balance = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const double *logits = in[0] + t * c->experts;
        if (in[2][t] == 0) continue;
        double lse = log_sum_exp(logits, c->experts), sum = 0;
        for (int64_t e = 0; e < c->experts; e++) sum += 1 / (1 + exp(-logits[e]));
        for (int64_t e = 0; e < c->experts; e++)
            mean_p[e] += c->kind == ROUTER_SOFTMAX ? exp(logits[e] - lse)
                                                   : 1 / (1 + exp(-logits[e])) / sum;
        for (int j = 0; j < c->k; j++) chosen[(int64_t)in[1][t * c->k + j]]++;
        z += lse * lse;
        n++;
    }
    for (int64_t e = 0; e < c->experts && n > 0; e++)
        balance += chosen[e] / (n * c->k) * mean_p[e] / n;
    out[0][0] = n > 0 ? c->aux * (double)c->experts * balance + c->z * z / n : 0;
    free(chosen);
    free(mean_p);
}

static void check_loss(Case c, bool all_masked)
{
    OpTest *t = optest_create((uint64_t)c.experts);
    double *weights = xcalloc((size_t)c.tokens, sizeof *weights);
    for (int64_t i = 0; i < c.tokens; i++) weights[i] = all_masked || i % 4 == 2 ? 0 : 0.5;
    ValueId logits = optest_normal(t, DTYPE_F32, SHAPE(1, c.tokens, c.experts), 2.0), loss;
    ValueId choice = optest_integers(t, SHAPE(1, c.tokens, c.k), 0, c.experts);
    ValueId w = optest_data(t, DTYPE_F32, SHAPE(1, c.tokens), weights);
    optest_no_grad(t, w);
    optest_ok(op_router_loss(t->graph, logits, choice, w, (float)c.aux, (float)c.z, c.kind, &loss));
    optest_output(t, loss);
    optest_check_grad(t, reference_loss, &c, 2e-5);
    optest_destroy(t);
    free(weights);
}

static void test_router_loss(void **state)
{
    (void)state;
    const double parts[3][2] = {{1, 0}, {0, 1}, {0.5, 0.25}}; /* exact in f32 */
    for (int kind = 0; kind < 2; kind++)
        for (int p = 0; p < 3; p++) {
            Case c = {.kind = (RouterScore)kind,
                      .aux = parts[p][0],
                      .z = parts[p][1],
                      .k = 1,
                      .tokens = 1,
                      .experts = 1};
            check_loss(c, false);
            c.k = 2, c.tokens = 11, c.experts = 7;
            check_loss(c, false);
            c.tokens = 260, c.experts = 33; /* several blocks, several threads */
            check_loss(c, false);
        }
    check_loss((Case){.aux = 1, .z = 1, .k = 1, .tokens = 5, .experts = 4}, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route),
        cmocka_unit_test(test_ties_and_odd_logits),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_router_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
