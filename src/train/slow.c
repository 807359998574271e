/* Ranks that compute more slowly than their peers. A step is as fast as its slowest rank, and all
 * ranks have the same step times; what differs is how long a rank computes and how long it waits
 * for others. Over a window of steps each rank takes the second smallest time of computing, which a
 * disturbance of single steps leaves alone; the first rank compares. A stretch of some steps is
 * disturbed now and then all the same: so several windows must say the same, more of them the more
 * the times of all ranks scatter, and for two seconds, since a machine's disturbances last as long
 * as they do however short the steps are.
 *
 * A rank that waits for a processor does not compute, though its clock runs: on a host with more to
 * do than processors that hits now one rank and now another, for many short steps in a row. So
 * against a rank counts only the time in which it had a processor or slept; and what it waited for
 * one counts when it has been so for a minute. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "train/trainer_internal.h"

static const double least_excess_s = 0.002; /* below it, it is the scheduler of the system */
static const double queued_long_s = 60;

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* ---- the judgement ---------------------------------------------------------------------- */

SlowSpeed slow_speed(const float *compute_s, const float *queued_s, int n)
{
    float all[SLOW_WINDOW], own[SLOW_WINDOW];
    CHECK(n == SLOW_WINDOW);
    for (int i = 0; i < n; i++) {
        all[i] = compute_s[i];
        own[i] = fmaxf(0,
                       compute_s[i] -
                           queued_s[i]); /* some of it may have been while it waited for others */
    }
    qsort(all, (size_t)n, sizeof *all, compare_floats);
    qsort(own, (size_t)n, sizeof *own, compare_floats);
    return (SlowSpeed){all[1], own[1]};
}

/* The lower one of an even number, so that of two ranks the slow one is not half of the measure. */
static float median_of_stage(const SlowSpeed *speed, const int *stage, int n, int which,
                             float *scratch)
{
    int m = 0;
    for (int r = 0; r < n; r++)
        if (stage[r] == which) scratch[m++] = speed[r].compute_s;
    qsort(scratch, (size_t)m, sizeof *scratch, compare_floats);
    return m ? scratch[(m - 1) / 2] : 0;
}

/* How many times as long as its peers; 1 where the difference is too short to tell. */
static float ratio_of(float compute_s, float median)
{
    return (double)(compute_s - median) > least_excess_s ? compute_s / median : 1;
}

/* ---- how many windows it takes ---------------------------------------------------------- */

/* How far the speeds of one rank differ from window to window, as a share of them: a standard
 * deviation, told by what four of five differences stay below, so that a few jumps are no part of
 * it. */
static float deviation(const SlowRank *rank)
{
    float change[SLOW_WINDOWS];
    int n = rank->n_changes < SLOW_WINDOWS ? rank->n_changes : SLOW_WINDOWS;
    const float four_of_five = 1.812f; /* of differences of two normal numbers: 1.2816 sqrt(2) */
    if (!n) return 0;
    memcpy(change, rank->change, (size_t)n * sizeof *change);
    qsort(change, (size_t)n, sizeof *change, compare_floats);
    return change[4 * (n - 1) / 5] / four_of_five;
}

static void note_speed(SlowRank *rank, float own_s)
{
    if (rank->last_s > 0)
        rank->change[rank->n_changes++ % SLOW_WINDOWS] = fabsf(own_s - rank->last_s) / rank->last_s;
    rank->last_s = own_s;
}

/* ---- the verdict ------------------------------------------------------------------------ */

static double most_of(double factor) { return 0.7 * (factor - 1); }

/* In the latest n windows it was slow on the whole, and in nearly each by most of the factor and by
 * `reach` of itself; none counts as more than slow enough, so that not one alone makes it slow. */
static bool is_slow_in(const SlowRank *rank, double factor, double reach, int n)
{
    const double most = 1 + 1.5 * (factor - 1);
    double bar = 1 + fmax(most_of(factor), reach), sum = 0;
    int below = 0;
    if (rank->n_windows < n) return false;
    for (int k = 1; k <= n; k++) {
        double ratio = (double)rank->ratio[(rank->n_windows - k) % SLOW_WINDOWS];
        sum += fmin(ratio, most);
        below += ratio < bar;
    }
    return sum > n * factor && below <= n / 8;
}

/* In how many windows it was slow, 0: it is not. Noise makes a rank slow in a window by chance: the
 * nearer to the deviation of all ranks' speeds its own lead is, the more windows it takes. */
static int slow_windows(const SlowRank *rank, double factor, double deviation)
{
    if (is_slow_in(rank, factor, 3.2 * deviation, 4)) return 4;
    if (is_slow_in(rank, factor, 2 * deviation, 8)) return 8;
    return is_slow_in(rank, factor, 1.2 * deviation, SLOW_WINDOWS) ? SLOW_WINDOWS : 0;
}

/* Since when it has been slow by most of the factor. One window may miss it, as noise makes it. */
static void note_stretch(const SlowWindow *w, double ratio, SlowRank *rank)
{
    rank->n_below = ratio < 1 + most_of(w->factor) ? rank->n_below + 1 : 0;
    if (rank->n_below > 1)
        rank->above_since_s = 0;
    else if (rank->n_below == 0 && rank->above_since_s == 0)
        rank->above_since_s = w->began_s;
}

static bool lasts(const SlowWindow *w, const SlowRank *rank)
{
    return rank->n_below == 0 && rank->above_since_s > 0 &&
           w->now_s - rank->above_since_s >= SLOW_LEAST_S;
}

/* After a window; returns for how many it is to be named, 0: it is not. One that was named and is
 * no longer slow is watched for a while before it can be named again. */
static int next(const SlowWindow *w, SlowRank *rank, double deviation)
{
    enum { WATCHED = 8 }; /* windows */
    double latest = (double)rank->ratio[(rank->n_windows - 1) % SLOW_WINDOWS];
    note_stretch(w, latest, rank);
    rank->n_good = latest > w->factor ? 0 : rank->n_good + 1;
    if (rank->named) {
        rank->named = rank->n_good < WATCHED;
        if (!rank->named) rank->n_windows = 0;
        return 0;
    }
    int n = lasts(w, rank) ? slow_windows(rank, w->factor, deviation) : 0;
    rank->named = n > 0;
    return n;
}

/* With what it waits for a processor: slow for a minute without a break. */
static bool queues_long(SlowRank *rank, bool slow, double now_s)
{
    if (!slow)
        rank->queued_since_s = 0;
    else if (rank->queued_since_s == 0)
        rank->queued_since_s = now_s;
    return slow && now_s - rank->queued_since_s > queued_long_s;
}

static void note_ratio(const SlowWindow *w, int r, float median, SlowRank *rank)
{
    float own = ratio_of(w->speed[r].own_s, median), all = ratio_of(w->speed[r].compute_s, median);
    bool queues = queues_long(rank, (double)all > w->factor, w->now_s);
    rank->ratio[rank->n_windows++ % SLOW_WINDOWS] = queues ? all : own;
}

/* The ranks of one stage. */
static void judge_stage(const SlowWindow *w, int stage, SlowRank *rank, float *scratch,
                        float *median, int *since)
{
    float m = median_of_stage(w->speed, w->stage, w->n, stage, scratch);
    int n = 0;
    for (int r = 0; r < w->n; r++) {
        if (w->stage[r] != stage) continue;
        note_speed(&rank[r], w->speed[r].own_s);
        scratch[n++] = deviation(&rank[r]);
    }
    qsort(scratch, (size_t)n, sizeof *scratch, compare_floats);
    double noise = n ? (double)scratch[(n - 1) / 2] : 0;
    for (int r = 0; r < w->n; r++) {
        if (w->stage[r] != stage) continue;
        note_ratio(w, r, m, &rank[r]);
        median[r] = m;
        since[r] = next(w, &rank[r], noise);
    }
}

void slow_judge(const SlowWindow *w, SlowRank *rank, float *median, int *since)
{
    float *scratch = xmalloc((size_t)w->n * sizeof *scratch);
    int last = 0;
    for (int r = 0; r < w->n; r++) last = w->stage[r] > last ? w->stage[r] : last;
    for (int s = 0; s <= last; s++) judge_stage(w, s, rank, scratch, median, since);
    free(scratch);
}

/* ---- on the first rank ------------------------------------------------------------------ */

static void name_slow(Trainer *t, int rank, SlowSpeed speed, float median, int windows)
{
    char text[320], queued[80] = "";
    if (speed.compute_s - speed.own_s > 0.1f * speed.compute_s)
        snprintf(queued, sizeof queued, ", %.4g s of it waiting for a processor",
                 (double)(speed.compute_s - speed.own_s));
    snprintf(text, sizeof text,
             "rank %d on %s is slow: it computes %.4g s a step%s, its peers %.4g s (%.2f times), "
             "in steps %lld to %lld",
             rank, comm_host(t->world, rank), (double)speed.compute_s, queued, (double)median,
             (double)(speed.compute_s / median),
             (long long)t->step - (int64_t)windows * SLOW_WINDOW + 1, (long long)t->step);
    progress_note(&t->progress, "drover: %s", text);
    metrics_event(t->metrics, "slow_rank", t->step, text);
}

static void judge(Trainer *t, const SlowSpeed *speed)
{
    SlowWatch *w = &t->slow;
    int n = comm_size(t->world), *stage = xmalloc((size_t)n * sizeof *stage);
    int *since = xmalloc((size_t)n * sizeof *since);
    float *median = xmalloc((size_t)n * sizeof *median);
    if (!w->rank) w->rank = ARENA_ARRAY(&t->arena, SlowRank, n);
    for (int r = 0; r < n; r++) stage[r] = mesh_at(&t->layout.mesh, r).coord[MESH_PP];
    slow_judge(&(SlowWindow){.speed = speed,
                             .stage = stage,
                             .n = n,
                             .factor = t->config->log.slow_rank,
                             .began_s = w->began_s,
                             .now_s = clock_s()},
               w->rank, median, since);
    for (int r = 0; r < n; r++)
        if (since[r]) name_slow(t, r, speed[r], median[r], since[r]);
    free(stage);
    free(median);
    free(since);
}

/* ---- on every rank ---------------------------------------------------------------------- */

static double blocked_s(const Trainer *t)
{
    CommStats s = comm_stats_of_rank(t->world);
    double sum = 0;
    for (int k = 0; k < COMM_KINDS; k++) sum += s.kind[k].blocked_s;
    return sum;
}

/* Seconds that this thread has waited for a processor since it began; 0 where the system does not
 * say. */
static double queued_s(SlowWatch *w)
{
    char text[80];
    long long ran, queued;
    if (w->schedstat == 0)
        w->schedstat = open("/proc/thread-self/schedstat",
                            O_RDONLY | O_CLOEXEC); /* of a rank's own thread */
    ssize_t n = w->schedstat > 0 ? pread(w->schedstat, text, sizeof text - 1, 0) : -1;
    if (n <= 0) return 0;
    text[n] = 0;
    return sscanf(text, "%lld %lld", &ran, &queued) == 2 ? 1e-9 * (double)queued : 0;
}

static bool is_watched(const Trainer *t) { return t->world && t->config->log.slow_rank > 0; }

void trainer_begin_timing(Trainer *t)
{
    if (!is_watched(t)) return;
    if (t->slow.n == 0) t->slow.began_s = clock_s();
    t->slow.blocked_s = blocked_s(t);
    t->slow.queued_s = queued_s(&t->slow);
}

void trainer_end_watch(Trainer *t)
{
    if (t->slow.schedstat > 0) close(t->slow.schedstat);
    t->slow.schedstat = 0;
}

/* Fault train.slow: 1.3 times as long; train.crawl: three times. */
static double slow_down(double compute_s)
{
    const double more_s = (fault_hit("train.crawl")  ? 2
                           : fault_hit("train.slow") ? 0.3
                                                     : 0) *
                          compute_s;
    if (more_s <= 0) return 0;
    struct timespec more = {.tv_sec = (time_t)more_s, .tv_nsec = (long)(fmod(more_s, 1) * 1e9)};
    nanosleep(&more, NULL);
    return more_s;
}

Status trainer_end_timing(Trainer *t, double step_s)
{
    SlowWatch *w = &t->slow;
    if (!is_watched(t)) return OK;
    double compute_s = step_s - (blocked_s(t) - w->blocked_s);
    double queued = queued_s(w) - w->queued_s;
    compute_s += slow_down(compute_s);
    if (w->n_warm_up < SLOW_WARM_UP) {
        w->n_warm_up++;
        return OK;
    }
    w->queued[w->n] = (float)queued;
    w->window[w->n++] = (float)compute_s;
    if (w->n < SLOW_WINDOW) return OK;
    w->n = 0;
    SlowSpeed mine = slow_speed(w->window, w->queued, SLOW_WINDOW),
              *all = xmalloc((size_t)comm_size(t->world) * sizeof *all);
    Status status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_GATHER,
                                                 .dtype = DTYPE_F32,
                                                 .send = &mine,
                                                 .recv = all,
                                                 .count = 2,
                                                 .node = "speed"});
    if (status == OK && t->rank == 0) judge(t, all);
    free(all);
    return status;
}
