/* Ranks that compute more slowly than their peers. A step is as fast as its slowest rank, and all ranks have the same step
 * times; what differs is how long a rank computes and how long it waits for others. Over a window of steps each rank takes the
 * second smallest time of computing, which a disturbance of single steps leaves alone; the first rank compares. */
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "train/trainer_internal.h"

static const double least_excess_s = 0.002; /* below it, it is the scheduler of the system */

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The lower one of an even number, so that of two ranks the slow one is not half of the measure. */
static float median_of_stage(const float *compute_s, const int *stage, int n, int which,
                             float *scratch)
{
    int m = 0;
    for (int r = 0; r < n; r++)
        if (stage[r] == which) scratch[m++] = compute_s[r];
    qsort(scratch, (size_t)m, sizeof *scratch, compare_floats);
    return m ? scratch[(m - 1) / 2] : 0;
}

void slow_ranks_find(const float *compute_s, const int *stage, int n, double factor, float *median,
                     bool *slow)
{
    float *scratch = xmalloc((size_t)n * sizeof *scratch);
    int last = 0;
    for (int r = 0; r < n; r++) last = stage[r] > last ? stage[r] : last;
    for (int s = 0; s <= last; s++) {
        float m = median_of_stage(compute_s, stage, n, s, scratch);
        for (int r = 0; r < n; r++) {
            if (stage[r] != s) continue;
            median[r] = m;
            slow[r] = (double)compute_s[r] > factor * (double)m &&
                      (double)(compute_s[r] - m) > least_excess_s;
        }
    }
    free(scratch);
}

/* ---- on the first rank ---------------------------------------------------------------------------------- */

static void name_slow(Trainer *t, int rank, float compute_s, float median)
{
    char text[256];
    snprintf(text, sizeof text,
             "rank %d on %s is slow: it computes %.4g s a step, its peers %.4g s (%.2f times), in "
             "steps %lld to %lld",
             rank, comm_host(t->world, rank), (double)compute_s, (double)median,
             (double)(compute_s / median), (long long)t->step - 2 * SLOW_WINDOW + 1,
             (long long)t->step);
    progress_note(&t->progress, "drover: %s", text);
    metrics_event(t->metrics, "slow_rank", t->step, text);
}

/* Of a rank after a window. One that was named and is no longer slow is watched for a while before it can be named again. */
static uint8_t next(uint8_t rank, bool slow)
{
    enum { WATCHED = 5 };
    if (slow) return rank == RANK_GOOD ? RANK_SUSPECTED : RANK_NAMED;
    return rank < RANK_NAMED || rank == RANK_NAMED + WATCHED ? RANK_GOOD : (uint8_t)(rank + 1);
}

static void judge(Trainer *t, const float *compute_s)
{
    SlowWatch *w = &t->slow;
    int n = comm_size(t->world), *stage = xmalloc((size_t)n * sizeof *stage);
    float *median = xmalloc((size_t)n * sizeof *median);
    bool *slow = xcalloc((size_t)n, sizeof *slow);
    if (!w->rank) w->rank = ARENA_ARRAY(&t->arena, uint8_t, n);
    for (int r = 0; r < n; r++) stage[r] = mesh_at(&t->layout.mesh, r).coord[MESH_PP];
    slow_ranks_find(compute_s, stage, n, t->config->log.slow_rank, median, slow);
    for (int r = 0; r < n; r++) {
        if (w->rank[r] == RANK_SUSPECTED && slow[r]) name_slow(t, r, compute_s[r], median[r]);
        w->rank[r] = next(w->rank[r], slow[r]);
    }
    free(stage);
    free(median);
    free(slow);
}

/* ---- on every rank -------------------------------------------------------------------------------------- */

static double blocked_s(const Trainer *t)
{
    CommStats s = comm_stats_of_rank(t->world);
    double sum = 0;
    for (int k = 0; k < COMM_KINDS; k++) sum += s.kind[k].blocked_s;
    return sum;
}

void trainer_begin_timing(Trainer *t)
{
    if (t->world) t->slow.blocked_s = blocked_s(t);
}

/* Fault train.slow: as long again. */
static double slow_down(double compute_s)
{
    if (!fault_hit("train.slow")) return 0;
    struct timespec more = {.tv_sec = (time_t)compute_s, .tv_nsec = (long)(fmod(compute_s, 1) * 1e9)};
    nanosleep(&more, NULL);
    return compute_s;
}

Status trainer_end_timing(Trainer *t, double step_s)
{
    SlowWatch *w = &t->slow;
    float window[SLOW_WINDOW];
    if (!t->world || t->config->log.slow_rank == 0) return OK;
    double compute_s = step_s - (blocked_s(t) - w->blocked_s);
    w->window[w->n++] = (float)(compute_s + slow_down(compute_s));
    if (w->n < SLOW_WINDOW) return OK;
    w->n = 0;
    for (int i = 0; i < SLOW_WINDOW; i++) window[i] = w->window[i];
    qsort(window, SLOW_WINDOW, sizeof *window, compare_floats);
    float *all = xmalloc((size_t)comm_size(t->world) * sizeof *all);
    Status status = comm_run(t->world, &(CommOp){.kind = COMM_ALL_GATHER,
                                                 .dtype = DTYPE_F32,
                                                 .send = &window[1],
                                                 .recv = all,
                                                 .count = 1,
                                                 .node = "speed"});
    if (status == OK && t->rank == 0) judge(t, all);
    free(all);
    return status;
}
