/* validate: published runs beside what the planner says of them.
 *
 * What it is.   A published row as a run file; each row's plan; errors, their medians by kind of
 *               row, rank correlations inside
 *               grids of layouts, verdicts on memory; as text and as JSON.
 * Depends on.   base, run, cluster, published, planner
 * Owns.         Results live in the arena of the caller.
 * Invariants.   Nothing is fitted here but one factor for each framework. A row that is not
 *               predicted says why, by name, and is counted. Where a row
 *               leaves the micro-batch or recomputation open, the fastest that fits is taken, and
 *               said.
 * Use:
 *     ValidateResult result;
 *     TRY(validate_file(&arena, "data/validation/calibration.csv", &(ValidateOptions){0},
 *     &result));
 *     validate_text(&result, &out);
 */
#ifndef VALIDATE_VALIDATE_H
#define VALIDATE_VALIDATE_H

#include "planner/planner.h"
#include "published/published.h"

/* Rows of one kind are judged together. */
typedef enum RowKind {
    ROW_DENSE,
    ROW_EXPERTS,
    ROW_LONG,
    ROW_KINDS
} RowKind; /* long: 16K tokens and more, dense or not */
const char *validate_kind_name(RowKind kind);

typedef struct ValidateRow {
    const PublishedRow *row;
    RowKind kind;
    const char *skip; /* NULL, or why it is not predicted */
    double step_s;    /* predicted, also where it does not fit */
    double error;     /* step_s over the measured one, less 1 */
    bool fits;
    double context_bytes; /* held outside of programs, where the measured peak counts it; else 0 */
    double static_bytes, peak_bytes, limit_bytes; /* of the rank that holds most, as the row's
                                                     framework shares states; of a device */
    int64_t micro_batch;                          /* planned with, and which was open */
    PublishedRecompute recompute;
    int64_t virtual_stages; /* the same */
    bool chose_micro, chose_recompute;
} ValidateRow;

typedef struct ValidateGroup {
    int n;
    double median, worst; /* of the absolute errors */
    double bias;          /* median of the errors */
} ValidateGroup;

typedef struct ValidateGrid {
    const char *name;
    int n;
    double correlation; /* of ranks (Spearman), measured against predicted */
} ValidateGrid;

/* What is asked of the predictions, and what they reach. */
typedef struct ValidateBar {
    const char *what;
    int n;               /* what it is reached over; 0: nothing */
    double bar, reached; /* relative; a correlation; a count */
    bool at_least, is_count;
} ValidateBar;
enum { VALIDATE_BARS = 9 };
static inline bool validate_bar_met(const ValidateBar *b)
{
    return b->n > 0 && (b->at_least ? b->reached >= b->bar : b->reached <= b->bar);
}

typedef struct ValidateResult {
    ValidateRow *row;
    int n, n_predicted, n_skipped;
    int n_wrong_fits,
        n_wrong_refusals; /* measured out of memory but planned to fit; ran but planned not to */
    ValidateGroup kind[ROW_KINDS], framework[FRAMEWORKS];
    ValidateGrid *grid; /* those with at least three predicted rows */
    int n_grids;
    ValidateBar bar[VALIDATE_BARS];
    int n_bars;
    double seconds;
} ValidateResult;

/* What a step takes more in this framework than planned: the one constant that is fitted for each.
 * `drover validate --raw` shows rows without it, and in "in the middle" what it should be. */
double validate_framework_factor(Framework framework);

typedef struct ValidateOptions {
    const char *only;                                        /* ids that start so; NULL: all */
    bool raw;                                                /* without the frameworks' factors */
    void (*progress)(void *context, const ValidateRow *row); /* after each; or NULL */
    void *context;
} ValidateOptions;

Status validate_file(Arena *arena, const char *path, const ValidateOptions *options,
                     ValidateResult *result);
/* The rows of several files together. */
Status validate_files(Arena *arena, const char *const *path, int n, const ValidateOptions *options,
                      ValidateResult *result);
void validate_text(const ValidateResult *result, Str *out);
/* One object: rows (id, measured_s, predicted_s, error, skipped), and the summary. */
void validate_json(const ValidateResult *result, Str *out);

/* The table of planner/residuals.yaml, from all rows of n results; `command`: what wrote it. */
void validate_residuals_text(const ValidateResult *result, int n, const char *command, Str *out);

/* ---- parts ------------------------------------------------------------------------------ */

/* The row as a run file. *skip says what of it cannot be planned, and config is not made then. */
Status validate_config(Arena *arena, const PublishedRow *row, int64_t micro_batch,
                       PublishedRecompute recompute, const char **skip, RunConfig *config);
/* What the row's software does otherwise than our trainer, by what its authors say of it. */
SimStack validate_stack(const PublishedRow *row, PublishedRecompute recompute);
bool validate_has_sequence(const PublishedRow *row);
bool validate_overlaps(const PublishedRow *row); /* exchanges run beside kernels */
/* Spearman's: Pearson's of the ranks, ties at their mean. NAN below two values or where one side is
 * constant. */
double validate_rank_correlation(const double *a, const double *b, int n);
double validate_median(double *values, int n);          /* sorts them; 0 of none */
PlanResiduals validate_residuals(double *ratio, int n); /* measured over planned; sorts them */

#endif
