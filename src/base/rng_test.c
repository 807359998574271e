/* Philox against the known answers of its authors; ranges, moments, permutations. */
#include "base/base.h"

#include <math.h>
#include <stdlib.h>

#include <setjmp.h>
#include <cmocka.h>

static void known_answers(void **state)
{
    (void)state;
    /* philox4x32-10 in kat_vectors of Random123: key, counter, result, lowest word first */
    static const struct {
        uint64_t key, high, low;
        uint32_t word[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x0370734413198a2e,
         0x85a308d3243f6a88,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Philox p = rng_philox(cases[i].key, cases[i].high, cases[i].low);
        assert_memory_equal(p.word, cases[i].word, 16);
    }
}

static void below_stays_below(void **state)
{
    (void)state;
    int seen[7] = {0};
    for (uint64_t i = 0; i < 7000; i++) seen[rng_below(1, i, 7)]++;
    for (int i = 0; i < 7; i++) assert_in_range(seen[i], 850, 1150);
    for (uint64_t i = 0; i < 100; i++) assert_true(rng_below(2, i, 1) == 0);
    double low = 1, high = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = rng_uniform(3, i);
        low = fmin(low, u);
        high = fmax(high, u);
    }
    assert_true(low >= 0 && low < 0.001 && high < 1 && high > 0.999);
}

static void normal_moments(void **state)
{
    (void)state;
    enum { N = 200000 };
    double m1 = 0, m2 = 0, m4 = 0;
    for (uint64_t i = 0; i < N; i++) {
        double x = rng_normal(rng_key(7, "moments"), i);
        assert_true(isfinite(x));
        m1 += x / N;
        m2 += x * x / N;
        m4 += x * x * x * x / N;
    }
    assert_true(fabs(m1) < 0.01 && fabs(m2 - 1) < 0.015 && fabs(m4 - 3) < 0.12);
}

/* A shard that fills its own part gets the numbers that one rank would have put there. */
static void fill_is_a_function_of_the_index(void **state)
{
    (void)state;
    float whole[1000], part[300];
    rng_fill_normal(9, 0, 0.02, whole, 1000);
    rng_fill_normal(9, 500, 0.02, part, 300);
    assert_memory_equal(part, whole + 500, sizeof part);
    assert_true(whole[17] == (float)(0.02 * rng_normal(9, 17)));
}

static void keys_differ_by_purpose(void **state)
{
    (void)state;
    assert_true(rng_key(0, "a") != rng_key(0, "b"));
    assert_true(rng_key(0, "a") != rng_key(1, "a"));
    assert_true(rng_key(5, "order") == rng_key(5, "order"));
}

static void permute_is_a_bijection(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4096, 65537, 100003};
    for (int s = 0; s < COUNT_OF(sizes); s++) {
        uint64_t n = sizes[s], fixed = 0;
        uint8_t *hit = xcalloc(n, 1);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t j = rng_permute(11, i, n);
            assert_true(j < n && !hit[j]);
            hit[j] = 1;
            fixed += i == j;
        }
        if (n >= 1000) assert_true(fixed < 10); /* one is expected */
        free(hit);
    }
    for (uint64_t i = 0; i < 1000; i++)
        assert_true(rng_permute(3, i, UINT64_C(1) << 40) < UINT64_C(1) << 40);
    assert_true(rng_permute(3, UINT64_MAX - 1, UINT64_MAX) < UINT64_MAX);
    assert_true(rng_permute(3, 5, 1000) != rng_permute(4, 5, 1000) ||
                rng_permute(3, 6, 1000) != rng_permute(4, 6, 1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),          cmocka_unit_test(below_stays_below),
        cmocka_unit_test(normal_moments),         cmocka_unit_test(fill_is_a_function_of_the_index),
        cmocka_unit_test(keys_differ_by_purpose), cmocka_unit_test(permute_is_a_bijection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
