/* Whether a run that has ended is started again. */
#include "launch/launch.h"

#include <math.h>

enum { EXIT_USAGE = 2, EXIT_REFUSED = 3, EXIT_INTERRUPTED = 75 };

/* Saving something new is progress; after it the past is forgotten. */
static void count(LaunchPolicy *p, const LaunchEnd *end)
{
    bool progress = p->any && end->saved > p->last.saved;
    if (progress) p->restarts = p->same_step = 0;
    p->same_step = p->any && !progress && end->step == p->last.step ? p->same_step + 1 : 1;
    p->last = *end;
    p->any = true;
    p->restarts++;
}

bool launch_policy_again(LaunchPolicy *p, const LaunchEnd *end, double *wait_s, const char **why)
{
    *why = NULL;
    if (end->code == 0 || end->code == EXIT_USAGE || end->code == EXIT_REFUSED ||
        end->code == EXIT_INTERRUPTED)
        return false;
    count(p, end);
    if (p->same_step >= LAUNCH_SAME_STEP)
        *why = "it fails at the same step again and again, and nothing new was saved";
    if (p->restarts > p->max_restarts)
        *why = "it has been started again as often as --max-restarts allows, and nothing new was "
               "saved";
    *wait_s = fmin(p->backoff_s * pow(2, (double)(p->restarts - 1)), LAUNCH_LONGEST_WAIT_S);
    return !*why;
}
