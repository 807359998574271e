/* The same layout with more and with fewer replicas, the same batch: what devices buy when the
 * batch may not grow. */
#include "outlook/outlook.h"

#include <stdlib.h>

enum { MOST_PARTS = 32, MOST_TIMES = 8 };
static const double apart = 1.4; /* neighbours, at least */

/* The axis of replicas that can be halved and doubled. */
static int64_t *replicas_of(RunConfig *config)
{
    RunParallel *p = &config->parallel;
    return p->dp > 1 || p->fsdp == 1 ? &p->dp : &p->fsdp;
}

/* false: such a layout is none, or for no whole nodes. */
static bool make_point(const RunConfig *config, const Cluster *cluster, double tokens,
                       ScalePoint *point)
{
    Cluster other = *cluster; /* its texts and lists are borrowed; its arena stays as it is */
    int64_t ranks = run_ranks(config);
    Outlook o;
    other.arena = (Arena){0};
    if (run_layout_check(config, ranks) != OK) return false;
    if (ranks > cluster_devices(cluster) && cluster_resize(&other, ranks) != OK) return false;
    bool made = outlook_make(config, &other, &(PlanOptions){.jitter = -1}, tokens, &o) == OK;
    bool known = made && o.plan.time.step_s > 0; /* not of more ranks than a processor has cores */
    if (known)
        *point = (ScalePoint){
            .devices = ranks,
            .fits = o.plan.fits,
            .step_s = o.plan.time.step_s,
            .tokens_per_s = o.plan.tokens_per_s,
            .mfu = o.plan.mfu,
            .days = outlook_days(&o),
            .goodput = o.has_fleet ? o.fleet.goodput[o.fleet.scheme].mean : 0,
            .usd_per_trillion_tokens = o.has_fleet ? o.fleet.usd_per_trillion_tokens : (Range){0}};
    if (made) outlook_deinit(&o);
    return known;
}

/* Far enough from the point before, if there is one. */
static bool is_apart(const Scaling *s, int64_t devices)
{
    return s->n == 0 || (double)devices > apart * (double)s->point[s->n - 1].devices;
}

/* `times` or `parts` as many replicas; false: such a layout is none. */
static bool add_point(const Outlook *o, int64_t times, int64_t parts, Scaling *out)
{
    RunConfig config = o->plan.config;
    int64_t *replicas = replicas_of(&config);
    if (*replicas % parts || out->n == SCALE_POINTS) return false;
    *replicas = *replicas * times / parts;
    int64_t devices = run_ranks(&config);
    if (!is_apart(out, devices)) return false;
    if (parts > 1 && (double)o->plan.ranks < apart * (double)devices) return false;
    if (!make_point(&config, o->cluster, o->tokens, &out->point[out->n])) return false;
    out->n++;
    return true;
}

void outlook_scale(const Outlook *o, Scaling *out)
{
    *out = (Scaling){0};
    for (int64_t parts = MOST_PARTS; parts > 1; parts--) add_point(o, 1, parts, out);
    out->here = out->n;
    if (!add_point(o, 1, 1, out)) { /* the plan itself says nothing */
        out->n = 0;
        return;
    }
    for (int64_t times = 2; times <= MOST_TIMES; times++) add_point(o, times, 1, out);
}
