/* train.minutes: how many steps fit, found by running a few that leave no trace. The number is
 * chosen once, at the start of a run, and stands in its resolved run file and checkpoints, so that
 * the schedule, and with it every bit, is fixed from there on. */
#include "train/trainer_internal.h"

enum { TRIAL_STEPS = 4 };

Status trainer_choose_steps(Trainer *t)
{
    double minutes = t->config->train.minutes, first = 0, best = 0, start = clock_s();
    if (minutes <= 0 || t->resumed) return OK;
    for (int i = 0; i <= TRIAL_STEPS; i++) {
        StepMetrics m;
        int64_t enough = clock_s() - start >= 6 * minutes;
        bool stop = trainer_stop_requested();
        TRY(trainer_agree(t, &enough));
        TRY(trainer_any(t, &stop));
        if (enough) break;
        if (stop) return fail(ERR_CANCELLED, "stopped before the first step; nothing is lost");
        TRY(trainer_run_step(t, &m));
        if (i == 0)
            first = m.step_s; /* it touches fresh memory */
        else if (best == 0 || m.step_s < best)
            best = m.step_s;
    }
    double left = 60 * minutes - (clock_s() - start);
    /* a twentieth goes to validation, checkpoints and slower moments of the machine */
    t->steps = max_i64((int64_t)(0.95 * left / (best > 0 ? best : first)), 1);
    return trainer_agree(t, &t->steps);
}
