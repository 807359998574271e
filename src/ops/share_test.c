/* Shares of work: every item goes to somebody, and to one alone. */
#include "ops/share.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { MOST_ITEMS = 1000 };

static int taken[MOST_ITEMS];

static void deal_and_take(int threads, int team, int64_t items)
{
    Shares shares;
    shares_deal(&shares, threads, items);
    for (int64_t i = 0; i < items; i++) taken[i] = 0;
#pragma omp parallel num_threads(team)
    for (int64_t i; (i = shares_take(&shares)) >= 0;) {
        assert_true(i < items);
#pragma omp atomic
        taken[i]++;
    }
    for (int64_t i = 0; i < items; i++) assert_int_equal(taken[i], 1);
}

static void each_item_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++)
        for (int64_t items = 0; items < 40; items += 3) {
            deal_and_take(threads, threads, items);
            deal_and_take(threads, 1, items); /* a team that was not worth having */
        }
    deal_and_take(2 * SHARES_MAX, 3, MOST_ITEMS);
    deal_and_take(3, 2 * SHARES_MAX, MOST_ITEMS);
}

/* A thread begins with its own run: neighbours, the same every time. */
static void own_run_first(void **state)
{
    (void)state;
    Shares shares;
    shares_deal(&shares, 4, 10);
    for (int64_t i = 0; i < 10; i++) assert_int_equal(shares_take(&shares), i);
    assert_int_equal(shares_take(&shares), -1);
    int64_t first[] = {-2, -2, -2, -2}; /* where there are no threads */
    shares_deal(&shares, 4, 10);
#pragma omp parallel num_threads(4)
    {
        first[thread_index()] = shares_take(&shares);
    }
    const int64_t expected[] = {0, 2, 5, 7};
    for (int i = 0; i < 4; i++)
        if (first[i] != -2) assert_int_equal(first[i], expected[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_item_once),
        cmocka_unit_test(own_run_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
