/* Steps that go wrong on purpose (FAULT, base.h): a target whose weight is no number makes the loss
 * one that is none; a gradient overflows while the loss is fine; a weight that is no number for the
 * length of a step makes all activations behind it so, those that choose experts included. A bit of
 * a weight that turns over on one rank stays so. */
#include <math.h>

#include "train/trainer_internal.h"

/* A norm's weight of the first layer: everything behind it is touched. NULL in a model without
 * vectors. */
static float *first_vector(Trainer *t)
{
    for (int i = 0; i < t->n_weights; i++) {
        const Tensor *w = &t->weights[i].tensor;
        if (w->shape.rank == 1 && w->dtype == DTYPE_F32) return w->data;
    }
    return NULL;
}

/* One bit of the first weight that other ranks hold too, for good. */
static void flip_bit(Trainer *t)
{
    const Store *store = t->programs.store;
    for (int i = 0; i < store->n_entries; i++) {
        if (store->entry[i].role != STATE_PARAM || !trainer_replica_axes(t, i)) continue;
        *(uint8_t *)session_state(t->session, i).data ^= 1;
        return;
    }
}

Status faults_begin(Trainer *t, StepFaults *f)
{
    bool flip = fault_hit("train.flip"), poison = fault_hit("train.activation");
    *f = (StepFaults){.loss = fault_hit("train.nan"), .gradient = fault_hit("train.inf")};
    if (!flip && !poison) return OK;
    TRY(session_fetch_states(t->session));
    if (flip) flip_bit(t);
    if (poison) f->poisoned = first_vector(t);
    if (f->poisoned) {
        f->kept = *f->poisoned;
        *f->poisoned = NAN;
    }
    return session_store_states(t->session);
}

/* A step that failed is put back by nobody: the run ends with it. */
Status faults_end(const StepFaults *f, Trainer *t)
{
    if (!f->poisoned) return OK;
    TRY(session_fetch_states(t->session));
    *f->poisoned = f->kept;
    return session_store_states(t->session);
}

void faults_in_batch(const StepFaults *f, Trainer *t, int program)
{
    if (f->loss) *(float *)session_input(t->session, program, "weights") = NAN;
}

/* Several micro-batches: their sum is a state, and one element of it overflows. */
Status faults_in_sums(const StepFaults *f, Trainer *t)
{
    const Store *store = t->programs.store;
    if (!f->gradient) return OK;
    TRY(session_fetch_states(t->session));
    for (int i = 0; i < store->n_entries; i++) {
        if (store->entry[i].role != STATE_GRAD) continue;
        *(float *)session_state(t->session, i).data = INFINITY;
        break;
    }
    return session_store_states(t->session);
}

/* Gradients that are no states, or whose norm is there before the host sees them: the norm is what
 * such an element would make it. */
double faults_in_norm(const StepFaults *f, const Trainer *t, double grad_norm)
{
    bool seen = t->n_micro == 1 || t->programs.last == PROGRAM_UPDATE;
    return f->gradient && seen ? (double)INFINITY : grad_norm;
}
