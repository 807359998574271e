/* The loss on held-out text, and what it means in bits per byte. */
#include <math.h>
#include <stdlib.h>

#include "train/trainer_internal.h"

/* The mean loss that this rank's last stage makes of its batch; 0 on a rank without that stage. */
static Status run_batch(Trainer *t, const DataBatch *b, double *loss)
{
    int program = t->programs.index[PROGRAM_EVAL];
    float mean;
    *loss = 0;
    for (int k = program; k < program + t->programs.n_stages;
         k++) { /* a rank's stages, in their order */
        TRY(trainer_feed(t, k, b, 0));
        TRY(session_run(t->session, k, PHASE_FORWARD, PHASE_FORWARD));
        if (!session_has_output(t->session, k, "cross_entropy")) continue;
        TRY(session_read(t->session, k, "cross_entropy", &mean, sizeof mean));
        *loss = (double)mean;
    }
    return OK;
}

/* Of all validation steps; false in *whole when a signal came first. */
static Status sum_losses(Trainer *t, const DataBatch *b, double *sum, int64_t *n_targets,
                         bool *whole)
{
    for (int64_t s = 0; s < t->val_steps; s++) {
        int64_t n;
        double loss;
        TRY(data_fill(t->val_loader, s, mesh_data_rank(&t->layout.mesh), b));
        TRY(data_step_targets(t->val_loader, s, &n));
        if (n == 0) continue;
        TRY(run_batch(t, b, &loss));
        TRY(trainer_sum_stages(t, &loss));
        *sum += loss * (double)n;
        *n_targets += n;
        *whole = t->world ||
                 !trainer_stop_requested(); /* the checkpoint comes first; the figure can wait */
        if (!*whole) return OK;
    }
    return OK;
}

/* This rank's of the leaves, each a step of the held-out split; ranks stay in step beyond the last
 * of them. */
static Status run_leaves(Trainer *t, const DataBatch *b, float *leaf, bool *whole)
{
    int64_t ranks = mesh_data_ranks(&t->layout.mesh);
    for (int64_t s = mesh_data_rank(&t->layout.mesh), first = 0; first < t->val_steps && *whole;
         first += ranks, s += ranks) {
        double loss;
        TRY(data_fill(t->val_loader, s, 0, b));
        TRY(run_batch(t, b, &loss));
        if (s < t->val_steps) leaf[s] = (float)loss;
        *whole = t->world || !trainer_stop_requested();
    }
    return OK;
}

/* In canonical mode: added up in the order of leaves, whoever computed them. */
static Status sum_leaves(Trainer *t, const DataBatch *b, double *sum, int64_t *n_targets,
                         bool *whole)
{
    float *leaf = xcalloc((size_t)t->val_steps, sizeof *leaf);
    Status status = run_leaves(t, b, leaf, whole);
    if (status == OK) status = trainer_gather_leaves(t, leaf, t->val_steps);
    for (int64_t s = 0; s < t->val_steps && status == OK; s++) {
        int64_t n;
        status = data_step_targets(t->val_loader, s, &n);
        if (status != OK) break;
        *sum += (double)leaf[s] * (double)n;
        *n_targets += n;
    }
    free(leaf);
    return status;
}

Status trainer_validate(Trainer *t, double *loss, double *bits_per_byte)
{
    *loss = *bits_per_byte = NAN;
    if (t->programs.index[PROGRAM_EVAL] < 0 || t->val_steps <= 0) return OK;
    size_t n = (size_t)(t->micro_batch * t->config->train.seq);
    int32_t *scratch = xmalloc(4 * n * sizeof *scratch);
    DataBatch b = {scratch, scratch + n, scratch + 2 * n, (float *)(void *)(scratch + 3 * n)};
    double sum = 0;
    int64_t all = 0;
    bool whole = true;
    Status status = t->n_leaves ? sum_leaves(t, &b, &sum, &all, &whole)
                                : sum_losses(t, &b, &sum, &all, &whole);
    free(scratch);
    TRY(status);
    uint64_t bytes;
    if (!whole || all == 0) return OK;
    TRY(data_target_bytes(t->val_loader, t->val_steps, &bytes));
    *loss = sum / (double)all;
    if (bytes > 0) *bits_per_byte = sum / log(2) / (double)bytes;
    return OK;
}
