/* cache_append and attention_cached: decoding and prompts over pages against double precision, with
 * tables in any order, pages that are shared, chunks, soft caps, sequences of different lengths and
 * rows that are not there. What no query sees is NaN: whole pages, and the rest of pages that are
 * seen in part. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SPARE = 3, MAX_WIDTH = 80 }; /* pages of nobody; pages of a sequence */

typedef struct Case {
    int64_t batch, n, heads, kv_heads, d, context, page;
    AttentionAttr attr;
    int64_t start[3]; /* position of the first new token of each sequence; < 0: absent */
    int64_t shared;   /* so many pages of the first sequence are the second's too */
} Case;

/* Where everything lies: made of a Case. */
typedef struct Layout {
    const Case *c;
    int64_t width, pages;
    int64_t entry[3 * MAX_WIDTH]; /* of all positions, [batch width] */
    int64_t first[3], end[3];     /* positions that are seen */
} Layout;

static int64_t lowest(const Case *c, int64_t pos)
{
    return c->attr.chunk > 0 ? pos - pos % c->attr.chunk : 0;
}

static Layout lay_out(const Case *c)
{
    Layout l = {.c = c, .width = (c->context + c->page - 1) / c->page};
    assert_true(l.width <= MAX_WIDTH);
    l.pages = c->batch * l.width + SPARE;
    int64_t order[3 * MAX_WIDTH + SPARE];
    for (int64_t i = 0; i < l.pages; i++) { /* a random order of all */
        int64_t k = (int64_t)rng_below(5, (uint64_t)i, (uint64_t)(i + 1));
        order[i] = order[k];
        order[k] = i;
    }
    memcpy(l.entry, order, sizeof *order * (size_t)(c->batch * l.width));
    for (int64_t i = 0; i < c->shared; i++) l.entry[l.width + i] = l.entry[i];
    for (int64_t b = 0; b < c->batch; b++) {
        if (c->start[b] < 0) continue;
        l.first[b] = lowest(c, c->start[b]);
        l.end[b] = c->start[b] + c->n;
    }
    return l;
}

/* The row of a position among those of all pages. */
static int64_t row_of(const Layout *l, int64_t b, int64_t pos)
{
    return l->entry[b * l->width + pos / l->c->page] * l->c->page + pos % l->c->page;
}

/* Only what is seen has an entry. */
static ValueId make_table(OpTest *t, const Layout *l)
{
    double entry[3 * MAX_WIDTH];
    int64_t page = l->c->page;
    for (int64_t i = 0; i < l->c->batch * l->width; i++) {
        int64_t b = i / l->width, at = i % l->width;
        bool seen = l->first[b] < l->end[b] && at >= l->first[b] / page &&
                    at <= (l->end[b] - 1) / page;
        entry[i] = seen ? (double)l->entry[i] : -1;
    }
    return optest_data(t, DTYPE_I32, SHAPE(l->c->batch, l->width), entry);
}

/* Element by element the same numbers for the same position, wherever it lies; shared positions are
 * those of the first sequence. */
static ValueId make_pool(OpTest *t, const Layout *l, DType dtype, uint64_t seed)
{
    const Case *c = l->c;
    int64_t width = c->kv_heads * c->d, n = l->pages * c->page * width;
    double *x = xmalloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = NAN;
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t pos = l->first[b]; pos < l->end[b]; pos++)
            for (int64_t i = 0; i < width; i++) {
                int64_t from = pos / c->page < c->shared && b == 1 ? 0 : b;
                x[row_of(l, b, pos) * width + i] = rng_normal(
                    seed, (uint64_t)((from * c->context + pos) * width + i));
            }
    ValueId v = optest_data(t, dtype, SHAPE(l->pages, c->page, c->kv_heads, c->d), x);
    free(x);
    return v;
}

static double score(const Case *c, double *const *in, const double *q, int64_t row, int64_t h,
                    int64_t behind)
{
    double z = 0;
    for (int64_t i = 0; i < c->d; i++) z += q[i] * in[1][row + i] * (double)c->attr.scale;
    if (c->attr.softcap > 0) z = (double)c->attr.softcap * tanh(z / (double)c->attr.softcap);
    if (c->attr.alibi > 0) /* heads are a power of two here */
        z += pow(2, -(double)c->attr.alibi * (double)(h + 1) / (double)c->heads) * (double)behind;
    return z;
}

static void query(const Layout *l, double *const *in, double *o, const int64_t at[3], int64_t pos)
{
    const Case *c = l->c;
    int64_t d = c->d, k_head = at[2] / (c->heads / c->kv_heads);
    const double *q = in[0] + ((at[0] * c->n + at[1]) * c->heads + at[2]) * d;
    double top = -INFINITY, sum = 0, *z = xmalloc((size_t)(pos + 1) * sizeof(double));
    memset(o, 0, (size_t)d * sizeof(double));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = lowest(c, pos); j <= pos; j++) {
            int64_t row = (row_of(l, at[0], j) * c->kv_heads + k_head) * d;
            if (pass == 0) {
                z[j] = score(c, in, q, row, at[2], j - pos);
                top = fmax(top, z[j]);
            } else {
                double p = exp(z[j] - top);
                sum += p;
                for (int64_t i = 0; i < d; i++) o[i] += p * in[2][row + i];
            }
        }
    for (int64_t i = 0; i < d; i++) o[i] /= sum;
    free(z);
}

static void reference(const void *user, double *const *in, double *const *out)
{
    const Layout *l = user;
    const Case *c = l->c;
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t i = 0; i < c->n; i++)
            for (int64_t h = 0; h < c->heads; h++) {
                double *o = out[0] + ((b * c->n + i) * c->heads + h) * c->d;
                int64_t pos = (int64_t)in[3][b * c->n + i];
                if (pos >= 0)
                    query(l, in, o, (int64_t[]){b, i, h}, pos);
                else
                    memset(o, 0, (size_t)c->d * sizeof(double));
            }
}

static ValueId make_positions(OpTest *t, const Case *c)
{
    double pos[1024];
    for (int64_t i = 0; i < c->batch * c->n; i++)
        pos[i] = (double)(c->start[i / c->n] < 0 ? -1 : c->start[i / c->n] + i % c->n);
    return optest_data(t, DTYPE_I32, SHAPE(c->batch, c->n), pos);
}

static void check_case(Case c, DType dtype, DType cache)
{
    OpTest *t = optest_create((uint64_t)(c.context + c.d));
    if (c.attr.scale == 0) c.attr.scale = 1 / sqrtf((float)c.d);
    Layout l = lay_out(&c);
    ValueId q = optest_normal(t, dtype, SHAPE(c.batch, c.n, c.heads, c.d), 1.0), o;
    ValueId k = make_pool(t, &l, cache, 1), v = make_pool(t, &l, cache, 2);
    ValueId pos = make_positions(t, &c), table = make_table(t, &l);
    optest_ok(op_attention_cached(t->graph, q, k, v, pos, table, c.attr, &o));
    optest_output(t, o);
    optest_check(t, reference, &l, dtype == DTYPE_F32 ? 2e-5 : 3e-2);
    optest_destroy(t);
}

static void check_all(Case c)
{
    check_case(c, DTYPE_F32, DTYPE_F32);
    check_case(c, DTYPE_BF16, DTYPE_BF16);
    check_case(c, DTYPE_F32, DTYPE_BF16);
}

static void test_decode(void **state)
{
    (void)state;
    Case c = {.batch = 3,
              .n = 1,
              .heads = 6,
              .kv_heads = 2,
              .d = 16,
              .context = 700,
              .page = 16,
              .start = {0, 699, -1}};
    check_all(c);
    c.d = 40;
    c.heads = 2;
    c.page = 64;
    c.start[1] = 300;
    check_all(c);
    c.attr.chunk = 128;
    check_all(c);
}

static void test_prompt(void **state)
{
    (void)state;
    check_all((Case){
        .batch = 1, .n = 130, .heads = 4, .kv_heads = 2, .d = 16, .context = 300, .page = 16});
    check_all((Case){.batch = 2,
                     .n = 33,
                     .heads = 2,
                     .kv_heads = 1,
                     .d = 8,
                     .context = 400,
                     .page = 128,
                     .start = {350, 17}});
}

/* Chunks that begin within a page, and within a step of the processor's kernel. */
static void test_chunks(void **state)
{
    (void)state;
    Case c = {.batch = 3,
              .n = 1,
              .heads = 2,
              .kv_heads = 1,
              .d = 16,
              .context = 1200,
              .page = 16,
              .attr = {.chunk = 75},
              .start = {74, 75 * 15 + 70, 75 * 7 + 5}};
    check_all(c);
    c.n = 90; /* over the ends of chunks */
    c.start[1] = 75 * 14 + 50;
    check_all(c);
    c.page = 64;
    check_all(c);
}

/* Two sequences read the same pages, and go on in pages of their own. */
static void test_shared(void **state)
{
    (void)state;
    Case c = {.batch = 3,
              .n = 1,
              .heads = 4,
              .kv_heads = 2,
              .d = 24,
              .context = 200,
              .page = 32,
              .start = {150, 101, 64},
              .shared = 3};
    check_all(c);
    c.n = 20;
    check_all(c);
}

/* Decoding and prompts, also far along. */
static void test_alibi(void **state)
{
    (void)state;
    check_all((Case){.batch = 3,
                     .n = 1,
                     .heads = 4,
                     .kv_heads = 2,
                     .d = 16,
                     .context = 700,
                     .page = 32,
                     .start = {0, 699, -1},
                     .attr = {.alibi = 8}});
    check_all((Case){.batch = 2,
                     .n = 33,
                     .heads = 2,
                     .kv_heads = 1,
                     .d = 8,
                     .context = 400,
                     .page = 16,
                     .start = {350, 17},
                     .attr = {.alibi = 8}});
    check_all((Case){.batch = 1,
                     .n = 1,
                     .heads = 2,
                     .kv_heads = 1,
                     .d = 16,
                     .context = 64 * 64,
                     .page = 64,
                     .start = {64 * 63 + 63},
                     .attr = {.alibi = 8, .chunk = 64}});
}

static void test_softcap(void **state)
{
    (void)state;
    Case c = {.batch = 3,
              .n = 1,
              .heads = 6,
              .kv_heads = 2,
              .d = 16,
              .context = 700,
              .page = 16,
              .start = {0, 699, -1},
              .attr = {.scale = 3, .softcap = 30}};
    check_all(c); /* decoding */
    c.attr.chunk = 128;
    check_all(c);
    check_all((Case){.batch = 2,
                     .n = 33,
                     .heads = 4,
                     .kv_heads = 1,
                     .d = 24,
                     .context = 400,
                     .page = 256,
                     .start = {350, 17},
                     .attr = {.scale = 1, .softcap = 5}}); /* prompts */
}

/* ---- the same bits for pages of any size ------------------------------------------------ */

enum { SIZES = 4 };

static void same_bits(OpTest *t, const ValueId o[SIZES], Target target)
{
    OpRun run;
    assert_true(optest_run(&run, t, target, 0));
    double *first = optest_run_values(&run, o[0]);
    for (int i = 1; i < SIZES; i++) {
        double *other = optest_run_values(&run, o[i]);
        assert_memory_equal(first, other, sizeof *first * (size_t)optest_count(t, o[0]));
        free(other);
    }
    assert_true(first[0] == first[0]);
    free(first);
    optest_run_end(&run);
}

/* One page for all is a cache that lies in one piece. */
static void check_sizes(Case c, DType dtype)
{
    static const int64_t page[SIZES] = {1024, 16, 64, 128};
    OpTest *t = optest_create(9);
    ValueId o[SIZES], q = optest_normal(t, dtype, SHAPE(c.batch, c.n, c.heads, c.d), 1.0);
    ValueId pos = make_positions(t, &c);
    Target target;
    c.attr.scale = 1 / sqrtf((float)c.d);
    c.attr.context = c.context;
    for (int i = 0; i < SIZES; i++) {
        c.page = page[i];
        Layout l = lay_out(&c);
        ValueId k = make_pool(t, &l, dtype, 1), v = make_pool(t, &l, dtype, 2);
        optest_ok(op_attention_cached(t->graph, q, k, v, pos, make_table(t, &l), c.attr, &o[i]));
        optest_output(t, o[i]);
    }
    for (int i = 0; optest_target(t, i, 2, &target); i++) same_bits(t, o, target);
    optest_destroy(t);
}

static void test_sizes(void **state)
{
    (void)state;
    Case c = {.batch = 3,
              .n = 1,
              .heads = 4,
              .kv_heads = 2,
              .d = 16,
              .context = 650,
              .start = {649, 0, 300}};
    check_sizes(c, DTYPE_F32);
    check_sizes(c, DTYPE_BF16);
    c.attr.chunk = 90;
    c.n = 40;
    c.start[0] = 590;
    check_sizes(c, DTYPE_F32);
    check_sizes(c, DTYPE_BF16);
}

/* ---- writing ---------------------------------------------------------------------------- */

/* Three sequences with two pages each, of 16 positions, six new tokens each; the second takes over
 * what it has of page 6, to which the third writes in the same step. */
enum { NEW = 6, ROW = 8, POOL_ROWS = 8 * 16 };
static const double append_pos[18] = {3,  4,  5,  6,  7,  8,  19, 20, -1,
                                      21, 22, -1, -1, 18, 19, 20, 21, 22};
static const double append_table[6] = {5, -1, 7, 0, 2, 6}, append_copy[3] = {-1, 6, -1};

static void reference_append(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int i = 0; i < 2; i++) {
        memcpy(out[i], in[5 + i], POOL_ROWS * ROW * sizeof(double));
        memcpy(out[i] + 0 * 16 * ROW, in[5 + i] + 6 * 16 * ROW, 3 * ROW * sizeof(double));
        for (int t = 0; t < 3 * NEW; t++) {
            int pos = (int)append_pos[t], row;
            if (pos < 0) continue;
            row = (int)append_table[t / NEW * 2 + pos / 16] * 16 + pos % 16;
            memcpy(out[i] + row * ROW, in[i] + t * ROW, ROW * sizeof(double));
        }
    }
}

/* Rows of 16 bytes and more, next to each other and with gaps. */
static void test_append(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        OpTest *t = optest_create(3);
        DType dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        double old[POOL_ROWS * ROW];
        for (int j = 0; j < POOL_ROWS * ROW; j++) old[j] = j % 251;
        Shape tokens = SHAPE(3, NEW, 2, 4), pool = SHAPE(8, 16, 2, 4);
        ValueId k = optest_normal(t, dtype, tokens, 1.0), v = optest_normal(t, dtype, tokens, 1.0);
        ValueId pos = optest_data(t, DTYPE_I32, SHAPE(3, NEW), append_pos), k_new, v_new;
        CachePages pages;
        pages.table = optest_data(t, DTYPE_I32, SHAPE(3, 2), append_table);
        pages.copy = optest_data(t, DTYPE_I32, SHAPE(3), append_copy);
        pages.k = optest_state(t, dtype, pool, STATE_CACHE, old);
        pages.v = optest_state(t, dtype, pool, STATE_CACHE, NULL);
        if (i / 2) optest_pitch(t, k, 2, 9);
        optest_ok(op_cache_append(t->graph, k, v, pos, pages, &k_new, &v_new));
        optest_output(t, k_new);
        optest_output(t, v_new);
        optest_check(t, reference_append, NULL, 1e-9);
        optest_destroy(t);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId k = optest_normal(t, DTYPE_F32, SHAPE(1, 2, 2, 4), 1.0), a, b;
    ValueId pos = optest_integers(t, SHAPE(1, 2), 0, 4),
            table = optest_integers(t, SHAPE(1, 3), 0, 1);
    ValueId half = optest_state(t, DTYPE_BF16, SHAPE(4, 16, 2, 4), STATE_CACHE, NULL);
    ValueId odd = optest_state(t, DTYPE_F32, SHAPE(4, 24, 2, 4), STATE_CACHE, NULL);
    ValueId pool = optest_state(t, DTYPE_F32, SHAPE(4, 16, 2, 4), STATE_CACHE, NULL);
    ValueId copy = optest_integers(t, SHAPE(1), 0, 1);
    CachePages pages = {half, half, table, copy};
    optest_refused(op_cache_append(t->graph, k, k, pos, pages, &a, &b), ERR_SHAPE,
                   "does not go into pages");
    pages.k = pages.v = odd;
    optest_refused(op_cache_append(t->graph, k, k, pos, pages, &a, &b), ERR_SHAPE,
                   "a power of two from 16 on");
    pages.k = pages.v = pool;
    pages.copy = pos;
    optest_refused(op_cache_append(t->graph, k, k, pos, pages, &a, &b), ERR_SHAPE,
                   "pages to copy are");
    AttentionAttr attr = {.scale = 1};
    optest_refused(op_attention_cached(t->graph, k, odd, odd, pos, table, attr, &a), ERR_SHAPE,
                   "a power of two from 16 on");
    ValueId two = optest_integers(t, SHAPE(2, 3), 0, 1);
    optest_refused(op_attention_cached(t->graph, k, pool, pool, pos, two, attr, &a), ERR_SHAPE,
                   "the table is");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),   cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_chunks),   cmocka_unit_test(test_shared),
        cmocka_unit_test(test_alibi),    cmocka_unit_test(test_softcap),
        cmocka_unit_test(test_sizes),    cmocka_unit_test(test_append),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
