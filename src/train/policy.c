/* What to do with a step that went wrong: numbers that are none, losses that jump. */
#include "train/train.h"

#include <math.h>

enum { SETTLED = 20 }; /* good steps before a spike can be told from a start */

static const char *what_is_wrong(const BadSteps *p, double loss, double grad_norm)
{
    if (!isfinite(loss)) return "the loss is not finite";
    if (!isfinite(grad_norm)) return "the gradient norm is not finite";
    if (p->spike_factor > 0 && p->n_good >= SETTLED && loss > p->spike_factor * p->mean_loss)
        return "the loss jumped";
    return NULL;
}

StepVerdict bad_steps_judge(BadSteps *p, double loss, double grad_norm, const char **why)
{
    *why = what_is_wrong(p, loss, grad_norm);
    if (!*why) {
        const double keep = 0.98;
        p->mean_loss = p->n_good ? keep * p->mean_loss + (1 - keep) * loss : loss;
        p->n_good++;
        p->n_in_a_row = 0;
        return STEP_GOOD;
    }
    p->n_skipped++;
    p->n_in_a_row++;
    bool finite = isfinite(loss) && isfinite(grad_norm);
    if (!finite && !p->skip_nonfinite) return STEP_STOP;
    return p->max_skips > 0 && p->n_in_a_row > p->max_skips ? STEP_STOP : STEP_SKIP;
}
