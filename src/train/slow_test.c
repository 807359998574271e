/* Slow ranks: named within 20 steps when they compute 1.3 times as long as their peers, and nobody
 * named in steps that are only disturbed, by whatever a system does to its processes. */
#include "train/train.h"
#include "base/testing.h"

#include <math.h>

enum { MAX_RANKS = 16 };

/* A window that looks the same in each step. */
static unsigned judge_even(const float *compute_s, const float *queued_s, const int *stage, int n,
                           double now_s, SlowRank *rank)
{
    SlowSpeed speed[MAX_RANKS];
    float median[MAX_RANKS];
    bool name[MAX_RANKS];
    unsigned named = 0;
    for (int r = 0; r < n; r++) {
        float all[SLOW_WINDOW], queued[SLOW_WINDOW];
        for (int i = 0; i < SLOW_WINDOW; i++)
            all[i] = compute_s[r], queued[i] = queued_s ? queued_s[r] : 0;
        speed[r] = slow_speed(all, queued, SLOW_WINDOW);
    }
    slow_judge(&(SlowWindow){speed, stage, n, 1.2, now_s}, rank, median, name);
    for (int r = 0; r < n; r++) named |= (unsigned)name[r] << r;
    return named;
}

/* The one that computes 1.3 times as long as its peers is named, not the ranks of a stage with more
 * to do, and nobody when all are about equal or the difference is a moment of the system's. */
static void test_who(void **state)
{
    (void)state;
    static const struct {
        float compute_s[6];
        int stage[6], n;
        unsigned slow; /* bit r: rank r */
    } cases[] = {
        {{1.0f, 1.02f, 1.3f, 0.99f}, {0}, 4, 1u << 2},
        {{1.0f, 1.3f}, {0}, 2, 1u << 1},
        {{1.0f, 1.15f, 0.9f, 1.1f}, {0}, 4, 0},
        {{1.0f, 1.05f, 2.0f, 2.1f, 2.0f, 3.0f}, {0, 0, 1, 1, 1, 1}, 6, 1u << 5},
        {{1.0f, 9.0f}, {0, 1}, 2, 0},
        {{0.001f, 0.002f, 0.001f}, {0}, 3, 0},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        SlowRank rank[MAX_RANKS] = {0};
        assert_int_equal(judge_even(cases[i].compute_s, NULL, cases[i].stage, cases[i].n, 1, rank),
                         0); /* once is not enough */
        assert_int_equal(judge_even(cases[i].compute_s, NULL, cases[i].stage, cases[i].n, 2, rank),
                         cases[i].slow);
        assert_int_equal(judge_even(cases[i].compute_s, NULL, cases[i].stage, cases[i].n, 3, rank),
                         0); /* once said is enough */
    }
}

/* Others use its processor: no fault of the rank, unless it stays so for a minute. */
static void test_queued(void **state)
{
    (void)state;
    static const float compute_s[] = {1, 1, 2, 1}, queued_s[] = {0, 0, 0.95f, 0};
    static const int stage[4] = {0};
    SlowRank rank[MAX_RANKS] = {0};
    unsigned named = 0;
    double now_s = 0;
    for (int k = 0; k < 5; k++)
        named |= judge_even(compute_s, queued_s, stage, 4, now_s += 12, rank);
    assert_int_equal(named, 0);
    for (int k = 0; k < 3; k++)
        named |= judge_even(compute_s, queued_s, stage, 4, now_s += 12, rank);
    assert_int_equal(named, 1u << 2);
}

/* ---- made-up timings -------------------------------------------------------------------- */

/* A step of a rank: a spread of some per cent, and disturbances of single steps and of stretches,
 * in which others have the rank's processor. */
typedef struct Made {
    uint64_t key;
    double spread, disturbed,
        stretch; /* standard deviation; of steps; of the begins of stretches of 1 to 60 steps */
    int left[MAX_RANKS]; /* steps of a stretch to come */
} Made;

static void make_step(Made *m, int rank, uint64_t step, float *compute_s, float *queued_s)
{
    uint64_t at = (step * MAX_RANKS + (uint64_t)rank) * 4;
    double x = 0.02 * exp(m->spread * rng_normal(m->key, at)), lost = 0;
    if (rng_uniform(m->key + 1, at) < m->disturbed) lost += 0.1 * rng_uniform(m->key + 1, at + 1);
    if (m->left[rank] == 0 && rng_uniform(m->key + 1, at + 2) < m->stretch)
        m->left[rank] = 1 + (int)rng_below(m->key + 2, at, 60);
    if (m->left[rank] > 0) {
        m->left[rank]--;
        lost += x * (0.5 + rng_uniform(m->key + 1, at + 3));
    }
    *compute_s = (float)(x + lost);
    *queued_s = (float)(0.98 * lost); /* the processor's caches are cold afterwards */
}

/* Runs steps 1 to n, with rank `slow` (or -1) at 1.3 times from `since` on; returns the step at
 * which a rank was named, 0: none. */
static uint64_t run_made(Made *m, int ranks, uint64_t n, int slow, uint64_t since, int *who)
{
    static const int stage[MAX_RANKS] = {0};
    SlowRank rank[MAX_RANKS] = {0};
    float all[MAX_RANKS][SLOW_WINDOW], queued[MAX_RANKS][SLOW_WINDOW], median[MAX_RANKS];
    SlowSpeed speed[MAX_RANKS];
    bool name[MAX_RANKS];
    for (uint64_t step = 1; step <= n; step++) {
        int i = (int)((step - 1) % SLOW_WINDOW);
        for (int r = 0; r < ranks; r++) {
            make_step(m, r, step, &all[r][i], &queued[r][i]);
            if (r == slow && step >= since) all[r][i] *= 1.3f;
        }
        if (i + 1 < SLOW_WINDOW) continue;
        for (int r = 0; r < ranks; r++) speed[r] = slow_speed(all[r], queued[r], SLOW_WINDOW);
        slow_judge(&(SlowWindow){speed, stage, ranks, 1.2, 0.02 * (double)step}, rank, median,
                   name);
        for (int r = 0; r < ranks; r++)
            if (name[r]) return *who = r, step;
    }
    return 0;
}

static const Made kinds[] = {{.spread = 0.01},
                             {.spread = 0.03, .disturbed = 0.1},
                             {.spread = 0.03, .disturbed = 0.02, .stretch = 0.005}};

static void test_no_false_alarm(void **state)
{
    (void)state;
    int who = -1;
    for (int k = 0; k < COUNT_OF(kinds); k++)
        for (uint64_t seed = 0; seed < 20; seed++) {
            Made m = kinds[k];
            m.key = 1000 * seed + 10 * (uint64_t)k;
            uint64_t step = run_made(&m, seed % 2 ? 4 : 16, 10000, -1, 0, &who);
            if (step)
                fail_msg("kind %d, seed %d: rank %d is named at step %d", k, (int)seed, who,
                         (int)step);
        }
}

/* Within 20 steps; where each rank is without a processor an eighth of the time, in stretches, and
 * the peers' own speed cannot be told now and then, it may take three times as long, but no one
 * else is named. */
static void test_named_in_time(void **state)
{
    (void)state;
    int late[COUNT_OF(kinds)] = {0};
    for (int k = 0; k < COUNT_OF(kinds); k++)
        for (uint64_t seed = 0; seed < 400; seed++) {
            Made m = kinds[k];
            int slow = (int)(seed % 4), who = -1;
            uint64_t since = 20 + seed % 37;
            m.key = 1000 * seed + 10 * (uint64_t)k + 5;
            uint64_t step = run_made(&m, 4, since + 100, slow, since, &who);
            if (!step || who != slow)
                fail_msg("kind %d, seed %d: rank %d is named, %d is slow", k, (int)seed, who, slow);
            late[k] += step + 1 - since > 20;
        }
    assert_int_equal(late[0], 0);
    assert_int_equal(late[1], 0);
    assert_true(late[2] < 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who),
        cmocka_unit_test(test_queued),
        cmocka_unit_test(test_no_false_alarm),
        cmocka_unit_test(test_named_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
