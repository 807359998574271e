/* The table of residuals: what is written is read, what cannot be is refused; a plan's range is its
 * family's. */
#include "base/testing.h"
#include "planner/planner.h"

static Status parse(const char *text, PlanResiduals out[PLAN_FAMILIES])
{
    return plan_residuals_parse((Bytes){(const uint8_t *)text, strlen(text)}, "table", out);
}

static void test_read(void **state)
{
    (void)state;
    PlanResiduals r[PLAN_FAMILIES];
    assert_ok(parse("dense: {rows: 15, within: 13, low: 0.9, high: 1.1}\n"
                    "long: {rows: 2, within: 2, low: 1.0, high: 1.4}\n",
                    r));
    assert_int_equal(r[FAMILY_DENSE].rows, 15);
    assert_int_equal(r[FAMILY_DENSE].within, 13);
    assert_true(r[FAMILY_LONG].low == 1 && r[FAMILY_LONG].high == 1.4);
    assert_int_equal(r[FAMILY_EXPERTS].rows, 0);
}

static void test_refused(void **state)
{
    (void)state;
    PlanResiduals r[PLAN_FAMILIES];
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"dense: {rows: 3, within: 4, low: 0.9, high: 1.1}", "4 of 3 rows"},
        {"dense: {rows: 3, within: 3, low: 1.2, high: 1.1}", "low <= high"},
        {"dense: {rows: 3, within: 3}", "low <= high"},
        {"dense: {rows: -1}", "0 to 1000000"},
        {"danse: {rows: 1}", "dense"},
        {"dense: [", "table"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        assert_true(parse(cases[i].text, r) != OK);
        if (!strstr(status_message(), cases[i].words))
            fail_msg("%s: %s", cases[i].text, status_message());
    }
}

static void test_families(void **state)
{
    (void)state;
    assert_int_equal(plan_family(8192, false), FAMILY_DENSE);
    assert_int_equal(plan_family(8192, true), FAMILY_EXPERTS);
    assert_int_equal(plan_family(16384, true), FAMILY_LONG);
    for (int f = 0; f < PLAN_FAMILIES; f++) {
        PlanResiduals r = plan_residuals((PlanFamily)f); /* the program's own table is sound */
        Plan plan = {.time.step_s = 2, .experts = f == FAMILY_EXPERTS};
        double low, high;
        plan.config.train.seq = f == FAMILY_LONG ? 65536 : 4096;
        assert_int_equal(plan_step_range(&plan, &low, &high), r.rows > 0);
        if (r.rows) assert_true(low == 2 * r.low && high == 2 * r.high);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_read), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_families)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
