/* attention and its gradient against plain double precision: shapes that fill no tile, packed
 * documents, chunks, soft caps, grouped heads, strided operands. */
#include "gpu/attention.h"
#include "ops/attention/attention_internal.h"
#include "ops/optest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Case {
    int64_t batch, tokens, heads, kv_heads, d;
    int64_t document; /* positions start anew after so many tokens; 0: never */
    AttentionAttr attr;
} Case;

/* As Press, Smith and Lewis's own code has it: of a number that is no power of two the slopes of
 * the power of two below it, then every second of those of the one above. */
static double slope_of(int64_t head, int64_t heads, double alibi)
{
    int64_t below = 1;
    while (2 * below <= heads) below *= 2;
    if (head < below) return pow(2, -alibi * (double)(head + 1) / (double)below);
    return pow(2, -alibi * (double)(2 * (head - below) + 1) / (double)(2 * below));
}

/* probabilities of query t of head h into p[0..t]; the log-sum-exp */
static double probabilities(const Case *c, double *const *in, const int64_t at[3], double *p)
{
    int64_t b = at[0], t = at[1], h = at[2], d = c->d, k_head = h / (c->heads / c->kv_heads);
    const double *q = in[0] + ((b * c->tokens + t) * c->heads + h) * d;
    int64_t pos = (int64_t)in[3][b * c->tokens + t];
    int64_t first = t - (c->attr.chunk > 0 ? pos % c->attr.chunk : pos);
    if (first < 0) first = 0;
    double top = -INFINITY, sum = 0, cap = (double)c->attr.softcap;
    for (int64_t j = 0; j <= t; j++) {
        const double *k = in[1] + ((b * c->tokens + j) * c->kv_heads + k_head) * d;
        p[j] = 0;
        for (int64_t i = 0; i < d; i++) p[j] += q[i] * k[i];
        p[j] *= (double)c->attr.scale;
        if (cap > 0) p[j] = cap * tanh(p[j] / cap);
        if (c->attr.alibi > 0)
            p[j] += slope_of(h + c->attr.alibi_first,
                             c->attr.alibi_heads ? c->attr.alibi_heads : c->heads,
                             (double)c->attr.alibi) *
                    (double)(j - t);
        if (j >= first) top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j <= t; j++) sum += p[j] = j >= first ? exp(p[j] - top) : 0;
    for (int64_t j = 0; j <= t; j++) p[j] /= sum;
    return top + log(sum);
}

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

static void reference(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t d = c->d, group = c->heads / c->kv_heads;
    double *p = xmalloc((size_t)c->tokens * sizeof(double));
    memset(out[0], 0, (size_t)(c->batch * c->tokens * c->heads * d) * sizeof(double));
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t t = 0; t < c->tokens; t++)
            for (int64_t h = 0; h < c->heads; h++) {
                double *o = out[0] + ((b * c->tokens + t) * c->heads + h) * d;
                probabilities(c, in, (int64_t[]){b, t, h}, p);
                for (int64_t j = 0; j <= t; j++)
                    add_scaled(o, p[j], in[2] + ((b * c->tokens + j) * c->kv_heads + h / group) * d,
                               d);
            }
    free(p);
}

/* What query `at` adds to dq, dk, dv (out[1..3]), by the chain rule; in[4] is the output's
 * gradient. */
static void reference_query_grad(const Case *c, double *const *in, double *const *out,
                                 const int64_t at[3], double *p)
{
    int64_t d = c->d, row = ((at[0] * c->tokens + at[1]) * c->heads + at[2]) * d;
    int64_t k_head = at[2] / (c->heads / c->kv_heads);
    const double *q = in[0] + row, *dout = in[4] + row;
    double delta = dot(out[0] + row, dout, d), cap = (double)c->attr.softcap;
    probabilities(c, in, at, p);
    for (int64_t j = 0; j <= at[1]; j++) {
        int64_t key = ((at[0] * c->tokens + j) * c->kv_heads + k_head) * d;
        double slope = p[j] * (dot(dout, in[2] + key, d) - delta) * (double)c->attr.scale;
        if (cap > 0) {
            double z = tanh(dot(q, in[1] + key, d) * (double)c->attr.scale / cap);
            slope *= 1 - z * z;
        }
        if (p[j] == 0) continue;
        add_scaled(out[1] + row, slope, in[1] + key, d);
        add_scaled(out[2] + key, slope, q, d);
        add_scaled(out[3] + key, p[j], dout, d);
    }
}

static void reference_grad(const void *user, double *const *in, double *const *out)
{
    const Case *c = user;
    int64_t n_q = c->batch * c->tokens * c->heads * c->d, n_k = n_q / c->heads * c->kv_heads;
    double *p = xmalloc((size_t)c->tokens * sizeof(double));
    reference(user, in, out);
    memset(out[1], 0, (size_t)n_q * sizeof(double));
    memset(out[2], 0, (size_t)n_k * sizeof(double));
    memset(out[3], 0, (size_t)n_k * sizeof(double));
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t t = 0; t < c->tokens; t++)
            for (int64_t h = 0; h < c->heads; h++)
                reference_query_grad(c, in, out, (int64_t[]){b, t, h}, p);
    free(p);
}

static ValueId positions(OpTest *t, const Case *c)
{
    int64_t n = c->batch * c->tokens;
    double *pos = xmalloc((size_t)n * sizeof(double));
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i % c->tokens +
                     i / c->tokens * 3; /* each sequence cuts its documents elsewhere */
        pos[i] = (double)(c->document ? at % c->document : i % c->tokens);
    }
    ValueId v = optest_data(t, DTYPE_I32, SHAPE(c->batch, c->tokens), pos);
    free(pos);
    return v;
}

typedef struct Operands {
    ValueId q, k, v, pos, o, lse;
} Operands;

static Operands build(OpTest *t, Case *c, DType dtype, bool strided)
{
    Operands x;
    if (c->attr.scale == 0) c->attr.scale = 1 / sqrtf((float)c->d);
    x.q = optest_normal(t, dtype, SHAPE(c->batch, c->tokens, c->heads, c->d), 1.0);
    x.k = optest_normal(t, dtype, SHAPE(c->batch, c->tokens, c->kv_heads, c->d), 1.0);
    x.v = optest_normal(t, dtype, SHAPE(c->batch, c->tokens, c->kv_heads, c->d), 1.0);
    x.pos = positions(t, c);
    ValueId in[4] = {x.q, x.k, x.v, x.pos}, out[2];
    optest_ok(graph_add(t->graph, &op_def_attention, &c->attr, in, 4, out));
    x.o = out[0];
    x.lse = out[1];
    if (strided) {
        int64_t pitch = (c->heads + 2 * c->kv_heads) * c->d;
        for (int i = 0; i < 3; i++) optest_pitch(t, in[i], 2, pitch);
        optest_pitch(t, x.o, 2, c->heads * c->d + 7);
    }
    optest_output(t, x.o);
    return x;
}

/* Through the gradient rule, against finite differences: for small cases. */
static void check_slopes(Case c, DType dtype)
{
    OpTest *t = optest_create((uint64_t)(c.tokens * 131 + c.d));
    build(t, &c, dtype, false);
    optest_check_grad(t, reference, &c, dtype == DTYPE_F32 ? 2e-5 : 3e-2);
    optest_destroy(t);
}

/* The gradient's node itself against the chain rule in double precision. */
static void check_case(Case c, DType dtype, bool strided)
{
    OpTest *t = optest_create((uint64_t)(c.tokens * 131 + c.d));
    Operands x = build(t, &c, dtype, strided);
    ValueId dout = optest_normal(t, dtype, SHAPE(c.batch, c.tokens, c.heads, c.d), 1.0);
    ValueId in[7] = {x.q, x.k, x.v, x.pos, x.o, x.lse, dout}, out[3];
    optest_ok(graph_add(t->graph, &op_def_attention_grad, &c.attr, in, 7, out));
    for (int i = 0; i < 3; i++) {
        optest_output(t, out[i]);
        if (strided) optest_pitch(t, out[i], 2, (c.heads + 2 * c.kv_heads) * c.d);
    }
    optest_check(t, reference_grad, &c, dtype == DTYPE_F32 ? 2e-5 : 3e-2);
    optest_destroy(t);
}

static void check_both(Case c)
{
    check_case(c, DTYPE_F32, false);
    check_case(c, DTYPE_BF16, false);
}

static void test_gradient_rule(void **state)
{
    (void)state;
    Case c = {.batch = 2, .tokens = 7, .heads = 4, .kv_heads = 2, .d = 8};
    check_slopes(c, DTYPE_F32);
    check_slopes(c, DTYPE_BF16);
    c.document = 4;
    c.attr.softcap = 2;
    check_slopes(c, DTYPE_F32);
}

static void test_lengths(void **state)
{
    (void)state;
    static const int64_t tokens[] = {2, 5, 33, 65, 130};
    for (int i = 0; i < COUNT_OF(tokens); i++)
        check_both((Case){.batch = 2, .tokens = tokens[i], .heads = 2, .kv_heads = 1, .d = 16});
}

static void test_head_dims(void **state)
{
    (void)state;
    static const int64_t d[] = {8, 20, 33, 48, 64, 80, 128, 256, 264};
    for (int i = 0; i < COUNT_OF(d); i++)
        check_both((Case){.batch = 1, .tokens = 37, .heads = 3, .kv_heads = 3, .d = d[i]});
}

static void test_groups(void **state)
{
    (void)state;
    check_both((Case){.batch = 3, .tokens = 50, .heads = 6, .kv_heads = 2, .d = 16});
    check_both((Case){.batch = 1, .tokens = 41, .heads = 5, .kv_heads = 1, .d = 24});
}

static void test_masks(void **state)
{
    (void)state;
    Case c = {.batch = 2, .tokens = 150, .heads = 2, .kv_heads = 1, .d = 16, .document = 41};
    check_both(c);
    c.attr.chunk = 16;
    check_both(c);
    c.document = 0;
    check_both(c);
    c.document = 3;
    check_both(c);
}

static void test_softcap(void **state)
{
    (void)state;
    check_both((Case){.batch = 1,
                      .tokens = 70,
                      .heads = 2,
                      .kv_heads = 2,
                      .d = 16,
                      .attr = {.scale = 1.0f, .softcap = 5.0f}});
    /* Grok's cap, scores on both sides of it; grouped heads, packed documents, more than a block of
     * keys */
    Case grok = {.batch = 2,
                 .tokens = 300,
                 .heads = 6,
                 .kv_heads = 2,
                 .d = 24,
                 .document = 170,
                 .attr = {.scale = 4.0f, .softcap = 30.0f}};
    check_case(grok, DTYPE_F32, false);
    /* long rows and large factors drown in bf16's rounding of the output, which the gradient
     reads */
    grok.document = 30;
    grok.attr = (AttentionAttr){.scale = 0.4f, .softcap = 3.0f};
    check_case(grok, DTYPE_BF16, false);
    check_slopes((Case){.batch = 1,
                        .tokens = 9,
                        .heads = 4,
                        .kv_heads = 1,
                        .d = 8,
                        .attr = {.scale = 3.0f, .softcap = 30.0f}},
                 DTYPE_F32);
}

/* Slopes by head, over documents and several blocks of keys; 3, 6 and 12 heads are no power of two.
 */
static void test_alibi(void **state)
{
    (void)state;
    Case c = {.batch = 2, .tokens = 150, .heads = 6, .kv_heads = 2, .d = 16, .attr = {.alibi = 8}};
    check_both(c);
    c.document = 41;
    check_both(c);
    c.heads = c.kv_heads = 8;
    check_both(c);
    c.attr.chunk = 16;
    check_both(c);
    check_case(
        (Case){
            .batch = 1, .tokens = 1100, .heads = 3, .kv_heads = 1, .d = 8, .attr = {.alibi = 4.5f}},
        DTYPE_F32, true);
    check_slopes((Case){.batch = 2,
                        .tokens = 9,
                        .heads = 4,
                        .kv_heads = 2,
                        .d = 8,
                        .document = 6,
                        .attr = {.alibi = 8}},
                 DTYPE_F32);
}

/* A rank's heads have the slopes that they have among all. */
static void test_alibi_of_some_heads(void **state)
{
    (void)state;
    for (int first = 0; first < 12; first += 3)
        check_both((Case){.batch = 1,
                          .tokens = 40,
                          .heads = 3,
                          .kv_heads = 1,
                          .d = 8,
                          .attr = {.alibi = 8, .alibi_heads = 12, .alibi_first = first}});
}

static void test_strided(void **state)
{
    (void)state;
    Case c = {.batch = 2, .tokens = 45, .heads = 4, .kv_heads = 2, .d = 24};
    check_case(c, DTYPE_F32, true);
    check_case(c, DTYPE_BF16, true);
}

/* Longer than a block of keys: sums go on from block to block. */
static void test_blocks(void **state)
{
    (void)state;
    check_both((Case){.batch = 1, .tokens = 300, .heads = 2, .kv_heads = 1, .d = 8});
    check_both(
        (Case){.batch = 1, .tokens = 1100, .heads = 1, .kv_heads = 1, .d = 8, .document = 700});
}

static void check_forward(Case c, bool strided)
{
    OpTest *t = optest_create((uint64_t)(c.tokens * 131 + c.d));
    build(t, &c, DTYPE_BF16, strided);
    optest_check(t, reference, &c, 1e-2);
    optest_destroy(t);
}

/* What GPUs of compute capability 9.0 do by their own instructions: tiles of 128 rows, of which
 * some are whole and some are not, walked by fewer blocks of threads than there are tiles; several
 * blocks of 128 keys, of which rows see none, parts and all; groups that do not divide 128. */
static void test_wide_heads(void **state)
{
    (void)state;
    check_forward((Case){.batch = 1, .tokens = 420, .heads = 2, .kv_heads = 1, .d = 64}, false);
    check_forward((Case){.batch = 1, .tokens = 333, .heads = 2, .kv_heads = 2, .d = 128}, true);
    Case c = {.batch = 2, .tokens = 150, .heads = 3, .kv_heads = 1, .d = 64, .document = 71};
    check_case(c, DTYPE_BF16, false);
    c.attr.chunk = 20;
    c.d = 128;
    c.tokens = 290;
    c.batch = 1;
    check_case(c, DTYPE_BF16, true);
    c = (Case){
        .batch = 2, .tokens = 141, .heads = 10, .kv_heads = 2, .d = 64, .attr = {.alibi = 8}};
    check_case(c, DTYPE_BF16, true);
    /* longer than the rings of stages; scores that lean keep gradients above bf16's rounding */
    c = (Case){
        .batch = 1, .tokens = 330, .heads = 1, .kv_heads = 1, .d = 128, .attr = {.alibi = 2}};
    check_case(c, DTYPE_BF16, false);
    /* as in test_softcap, or the output's rounding is more than what is looked for */
    c = (Case){.batch = 1, .tokens = 270, .heads = 1, .kv_heads = 1, .d = 128, .document = 140};
    c.attr = (AttentionAttr){.scale = 1.0f, .softcap = 5.0f};
    check_forward(c, false);
    c = (Case){.batch = 1, .tokens = 140, .heads = 2, .kv_heads = 1, .d = 64, .document = 20};
    c.attr = (AttentionAttr){.scale = 0.15f, .softcap = 3.0f};
    check_case(c, DTYPE_BF16, false);
}

static void reference_anything(const void *user, double *const *in, double *const *out)
{
    (void)user, (void)in;
    for (int i = 0; i < 20 * 16; i++) out[0][i] = NAN;
}

/* Positions that point before the start, or are negative, must not lead outside. */
static void test_wild_positions(void **state)
{
    (void)state;
    OpTest *t = optest_create(5);
    double pos[20];
    for (int i = 0; i < 20; i++) pos[i] = i % 3 == 0 ? -5 - i : 1000 + i * i;
    ValueId q = optest_normal(t, DTYPE_F32, SHAPE(1, 20, 1, 16), 1.0), o;
    ValueId p = optest_data(t, DTYPE_I32, SHAPE(1, 20), pos);
    optest_ok(op_attention(t->graph, q, q, q, p, (AttentionAttr){.scale = 0.25f}, &o));
    optest_output(t, o);
    optest_check(t, reference_anything, NULL, 1);
    optest_destroy(t);
}

/* Attention by the library on GPUs, where there is one that has it: every mask, groups, rows of a
 * joint product; and what it does not have, which our own kernels then compute. */
static void test_library(void **state)
{
    (void)state;
    Gpu *gpu = NULL;
    if (!gpu_count(NULL) || gpu_open(0, &gpu) != OK || gpu_attention_can(gpu) != OK) {
        gpu_close(gpu);
        skip();
    }
    gpu_close(gpu);
    Case c = {.batch = 2, .tokens = 40, .heads = 4, .kv_heads = 2, .d = 64};
    c.attr.library = true;
    check_case(c, DTYPE_BF16, true); /* rows of the output stand 7 elements further apart: ours */
    check_case(c, DTYPE_BF16, false);
    c.document = 23;
    check_case(c, DTYPE_BF16, false);
    c.attr.chunk = 8;
    check_case(c, DTYPE_BF16, false);
    check_case(c, DTYPE_F32, false);
    c.heads = 2;
    check_case(c, DTYPE_BF16, false);
    check_slopes((Case){.batch = 1,
                        .tokens = 5,
                        .heads = 2,
                        .kv_heads = 1,
                        .d = 64,
                        .document = 3,
                        .attr = {.library = true}},
                 DTYPE_BF16);
    c = (Case){.batch = 1, .tokens = 37, .heads = 3, .kv_heads = 1, .d = 128, .document = 30};
    c.attr.library = true;
    check_case(c, DTYPE_BF16, false);
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId q = optest_normal(t, DTYPE_F32, SHAPE(1, 4, 3, 8), 1.0), o;
    ValueId k = optest_normal(t, DTYPE_F32, SHAPE(1, 4, 2, 8), 1.0);
    ValueId short_k = optest_normal(t, DTYPE_F32, SHAPE(1, 3, 3, 8), 1.0);
    ValueId pos = optest_integers(t, SHAPE(1, 4), 0, 1);
    AttentionAttr attr = {.scale = 1};
    optest_refused(op_attention(t->graph, q, k, k, pos, attr, &o), ERR_SHAPE,
                   "no multiple of 2 key heads");
    optest_refused(op_attention(t->graph, q, short_k, short_k, pos, attr, &o), ERR_SHAPE,
                   "must agree");
    optest_refused(op_attention(t->graph, q, q, k, pos, attr, &o), ERR_SHAPE, "twice [B S K d]");
    optest_refused(op_attention(t->graph, q, q, q, q, attr, &o), ERR_SHAPE, "wanted i32 [B T]");
    attr.scale = 0;
    optest_refused(op_attention(t->graph, q, q, q, pos, attr, &o), ERR_ARG, "scale 0");
    attr = (AttentionAttr){.scale = 1, .alibi = 8, .softcap = 30};
    optest_refused(op_attention(t->graph, q, q, q, pos, attr, &o), ERR_ARG, "not both");
    attr = (AttentionAttr){.scale = 1, .alibi = 8, .alibi_heads = 8, .alibi_first = 6};
    optest_refused(op_attention(t->graph, q, q, q, pos, attr, &o), ERR_ARG, "heads 6 to 8 of 8");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient_rule), cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_head_dims),     cmocka_unit_test(test_groups),
        cmocka_unit_test(test_masks),         cmocka_unit_test(test_softcap),
        cmocka_unit_test(test_alibi),         cmocka_unit_test(test_alibi_of_some_heads),
        cmocka_unit_test(test_strided),       cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_wide_heads),    cmocka_unit_test(test_wild_positions),
        cmocka_unit_test(test_library),       cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
