/* Learning rate by step. */
#include "train/train.h"

#include <math.h>

static double decayed(const Schedule *s, int64_t step)
{
    double end = s->lr * s->min_ratio;
    switch (s->kind) {
    case RUN_CONSTANT: return s->lr;
    case RUN_COSINE: {
        double span = (double)max_i64(s->steps - s->warmup, 1),
               done = (double)(step - s->warmup) / span;
        return end + (s->lr - end) * 0.5 * (1 + cos(3.141592653589793 * fmin(fmax(done, 0), 1)));
    }
    case RUN_WSD: {
        int64_t into = step - (s->steps - s->decay_steps);
        if (into <= 0 || s->decay_steps <= 0) return s->lr;
        return s->lr + (end - s->lr) * fmin((double)into / (double)s->decay_steps, 1);
    }
    }
    return s->lr;
}

double schedule_lr(const Schedule *s, int64_t step)
{
    double lr = decayed(s, step);
    if (step < s->warmup) lr = fmin(lr, s->lr * (double)(step + 1) / (double)s->warmup);
    return lr;
}
