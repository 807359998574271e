/* Sums over experts' rows and over contractions that tensor parallelism may cut: the same bits for
 * every number of ranks. What ranks make is made here one after the other from copies of their
 * parts, and added as a balanced binary tree. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXPERTS = 3, SOURCES = 4, CHUNKS = 8 };

static float tree(float *const *part, int lo, int hi, int64_t i)
{
    if (hi - lo == 1) return part[lo][i];
    int mid = lo + (hi - lo) / 2;
    return tree(part, lo, mid, i) + tree(part, mid, hi, i);
}

/* The first `count` elements of y are the tree of those of n parts, bit for bit. */
static void check_tree(const OpTest *t, ValueId y, const ValueId *part, int n, int64_t count)
{
    for (int k = 0; k < OPTEST_TARGETS; k++) {
        OpRun run;
        Target target;
        float *at[CHUNKS];
        if (!optest_target(t, k, 2, &target)) continue;
        if (!optest_run(&run, t, target, 0)) fail_msg("%s", run.fault);
        const float *whole = optest_run_tensor(&run, y).data;
        for (int r = 0; r < n; r++) at[r] = optest_run_tensor(&run, part[r]).data;
        for (int64_t i = 0; i < count; i++) {
            float sum = tree(at, 0, n, i);
            if (memcmp(&sum, &whole[i], sizeof sum) != 0)
                fail_msg("%d parts, %s: element %lld is %.9g, not %.9g", n,
                         optest_target_name(&target), (long long)i, (double)sum, (double)whole[i]);
        }
        optest_run_end(&run);
    }
}

/* ---- rows of several sources ------------------------------------------------------------ */

/* rows of (expert, source), experts first; some experts and sources have none */
static const int64_t counts[EXPERTS][SOURCES] = {{16, 0, 32, 16}, {0, 0, 0, 0}, {16, 288, 16, 48}};

static int64_t start_of(int expert, int source)
{
    int64_t at = 0;
    for (int e = 0; e < EXPERTS; e++)
        for (int s = 0; s < SOURCES; s++)
            if (e < expert || (e == expert && s < source)) at += counts[e][s];
    return at;
}

static ValueId all_offsets(OpTest *t)
{
    double at[EXPERTS * SOURCES + 1];
    for (int i = 0; i <= EXPERTS * SOURCES; i++) at[i] = (double)start_of(i / SOURCES, i % SOURCES);
    return optest_data(t, DTYPE_I32, SHAPE(EXPERTS * SOURCES + 1), at);
}

static ValueId offsets_of(OpTest *t, int source, int64_t *rows)
{
    double at[EXPERTS + 1] = {0};
    for (int e = 0; e < EXPERTS; e++) at[e + 1] = at[e] + (double)counts[e][source];
    *rows = (int64_t)at[EXPERTS];
    return optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), at);
}

/* One source's rows of x [.. width], one expert's behind another's. */
static ValueId rows_of(OpTest *t, ValueId x, int64_t width, int source, int64_t rows)
{
    double *data = ARENA_ARRAY(&t->arena, double, rows *width + 1);
    int64_t to = 0;
    for (int e = 0; e < EXPERTS; e++)
        for (int64_t i = 0; i < counts[e][source] * width; i++)
            data[to++] = optest_at(t, x, start_of(e, source) * width + i);
    return optest_data(t, graph_value(t->graph, x)->dtype, SHAPE(rows, width), data);
}

static void test_sources(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        DType dtype = k % 2 ? DTYPE_BF16 : DTYPE_F32;
        int64_t in = 405, out = 37;
        ExpertWeight like = {k / 2 ? SHAPE(EXPERTS, out, in) : SHAPE(EXPERTS, in, out),
                             k / 2 ? EXPERTS_OUT_IN : EXPERTS_IN_OUT};
        OpTest *t = optest_create(3);
        ValueId dy = optest_normal(t, dtype, SHAPE(start_of(EXPERTS, 0), out), 1.0),
                x = optest_normal(t, dtype, SHAPE(start_of(EXPERTS, 0), in), 1.0);
        ValueId dw, part[SOURCES];
        optest_ok(op_grouped_linear_dw(t->graph, dy, x, all_offsets(t), like, &dw));
        for (int s = 0; s < SOURCES; s++) {
            int64_t rows;
            ValueId offsets = offsets_of(t, s, &rows);
            optest_ok(op_grouped_linear_dw(t->graph, rows_of(t, dy, out, s, rows),
                                           rows_of(t, x, in, s, rows), offsets, like, &part[s]));
        }
        check_tree(t, dw, part, SOURCES, shape_count(&like.shape));
        optest_destroy(t);
    }
}

/* ---- chunks ----------------------------------------------------------------------------- */

enum { ROWS = 64, SLACK = 16, K = 96, OTHER = 70, HALVES = 2 };

typedef struct Case {
    int axis; /* of the weight, that is contracted */
} Case;

static const int64_t row_counts[EXPERTS] = {16, 0, 48};

static Shape weight_shape(int axis, int64_t k)
{
    return axis == 1 ? SHAPE(EXPERTS, k, OTHER) : SHAPE(EXPERTS, OTHER, k);
}
static int64_t weight_at(int axis, int64_t k, int64_t e, int64_t i, int64_t o)
{
    return e * k * OTHER + (axis == 1 ? i * OTHER + o : o * k + i);
}

/* The element of the contraction, two blocks behind one another, that is number i of rank r's. */
static int64_t element_of(int64_t i, int n, int r)
{
    int64_t each = K / HALVES / n;
    return i / each * (K / HALVES) + r * each + i % each;
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t row = 0;
    for (int64_t e = 0; e < EXPERTS; e++)
        for (int64_t end = row + row_counts[e]; row < end; row++)
            for (int64_t o = 0; o < OTHER; o++) {
                double sum = 0;
                for (int64_t i = 0; i < K; i++)
                    sum += in[0][row * K + i] * in[1][weight_at(c->axis, K, e, i, o)];
                out[0][row * OTHER + o] = sum;
            }
    for (int64_t i = row * OTHER; i < (ROWS + SLACK) * OTHER; i++) out[0][i] = NAN;
}

/* What rank r of n makes of its part of the contraction. */
static ValueId rank_product(OpTest *t, int axis, ValueId rows, ValueId w, ValueId offsets, int n,
                            int r)
{
    int64_t k = K / n;
    double *x = ARENA_ARRAY(&t->arena, double, (ROWS + SLACK) * k),
           *v = ARENA_ARRAY(&t->arena, double, EXPERTS *k *OTHER);
    for (int64_t i = 0; i < k; i++) {
        for (int64_t row = 0; row < ROWS + SLACK; row++)
            x[row * k + i] = optest_at(t, rows, row * K + element_of(i, n, r));
        for (int64_t e = 0; e < EXPERTS; e++)
            for (int64_t o = 0; o < OTHER; o++)
                v[weight_at(axis, k, e, i, o)] = optest_at(
                    t, w, weight_at(axis, K, e, element_of(i, n, r), o));
    }
    DType dtype = graph_value(t->graph, rows)->dtype;
    ValueId part, mine = optest_data(t, dtype, SHAPE(ROWS + SLACK, k), x),
                  weight = optest_data(t, dtype, weight_shape(axis, k), v);
    Chunks chunks = {CHUNKS / n, HALVES, {k / HALVES, k / HALVES}};
    optest_ok(op_chunked_grouped_linear(t->graph, mine, weight, offsets, axis, &chunks, &part));
    return part;
}

static void test_chunks(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        DType dtype = k % 2 ? DTYPE_BF16 : DTYPE_F32;
        Case c = {1 + k / 2};
        Chunks chunks = {CHUNKS, HALVES, {K / HALVES, K / HALVES}};
        static const double offsets[EXPERTS + 1] = {0, 16, 16, 64};
        for (int n = 0; n <= CHUNKS; n = n ? 2 * n : 1) { /* 0: the values */
            OpTest *t = optest_create(7);
            ValueId x = optest_normal(t, dtype, SHAPE(ROWS + SLACK, K), 1.0),
                    w = optest_normal(t, dtype, weight_shape(c.axis, K), 1.0), y, part[CHUNKS];
            ValueId at = optest_data(t, DTYPE_I32, SHAPE(EXPERTS + 1), offsets);
            optest_ok(op_chunked_grouped_linear(t->graph, x, w, at, c.axis, &chunks, &y));
            for (int r = 0; r < n; r++) part[r] = rank_product(t, c.axis, x, w, at, n, r);
            if (n) {
                check_tree(t, y, part, n, ROWS * OTHER);
            } else {
                optest_output(t, y);
                optest_check(t, reference, &c, dtype == DTYPE_BF16 ? 1e-4 : 3e-6);
            }
            optest_destroy(t);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sources),
                                       cmocka_unit_test(test_chunks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
