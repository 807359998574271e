/* How wrong plans are: what published rows took, over what was planned for them. The table is
 * written by `drover validate --residuals`, which knows the rows, and put into the program. */
#include "planner/planner_internal.h"

#include <string.h>

const char *plan_family_name(PlanFamily family)
{
    static const char *const names[] = {"dense", "experts", "long"};
    return names[family];
}

PlanFamily plan_family(int64_t seq, bool experts)
{
    enum { LONG_TOKENS = 16384 };
    return seq >= LONG_TOKENS ? FAMILY_LONG : experts ? FAMILY_EXPERTS : FAMILY_DENSE;
}

PlanFamily plan_family_of(const Plan *plan)
{
    return plan_family(plan->config.train.seq, plan->experts);
}

/* ---- the file --------------------------------------------------------------------------- */

typedef struct Table {
    PlanResiduals of[PLAN_FAMILIES];
} Table;

/* clang-format off */
#define FAMILY(name, family)                                                                       \
    {name ".rows", SETTING_INT, "", 0, 1e6, "0", NULL, offsetof(Table, of[family].rows),           \
     "published rows that are planned"},                                                           \
    {name ".within", SETTING_INT, "", 0, 1e6, "0", NULL, offsetof(Table, of[family].within),       \
     "of them between low and high"},                                                              \
    {name ".low", SETTING_FLOAT, "", 0, 1e3, "0", NULL, offsetof(Table, of[family].low),           \
     "measured over planned step time"},                                                           \
    {name ".high", SETTING_FLOAT, "", 0, 1e3, "0", NULL, offsetof(Table, of[family].high),         \
     "measured over planned step time"}
/* clang-format on */

static const Setting table[] = {
    FAMILY("dense", FAMILY_DENSE),
    FAMILY("experts", FAMILY_EXPERTS),
    FAMILY("long", FAMILY_LONG),
};

static Status check(const PlanResiduals *r, PlanFamily family, const char *name)
{
    if (r->rows == 0) return OK;
    if (r->within < 1 || r->within > r->rows || !(r->low > 0) || !(r->high >= r->low))
        return fail(ERR_FORMAT,
                    "%s: %s: %lld of %lld rows between %g and %g; at least one row, and 0 < low <= "
                    "high, are wanted",
                    name, plan_family_name(family), (long long)r->within, (long long)r->rows,
                    r->low, r->high);
    return OK;
}

Status plan_residuals_parse(Bytes text, const char *name, PlanResiduals out[PLAN_FAMILIES])
{
    Arena arena = {0};
    Table read = {0};
    SettingNode *root;
    SettingReader reader = {&arena, table, COUNT_OF(table), "see docs/planner.md", NULL};
    Status status = setting_node_parse(&arena, text, name, &root);
    if (status == OK) status = setting_read_defaults(&reader, "", &read);
    if (status == OK) status = setting_read_map(&reader, "", root, &read);
    for (int f = 0; f < PLAN_FAMILIES && status == OK; f++)
        status = check(&read.of[f], (PlanFamily)f, name);
    if (status == OK) memcpy(out, read.of, sizeof read.of);
    arena_deinit(&arena);
    return status;
}

PlanResiduals plan_residuals(PlanFamily family)
{
    PlanResiduals all[PLAN_FAMILIES];
    const PlannerFile *f = &planner_files[0];
    Status status = plan_residuals_parse((Bytes){f->text, f->n}, f->name, all);
    CHECK(status == OK); /* the build's own file */
    return all[family];
}

bool plan_step_range(const Plan *plan, double *low_s, double *high_s)
{
    PlanResiduals r = plan_residuals(plan_family_of(plan));
    *low_s = plan->time.step_s * r.low;
    *high_s = plan->time.step_s * r.high;
    return r.rows > 0;
}
