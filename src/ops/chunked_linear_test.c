/* Products that tensor parallelism may cut: right, and the same bits for every number of ranks.
 * What ranks make is made here one after the other from copies of their parts, and added as the
 * communicator adds (a balanced binary tree). */
#include "ops/optest.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNKS = 8 };

/* A contraction over `width[s]` of several segments. */
typedef struct Case {
    int64_t rows, other; /* rows of x; the weight's axis that is not contracted */
    Chunks chunks;
    bool dx, bf16;
} Case;

static int64_t contraction(const Case *c)
{
    int64_t sum = 0;
    for (int s = 0; s < c->chunks.n_segments; s++) sum += c->chunks.width[s];
    return sum;
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t k = contraction(c);
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t o = 0; o < c->other; o++) {
            double sum = 0;
            for (int64_t i = 0; i < k; i++)
                sum += in[0][r * k + i] * in[1][c->dx ? i * c->other + o : o * k + i];
            out[0][r * c->other + o] = sum;
        }
}

static ValueId product(OpTest *t, const Case *c, ValueId x, ValueId w, const Chunks *chunks)
{
    ValueId y;
    optest_ok(c->dx ? op_chunked_linear_dx(t->graph, x, w, chunks, &y)
                    : op_chunked_linear(t->graph, x, w, chunks, &y));
    return y;
}

/* The element of the contraction that is number i of rank r's. */
static int64_t element_of(const Case *c, int n, int r, int64_t i)
{
    int64_t begin = 0;
    for (int s = 0;; s++) {
        int64_t part = c->chunks.width[s] / n;
        if (i < part) return begin + r * part + i;
        i -= part;
        begin += c->chunks.width[s];
    }
}

/* Rank r's part of the rows (axis 1 is the contraction) or of the weight. */
static ValueId part_of(OpTest *t, const Case *c, ValueId whole, int64_t lines,
                       bool contraction_first, int n, int r)
{
    int64_t k = contraction(c), m = k / n;
    double *data = ARENA_ARRAY(&t->arena, double, lines *m);
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < m; i++) {
            int64_t e = element_of(c, n, r, i);
            data[contraction_first ? i * lines + line : line * m + i] = optest_at(
                t, whole, contraction_first ? e * lines + line : line * k + e);
        }
    Shape shape = contraction_first ? SHAPE(m, lines) : SHAPE(lines, m);
    return optest_data(t, c->bf16 ? DTYPE_BF16 : DTYPE_F32, shape, data);
}

static float tree(float *const *part, int lo, int hi, int64_t i)
{
    if (hi - lo == 1) return part[lo][i];
    int mid = lo + (hi - lo) / 2;
    return tree(part, lo, mid, i) + tree(part, mid, hi, i);
}

static void compare(const OpTest *t, ValueId y, const ValueId *part, int n, Target target)
{
    OpRun run;
    float *at[CHUNKS];
    if (!optest_run(&run, t, target, 0)) fail_msg("%s", run.fault);
    const float *whole = optest_run_tensor(&run, y).data;
    for (int r = 0; r < n; r++) at[r] = optest_run_tensor(&run, part[r]).data;
    for (int64_t i = 0; i < optest_count(t, y); i++) {
        float sum = tree(at, 0, n, i);
        if (memcmp(&sum, &whole[i], sizeof sum) != 0)
            fail_msg("%d ranks, %s, %d threads: element %lld is %.9g, not %.9g", n,
                     optest_target_name(&target), target.threads, (long long)i, (double)sum,
                     (double)whole[i]);
    }
    optest_run_end(&run);
}

static void each_target(const OpTest *t, ValueId y, const ValueId *part, int n)
{
    Target target;
    for (int i = 0; i < OPTEST_TARGETS; i++)
        for (int threads = 1; threads < 4 && optest_target(t, i, threads, &target); threads += 2)
            compare(t, y, part, n, target);
}

static void check(const Case *c)
{
    DType dtype = c->bf16 ? DTYPE_BF16 : DTYPE_F32;
    for (int n = 1; n <= CHUNKS; n *= 2) {
        OpTest *t = optest_create((uint64_t)(c->rows + n));
        int64_t k = contraction(c);
        ValueId x = optest_normal(t, dtype, SHAPE(c->rows, k), 1.0), part[CHUNKS];
        ValueId w = optest_normal(t, dtype, c->dx ? SHAPE(k, c->other) : SHAPE(c->other, k), 1.0);
        ValueId y = product(t, c, x, w, &c->chunks);
        Chunks chunks = c->chunks;
        chunks.n /= n;
        for (int s = 0; s < chunks.n_segments; s++) chunks.width[s] /= n;
        for (int r = 0; r < n; r++)
            part[r] = product(t, c, part_of(t, c, x, c->rows, false, n, r),
                              part_of(t, c, w, c->other, c->dx, n, r), &chunks);
        each_target(t, y, part, n);
        optest_destroy(t);
    }
    OpTest *t = optest_create(9);
    int64_t k = contraction(c);
    ValueId x = optest_normal(t, dtype, SHAPE(c->rows, k), 1.0);
    ValueId w = optest_normal(t, dtype, c->dx ? SHAPE(k, c->other) : SHAPE(c->other, k), 1.0);
    optest_pitch(t, x, 1, k + 5);
    optest_output(t, product(t, c, x, w, &c->chunks));
    optest_check(t, reference, c, c->bf16 ? 1e-4 : 3e-6);
    optest_destroy(t);
}

static void test_linear(void **state)
{
    (void)state;
    static const Case cases[] = {
        {3, 17, {CHUNKS, 1, {64}}, false, false},
        {40, 33, {CHUNKS, 1, {48}}, true, false},
        {600, 20, {CHUNKS, 1, {4096}}, false, false},
        {29, 70, {CHUNKS, 3, {64, 32, 32}}, true, false},
        {29, 70, {CHUNKS, 2, {48, 48}}, true, true},
        {31, 9, {CHUNKS, 1, {2048}}, false, true},
        {9, 50, {CHUNKS, 3, {2400, 800, 800}}, true, false},
        {7, 5, {CHUNKS, 1, {8}}, false, true},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) check(&cases[i]);
}

/* ---- what tensor parallelism cuts elsewhere does not matter ----------------------------- */

static Shape parted(Shape shape, int dim, int n)
{
    shape.dim[dim] /= n;
    return shape;
}

/* Part r of n of a matrix along `dim`. */
static ValueId slice(OpTest *t, ValueId whole, int dim, int n, int r)
{
    Shape s = graph_value(t->graph, whole)->shape, p = parted(s, dim, n);
    double *data = ARENA_ARRAY(&t->arena, double, shape_count(&p));
    for (int64_t i = 0; i < p.dim[0]; i++)
        for (int64_t j = 0; j < p.dim[1]; j++)
            data[i * p.dim[1] + j] = optest_at(t, whole,
                                               (i + (dim == 0 ? r * p.dim[0] : 0)) * s.dim[1] + j +
                                                   (dim == 1 ? r * p.dim[1] : 0));
    return optest_data(t, graph_value(t->graph, whole)->dtype, p, data);
}

typedef Status (*Product)(Graph *g, ValueId a, ValueId b, ValueId *y);

/* `of` is 0 or 1: the operand whose axis `dim` is cut; the result is then cut along `y_dim`. */
static void check_slices(Product product_of, const ValueId in[2], OpTest *t, int of, int dim,
                         int y_dim)
{
    enum { RANKS = 4 };
    ValueId y, part[RANKS];
    optest_ok(product_of(t->graph, in[0], in[1], &y));
    for (int r = 0; r < RANKS; r++) {
        ValueId cut[2] = {in[0], in[1]};
        cut[of] = slice(t, in[of], dim, RANKS, r);
        optest_ok(product_of(t->graph, cut[0], cut[1], &part[r]));
    }
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        OpRun run;
        if (!optest_isa_available((Isa)isa)) continue;
        if (!optest_run(&run, t, (Target){.isa = (Isa)isa, .threads = 2}, 0))
            fail_msg("%s", run.fault);
        double *whole = optest_run_values(&run, y);
        const Shape *s = &graph_value(t->graph, y)->shape;
        for (int r = 0; r < RANKS; r++) {
            double *mine = optest_run_values(&run, part[r]);
            const Shape *p = &graph_value(t->graph, part[r])->shape;
            for (int64_t i = 0; i < p->dim[0]; i++)
                for (int64_t j = 0; j < p->dim[1]; j++)
                    assert_true(mine[i * p->dim[1] + j] ==
                                whole[(i + (y_dim == 0 ? r * p->dim[0] : 0)) * s->dim[1] + j +
                                      (y_dim == 1 ? r * p->dim[1] : 0)]);
            free(mine);
        }
        free(whole);
        optest_run_end(&run);
    }
}

/* Rows of the weight, and columns and rows of its gradient, can lie anywhere: an element is the
 * same bits. */
static void test_cuts(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 40, 64},
                                       {8, 700, 20},
                                       {9, 300, 200},
                                       {100, 520, 132},
                                       {1300, 36, 60}}; /* rows, in, out */
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            int64_t n = sizes[i][0], in = sizes[i][1], out = sizes[i][2];
            DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            OpTest *t = optest_create(5);
            ValueId x = optest_normal(t, dtype, SHAPE(n, in), 1.0),
                    dy = optest_normal(t, dtype, SHAPE(n, out), 1.0),
                    w = optest_normal(t, dtype, SHAPE(out, in), 1.0);
            check_slices(op_linear, (ValueId[]){x, w}, t, 1, 0, 1);
            check_slices(op_linear_dx, (ValueId[]){dy, w}, t, 1, 1, 1);
            check_slices(op_linear_dw, (ValueId[]){dy, x}, t, 0, 1, 0);
            check_slices(op_linear_dw, (ValueId[]){dy, x}, t, 1, 1, 1);
            optest_destroy(t);
        }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(3, 24), 1.0),
            w = optest_normal(t, DTYPE_F32, SHAPE(5, 24), 1.0), y;
    optest_refused(op_chunked_linear(t->graph, x, w, &(Chunks){16, 1, {24}}, &y), ERR_REFUSED,
                   "cannot be cut into 16 equal chunks");
    optest_refused(op_chunked_linear(t->graph, x, w, &(Chunks){3, 1, {24}}, &y), ERR_ARG,
                   "3 chunks");
    optest_refused(op_chunked_linear(t->graph, x, w, &(Chunks){4, 2, {12, 8}}, &y), ERR_SHAPE,
                   "segments of 20");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_linear), cmocka_unit_test(test_cuts),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
