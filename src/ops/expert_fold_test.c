/* expert_share, expert_pick and expert_put on one rank of several, and their gradients. */
#include "ops/optest.h"

#include <math.h>

enum { EXPERTS = 4, ROWS = 11, WIDTH = 5 };
/* the last row is behind all experts', and one expert has none */
static const double offsets[EXPERTS + 1] = {0, 2, 2, 7, 10};

/* as in expert_fold.c */
typedef struct Fold {
    int n, rank;
} Fold;

static int64_t first_of(const Fold *f, int rank)
{
    return (int64_t)offsets[rank * (EXPERTS / f->n)];
}

static void reference_share(const void *user, double *const *in, double *const *out)
{
    const Fold *f = user;
    int each = EXPERTS / f->n;
    for (int e = 0; e <= each; e++) out[0][e] = in[0][f->rank * each + e] - in[0][f->rank * each];
}

/* in: offsets, rows; rows behind the experts' may be anything */
static void reference_pick(const void *user, double *const *in, double *const *out)
{
    const Fold *f = user;
    int64_t first = first_of(f, f->rank), end = first_of(f, f->rank + 1);
    for (int64_t i = 0; i < ROWS * WIDTH; i++) out[0][i] = (double)NAN;
    for (int64_t i = 0; i < (end - first) * WIDTH; i++) out[0][i] = in[1][first * WIDTH + i];
}

static void reference_put(const void *user, double *const *in, double *const *out)
{
    const Fold *f = user;
    int64_t first = first_of(f, f->rank), end = first_of(f, f->rank + 1);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t i = 0; i < WIDTH; i++) {
            bool own = r >= first && r < end;
            double x = own ? in[1][(r - first) * WIDTH + i] : 0;
            out[0][r * WIDTH + i] = r < (int64_t)offsets[EXPERTS] ? x : (double)NAN;
        }
}

static void check_rows(const Fold *f, DType dtype, const char *op, OpReference reference)
{
    OpTest *t = optest_create((uint64_t)(f->n * 8 + f->rank));
    ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), y;
    ValueId rows = optest_normal(t, dtype, SHAPE(ROWS, WIDTH), 1.0);
    optest_ok(graph_add(t->graph, op_find(op), f, (ValueId[]){rows, at}, 2, &y));
    optest_output(t, y);
    optest_check(t, reference, f, 0);
    optest_destroy(t);
}

static void test_ranks(void **state)
{
    (void)state;
    for (int n = 1; n <= EXPERTS; n *= 2)
        for (int rank = 0; rank < n; rank++) {
            Fold f = {n, rank};
            OpTest *t = optest_create(1);
            ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), owned;
            optest_ok(graph_add(t->graph, op_find("expert_share"), &f, &at, 1, &owned));
            optest_plain_output(t, owned);
            optest_check(t, reference_share, &f, 0);
            optest_destroy(t);
            for (int k = 0; k < 2; k++) {
                check_rows(&f, k ? DTYPE_BF16 : DTYPE_F32, "expert_pick", reference_pick);
                check_rows(&f, k ? DTYPE_BF16 : DTYPE_F32, "expert_put", reference_put);
            }
        }
}

/* Rows that are taken and put back, and nothing else: the gradient of one is made by the other. No
 * row behind the experts': its gradient would be nobody's. */
static void reference_own(const void *user, double *const *in, double *const *out)
{
    const Fold *f = user;
    int64_t first = first_of(f, f->rank), end = first_of(f, f->rank + 1);
    for (int64_t r = 0; r < (int64_t)offsets[EXPERTS]; r++)
        for (int64_t i = 0; i < WIDTH; i++)
            out[0][r * WIDTH + i] = r >= first && r < end ? in[1][r * WIDTH + i] : 0;
}

static void test_gradients(void **state)
{
    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        Fold f = {2, rank};
        OpTest *t = optest_create(3);
        ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), own, y;
        ValueId rows = optest_normal(t, DTYPE_F32, SHAPE((int64_t)offsets[EXPERTS], WIDTH), 1.0);
        optest_ok(graph_add(t->graph, op_find("expert_pick"), &f, (ValueId[]){rows, at}, 2, &own));
        optest_ok(graph_add(t->graph, op_find("expert_put"), &f, (ValueId[]){own, at}, 2, &y));
        optest_output(t, y);
        optest_check_grad(t, reference_own, &f, 1e-6);
        optest_destroy(t);
    }
}

static void test_refusal(void **state)
{
    (void)state;
    Fold f = {3, 0};
    OpTest *t = optest_create(1);
    ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets), owned;
    optest_refused(graph_add(t->graph, op_find("expert_share"), &f, &at, 1, &owned), ERR_REFUSED,
                   "4 experts cannot be shared evenly by 3 ranks");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ranks),
                                       cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_refusal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
