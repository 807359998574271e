/* The bars that predictions are held against. */
#include <math.h>
#include <stdlib.h>

#include "validate/validate_internal.h"

static const double near_limit = 0.05; /* verdicts nearer to a device's memory are not held wrong */

static void add(ValidateResult *r, ValidateBar bar) { r->bar[r->n_bars++] = bar; }

static void add_kind(ValidateResult *r, RowKind kind, const char *what, double bar)
{
    add(r, (ValidateBar){what, r->kind[kind].n, bar, r->kind[kind].median, false, false});
}

static void add_grids(ValidateResult *r)
{
    double least = 1;
    int n = 0;
    for (int i = 0; i < r->n_grids; i++) {
        if (isnan(r->grid[i].correlation)) continue;
        least = fmin(least, r->grid[i].correlation);
        n++;
    }
    add(r, (ValidateBar){"least rank correlation in a grid", n, 0.9, least, true, false});
}

/* Of rows whose peak was measured. */
static void add_peaks(ValidateResult *r)
{
    double *error = xcalloc((size_t)r->n + 1, sizeof *error), worst = 0;
    int n = 0;
    for (int i = 0; i < r->n; i++) {
        const ValidateRow *row = &r->row[i];
        if (row->skip || !(row->row->peak_bytes > 0)) continue;
        error[n] = fabs((row->peak_bytes + row->context_bytes) / row->row->peak_bytes - 1);
        worst = fmax(worst, error[n++]);
    }
    double median = validate_median(error, n);
    free(error);
    add(r, (ValidateBar){"median error of the memory's peak", n, 0.08, median, false, false});
    add(r, (ValidateBar){"worst error of the memory's peak", n, 0.08, worst, false, false});
}

static void add_verdicts(ValidateResult *r)
{
    int n = 0, wrong = 0;
    for (int i = 0; i < r->n; i++) {
        const ValidateRow *row = &r->row[i];
        if (row->skip) continue;
        n++;
        wrong += row->fits == row->row->out_of_memory &&
                 fabs(row->peak_bytes / row->limit_bytes - 1) > near_limit;
    }
    add(r, (ValidateBar){"wrong verdicts more than 5% from the limit", n, 0, wrong, false, true});
}

void validate_find_bars(ValidateResult *r)
{
    add_kind(r, ROW_DENSE, "median error of dense rows", 0.05);
    add(r, (ValidateBar){"worst error of dense rows", r->kind[ROW_DENSE].n, 0.15,
                         r->kind[ROW_DENSE].worst, false, false});
    add_kind(r, ROW_EXPERTS, "median error of rows with experts", 0.1);
    add_kind(r, ROW_LONG, "median error of long rows", 0.1);
    add_grids(r);
    add_peaks(r);
    add_verdicts(r);
}
