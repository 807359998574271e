/* Steps differ: how long they take as a distribution, and what slow machines make of them.
 *
 * A synchronous step waits for the slowest of n ranks, whose times of kernels are independent and
 * normal: the largest of n is below x with probability Phi(x)^n. A machine that is slow all the
 * time holds all others up, whatever n is (MegaScale, NSDI 2024: about one machine in 200 was about
 * a tenth slower than the others; OSDI 2025's and GREYHOUND's studies saw more). */
#include <math.h>

#include "outlook/outlook.h"

/* x with Phi(x)^n = q. */
double outlook_slowest_of(double n, double q)
{
    double low = -10, high = 12;
    for (int i = 0; i < 80; i++) {
        double x = (low + high) / 2, below = n * log1p(-0.5 * erfc(x / sqrt(2)));
        if (below < log(q))
            low = x;
        else
            high = x;
    }
    return (low + high) / 2;
}

void outlook_jitter(const Outlook *o, Jitter *out)
{
    const Plan *plan = &o->plan;
    const StepTime *t = &plan->time;
    double work_s = t->part.optimizer_s, even_s = t->step_s - t->part.jitter_s,
           n = (double)plan->ranks;
    for (int w = 0; w < SIM_WORKS; w++) work_s += t->part.work_s[w];
    static const double quantile[] = {0.05, 0.5, 0.95};
    double at[COUNT_OF(quantile)];
    for (int i = 0; i < COUNT_OF(quantile); i++)
        at[i] = even_s + work_s * PLAN_JITTER * outlook_slowest_of(n, quantile[i]);
    int64_t nodes = (plan->ranks + o->cluster->node.devices - 1) / o->cluster->node.devices;
    *out = (Jitter){.p5_s = at[0],
                    .p50_s = at[1],
                    .p95_s = at[2],
                    .slow_nodes = SLOW_SHARE * (double)nodes,
                    .any_slow = -expm1((double)nodes * log1p(-SLOW_SHARE)),
                    .slow_step_s = t->step_s + work_s * SLOW_BY};
}

void outlook_jitter_text(const Outlook *o, Str *out)
{
    Jitter j;
    if (o->plan.ranks < 2) return;
    outlook_jitter(o, &j);
    str_printf(out,
               "steps    %.4g to %.4g s in nine of ten; %.4g s beside a machine that is %.0f%% "
               "slower: one in %.0f is, %.3g of these\n",
               j.p5_s, j.p95_s, j.slow_step_s, 100 * SLOW_BY, 1 / SLOW_SHARE, j.slow_nodes);
}

void outlook_jitter_json(const Outlook *o, Str *out)
{
    Jitter j;
    outlook_jitter(o, &j);
    str_printf(out,
               ", \"steps_s\": {\"p5\": %.9g, \"p50\": %.9g, \"p95\": %.9g, \"slow_machine\": "
               "%.9g, \"slow_machines\": %.9g, \"any_slow\": %.9g}",
               j.p5_s, j.p50_s, j.p95_s, j.slow_step_s, j.slow_nodes, j.any_slow);
}
