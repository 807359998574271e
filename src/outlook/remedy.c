/* What would fit, or divide, instead of what does not: the nearest settings, found by planning
 * them. */
#include <stdlib.h>
#include <string.h>

#include "outlook/outlook.h"

enum { MAX_FOUND = 16, SHOWN = 3 };

typedef struct Remedy {
    RunConfig config;
    double step_s, peak_bytes;
} Remedy;

typedef struct Remedies {
    const RunConfig *before;
    const Cluster *cluster;
    Remedy found[MAX_FOUND];
    int n;
} Remedies;

/* ---- words ------------------------------------------------------------------------------ */

static void add_change(Str *out, const char *key, int64_t before, int64_t after)
{
    if (before != after) str_printf(out, "%s%s=%lld", out->n ? " " : "", key, (long long)after);
}

static const char *recompute_name(RunRecompute r)
{
    static const char *const names[] = {"none", "selective", "full"};
    return names[r];
}

void outlook_changes(const RunConfig *before, const RunConfig *after, Str *out)
{
    const RunParallel *a = &before->parallel, *b = &after->parallel;
    Str text = {0};
    add_change(&text, "train.batch", before->train.batch, after->train.batch);
    add_change(&text, "train.micro_batch", run_micro_batch(before), run_micro_batch(after));
    if (before->train.recompute != after->train.recompute)
        str_printf(&text, "%strain.recompute=%s", text.n ? " " : "",
                   recompute_name(after->train.recompute));
    add_change(&text, "parallel.tp", a->tp, b->tp);
    add_change(&text, "parallel.cp", a->cp, b->cp);
    add_change(&text, "parallel.ep", a->ep, b->ep);
    add_change(&text, "parallel.fsdp", a->fsdp, b->fsdp);
    add_change(&text, "parallel.dp", a->dp, b->dp);
    add_change(&text, "parallel.pp", a->pp, b->pp);
    if (b->pp > 1 && strcmp(a->schedule, b->schedule) != 0)
        str_printf(&text, "%sparallel.schedule=%s", text.n ? " " : "", b->schedule);
    if (b->pp > 1)
        add_change(&text, "parallel.virtual_stages", a->virtual_stages, b->virtual_stages);
    add_change(&text, "parallel.zero", a->zero, b->zero);
    str_add(out, text.n ? text.at : "nothing changed");
    str_deinit(&text);
}

/* ---- tries ------------------------------------------------------------------------------ */

static bool attempt(Remedies *r, const RunConfig *config)
{
    Plan plan;
    if (r->n == MAX_FOUND ||
        plan_make(config, r->cluster, &(PlanOptions){.jitter = -1}, &plan) != OK)
        return false;
    bool fits = plan.fits;
    if (fits)
        r->found[r->n++] = (Remedy){*config, plan.time.step_s,
                                    (double)plan.memory[plan.largest].total};
    plan_deinit(&plan);
    return fits;
}

static void more_recompute(Remedies *r, RunConfig c)
{
    while (c.train.recompute < RUN_RECOMPUTE_FULL) {
        c.train.recompute++;
        if (attempt(r, &c)) return;
    }
}

static void smaller_micro_batch(Remedies *r, RunConfig c)
{
    for (int64_t micro = run_micro_batch(&c) / 2; micro >= 1; micro /= 2) {
        c.train.micro_batch = micro;
        if (attempt(r, &c)) return;
    }
}

/* Optimizer states, gradients and at last weights shared among the replicas. */
static void share_states(Remedies *r, RunConfig c)
{
    for (int64_t zero = c.parallel.zero + 1; zero <= 2 && c.parallel.dp > 1; zero++) {
        c.parallel.zero = zero;
        if (c.parallel.fsdp == 1 && attempt(r, &c)) return;
    }
    c.parallel.zero = 0;
    for (; c.parallel.dp % 2 == 0; c.parallel.dp /= 2) {
        c.parallel.fsdp *= 2;
        RunConfig shared = c;
        shared.parallel.dp /= 2;
        if (attempt(r, &shared)) return;
    }
}

/* More ranks along an axis, fewer replicas. */
static void cut_more(Remedies *r, RunConfig c, size_t offset)
{
    int64_t *axis = (int64_t *)(void *)((char *)&c.parallel + offset);
    int64_t *replicas = c.parallel.dp > 1 ? &c.parallel.dp : &c.parallel.fsdp;
    while (*replicas % 2 == 0) {
        *replicas /= 2;
        *axis *= 2;
        if (attempt(r, &c)) return;
    }
}

static void single_changes(Remedies *r)
{
    RunConfig c = *r->before;
    more_recompute(r, c);
    smaller_micro_batch(r, c);
    share_states(r, c);
    cut_more(r, c, offsetof(RunParallel, tp));
    cut_more(r, c, offsetof(RunParallel, pp));
}

/* Everything that costs no device, and then what the search knows. */
static void all_changes(Remedies *r)
{
    enum { SIMULATED = 8 };
    RunConfig c = *r->before;
    SearchResult found;
    c.train.recompute = RUN_RECOMPUTE_FULL;
    c.train.micro_batch = 1;
    if (attempt(r, &c)) return;
    share_states(r, c);
    if (r->n) return;
    SearchOptions how = {
        .devices = run_ranks(&c), .max_batch = c.train.batch, .simulate = SIMULATED};
    if (plan_search(r->before, r->cluster, &how, &found) != OK) return;
    attempt(r, &found.plan[0].config);
    search_result_deinit(&found);
}

/* ---- sentences -------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
    const Remedy *x = a, *y = b;
    double s = x->step_s / (double)x->config.train.batch,
           t = y->step_s / (double)y->config.train.batch;
    return (s > t) - (s < t);
}

static void add_remedies(Remedies *r, Str *out)
{
    char peak[32];
    qsort(r->found, (size_t)r->n, sizeof *r->found, by_time);
    for (int i = 0; i < r->n && i < SHOWN; i++) {
        str_add(out, i ? ", or with " : "; it fits with ");
        outlook_changes(r->before, &r->found[i].config, out);
        str_printf(out, " (%s, %.4g s a step)", format_bytes(r->found[i].peak_bytes, peak),
                   r->found[i].step_s);
    }
}

Status outlook_refuse(const Outlook *o)
{
    Remedies *r = xcalloc(1, sizeof *r);
    Str text = {0};
    *r = (Remedies){.before = &o->plan.config, .cluster = o->cluster};
    single_changes(r);
    if (!r->n) all_changes(r);
    Status status = plan_refuse(&o->plan);
    str_add(&text, status_message());
    add_remedies(r, &text);
    if (!r->n)
        str_printf(&text,
                   "; no layout of %lld devices was found to fit: take more of them, or train.seq "
                   "below %lld",
                   (long long)o->plan.ranks, (long long)o->plan.config.train.seq);
    status = fail(status, "%s", text.at);
    str_deinit(&text);
    free(r);
    return status;
}

/* ---- what does not divide --------------------------------------------------------------- */

/* The batch that so many ranks share and that is nearest. */
static bool nearest_batch(Remedies *r, RunConfig c)
{
    const RunParallel *p = &c.parallel;
    int64_t at_once = c.train.micro_batch > 0 ? c.train.micro_batch : 1;
    at_once *= p->dp * p->fsdp * p->ep;
    if (at_once < 1 || c.train.batch % at_once == 0) return false;
    c.train.batch = max_i64(1, (c.train.batch + at_once / 2) / at_once) * at_once;
    Plan plan;
    if (plan_make(&c, r->cluster, &(PlanOptions){.jitter = -1}, &plan) != OK) return false;
    plan_deinit(&plan);
    r->found[r->n++] = (Remedy){.config = c};
    return true;
}

/* As many replicas as the cluster has devices for. */
static bool fewer_replicas(Remedies *r, RunConfig c)
{
    RunParallel *p = &c.parallel;
    int64_t devices = cluster_devices(r->cluster), ranks = run_ranks(&c),
            *axis = p->dp > 1 ? &p->dp : &p->fsdp;
    if (r->cluster->device.cores || ranks <= devices) return false;
    for (*axis = min_i64(*axis, *axis * devices / ranks); *axis >= 1; --*axis) {
        Plan plan;
        if (c.train.batch % (p->dp * p->fsdp * p->ep)) continue;
        if (plan_make(&c, r->cluster, &(PlanOptions){.jitter = -1}, &plan) != OK) return false;
        plan_deinit(&plan);
        r->found[r->n++] = (Remedy){.config = c};
        return true;
    }
    return false;
}

static bool try_axis(Remedies *r, RunConfig c, size_t axis, int64_t value)
{
    Plan plan;
    *(int64_t *)(void *)((char *)&c.parallel + axis) = value;
    if (plan_make(&c, r->cluster, &(PlanOptions){.jitter = -1}, &plan) != OK) return false;
    plan_deinit(&plan);
    r->found[r->n++] = (Remedy){.config = c};
    return true;
}

/* One axis by the powers of two around it, then by ever smaller ones. */
static bool nearest_axis(Remedies *r)
{
    static const size_t axes[] = {offsetof(RunParallel, cp),   offsetof(RunParallel, ep),
                                  offsetof(RunParallel, tp),   offsetof(RunParallel, pp),
                                  offsetof(RunParallel, fsdp), offsetof(RunParallel, dp)};
    for (int i = 0; i < COUNT_OF(axes); i++) {
        const char *parallel = (const char *)&r->before->parallel;
        int64_t value = *(const int64_t *)(const void *)(parallel + axes[i]), below = 1;
        if (value < 2) continue;
        while (2 * below < value) below *= 2;
        if (try_axis(r, *r->before, axes[i], below)) return true;
        if (2 * below != value && try_axis(r, *r->before, axes[i], 2 * below)) return true;
        while ((below /= 2) >= 1)
            if (try_axis(r, *r->before, axes[i], below)) return true;
    }
    return false;
}

Status outlook_refuse_layout(const RunConfig *config, const Cluster *cluster, Status status)
{
    char *sentence = xstrdup(status_message());
    Remedies *r = xcalloc(1, sizeof *r);
    *r = (Remedies){.before = config, .cluster = cluster};
    bool found = !strstr(sentence, "would") && !strstr(sentence, "; take ") &&
                 (nearest_batch(r, *config) || fewer_replicas(r, *config) || nearest_axis(r));
    Str changes = {0};
    if (found) outlook_changes(config, &r->found[0].config, &changes);
    status = found ? fail(status, "%s; %s would do", sentence, changes.at)
                   : fail(status, "%s", sentence);
    str_deinit(&changes);
    free(sentence);
    free(r);
    return status;
}
