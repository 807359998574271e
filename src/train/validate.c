/* The loss on held-out text, and what it means in bits per byte. */
#include <math.h>

#include "train/trainer_internal.h"

Status trainer_validate(Trainer *t, double *loss, double *bits_per_byte)
{
    *loss = *bits_per_byte = NAN;
    int program = t->programs.index[PROGRAM_EVAL];
    if (program < 0 || t->val_steps <= 0) return OK;
    DataBatch b = {.ids = session_input(t->session, program, "ids"), .targets = session_input(t->session, program, "targets"),
                   .pos = session_input(t->session, program, "pos"), .weights = session_input(t->session, program, "weights")};
    double sum = 0;
    int64_t all = 0;
    for (int64_t s = 0; s < t->val_steps; s++) {
        int64_t n;
        float mean;
        TRY(data_fill(t->val_loader, s, 0, &b));
        TRY(data_step_targets(t->val_loader, s, &n));
        if (n == 0) continue;
        TRY(session_run(t->session, program, PHASE_FORWARD, PHASE_FORWARD));
        TRY(session_read(t->session, program, "cross_entropy", &mean, sizeof mean));
        sum += (double)mean * (double)n;
        all += n;
        if (trainer_stop_requested()) return OK; /* the checkpoint comes first; the figure can wait */
    }
    uint64_t bytes;
    TRY(data_target_bytes(t->val_loader, t->val_steps, &bytes));
    if (all == 0) return OK;
    *loss = sum / (double)all;
    if (bytes > 0) *bits_per_byte = sum / log(2) / (double)bytes;
    return OK;
}
