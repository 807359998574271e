/* Months of failures, event by event: what of the time is useful under each way to recover.
 *
 * Failures of all causes are one Poisson process whose events pick their cause by rate. Between
 * failures a job runs cycles of useful work and a checkpoint; a checkpoint counts once it is where
 * the recovery looks for it. What fails during a recovery starts the recovery again. */
#include "fleet/fleet.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_CAUSES = 64 };
static const double month_s = 30 * 86400.0;

const char *fleet_scheme_name(RecoveryScheme scheme)
{
    static const char *const names[] = {"restart", "spares", "memory", "replicas"};
    return names[scheme];
}

const char *fleet_loss_name(GoodputLoss loss)
{
    static const char *const names[] = {
        "saving", "work done again", "detection", "waiting for nodes", "restart", "fewer replicas"};
    return names[loss];
}

/* Nodes that are away for repair, and when they are back. */
typedef struct Away {
    double back_s;
    double nodes;
} Away;

typedef struct Month {
    const GoodputJob *job;
    const Cluster *cluster;
    RecoveryScheme scheme;
    uint64_t key, index;                         /* of random numbers */
    double rate[MAX_CAUSES], total_rate;         /* per second */
    double interval_s, save_s, stall_s, cycle_s; /* of a checkpoint */
    double replicas;
    double now_s, next_failure_s;
    double pool; /* spare nodes */
    VEC(Away) away;
    VEC(double) down; /* replicas: when each that is lost rejoins */
    double useful_s, lost_s[GOODPUT_LOSSES];
    int64_t failures;
} Month;

static double draw(Month *m) { return rng_uniform(m->key, m->index++); }

/* Triangular between low and high with its mode at central. */
static double draw_range(Month *m, Range r)
{
    double u = draw(m), width = r.high - r.low;
    if (m->job->fixed || width <= 0) return r.central;
    double before = (r.central - r.low) / width;
    return u < before ? r.low + sqrt(u * width * (r.central - r.low))
                      : r.high - sqrt((1 - u) * width * (r.high - r.central));
}

static void draw_next_failure(Month *m)
{
    m->next_failure_s = m->total_rate > 0 ? m->now_s - log1p(-draw(m)) / m->total_rate
                                          : (double)INFINITY;
}

static const FailureCause *draw_cause(Month *m)
{
    double at = draw(m) * m->total_rate;
    int i = 0;
    for (; i < m->cluster->n_failures - 1 && at >= m->rate[i]; i++) at -= m->rate[i];
    m->failures++;
    return &m->cluster->failure[i];
}

/* Lets `seconds` pass, or fewer if a failure or the month's end comes first: then false. */
static bool pass(Month *m, double seconds, GoodputLoss loss)
{
    double end = fmin(m->now_s + seconds, fmin(m->next_failure_s, month_s));
    bool whole = end >= m->now_s + seconds;
    m->lost_s[loss] += end - m->now_s;
    m->now_s = end;
    return whole;
}

/* ---- nodes and spares ------------------------------------------------------------------- */

/* Repaired nodes go back to the pool. */
static void collect_repaired(Month *m)
{
    for (size_t i = 0; i < m->away.n;) {
        if (m->away.at[i].back_s > m->now_s) {
            i++;
            continue;
        }
        m->pool += m->away.at[i].nodes;
        m->away.at[i] = m->away.at[--m->away.n];
    }
}

/* Sends the nodes of an event to repair; seconds until others stand in for them. */
static double replace_nodes(Month *m, const FailureCause *cause)
{
    const Recovery *r = &m->cluster->recovery;
    double nodes = fleet_cause_nodes(m->cluster, cause, m->job->nodes);
    if (nodes <= 0) return 0;
    collect_repaired(m);
    Away away = {m->now_s + draw_range(m, cause->repair_s), nodes};
    VEC_PUSH(&m->away, away);
    m->pool -= nodes;
    if (m->pool >= 0 && m->scheme != RECOVER_RESTART) return draw_range(m, r->spare_s);
    double allocate = draw_range(m, r->allocate_s), first = (double)INFINITY;
    for (size_t i = 0; i < m->away.n; i++) first = fmin(first, m->away.at[i].back_s);
    if (first - m->now_s < allocate) return first - m->now_s;
    m->pool = fmax(m->pool, 0); /* nodes from elsewhere; those that come back stay as spares */
    return allocate;
}

/* ---- a job that stops as a whole -------------------------------------------------------- */

/* Runs to the next failure or the month's end; `lag_s` passes until a checkpoint counts, one of
 * `every` cycles. */
static void run_cycles(Month *m, double until, double lag_s, double every)
{
    double seconds = until - m->now_s, step = every * m->cycle_s;
    bool ended = until >= month_s; /* what was done stays done */
    double kept = ended ? floor(seconds / m->cycle_s)
                        : every * floor(fmax(0, seconds - lag_s) / step);
    double rest = seconds - kept * m->cycle_s;
    m->useful_s += kept * m->interval_s;
    m->lost_s[LOST_SAVING] += kept * m->stall_s;
    if (ended) {
        m->useful_s += fmin(rest, m->interval_s);
        m->lost_s[LOST_SAVING] += fmax(0, rest - m->interval_s);
    } else
        m->lost_s[LOST_WORK] += rest;
    m->now_s = until;
}

/* Copies of a node's states lie on itself and on another one: losing a whole group loses both. */
static bool copies_survive(const Month *m, const FailureCause *cause)
{
    return m->scheme == RECOVER_MEMORY && fleet_cause_nodes(m->cluster, cause, m->job->nodes) <= 1;
}

/* From a failure to the next useful step; a failure in between leads here again. */
static bool recover(Month *m, const FailureCause *cause)
{
    const Recovery *r = &m->cluster->recovery;
    double devices = (double)m->job->nodes * (double)m->cluster->node.devices;
    double init = draw_range(m, r->init_s) * pow(devices / 1000, r->init_exponent);
    double load = copies_survive(m, cause)
                      ? draw_range(m, r->peer_load_s)
                      : fleet_load_s(m->cluster, m->job->nodes, m->job->state_bytes);
    double waiting = replace_nodes(m, cause);
    return pass(m, draw_range(m, r->detect_s), LOST_DETECTION) && pass(m, waiting, LOST_WAITING) &&
           pass(m, draw_range(m, r->process_s) + init + load, LOST_RESTART);
}

static void run_whole(Month *m)
{
    while (m->now_s < month_s) {
        double until = fmin(m->next_failure_s, month_s);
        const FailureCause *cause = until < month_s ? draw_cause(m) : NULL;
        bool copies = cause && copies_survive(m, cause);
        run_cycles(m, until, copies ? 0 : m->save_s, copies ? 1 : ceil(m->save_s / m->cycle_s));
        while (cause) {
            draw_next_failure(m);
            bool done = recover(m, cause);
            cause = done || m->now_s >= month_s ? NULL : draw_cause(m);
        }
    }
}

/* ---- replicas that go on ---------------------------------------------------------------- */

/* Runs to `until` with what is up, replicas rejoining on the way. */
static void run_replicas(Month *m, double until)
{
    while (m->now_s < until) {
        double end = until;
        for (size_t i = 0; i < m->down.n;) {
            if (m->down.at[i] <= m->now_s)
                m->down.at[i] = m->down.at[--m->down.n];
            else
                end = fmin(end, m->down.at[i++]);
        }
        double seconds = end - m->now_s, lost = fmin(1, (double)m->down.n / m->replicas);
        double saving = seconds * m->stall_s / m->cycle_s;
        m->lost_s[LOST_SAVING] += saving;
        m->lost_s[LOST_REPLICAS] += (seconds - saving) * lost;
        m->useful_s += (seconds - saving) * (1 - lost);
        m->now_s = end;
    }
}

/* Takes down what the cause hits; true when somebody was up there. */
static bool lose_replicas(Month *m, const FailureCause *cause, double rejoin_s)
{
    double nodes = fleet_cause_nodes(m->cluster, cause, m->job->nodes);
    double hit = cause->unit == PER_JOB
                     ? m->replicas
                     : fmax(1, ceil(m->replicas * nodes / (double)m->job->nodes));
    double up = m->replicas - (double)m->down.n;
    if (draw(m) >= up / m->replicas && hit < 2) return false; /* one that is down already */
    for (int i = 0, n = (int)ceil(fmin(hit, up)); i < n; i++)
        VEC_PUSH(&m->down, m->now_s + rejoin_s);
    return true;
}

static void run_elastic(Month *m)
{
    const Recovery *r = &m->cluster->recovery;
    while (m->now_s < month_s) {
        run_replicas(m, fmin(m->next_failure_s, month_s));
        while (m->now_s < month_s) {
            const FailureCause *cause = draw_cause(m);
            double stall = draw_range(m, r->replica_stall_s), waiting = replace_nodes(m, cause);
            bool hit = lose_replicas(m, cause,
                                     stall + waiting + draw_range(m, r->replica_rejoin_s));
            double again = fmin(m->job->step_s, m->useful_s); /* the step that it broke */
            draw_next_failure(m);
            if (!hit) break;
            m->useful_s -= again;
            m->lost_s[LOST_WORK] += again;
            double alarm = fmin(stall, draw_range(m, r->detect_s));
            if (pass(m, alarm, LOST_DETECTION) && pass(m, stall - alarm, LOST_RESTART)) break;
        }
    }
}

/* ---- months ----------------------------------------------------------------------------- */

/* The same factor for all causes would make them one: each draws its own rate for the month. */
static void begin_month(Month *m, int month)
{
    const Cluster *c = m->cluster;
    char purpose[64];
    snprintf(purpose, sizeof purpose, "goodput/%d", month);
    m->key = rng_key(m->job->seed, purpose);
    m->index = 0;
    m->now_s = m->useful_s = m->total_rate = 0;
    m->failures = 0;
    m->away.n = m->down.n = 0;
    for (int i = 0; i < GOODPUT_LOSSES; i++) m->lost_s[i] = 0;
    for (int i = 0; i < c->n_failures; i++) {
        FailureCause cause = c->failure[i];
        cause.per_day.central = draw_range(m, cause.per_day);
        m->rate[i] = fleet_cause_rate(c, &cause, m->job->nodes, LEVEL_CENTRAL);
        m->total_rate += m->rate[i];
    }
    draw_next_failure(m);
}

static Status check(const GoodputJob *job, RecoveryScheme scheme)
{
    const Cluster *c = job->cluster;
    if (job->nodes < 1 || job->nodes > c->n_nodes)
        return fail(ERR_REFUSED, "%s: a job on %lld nodes; the cluster has %lld", c->name,
                    (long long)job->nodes, (long long)c->n_nodes);
    if (c->n_failures > MAX_CAUSES)
        return fail(ERR_ARG, "%s: more than %d causes of failure", c->name, MAX_CAUSES);
    double copies = 2 * job->state_bytes / (double)job->nodes; /* its own and another's */
    if (scheme == RECOVER_MEMORY && copies > c->node.host_memory_bytes / 2)
        return fail(ERR_REFUSED,
                    "%s: two copies of a node's states take %.3g GB; half of a host's memory is "
                    "%.3g GB, enough from %.0f nodes on",
                    c->name, copies / 1e9, c->node.host_memory_bytes / 2e9,
                    ceil(4 * job->state_bytes / c->node.host_memory_bytes));
    return OK;
}

/* Checkpoints to storage cannot follow each other faster than they are written. */
static double interval_of(const Month *m, double mtbf_s)
{
    if (m->job->interval_s > 0) return m->job->interval_s;
    double best = isfinite(mtbf_s) ? fleet_interval_best(fmax(m->stall_s, 1e-3), mtbf_s) : month_s;
    return m->scheme == RECOVER_MEMORY ? best : fmax(best, m->save_s);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *rising, int n, double q)
{
    return rising[(int)(q * (n - 1) + 0.5)];
}

Status fleet_goodput(const GoodputJob *job, RecoveryScheme scheme, Arena *arena, Goodput *out)
{
    TRY(check(job, scheme));
    const Cluster *c = job->cluster;
    int months = job->months > 0 ? job->months : 100;
    double failure_rate = fleet_failure_rate(c, job->nodes, LEVEL_CENTRAL);
    Month m = {
        .job = job, .cluster = c, .scheme = scheme, .stall_s = c->recovery.save_stall_s.central};
    Goodput g = {.n_months = months, .month = ARENA_ARRAY(arena, double, months)};
    g.spares = scheme == RECOVER_RESTART ? 0
               : job->spares >= 0        ? job->spares
                                         : fleet_spares(c, job->nodes, FLEET_SPARES, LEVEL_CENTRAL);
    m.save_s = fleet_save_s(c, job->nodes, job->state_bytes);
    m.interval_s = g.interval_s = interval_of(&m, 1 / failure_rate);
    m.cycle_s = m.interval_s + m.stall_s;
    m.replicas = (double)max_i64(1, job->replicas);
    for (int i = 0; i < months; i++) {
        begin_month(&m, i);
        m.pool = (double)g.spares;
        if (scheme == RECOVER_REPLICAS)
            run_elastic(&m);
        else
            run_whole(&m);
        g.month[i] = m.useful_s / month_s;
        g.mean += g.month[i] / months;
        g.failures_per_day += (double)m.failures / 30 / months;
        for (int k = 0; k < GOODPUT_LOSSES; k++) g.lost[k] += m.lost_s[k] / month_s / months;
    }
    VEC_FREE(&m.away);
    VEC_FREE(&m.down);
    qsort(g.month, (size_t)months, sizeof *g.month, by_value);
    g.p5 = quantile(g.month, months, 0.05);
    g.p50 = quantile(g.month, months, 0.5);
    g.p95 = quantile(g.month, months, 0.95);
    *out = g;
    return OK;
}
