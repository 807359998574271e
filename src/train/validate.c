/* The loss on held-out text, and what it means in bits per byte. */
#include <math.h>
#include <stdlib.h>

#include "train/trainer_internal.h"

/* Of all validation steps; false in *whole when a signal came first. */
static Status sum_losses(Trainer *t, const DataBatch *b, double *sum, int64_t *n_targets, bool *whole)
{
    int program = t->programs.index[PROGRAM_EVAL];
    *sum = 0;
    *n_targets = 0;
    for (int64_t s = 0; s < t->val_steps; s++) {
        int64_t n;
        float mean;
        TRY(data_fill(t->val_loader, s, mesh_data_rank(&t->layout.mesh), b));
        TRY(data_step_targets(t->val_loader, s, &n));
        if (n == 0) continue;
        double loss = 0;
        for (int k = program; k < program + t->programs.n_stages; k++) { /* a rank's stages, in their order */
            TRY(trainer_feed(t, k, b));
            TRY(session_run(t->session, k, PHASE_FORWARD, PHASE_FORWARD));
            if (!session_output(t->session, k, "cross_entropy")) continue;
            TRY(session_read(t->session, k, "cross_entropy", &mean, sizeof mean));
            loss = (double)mean;
        }
        TRY(trainer_sum_stages(t, &loss));
        *sum += loss * (double)n;
        *n_targets += n;
        *whole = t->world || !trainer_stop_requested(); /* the checkpoint comes first; the figure can wait */
        if (!*whole) return OK;
    }
    return OK;
}

Status trainer_validate(Trainer *t, double *loss, double *bits_per_byte)
{
    *loss = *bits_per_byte = NAN;
    if (t->programs.index[PROGRAM_EVAL] < 0 || t->val_steps <= 0) return OK;
    size_t n = (size_t)(t->micro_batch * t->config->train.seq);
    int32_t *scratch = xmalloc(4 * n * sizeof *scratch);
    DataBatch b = {scratch, scratch + n, scratch + 2 * n, (float *)(void *)(scratch + 3 * n)};
    double sum;
    int64_t all;
    bool whole = true;
    Status status = sum_losses(t, &b, &sum, &all, &whole);
    free(scratch);
    TRY(status);
    uint64_t bytes;
    if (!whole || all == 0) return OK;
    TRY(data_target_bytes(t->val_loader, t->val_steps, &bytes));
    *loss = sum / (double)all;
    if (bytes > 0) *bits_per_byte = sum / log(2) / (double)bytes;
    return OK;
}
