/* The smallest cluster of a kind that trains so many tokens in so many days. */
#include <math.h>
#include <stdlib.h>

#include "model/model.h"
#include "outlook/outlook_internal.h"

/* Of a first guess only. */
static const double guess_mfu = 0.4, guess_goodput = 0.9;

/* ---- one size --------------------------------------------------------------------------- */

static Status find(const Question *q, const RunConfig *config, double tokens, Answer *a)
{
    SearchResult found;
    TRY(cluster_resize(&a->cluster, a->devices));
    SearchOptions how = {.devices = a->devices,
                         .max_batch = a->max_batch,
                         .simulate = q->simulate,
                         .threads = q->threads,
                         .profiles = q->profiles};
    TRY(plan_search(config, &a->cluster, &how, &found));
    Status status = outlook_make(&found.plan[0].config, &a->cluster, &(PlanOptions){.jitter = -1},
                                 tokens, &a->outlook);
    search_result_deinit(&found);
    return status;
}

Status outlook_find(const Question *q, const RunConfig *config, int64_t devices, int64_t max_batch,
                    double tokens, Answer **out)
{
    Answer *a = xcalloc(1, sizeof *a);
    *a = (Answer){.devices = devices, .max_batch = max_batch, .cluster = *q->cluster};
    a->cluster.arena = (Arena){0}; /* texts and lists stay the question's */
    Status status = find(q, config, tokens, a);
    if (status == OK)
        *out = a;
    else
        free(a);
    return status;
}

void outlook_answer_destroy(Answer *a)
{
    if (!a) return;
    outlook_deinit(&a->outlook);
    free(a);
}

Status outlook_flop_per_token(const RunConfig *config, double *flop, double *active_weights)
{
    ModelConfig model;
    TRY(train_expect_model(config, &model));
    *flop = model_train_flop_per_token(&model, config->train.seq);
    *active_weights = (double)model_counts(&model).active;
    model_config_deinit(&model);
    return OK;
}

double outlook_guess_flop_per_s(const Cluster *c)
{
    return c->device.matrix[MATH_BF16].peak_flop_per_s * guess_mfu * guess_goodput;
}

/* ---- all sizes -------------------------------------------------------------------------- */

enum { MAX_RUNGS = 96, MAX_POWER = 1 << 17 };

typedef struct Smallest {
    Ladder ladder;
    const Question *q;
    int64_t devices[MAX_RUNGS];
    double days[MAX_RUNGS]; /* 0: not tried; INFINITY: nothing fits or divides */
    int fastest;            /* -1: nothing was planned yet */
    int slower;             /* how many larger ones were not faster than it */
    Answer *best;           /* of the least rung that was good */
} Smallest;

/* Numbers of nodes with few and small factors: up to 7, then 4, 5, 6 and 7 times powers of two. */
static int list_sizes(const Cluster *c, int64_t devices[MAX_RUNGS])
{
    int n = 0;
    for (int64_t nodes = 1; nodes < 4; nodes++) devices[n++] = nodes * c->node.devices;
    for (int64_t power = 1; power <= MAX_POWER; power *= 2)
        for (int64_t m = 4; m < 8; m++) devices[n++] = m * power * c->node.devices;
    return n;
}

static bool soon_enough(Ladder *ladder, int at)
{
    Smallest *s = (Smallest *)(void *)ladder;
    const Question *q = s->q;
    Answer *a = NULL;
    Status status = outlook_find(q, q->config, s->devices[at], q->max_batch, q->tokens, &a);
    double days = status == OK ? outlook_days(&a->outlook) : (double)INFINITY;
    if (status == OK)
        log_info("%lld devices: %.4g days", (long long)s->devices[at], days);
    else
        log_info("%lld devices: %s", (long long)s->devices[at], status_message());
    s->days[at] = days;
    if (s->fastest < 0 ? status == OK : days < s->days[s->fastest]) {
        s->fastest = at;
        s->slower = 0;
    } else if (s->fastest >= 0 && at > s->fastest)
        ladder->hopeless = ++s->slower >= 2;
    if (!a || days > q->days) {
        outlook_answer_destroy(a);
        return false;
    }
    if (!s->best || a->devices < s->best->devices) {
        Answer *drop = s->best;
        s->best = a;
        a = drop;
    }
    outlook_answer_destroy(a);
    return true;
}

static Status nothing_is_fast_enough(const Smallest *s)
{
    const Question *q = s->q;
    char tokens[32], batch[32];
    format_count(q->tokens, tokens);
    format_count((double)q->max_batch * (double)q->config->train.seq, batch);
    if (s->fastest < 0)
        return fail(ERR_REFUSED,
                    "no number of %s up to %lld holds this model with at most %s tokens in a step; "
                    "take another cluster, or a larger --max-batch",
                    q->cluster->device.name, (long long)s->devices[s->ladder.n - 1], batch);
    return fail(ERR_REFUSED,
                "no number of %s trains %s tokens in %.4g days with at most %s tokens in a step: "
                "%lld of them come nearest; take --days %.0f, or a larger --max-batch",
                q->cluster->device.name, tokens, q->days, batch, (long long)s->devices[s->fastest],
                ceil(s->days[s->fastest]));
}

/* Where the batch is too small for more devices, whether they share it well is what counts: the
 * sizes around the fastest, up to one that was tried, and down as long as fewer are faster. */
static int look_around(Smallest *s)
{
    if (s->fastest < 0) return -1;
    for (int at = s->fastest + 1; at < s->ladder.n && s->days[at] == 0; at++)
        if (soon_enough(&s->ladder, at)) return at;
    for (int at = s->fastest - 1; at >= 0 && s->days[at] == 0 && at + 1 >= s->fastest; at--)
        if (soon_enough(&s->ladder, at)) return at;
    return -1;
}

/* Fewer devices than the smallest that are quick enough may cost less, and take longer. */
static Status check_money(const Smallest *s)
{
    CHECK(s->best);
    const Outlook *o = &s->best->outlook;
    double usd = o->has_fleet && o->fleet.has_time ? o->fleet.run_usd.central : 0;
    if (s->q->max_usd <= 0 || usd <= s->q->max_usd) return OK;
    return fail(ERR_REFUSED,
                "the smallest cluster that is quick enough, of %lld %s, costs %.4g M$ for these "
                "tokens, above the limit of %.4g; take --max-usd %.0f, or more --days",
                (long long)s->best->devices, s->q->cluster->device.name, usd * 1e-6,
                s->q->max_usd * 1e-6, ceil(usd * 1e-6));
}

static Status climb(Smallest *s, SmallestAnswer *out)
{
    const Question *q = s->q;
    double flop, active;
    TRY(outlook_flop_per_token(q->config, &flop, &active));
    s->ladder.n = list_sizes(q->cluster, s->devices);
    double wanted = flop * q->tokens / (q->days * 86400 * outlook_guess_flop_per_s(q->cluster));
    double busy = (double)fleet_useful_devices((double)q->max_batch * (double)q->config->train.seq);
    int guess = 0;
    wanted = fmin(wanted, busy); /* more of them the batch does not keep busy */
    while (guess + 1 < s->ladder.n && (double)s->devices[guess] < wanted) guess++;
    int at = outlook_climb(&s->ladder, guess);
    if (at < 0) at = look_around(s);
    if (at < 0) return nothing_is_fast_enough(s);
    TRY(check_money(s));
    *out = (SmallestAnswer){.answer = s->best};
    for (int below = at - 1; below >= 0 && !out->devices_below; below--) {
        if (s->days[below] == 0) continue; /* not tried */
        out->devices_below = s->devices[below];
        out->days_below = s->days[below];
    }
    return OK;
}

Status outlook_smallest(const Question *question, SmallestAnswer *out)
{
    Question q = *question;
    Smallest *s = xcalloc(1, sizeof *s);
    if (!q.profiles) q.profiles = profile_store_create();
    *s = (Smallest){.ladder.good = soon_enough, .q = &q, .fastest = -1};
    Status status = climb(s, out);
    if (!question->profiles) profile_store_destroy(q.profiles);
    if (status != OK) outlook_answer_destroy(s->best);
    free(s);
    return status;
}
