/* Any bytes as a table of residuals: refused, or read into ranges that mean something. */
#include "planner/planner.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PlanResiduals r[PLAN_FAMILIES];
    if (plan_residuals_parse((Bytes){data, size}, "fuzz", r) != OK) return 0;
    for (int f = 0; f < PLAN_FAMILIES; f++)
        CHECK(r[f].rows == 0 || (r[f].within > 0 && r[f].within <= r[f].rows && r[f].low > 0 &&
                                 r[f].low <= r[f].high));
    return 0;
}
