/* exact_sum.h against schoolbook addition of binary numbers, whatever the order and the parts of
 * the sum. */
#include "ops/exact_sum.h"
#include "ops/optest.h"

#include <float.h>
#include <stdlib.h>

enum { BITS = EXACT_DIGITS * EXACT_DIGIT_BITS, N = 3000 };

/* A number of BITS bits, the lowest first, one byte each: nothing that exact_sum.h does is used. */
static void add_square(uint8_t *number, float x)
{
    int exponent;
    double fraction = frexp(fabs((double)x), &exponent); /* x = m 2^(exponent - 24) */
    if (fraction == 0) return;
    uint64_t m = (uint64_t)ldexp(fraction, 24), square = m * m;
    int place = 2 * (exponent - 24) - EXACT_LOWEST, carry = 0;
    for (; place < 0; place++) { /* of numbers so small that they have trailing zeros */
        assert_true((square & 1) == 0);
        square >>= 1;
    }
    for (int i = place; square || carry; i++, square >>= 1) {
        int sum = number[i] + (int)(square & 1) + carry;
        number[i] = sum & 1;
        carry = sum >> 1;
    }
}

static void check_digits(const ExactSum *s, const uint8_t *number)
{
    for (int j = 0; j < EXACT_DIGITS; j++) {
        int64_t digit = 0;
        for (int b = EXACT_DIGIT_BITS - 1; b >= 0; b--)
            digit = 2 * digit + number[j * EXACT_DIGIT_BITS + b];
        assert_int_equal(s->digit[j], digit);
    }
}

/* Any finite bits: small numbers as often as large ones. */
static void fill(float *x, int n, uint64_t seed)
{
    for (int i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)rng_u64(seed, (uint64_t)i);
        if ((bits >> 23 & 0xff) == 0xff) bits ^= 1u << 23;
        memcpy(x + i, &bits, sizeof bits);
    }
    x[0] = FLT_MAX, x[1] = -FLT_MAX, x[2] = FLT_TRUE_MIN, x[3] = -0.0f, x[4] = FLT_MIN,
    x[5] = FLT_MAX;
}

static void test_exact(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 5; seed++) {
        float x[N];
        uint8_t number[BITS] = {0};
        ExactSum sum = {0};
        fill(x, N, seed);
        for (int i = 0; i < N; i++) add_square(number, x[i]);
        exact_add_squares(&sum, x, N);
        check_digits(&sum, number);
    }
}

/* Cut into parts anyhow, which are added up in any order, also by way of words. */
static void test_parts(void **state)
{
    (void)state;
    float x[N];
    ExactSum all = {0};
    fill(x, N, 17);
    exact_add_squares(&all, x, N);
    for (uint64_t seed = 0; seed < 20; seed++) {
        ExactSum sum = {0}, part[8] = {{{0}, false}};
        uint64_t draw = 0;
        for (int i = 0; i < N;) {
            int n = (int)rng_below(seed, draw++, 100);
            if (n > N - i) n = N - i;
            exact_add_squares(&part[rng_below(seed, draw++, 8)], x + i, n);
            i += n;
        }
        for (uint64_t k = 0; k < 8; k++) {
            int32_t words[EXACT_WORDS];
            exact_write(&part[rng_permute(seed, k, 8)], words);
            ExactSum one = exact_read(words);
            exact_add(&sum, &one);
        }
        assert_memory_equal(sum.digit, all.digit, sizeof all.digit);
    }
}

static void test_values(void **state)
{
    (void)state;
    static const float one[] = {1}, three_four[] = {3, 4}, tiny[] = {FLT_TRUE_MIN},
                       large[] = {FLT_MAX, FLT_MAX};
    ExactSum s[5] = {{{0}, false}};
    exact_add_squares(&s[0], one, 1);
    exact_add_squares(&s[1], three_four, 2);
    exact_add_squares(&s[2], tiny, 1);
    exact_add_squares(&s[3], large, 2);
    assert_true(exact_value(&s[0]) == 1);
    assert_true(exact_value(&s[1]) == 25);
    assert_true(exact_value(&s[2]) == ldexp(1, -298));
    assert_true(exact_value(&s[3]) == 2 * (double)FLT_MAX * (double)FLT_MAX);
    assert_true(exact_value(&s[4]) == 0);
    for (int k = 0; k < 2; k++) {
        float bad = k ? INFINITY : NAN;
        ExactSum sum = {0};
        exact_add_squares(&sum, &bad, 1);
        exact_add_squares(&sum, one, 1);
        assert_true(isnan(exact_value(&sum)));
    }
    double mean = 0; /* of ordinary numbers */
    float x[N];
    ExactSum sum = {0};
    for (int i = 0; i < N; i++) x[i] = (float)rng_below(3, (uint64_t)i, 1000) / 777.0f;
    for (int i = 0; i < N; i++) mean += (double)x[i] * (double)x[i];
    exact_add_squares(&sum, x, N);
    assert_true(fabs(exact_value(&sum) / mean - 1) < 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
