/* What people see while a run goes: a bar on a terminal, a line every ten seconds elsewhere. */
#ifndef TRAIN_PROGRESS_H
#define TRAIN_PROGRESS_H

#include "train/metrics.h"

typedef struct Progress {
    bool silent; /* nothing is shown: one rank of a run shows it for all */
    bool terminal, colour;
    int64_t steps;
    double start_s, last_line_s;
    int64_t start_step;
    double mean_loss;  /* smoothed, for the eye */
    int shown_columns; /* of a line of the terminal that will be drawn again; 0: none */
} Progress;

void progress_begin(Progress *progress, int64_t step, int64_t steps);
/* Draws the bar or, when it is time (or `last`), writes a line. */
void progress_step(Progress *progress, const StepMetrics *m, bool last);
/* What goes on besides steps, drawn over on a terminal; elsewhere a line now and then. */
void progress_status(Progress *progress, const char *format, ...) PRINTF_LIKE(2, 3);
/* A line that stays, above the bar. */
void progress_note(Progress *progress, const char *format, ...) PRINTF_LIKE(2, 3);
void progress_clear(Progress *progress);
void progress_end(Progress *progress);

#endif
