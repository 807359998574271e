/* The sampler against its definition: frequencies of many draws, limits, ties, determinism. */
#include "infer/infer.h" /* before cmocka, which has a macro called fail */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 1000, DRAWS = 20000 };

static void make_logits(float *logits, double spread, uint64_t seed)
{
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)(spread * rng_normal(seed, (uint64_t)i));
}

/* ---- the definition, written down once more --------------------------------------------- */

typedef struct Entry {
    double p;
    int id;
} Entry;

static int by_p(const void *a, const void *b)
{
    const Entry *x = a, *y = b;
    return x->p != y->p ? (x->p > y->p ? -1 : 1) : x->id - y->id;
}

static void normalise(double *p)
{
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += p[i];
    for (int i = 0; i < VOCAB; i++) p[i] /= sum;
}

static void sorted(const double *p, Entry *entry)
{
    for (int i = 0; i < VOCAB; i++) entry[i] = (Entry){p[i], i};
    qsort(entry, VOCAB, sizeof *entry, by_p);
}

static void reference(const float *logits, const SamplerOptions *o, double *p)
{
    static Entry entry[VOCAB];
    double before = 0;
    for (int i = 0; i < VOCAB; i++) p[i] = exp((double)logits[i] / o->temperature);
    normalise(p);
    sorted(p, entry);
    for (int i = 0; i < VOCAB; i++)
        if (o->top_k > 0 && i >= o->top_k) p[entry[i].id] = 0;
    normalise(p);
    sorted(p, entry);
    double best = entry[0].p;
    for (int i = 0; i < VOCAB; i++) {
        if ((o->top_p < 1 && before > o->top_p) || entry[i].p < o->min_p * best) p[entry[i].id] = 0;
        before += entry[i].p;
    }
    normalise(p);
}

/* ---- chi-square ------------------------------------------------------------------------- */

/* Cells with fewer than 8 expected draws are taken together. The statistic's mean is its degrees of
 * freedom, its variance twice that: five deviations are one in a million. */
static void check_frequencies(const SamplerOptions *o, double spread)
{
    float logits[VOCAB];
    double p[VOCAB], chi = 0, rest_expected = 0;
    int count[VOCAB] = {0}, cells = 0, rest = 0;
    make_logits(logits, spread, 3);
    reference(logits, o, p);
    Sampler *sampler = sampler_create(VOCAB);
    for (int i = 0; i < DRAWS; i++) {
        int32_t id;
        assert_int_equal(sampler_draw(sampler, o, logits, (uint64_t)i, &id), OK);
        assert_true(p[id] > 0); /* nothing that the limits exclude */
        count[id]++;
    }
    sampler_destroy(sampler);
    for (int i = 0; i < VOCAB; i++) {
        double expected = p[i] * DRAWS;
        if (expected < 8) {
            rest += count[i];
            rest_expected += expected;
            continue;
        }
        chi += (count[i] - expected) * (count[i] - expected) / expected;
        cells++;
    }
    if (rest_expected >= 8) {
        chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
        cells++;
    }
    double freedom = cells - 1;
    if (fabs(chi - freedom) > 5 * sqrt(2 * freedom) + 1)
        fail_msg("chi-square %g with %g degrees of freedom", chi, freedom);
}

static void test_frequencies(void **state)
{
    (void)state;
    const SamplerOptions cases[] = {
        {.temperature = 1, .top_p = 1, .seed = 1},
        {.temperature = 0.6, .top_p = 0.9, .seed = 2},
        {.temperature = 1, .top_p = 1, .top_k = 7, .seed = 3},
        {.temperature = 1.5, .top_p = 0.5, .top_k = 50, .seed = 4},
        {.temperature = 1, .top_p = 1, .min_p = 0.1, .seed = 5},
        {.temperature = 0.8, .top_p = 0.95, .top_k = 400, .min_p = 0.01, .seed = 6},
        {.temperature = 2, .top_p = 0.999, .seed = 7},
        {.temperature = 1, .top_p = 0.01, .seed = 8},
        {.temperature = 1, .top_p = 0.7, .top_k = 1000, .min_p = 1, .seed = 9},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        check_frequencies(&cases[i], 2);
        check_frequencies(&cases[i], 0.01); /* nearly flat: every candidate counts */
    }
}

/* ---- edges ------------------------------------------------------------------------------ */

static int32_t draw(const float *logits, SamplerOptions o, uint64_t position)
{
    int32_t id = -1;
    Sampler *sampler = sampler_create(VOCAB);
    assert_int_equal(sampler_draw(sampler, &o, logits, position, &id), OK);
    sampler_destroy(sampler);
    return id;
}

static void test_greedy(void **state)
{
    (void)state;
    float logits[VOCAB];
    make_logits(logits, 1, 4);
    logits[700] = logits[300] = logits[999] = 50;
    SamplerOptions greedy = {.top_p = 1};
    assert_int_equal(draw(logits, greedy, 0), 300); /* the lowest id among equals */
    logits[0] = NAN;
    logits[1] = INFINITY;
    assert_int_equal(draw(logits, greedy, 0), 300);
    assert_int_equal(draw(logits, (SamplerOptions){.temperature = 1, .top_k = 1, .top_p = 1}, 5),
                     300);
    assert_int_equal(draw(logits, (SamplerOptions){.temperature = 1, .top_p = 0.0001}, 5), 300);
}

/* With equal probabilities the lower ids come first: top_k 3 keeps 0, 1, 2; top_p 0.25 the first
 * 251, since the mass before the 251st is 0.25 and not above it. */
static void test_ties(void **state)
{
    (void)state;
    float logits[VOCAB] = {0};
    for (uint64_t i = 0; i < 2000; i++) {
        assert_true(draw(logits, (SamplerOptions){.temperature = 1, .top_k = 3, .top_p = 1}, i) <
                    3);
        assert_true(draw(logits, (SamplerOptions){.temperature = 1, .top_p = 0.25}, i) <= 250);
    }
}

static void test_determinism(void **state)
{
    (void)state;
    float logits[VOCAB];
    int different = 0;
    make_logits(logits, 1, 5);
    SamplerOptions o = {.temperature = 1, .top_p = 0.9, .seed = 11}, other = o;
    other.seed = 12;
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(draw(logits, o, i), draw(logits, o, i));
        different += draw(logits, o, i) != draw(logits, other, i);
    }
    assert_true(different > 50);
}

static void test_refusals(void **state)
{
    (void)state;
    const SamplerOptions bad[] = {{.temperature = -1, .top_p = 1},
                                  {.temperature = NAN, .top_p = 1},
                                  {.top_p = 0},
                                  {.top_p = 1.1},
                                  {.top_p = 1, .top_k = -1},
                                  {.top_p = 1, .min_p = 2}};
    for (int i = 0; i < COUNT_OF(bad); i++) assert_int_equal(sampler_check(&bad[i]), ERR_ARG);
    float logits[VOCAB];
    int32_t id;
    for (int i = 0; i < VOCAB; i++) logits[i] = NAN;
    Sampler *sampler = sampler_create(VOCAB);
    assert_int_equal(sampler_draw(sampler, &(SamplerOptions){.top_p = 1}, logits, 0, &id),
                     ERR_FORMAT);
    sampler_destroy(sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_frequencies),
                                       cmocka_unit_test(test_greedy), cmocka_unit_test(test_ties),
                                       cmocka_unit_test(test_determinism),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
