/* cache_append and attention_cached: decoding and prefill over caches against double precision,
 * with rings that wrap, chunks, soft caps, sequences of different lengths and rows that are not
 * there. */
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Case {
    int64_t batch, n, heads, kv_heads, d, rows; /* rows of the cache */
    AttentionAttr attr;
    int64_t start[3]; /* position of the first new token of each sequence; < 0: absent */
} Case;

static void query(const Case *c, double *const *in, double *o, const int64_t at[3], int64_t pos)
{
    int64_t d = c->d, k_head = at[2] / (c->heads / c->kv_heads);
    const double *q = in[0] + ((at[0] * c->n + at[1]) * c->heads + at[2]) * d;
    int64_t first = c->attr.chunk > 0 ? pos - pos % c->attr.chunk : 0;
    double top = -INFINITY, sum = 0, *z = xmalloc((size_t)(pos + 1) * sizeof(double));
    memset(o, 0, (size_t)d * sizeof(double));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = first; j <= pos; j++) {
            int64_t row = ((at[0] * c->rows + j % c->rows) * c->kv_heads + k_head) * d;
            if (pass == 0) {
                z[j] = 0;
                for (int64_t i = 0; i < d; i++)
                    z[j] += q[i] * in[1][row + i] * (double)c->attr.scale;
                if (c->attr.softcap > 0)
                    z[j] = (double)c->attr.softcap * tanh(z[j] / (double)c->attr.softcap);
                if (c->attr.alibi > 0) /* heads are a power of two here */
                    z[j] += pow(2,
                                -(double)c->attr.alibi * (double)(at[2] + 1) / (double)c->heads) *
                            (double)(j - pos);
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
    const Case *c = user;
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t i = 0; i < c->n; i++)
            for (int64_t h = 0; h < c->heads; h++) {
                double *o = out[0] + ((b * c->n + i) * c->heads + h) * c->d;
                int64_t pos = (int64_t)in[3][b * c->n + i];
                if (pos >= 0)
                    query(c, in, o, (int64_t[]){b, i, h}, pos);
                else
                    memset(o, 0, (size_t)c->d * sizeof(double));
            }
}

static void check_case(Case c, DType dtype, DType cache)
{
    OpTest *t = optest_create((uint64_t)(c.rows + c.d));
    if (c.attr.scale == 0) c.attr.scale = 1 / sqrtf((float)c.d);
    double pos[1024];
    for (int64_t i = 0; i < c.batch * c.n; i++)
        pos[i] = (double)(c.start[i / c.n] < 0 ? -1 : c.start[i / c.n] + i % c.n);
    ValueId q = optest_normal(t, dtype, SHAPE(c.batch, c.n, c.heads, c.d), 1.0), o;
    ValueId k = optest_normal(t, cache, SHAPE(c.batch, c.rows, c.kv_heads, c.d), 1.0);
    ValueId v = optest_normal(t, cache, SHAPE(c.batch, c.rows, c.kv_heads, c.d), 1.0);
    optest_ok(op_attention_cached(t->graph, q, k, v,
                                  optest_data(t, DTYPE_I32, SHAPE(c.batch, c.n), pos), c.attr, &o));
    optest_output(t, o);
    optest_check(t, reference, &c, dtype == DTYPE_F32 ? 2e-5 : 3e-2);
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
    Case c = {
        .batch = 3, .n = 1, .heads = 6, .kv_heads = 2, .d = 16, .rows = 700, .start = {0, 699, -1}};
    check_all(c);
    c.d = 40;
    c.heads = 2;
    c.start[1] = 300;
    check_all(c);
    c.attr.chunk = 128;
    check_all(c);
}

static void test_prefill(void **state)
{
    (void)state;
    check_all((Case){.batch = 1, .n = 130, .heads = 4, .kv_heads = 2, .d = 16, .rows = 300});
    check_all((Case){
        .batch = 2, .n = 33, .heads = 2, .kv_heads = 1, .d = 8, .rows = 400, .start = {350, 17}});
}

/* A ring of one chunk: positions far past its rows. */
static void test_ring(void **state)
{
    (void)state;
    Case c = {
        .batch = 3, .n = 1, .heads = 2, .kv_heads = 1, .d = 16, .rows = 64, .attr = {.chunk = 64}};
    int64_t start[3] = {63, 64 * 1000 + 63, 64 * 7 + 5};
    memcpy(c.start, start, sizeof start);
    check_all(c);
    c.rows = 100; /* wraps in the middle of a chunk */
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
                     .rows = 700,
                     .start = {0, 699, -1},
                     .attr = {.alibi = 8}});
    check_all((Case){.batch = 2,
                     .n = 33,
                     .heads = 2,
                     .kv_heads = 1,
                     .d = 8,
                     .rows = 400,
                     .start = {350, 17},
                     .attr = {.alibi = 8}});
    check_all((Case){.batch = 1,
                     .n = 1,
                     .heads = 2,
                     .kv_heads = 1,
                     .d = 16,
                     .rows = 64,
                     .start = {64 * 1000 + 63},
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
              .rows = 700,
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
                     .rows = 400,
                     .start = {350, 17},
                     .attr = {.scale = 1, .softcap = 5}}); /* prompts */
}

static void reference_append(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int i = 0; i < 2; i++) {
        memcpy(out[i], in[3 + i], 2 * 5 * 4 * sizeof(double));
        for (int t = 0; t < 6; t++) {
            int pos = (int)in[2][t];
            if (pos < 0) continue;
            memcpy(out[i] + (t / 3 * 5 + pos % 5) * 4, in[i] + t * 4, 4 * sizeof(double));
        }
    }
}

static void test_append(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        OpTest *t = optest_create(3);
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        double pos[6] = {3, 4, 5, -1, 0, 12}, old[40];
        for (int i = 0; i < 40; i++) old[i] = i;
        ValueId k = optest_normal(t, dtype, SHAPE(2, 3, 2, 2), 1.0),
                v = optest_normal(t, dtype, SHAPE(2, 3, 2, 2), 1.0);
        ValueId p = optest_data(t, DTYPE_I32, SHAPE(2, 3), pos), k_new, v_new;
        ValueId k_cache = optest_state(t, dtype, SHAPE(2, 5, 2, 2), STATE_CACHE, old);
        ValueId v_cache = optest_state(t, dtype, SHAPE(2, 5, 2, 2), STATE_CACHE, NULL);
        optest_pitch(t, k, 2, 9);
        optest_ok(op_cache_append(t->graph, k, v, p, k_cache, v_cache, &k_new, &v_new));
        optest_output(t, k_new);
        optest_output(t, v_new);
        optest_check(t, reference_append, NULL, 1e-9);
        optest_destroy(t);
    }
}

/* More new tokens than rows: of those that fall into one row the last stays. Rows of 16 bytes. */
static void reference_wraps(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int i = 0; i < 2; i++) {
        memcpy(out[i], in[3 + i], 2 * 5 * 8 * sizeof(double));
        for (int t = 0; t < 26; t++) {
            int pos = (int)in[2][t];
            if (pos < 0) continue;
            memcpy(out[i] + (t / 13 * 5 + pos % 5) * 8, in[i] + t * 8, 8 * sizeof(double));
        }
    }
}

static void test_append_wraps(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        OpTest *t = optest_create(4);
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        double pos[26];
        for (int i = 0; i < 26; i++) pos[i] = i < 13 ? 7 + i : i == 20 ? -1 : i % 3;
        ValueId k = optest_normal(t, dtype, SHAPE(2, 13, 2, 4), 1.0),
                v = optest_normal(t, dtype, SHAPE(2, 13, 2, 4), 1.0), k_new, v_new;
        ValueId p = optest_data(t, DTYPE_I32, SHAPE(2, 13), pos);
        ValueId k_cache = optest_state(t, dtype, SHAPE(2, 5, 2, 4), STATE_CACHE, NULL);
        ValueId v_cache = optest_state(t, dtype, SHAPE(2, 5, 2, 4), STATE_CACHE, NULL);
        optest_ok(op_cache_append(t->graph, k, v, p, k_cache, v_cache, &k_new, &v_new));
        optest_output(t, k_new);
        optest_output(t, v_new);
        optest_check(t, reference_wraps, NULL, 1e-9);
        optest_destroy(t);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId k = optest_normal(t, DTYPE_F32, SHAPE(1, 2, 2, 4), 1.0), a, b;
    ValueId cache = optest_state(t, DTYPE_BF16, SHAPE(1, 9, 2, 4), STATE_CACHE, NULL);
    ValueId pos = optest_integers(t, SHAPE(1, 2), 0, 4);
    optest_refused(op_cache_append(t->graph, k, k, pos, cache, cache, &a, &b), ERR_SHAPE,
                   "does not go into a cache");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),       cmocka_unit_test(test_prefill),
        cmocka_unit_test(test_ring),         cmocka_unit_test(test_softcap),
        cmocka_unit_test(test_alibi),        cmocka_unit_test(test_append),
        cmocka_unit_test(test_append_wraps), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
