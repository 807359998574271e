/* rope_table, rope and query_temperature against double precision and the published spot values of
 * models.md 1.3 and 2.2. */
#include "ops/optest.h"

#include <math.h>

typedef struct TableCase {
    int64_t d;
    double theta;
    RopeScaling scaling;
    int index[3];
    double frequency[3];
} TableCase;

/* At position 1 the sine's angle is the frequency itself. */
static void reference_spot(const void *user, double *const *in, double *const *out)
{
    const TableCase *c = user;
    (void)in;
    for (int64_t j = 0; j < c->d; j++) out[0][j] = NAN;
    for (int i = 0; i < 3; i++) {
        out[0][c->index[i]] = cos(c->frequency[i]);
        out[0][c->d / 2 + c->index[i]] = sin(c->frequency[i]);
    }
}

static void test_frequencies(void **state)
{
    (void)state;
    static const TableCase cases[] = {
        {128, 500000, {1, 1, 1, 1}, {0, 1, 63}, {1, 0.814617217, 2.4551407e-06}},
        {128,
         500000,
         {8, 1, 4, 8192},
         {29, 34, 63},
         {0.00216657063, 0.000178507791, 3.06892588e-07}},
        {128,
         500000,
         {32, 1, 4, 8192},
         {29, 34, 63},
         {0.00211840682, 9.70828623e-05, 7.67231469e-08}},
        {64, 500000, {32, 1, 4, 8192}, {0, 1, 31}, {1, 0.663601279, 9.41830649e-08}},
        {128, 500000, {16, 1, 1, 8192}, {0, 34, 63}, {1, 0, 1.53446294e-07}},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        TableCase c = cases[i];
        if (c.frequency[1] == 0)
            c.frequency[1] = pow(500000, -2 * 34 / 128.0); /* the last that keeps its value */
        for (int j = 0; j < 3; j++) {
            /* a frequency at a time, so that the tolerance is relative to it */
            TableCase one = c;
            for (int k = 0; k < 3; k++) {
                one.index[k] = c.index[j];
                one.frequency[k] = c.frequency[j];
            }
            OpTest *t = optest_create(1);
            double pos = 1;
            ValueId table;
            optest_ok(op_rope_table(t->graph, optest_data(t, DTYPE_I32, SHAPE(1, 1), &pos), c.d,
                                    c.theta, c.scaling, &table));
            optest_output(t, table);
            optest_check(t, reference_spot, &one, 2e-7);
            optest_destroy(t);
        }
    }
}

/* Far from the start the angle must be a product of f32. */
static void reference_far(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int64_t t = 0; t < 6; t++)
        for (int64_t j = 0; j < 32; j++) {
            float f = 1.0f / (float)pow(10000, (double)((float)(2 * j) / 64.0f));
            float angle = (float)in[0][t] * f;
            out[0][t * 64 + j] = cos((double)angle);
            out[0][t * 64 + 32 + j] = sin((double)angle);
        }
}

static void test_far_positions(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    double pos[6] = {0, 1, 8191, 131071, 1048575, 10485759};
    ValueId table;
    optest_ok(op_rope_table(t->graph, optest_data(t, DTYPE_I32, SHAPE(2, 3), pos), 64, 10000,
                            (RopeScaling){0}, &table));
    optest_output(t, table);
    optest_check(t, reference_far, NULL, 2e-7);
    optest_destroy(t);
}

typedef struct RopeCase {
    int64_t tokens, heads, d;
    bool interleaved;
} RopeCase;

static void reference_rope(const void *user, double *const *in, double *const *out)
{
    const RopeCase *c = user;
    int64_t half = c->d / 2;
    for (int64_t r = 0; r < c->tokens * c->heads; r++) {
        const double *x = in[0] + r * c->d, *table = in[1] + r / c->heads * c->d;
        double *y = out[0] + r * c->d;
        for (int64_t j = 0; j < half; j++) {
            int64_t a = c->interleaved ? 2 * j : j, b = c->interleaved ? 2 * j + 1 : j + half;
            y[a] = x[a] * table[j] - x[b] * table[half + j];
            y[b] = x[b] * table[j] + x[a] * table[half + j];
        }
    }
}

static void check_rope(RopeCase c, DType dtype, int64_t pitch)
{
    OpTest *t = optest_create((uint64_t)c.d);
    ValueId x = optest_normal(t, dtype, SHAPE(1, c.tokens, c.heads, c.d), 1.0);
    double table[1024];
    for (int64_t i = 0; i < c.tokens; i++)
        for (int64_t j = 0; j < c.d / 2; j++) {
            table[i * c.d + j] = cos((double)(i + 1) / (double)(j + 1));
            table[i * c.d + c.d / 2 + j] = sin((double)(i + 1) / (double)(j + 1));
        }
    ValueId turn = optest_data(t, DTYPE_F32, SHAPE(1, c.tokens, c.d), table), y;
    optest_no_grad(t, turn);
    optest_ok(op_rope(t->graph, x, turn, c.interleaved, &y));
    if (pitch) {
        optest_pitch(t, x, 2, pitch);
        optest_pitch(t, y, 2, pitch);
    }
    optest_output(t, y);
    optest_check_grad(t, reference_rope, &c, dtype == DTYPE_F32 ? 1e-6 : 1e-2);
    optest_destroy(t);
}

static void test_rope(void **state)
{
    (void)state;
    static const int64_t d[] = {2, 8, 16, 34, 64, 80, 128};
    for (int i = 0; i < COUNT_OF(d); i++)
        for (int interleaved = 0; interleaved < 2; interleaved++) {
            RopeCase c = {.tokens = 3, .heads = 2, .d = d[i], .interleaved = interleaved};
            check_rope(c, DTYPE_F32, 0);
            check_rope(c, DTYPE_BF16, 0);
            check_rope(c, DTYPE_F32, 4 * d[i] + 3);
            check_rope(c, DTYPE_BF16, 4 * d[i]);
        }
}

static void reference_temperature(const void *user, double *const *in, double *const *out)
{
    (void)user;
    for (int64_t i = 0; i < 5 * 3 * 20; i++)
        out[0][i] = in[0][i] * (1 + 0.1 * log(1 + floor((in[1][i / 60] + 1) / 8192)));
}

static void test_temperature(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        OpTest *t = optest_create(2);
        double pos[5] = {0, 8190, 8191, 16383, 10485759};
        ValueId x = optest_normal(t, bf16 ? DTYPE_BF16 : DTYPE_F32, SHAPE(1, 5, 3, 20), 1.0), y;
        ValueId p = optest_data(t, DTYPE_I32, SHAPE(1, 5), pos);
        optest_ok(op_query_temperature(t->graph, x, p, 0.1f, 8192, &y));
        optest_output(t, y);
        optest_check_grad(t, reference_temperature, NULL, bf16 ? 1e-2 : 1e-6);
        optest_destroy(t);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    OpTest *t = optest_create(1);
    ValueId pos = optest_integers(t, SHAPE(1, 4), 0, 4), table, y;
    ValueId x = optest_normal(t, DTYPE_F32, SHAPE(1, 4, 2, 8), 1.0);
    optest_refused(op_rope_table(t->graph, pos, 7, 1e4, (RopeScaling){0}, &table), ERR_ARG, "even");
    optest_refused(op_rope_table(t->graph, x, 8, 1e4, (RopeScaling){0}, &table), ERR_SHAPE,
                   "i32 [batch seq]");
    optest_ok(op_rope_table(t->graph, pos, 16, 1e4, (RopeScaling){0}, &table));
    optest_refused(op_rope(t->graph, x, table, false, &y), ERR_SHAPE,
                   "wanted [B T H d] and [B T d]");
    optest_refused(op_query_temperature(t->graph, x, pos, 0.1f, 0, &y), ERR_ARG, "floor_scale");
    optest_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies), cmocka_unit_test(test_far_positions),
        cmocka_unit_test(test_rope),        cmocka_unit_test(test_temperature),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
