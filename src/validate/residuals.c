/* What published rows took over what was planned for them, as the table that plans take their
 * error bars from (planner/residuals.yaml). */
#include <stdlib.h>

#include "validate/validate.h"

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A tenth of them is cut off at either end; of fewer than ten, none. */
PlanResiduals validate_residuals(double *ratio, int n)
{
    if (n == 0) return (PlanResiduals){0};
    int cut = n / 10;
    qsort(ratio, (size_t)n, sizeof *ratio, rising);
    return (PlanResiduals){
        .rows = n, .within = n - 2 * cut, .low = ratio[cut], .high = ratio[n - 1 - cut]};
}

static PlanResiduals residuals_of(const ValidateResult *result, int n, PlanFamily family)
{
    VEC(double) ratio = {0};
    for (int i = 0; i < n; i++)
        for (int k = 0; k < result[i].n; k++) {
            const ValidateRow *r = &result[i].row[k];
            if (r->skip || !(r->row->step_s > 0) || !(r->step_s > 0)) continue;
            if (plan_family(r->row->seq, r->row->model.experts > 0) == family)
                VEC_PUSH(&ratio, r->row->step_s / r->step_s);
        }
    PlanResiduals p = validate_residuals(ratio.at, (int)ratio.n);
    VEC_FREE(&ratio);
    return p;
}

void validate_residuals_text(const ValidateResult *result, int n, const char *command, Str *out)
{
    str_printf(out,
               "# Measured over planned step time of published rows, a tenth of them cut off at "
               "either end.\n# Written by: %s\n",
               command);
    for (int f = 0; f < PLAN_FAMILIES; f++) {
        PlanResiduals r = residuals_of(result, n, (PlanFamily)f);
        str_printf(out, "%s: {rows: %lld, within: %lld, low: %.4f, high: %.4f}\n",
                   plan_family_name((PlanFamily)f), (long long)r.rows, (long long)r.within, r.low,
                   r.high);
    }
}
