/* Attention with its keys in parts, and the gradient, against plain double precision over all keys
 * at once: a rank's two blocks of queries, parts whole or halved and in any order, odd lengths,
 * documents, chunks, caps, grouped heads. */
#include "ops/attention/attention_internal.h"
#include "ops/collective.h"
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 8 };

typedef struct Case {
    int64_t batch, half, heads, kv_heads, d; /* half: tokens in a block */
    int n, rank;                             /* of the ring */
    int64_t document;                        /* positions start anew after so many rows; 0: never */
    int part[MAX_PARTS], halves[MAX_PARTS];  /* whose keys, which of them */
    int n_parts;
    AttentionAttr attr;
} Case;

/* The slice of some halves of a rank's part of the sequence. */
static AttentionSlice slice_of(const Case *c, int rank, int halves)
{
    int64_t first = rank * c->half, second = (2 * c->n - 1 - rank) * c->half;
    if (halves == HALF_FIRST)
        return (AttentionSlice){.split = c->half, .first = first, .second = first};
    if (halves == HALF_SECOND) return (AttentionSlice){.second = second};
    return (AttentionSlice){.split = c->half, .first = first, .second = second - c->half};
}

static int64_t row_of(const Case *c, int rank, int halves, int64_t t)
{
    AttentionSlice s = slice_of(c, rank, halves);
    return attention_row(&s, t);
}

static int64_t position(const Case *c, int64_t b, int64_t row)
{
    return c->document ? (row + 3 * b) % c->document
                       : row; /* each sequence cuts its documents elsewhere */
}

/* ---- in double precision ---------------------------------------------------------------- */

/* Inputs: q, pos, k and v of each part, do. Outputs: o, lse, dq, dk and dv of each part. */
enum { IN_Q, IN_POS, IN_K };
enum { OUT_O, OUT_LSE, OUT_DQ, OUT_DK };

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void add_scaled(double *to, double factor, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] += factor * x[i];
}

/* One query of one head. */
typedef struct Query {
    int64_t b, h, first, end; /* rows that it sees */
    const double *q, *dout;
    double *o, *dq, *lse;
} Query;

/* Key s of part p: where it lies in k, v, dk and dv; below 0: the query does not see it. */
static int64_t key_at(const Case *c, const Query *x, int p, int64_t s)
{
    int64_t keys = c->half * halves_count(c->halves[p]),
            row = row_of(c, c->part[p], c->halves[p], s);
    if (row < x->first || row >= x->end) return -1;
    return ((x->b * keys + s) * c->kv_heads + x->h / (c->heads / c->kv_heads)) * c->d;
}

/* Of a key that stands so many rows before the query. */
static double score(const Case *c, const Query *x, const double *k, int64_t before)
{
    double z = dot(x->q, k, c->d) * (double)c->attr.scale, cap = (double)c->attr.softcap;
    if (c->attr.alibi > 0) /* heads are a power of two here */
        z -= pow(2, -(double)c->attr.alibi * (double)(x->h + 1) / (double)c->heads) *
             (double)before;
    return cap > 0 ? cap * tanh(z / cap) : z;
}

static int64_t before(const Case *c, const Query *x, int p, int64_t s)
{
    return x->end - 1 - row_of(c, c->part[p], c->halves[p], s);
}

static void query_forward(const Case *c, const Query *x, double *const *in)
{
    double sum = 0; /* scores are small enough for exp */
    for (int p = 0; p < c->n_parts; p++)
        for (int64_t s = 0; s < c->half * halves_count(c->halves[p]); s++) {
            int64_t at = key_at(c, x, p, s);
            if (at < 0) continue;
            double e = exp(score(c, x, in[IN_K + 2 * p] + at, before(c, x, p, s)));
            add_scaled(x->o, e, in[IN_K + 2 * p + 1] + at, c->d);
            sum += e;
        }
    for (int64_t i = 0; i < c->d; i++) x->o[i] /= sum;
    *x->lse = log(sum);
}

static void query_backward(const Case *c, const Query *x, double *const *in, double *const *out)
{
    double delta = dot(x->o, x->dout, c->d), cap = (double)c->attr.softcap;
    for (int p = 0; p < c->n_parts; p++)
        for (int64_t s = 0; s < c->half * halves_count(c->halves[p]); s++) {
            int64_t at = key_at(c, x, p, s);
            if (at < 0) continue;
            const double *k = in[IN_K + 2 * p] + at, *v = in[IN_K + 2 * p + 1] + at;
            double z = score(c, x, k, before(c, x, p, s)), e = exp(z - *x->lse);
            double slope = e * (dot(x->dout, v, c->d) - delta) * (double)c->attr.scale;
            if (cap > 0) slope *= 1 - z / cap * (z / cap);
            add_scaled(x->dq, slope, k, c->d);
            add_scaled(out[OUT_DK + 2 * p] + at, slope, x->q, c->d);
            add_scaled(out[OUT_DK + 2 * p + 1] + at, e, x->dout, c->d);
        }
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t tokens = 2 * c->half, n_q = c->batch * tokens * c->heads * c->d;
    memset(out[OUT_O], 0, (size_t)n_q * sizeof(double));
    memset(out[OUT_DQ], 0, (size_t)n_q * sizeof(double));
    for (int p = 0; p < 2 * c->n_parts; p++) {
        int64_t keys = c->half * halves_count(c->halves[p / 2]);
        memset(out[OUT_DK + p], 0, (size_t)(c->batch * keys * c->kv_heads * c->d) * sizeof(double));
    }
    for (int64_t i = 0; i < c->batch * tokens * c->heads; i++) {
        int64_t b = i / c->heads / tokens, t = i / c->heads % tokens, h = i % c->heads,
                row = row_of(c, c->rank, HALF_BOTH, t);
        int64_t pos = (int64_t)in[IN_POS][b * tokens + t],
                back = c->attr.chunk ? pos % c->attr.chunk : pos;
        Query x = {b,
                   h,
                   row - back,
                   row + 1,
                   in[IN_Q] + i * c->d,
                   in[IN_K + 2 * c->n_parts] + i * c->d,
                   out[OUT_O] + i * c->d,
                   out[OUT_DQ] + i * c->d,
                   out[OUT_LSE] + (b * c->heads + h) * tokens + t};
        query_forward(c, &x, in);
        query_backward(c, &x, in, out);
    }
}

/* ---- the ops ---------------------------------------------------------------------------- */

static ValueId positions(OpTest *t, const Case *c)
{
    int64_t tokens = 2 * c->half;
    double *pos = xmalloc((size_t)(c->batch * tokens) * sizeof(double));
    for (int64_t i = 0; i < c->batch * tokens; i++)
        pos[i] = (double)position(c, i / tokens, row_of(c, c->rank, HALF_BOTH, i % tokens));
    ValueId v = optest_data(t, DTYPE_I32, SHAPE(c->batch, tokens), pos);
    free(pos);
    return v;
}

static AttentionPart part_of(const Case *c, int p)
{
    AttentionPart part = {.of = c->attr,
                          .keys = slice_of(c, c->part[p], c->halves[p]),
                          .part = p,
                          .parts = c->n_parts};
    part.of.slice = slice_of(c, c->rank, HALF_BOTH);
    part.sums = c->part[p] == c->rank ? 2 : 1; /* our own keys' gradients stay f32 */
    return part;
}

static void check_case(Case c, DType dtype, bool strided)
{
    OpTest *t = optest_create((uint64_t)(c.half * 131 + c.d));
    int64_t tokens = 2 * c.half, pitch = (c.heads + 2 * c.kv_heads) * c.d;
    ValueId k[MAX_PARTS], v[MAX_PARTS], o[2] = {NO_VALUE, NO_VALUE}, d[3] = {NO_VALUE};
    if (c.attr.scale == 0) c.attr.scale = 1 / sqrtf((float)c.d);
    ValueId q = optest_normal(t, dtype, SHAPE(c.batch, tokens, c.heads, c.d), 1.0),
            pos = positions(t, &c);
    if (strided) optest_pitch(t, q, 2, pitch);
    for (int p = 0; p < c.n_parts; p++) {
        Shape shape = SHAPE(c.batch, c.half * halves_count(c.halves[p]), c.kv_heads, c.d);
        k[p] = optest_normal(t, dtype, shape, 1.0);
        v[p] = optest_normal(t, dtype, shape, 1.0);
        if (strided) optest_pitch(t, v[p], 2, pitch);
    }
    ValueId dout = optest_normal(t, dtype, SHAPE(c.batch, tokens, c.heads, c.d), 1.0);
    for (int p = 0; p < c.n_parts; p++) {
        AttentionPart part = part_of(&c, p);
        optest_ok(
            op_attention_part(t->graph, (ValueId[]){q, k[p], v[p], pos, o[0], o[1]}, &part, o));
        if (strided) optest_pitch(t, o[0], 2, c.heads * c.d + 7);
    }
    optest_output(t, o[0]);
    optest_output(t, o[1]);
    ValueId dk[MAX_PARTS], dv[MAX_PARTS];
    for (int p = 0; p < c.n_parts; p++) {
        AttentionPart part = part_of(&c, p);
        optest_ok(op_attention_grad_part(
            t->graph, (ValueId[]){q, k[p], v[p], pos, o[0], o[1], dout, d[0]}, &part, d));
        dk[p] = d[1];
        dv[p] = d[2];
        for (int i = 0; strided && i < 3; i++) optest_pitch(t, d[i], 2, pitch);
    }
    optest_output(t, d[0]);
    for (int p = 0; p < c.n_parts; p++) {
        optest_output(t, dk[p]);
        optest_output(t, dv[p]);
    }
    assert_int_equal(graph_value(t->graph, o[0])->dtype, dtype);
    assert_int_equal(graph_value(t->graph, d[0])->dtype, dtype);
    optest_check(t, reference, &c, dtype == DTYPE_F32 ? 2e-5 : 3e-2);
    optest_destroy(t);
}

static void check_both(Case c)
{
    check_case(c, DTYPE_F32, false);
    check_case(c, DTYPE_BF16, false);
}

/* As a rank of a ring of n meets them: of earlier ranks the first halves. */
static Case ring_case(int n, int rank)
{
    Case c = {.batch = 2,
              .half = 7,
              .heads = 4,
              .kv_heads = 2,
              .d = 8,
              .n = n,
              .rank = rank,
              .n_parts = n};
    for (int h = 0; h < n; h++) {
        c.part[h] = (rank - h + n) % n;
        c.halves[h] = c.part[h] < rank ? HALF_FIRST : HALF_BOTH;
    }
    return c;
}

static void test_ring(void **state)
{
    (void)state;
    for (int rank = 0; rank < 4; rank++) check_both(ring_case(4, rank));
    check_both(ring_case(1, 0));
}

/* More than a tile of rows, more than a block of keys. */
static void test_lengths(void **state)
{
    (void)state;
    static const int64_t half[] = {1, 33, 50, 131, 300};
    for (int i = 0; i < COUNT_OF(half); i++) {
        Case c = ring_case(2, i % 2);
        c.half = half[i];
        c.batch = half[i] < 100 ? 2 : 1;
        c.heads = c.kv_heads = 1;
        check_both(c);
    }
}

static void test_shapes(void **state)
{
    (void)state;
    static const int64_t d[] = {20, 33, 64, 128};
    for (int i = 0; i < COUNT_OF(d); i++) {
        Case c = ring_case(3, 1);
        c.d = d[i];
        c.heads = i % 2 ? 6 : 3;
        c.kv_heads = i % 2 ? 2 : 3;
        check_both(c);
    }
    Case c = ring_case(3, 2);
    check_case(c, DTYPE_F32, true);
    check_case(c, DTYPE_BF16, true);
}

/* A part of which nothing is seen changes nothing, also where it comes first. */
static void test_masks(void **state)
{
    (void)state;
    static const int64_t document[] = {0, 3, 11, 41}, chunk[] = {0, 5, 16};
    for (int i = 0; i < COUNT_OF(document) * COUNT_OF(chunk); i++) {
        Case c = ring_case(4, i % 4);
        c.half = 13;
        c.document = document[i % COUNT_OF(document)];
        c.attr.chunk = chunk[i / COUNT_OF(document)];
        check_both(c);
        for (int p = 0; p < 2; p++) { /* the other way round: our own keys last */
            int part = c.part[p], halves = c.halves[p];
            c.part[p] = c.part[3 - p], c.halves[p] = c.halves[3 - p];
            c.part[3 - p] = part, c.halves[3 - p] = halves;
        }
        check_case(c, DTYPE_F32, false);
    }
    Case c = ring_case(4, 2); /* later halves alone */
    c.attr.chunk = 9;
    c.part[1] = 3, c.halves[1] = HALF_SECOND;
    c.n_parts = 2;
    check_both(c);
}

static void test_softcap(void **state)
{
    (void)state;
    Case c = ring_case(2, 1);
    c.half = 40;
    c.attr = (AttentionAttr){.scale = 0.4f, .softcap = 3.0f};
    check_both(c);
    c.half = 150; /* Grok's cap, scores on both sides of it */
    c.attr = (AttentionAttr){.scale = 4.0f, .softcap = 30.0f};
    check_case(c, DTYPE_F32, false);
}

/* Parts of two blocks of keys, whose rows are not neighbours, within one block of the kernel. */
static void test_alibi(void **state)
{
    (void)state;
    static const int64_t half[] = {7, 40, 150};
    for (int i = 0; i < COUNT_OF(half); i++)
        for (int rank = 0; rank < 3; rank++) {
            Case c = ring_case(3, rank);
            c.half = half[i];
            c.batch = half[i] < 100 ? 2 : 1;
            c.attr.alibi = 8;
            check_case(c, DTYPE_F32, false);
            if (half[i] < 100) check_case(c, DTYPE_BF16, true);
        }
    Case c = ring_case(4, 2);
    c.half = 13;
    c.document = 41;
    c.attr.alibi = 2;
    check_both(c);
}

/* ---- costs and refusals ----------------------------------------------------------------- */

static double count_pairs(const AttentionPart *p, int64_t tokens, int64_t keys)
{
    double pairs = 0;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t s = 0; s < keys; s++) {
            int64_t q = attention_row(&p->of.slice, t), k = attention_row(&p->keys, s);
            pairs += k <= q && (p->of.chunk <= 0 || k / p->of.chunk == q / p->of.chunk);
        }
    return pairs;
}

static void test_pairs(void **state)
{
    (void)state;
    static const int64_t chunk[] = {0, 1, 5, 13, 40, 1000};
    for (int i = 0; i < COUNT_OF(chunk); i++)
        for (int rank = 0; rank < 3; rank++)
            for (int k = 0; k < 9; k++) {
                Case c = ring_case(3, rank);
                c.attr.chunk = chunk[i];
                c.part[0] = k / 3;
                c.halves[0] = k % 3 + 1;
                AttentionPart p = part_of(&c, 0);
                int64_t keys = c.half * halves_count(c.halves[0]);
                assert_true(attention_part_pairs(&p, 2 * c.half, keys) ==
                            count_pairs(&p, 2 * c.half, keys));
            }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId q = optest_normal(t, DTYPE_F32, SHAPE(1, 4, 2, 8), 1.0),
            pos = optest_integers(t, SHAPE(1, 4), 0, 1), o[2], d[3];
    ValueId half = optest_normal(t, DTYPE_BF16, SHAPE(1, 4, 2, 8), 1.0),
            lse = optest_normal(t, DTYPE_F32, SHAPE(1, 2, 4), 1.0);
    AttentionPart part = {.of = {.scale = 1}, .part = 0, .parts = 2, .sums = 1};
    optest_refused(op_attention_part(t->graph, (ValueId[]){q, q, q, pos, q, lse}, &part, o),
                   ERR_ARG, "part 0 of 2 has a sum so far");
    part.part = 1;
    optest_refused(
        op_attention_part(t->graph, (ValueId[]){q, q, q, pos, NO_VALUE, NO_VALUE}, &part, o),
        ERR_ARG, "lacks a sum so far");
    optest_refused(op_attention_part(t->graph, (ValueId[]){q, q, q, pos, half, lse}, &part, o),
                   ERR_SHAPE, "wanted f32");
    optest_refused(op_attention_part(t->graph, (ValueId[]){q, half, half, pos, q, lse}, &part, o),
                   ERR_SHAPE, "dtypes must agree");
    optest_refused(
        op_attention_grad_part(t->graph, (ValueId[]){q, q, q, pos, q, lse, half, q}, &part, d),
        ERR_SHAPE, "operand 6 is bf16");
    part.part = 2;
    optest_refused(op_attention_part(t->graph, (ValueId[]){q, q, q, pos, q, lse}, &part, o),
                   ERR_ARG, "part 2 of 2");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring),    cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_shapes),  cmocka_unit_test(test_masks),
        cmocka_unit_test(test_softcap), cmocka_unit_test(test_alibi),
        cmocka_unit_test(test_pairs),   cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
