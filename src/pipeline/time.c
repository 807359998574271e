/* Running a table in a simple model: a stage's works take so long, messages no time. */
#include "pipeline/pipeline_internal.h"

#include <stdlib.h>

PipelineCost pipeline_equal_cost(void) { return (PipelineCost){1, 1, 1, 0}; }

typedef struct Runner {
    Pipeline *p;
    PipelineCost cost;
    int *at;      /* per rank: the next action */
    double *free; /* per rank: when it has time again */
} Runner;

static double cost_of(const Runner *r, PipelineWork work)
{
    const double of[] = {r->cost.forward, r->cost.backward, r->cost.weights,
                         r->cost.backward + r->cost.weights};
    return of[work];
}

/* When work 0, 1 or 2 (F, B, W) of a stage and micro-batch ended; negative while it has not. */
static double ended(const Runner *r, int stage, int micro, int work)
{
    int rank = r->p->rank_of[stage], place = *pipeline_place(r->p, stage, micro, work);
    return place < r->at[rank] ? r->p->rank[rank].at[place].end : -1;
}

/* When all that the action reads is there; negative: not yet. */
static double ready(const Runner *r, const PipelineAction *a)
{
    double own = 0, before = 0;
    int last = r->p->n_stages - 1;
    if (a->work == PIPELINE_FORWARD)
        before = a->stage > 0 ? ended(r, a->stage - 1, a->micro, 0) : 0;
    else if (a->work == PIPELINE_WEIGHTS)
        own = ended(r, a->stage, a->micro, 1);
    else {
        own = ended(r, a->stage, a->micro, 0);
        before = a->stage < last ? ended(r, a->stage + 1, a->micro, 1) : 0;
    }
    if (own < 0 || before < 0) return -1;
    return own > before ? own : before;
}

static void set(Runner *r, int rank, PipelineAction *a, double start, double end)
{
    a->start = start;
    a->end = end;
    r->free[rank] = end;
    r->at[rank]++;
}

/* Both of a pair start when both can, and end together. */
static bool run_pair(Runner *r, int rank, PipelineAction *a)
{
    double one = ready(r, a), other = ready(r, a + 1);
    if (one < 0 || other < 0) return false;
    double start = one > other ? one : other;
    if (r->free[rank] > start) start = r->free[rank];
    set(r, rank, a, start, start + r->cost.pair);
    set(r, rank, a + 1, start, start + r->cost.pair);
    return true;
}

static bool run_next(Runner *r, int rank)
{
    PipelineRank *list = &r->p->rank[rank];
    if (r->at[rank] >= list->n) return false;
    PipelineAction *a = &list->at[r->at[rank]];
    if (a->paired && r->cost.pair > 0) return run_pair(r, rank, a);
    double start = ready(r, a);
    if (start < 0) return false;
    if (r->free[rank] > start) start = r->free[rank];
    set(r, rank, a, start, start + cost_of(r, a->work));
    return true;
}

bool pipeline_run(Pipeline *p, PipelineCost cost, int *at)
{
    Runner r = {
        .p = p, .cost = cost, .at = at, .free = xcalloc((size_t)p->n_ranks, sizeof *r.free)};
    bool all = false;
    for (bool moved = true; moved && !all;) {
        moved = false;
        all = true;
        for (int rank = 0; rank < p->n_ranks; rank++) {
            while (run_next(&r, rank)) moved = true;
            all &= at[rank] == p->rank[rank].n;
        }
    }
    free(r.free);
    return all;
}

/* A copy of the lists alone, whose times may be changed. */
static Pipeline copy_lists(const Pipeline *p)
{
    Pipeline copy = *p;
    copy.rank = xcalloc((size_t)p->n_ranks, sizeof *copy.rank);
    for (int r = 0; r < p->n_ranks; r++) {
        copy.rank[r].n = p->rank[r].n;
        copy.rank[r].at = xmalloc(sizeof *copy.rank[r].at * (size_t)p->rank[r].n);
        for (int i = 0; i < p->rank[r].n; i++) copy.rank[r].at[i] = p->rank[r].at[i];
    }
    return copy;
}

/* Time that a rank works: pairs are counted once. */
static double busy(const PipelineRank *rank, bool pairs)
{
    double sum = 0;
    for (int i = 0; i < rank->n; i++)
        if (!(pairs && i > 0 && rank->at[i - 1].paired)) sum += rank->at[i].end - rank->at[i].start;
    return sum;
}

PipelineTime pipeline_time(const Pipeline *p, PipelineCost cost)
{
    Pipeline copy = copy_lists(p);
    int *at = xcalloc((size_t)p->n_ranks, sizeof *at);
    PipelineTime time = {0};
    double all = 0;
    bool done = pipeline_run(&copy, cost, at);
    CHECK(done); /* it was verified */
    for (int r = 0; r < p->n_ranks; r++) {
        const PipelineRank *rank = &copy.rank[r];
        double first = rank->at[0].start, end = rank->at[rank->n - 1].end,
               work = busy(rank, cost.pair > 0);
        if (end > time.total) time.total = end;
        if (work > time.work) time.work = work;
        if (end - first - work > time.gaps) time.gaps = end - first - work;
        all += work;
    }
    time.bubble = time.total > 0 ? 1 - all / (time.total * p->n_ranks) : 0;
    for (int r = 0; r < p->n_ranks; r++) free(copy.rank[r].at);
    free(copy.rank);
    free(at);
    return time;
}
