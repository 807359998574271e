/* Schedules of two stages per rank that lie like a V: rank 0 has the first stage and the last, the
 * last rank the two in the middle. What a micro-batch holds is the same on all ranks, and the last
 * rank hands over to itself. */
#include "pipeline/pipeline_internal.h"

#include <stdlib.h>

static void place_like_v(Pipeline *p)
{
    for (int s = 0; s < p->n_stages; s++) p->rank_of[s] = s < p->n_ranks ? s : p->n_stages - 1 - s;
}

/* A rank's stage on the way down (leg 0) or up (leg 1) of the V. */
static int stage_at(const Pipeline *p, int rank, int leg)
{
    return leg == 0 ? rank : p->n_stages - 1 - rank;
}

/* ---- zb-v ------------------------------------------------------------------------------- */

/* Found by running it, all ranks at once, one unit of time after another. A rank that can do
 * several things takes
 *   F on the way up of the V first, then F on the way down, while there is room: for 2 n_ranks
 *   micro-batches of its two
 *     stages, as much as 1f1b holds on the first rank. The way up always has a place, or a W that
 *     makes one;
 *   then B, of the older micro-batch;
 *   then W, which makes room when there is none, and fills the end.
 * From 2 n_ranks micro-batches on this takes as long as the last rank's work and the n_ranks - 1
 * units before it can begin (schedule_test.c): no schedule takes less. */
typedef struct Greedy {
    Pipeline *p;
    int *forward, *backward; /* [ranks x 2 legs]: how many are done */
    int *weights;            /* [ranks]: where in its list to look for the next B whose W is left */
    int *held, *waiting; /* [ranks]: micro-batches of both legs between F and W; between B and W */
    int *done;           /* [stages x 2]: F, B, that ended before now */
} Greedy;

static bool forward_ready(const Greedy *g, int rank, int leg)
{
    int s = stage_at(g->p, rank, leg), m = g->forward[2 * rank + leg];
    int room = 2 * g->p->n_ranks - g->held[rank];
    if (m >= g->p->n_micro || room < 1 || (leg == 0 && room + g->waiting[rank] < 2)) return false;
    return s == 0 || g->done[2 * (s - 1)] > m;
}

static bool backward_ready(const Greedy *g, int rank, int leg)
{
    int s = stage_at(g->p, rank, leg), m = g->backward[2 * rank + leg];
    if (m >= g->p->n_micro || g->done[2 * s] <= m) return false;
    return s == g->p->n_stages - 1 || g->done[2 * (s + 1) + 1] > m;
}

static bool add_backward(Greedy *g, int rank)
{
    bool up = backward_ready(g, rank, 1), down = backward_ready(g, rank, 0);
    if (!up && !down) return false;
    int leg = down ? 0 : 1; /* the older micro-batch */
    g->waiting[rank]++;
    pipeline_add(g->p, rank, PIPELINE_BACKWARD, stage_at(g->p, rank, leg),
                 g->backward[2 * rank + leg]++);
    return true;
}

static bool add_forward(Greedy *g, int rank)
{
    int leg = forward_ready(g, rank, 1) ? 1 : 0;
    if (!forward_ready(g, rank, leg)) return false;
    pipeline_add(g->p, rank, PIPELINE_FORWARD, stage_at(g->p, rank, leg),
                 g->forward[2 * rank + leg]++);
    g->held[rank]++;
    return true;
}

/* Of the oldest B whose W is left. */
static bool add_weights(Greedy *g, int rank)
{
    const PipelineRank *list = &g->p->rank[rank];
    int *at = &g->weights[rank];
    while (*at < list->n && list->at[*at].work != PIPELINE_BACKWARD) (*at)++;
    if (*at == list->n) return false;
    int stage = list->at[*at].stage, micro = list->at[(*at)++].micro;
    pipeline_add(g->p, rank, PIPELINE_WEIGHTS, stage, micro);
    g->held[rank]--;
    g->waiting[rank]--;
    return true;
}

/* What was done in this unit of time is there in the next. */
static void end_unit(Greedy *g)
{
    for (int rank = 0; rank < g->p->n_ranks; rank++)
        for (int leg = 0; leg < 2; leg++) {
            int s = stage_at(g->p, rank, leg);
            g->done[2 * s] = g->forward[2 * rank + leg];
            g->done[2 * s + 1] = g->backward[2 * rank + leg];
        }
}

void pipeline_zb_v(Pipeline *p)
{
    size_t n = (size_t)p->n_ranks;
    Greedy g = {.p = p,
                .forward = xcalloc(2 * n, sizeof(int)),
                .backward = xcalloc(2 * n, sizeof(int)),
                .weights = xcalloc(n, sizeof(int)),
                .held = xcalloc(n, sizeof(int)),
                .waiting = xcalloc(n, sizeof(int)),
                .done = xcalloc(2 * (size_t)p->n_stages, sizeof(int))};
    int64_t left = (int64_t)p->n_stages * p->n_micro * 3;
    place_like_v(p);
    while (left > 0) {
        int64_t before = left;
        for (int rank = 0; rank < p->n_ranks; rank++)
            if (add_forward(&g, rank) || add_backward(&g, rank) || add_weights(&g, rank)) left--;
        CHECK(left < before); /* the way up always has a place: something can be done */
        end_unit(&g);
    }
    free(g.forward);
    free(g.backward);
    free(g.weights);
    free(g.held);
    free(g.waiting);
    free(g.done);
}

/* ---- dualpipev -------------------------------------------------------------------------- */

/* One rank's list while it is written. */
typedef struct Writer {
    Pipeline *p;
    int rank;
    int forward[2], backward[2]; /* per leg: the next micro-batch */
    VEC(PipelineAction) put_off; /* W that is left, oldest first */
    size_t taken;
} Writer;

static void write_forward(Writer *w, int leg)
{
    pipeline_add(w->p, w->rank, PIPELINE_FORWARD, stage_at(w->p, w->rank, leg), w->forward[leg]++);
}

static void write_backward(Writer *w, int leg, bool whole)
{
    PipelineAction a = {.stage = stage_at(w->p, w->rank, leg), .micro = w->backward[leg]++};
    pipeline_add(w->p, w->rank, whole ? PIPELINE_BOTH : PIPELINE_BACKWARD, a.stage, a.micro);
    if (!whole) VEC_PUSH(&w->put_off, a);
}

static void write_weights(Writer *w)
{
    PipelineAction a = w->put_off.at[w->taken++];
    pipeline_add(w->p, w->rank, PIPELINE_WEIGHTS, a.stage, a.micro);
}

/* A forward action on one leg together with a backward one on the other. */
static void write_pair(Writer *w, int forward_leg)
{
    PipelineRank *list = &w->p->rank[w->rank];
    write_forward(w, forward_leg);
    list->at[list->n - 1].paired = true;
    write_backward(w, !forward_leg, true);
}

/* The eight steps of DeepSeek's description, for p ranks and m micro-batches, on rank r. */
static void write_rank(Writer *w)
{
    int p = w->p->n_ranks, m = w->p->n_micro, r = w->rank, behind = p - r - 1;
    for (int i = 0; i < 2 * behind; i++) write_forward(w, 0);
    for (int i = 0; i <= r; i++) {
        write_forward(w, 0);
        write_forward(w, 1);
    }
    for (int i = 0; i < behind; i++) {
        write_backward(w, 1, false);
        write_weights(w);
        write_forward(w, 1);
    }
    for (int i = 0; i < m - 2 * p + r + 1; i++) {
        if (i == 0 && behind == 0) { /* the last rank waits less when this pair is none */
            write_forward(w, 0);
            write_backward(w, 1, true);
        } else {
            write_pair(w, 0);
        }
        write_pair(w, 1);
    }
    for (int i = 0; i < behind; i++) {
        write_backward(w, 1, true);
        write_pair(w, 1);
    }
    for (int i = 0, half = (r + 1) / 2; i <= r; i++) { /* the second half puts its W off */
        write_backward(w, 1, i < half || (i == half && r % 2 == 0));
        write_backward(w, 0, i < half);
    }
    for (int i = 0; i < behind; i++) {
        write_weights(w);
        write_backward(w, 0, false);
    }
    while (w->taken < w->put_off.n) write_weights(w);
}

void pipeline_dualpipev(Pipeline *p)
{
    place_like_v(p);
    for (int r = 0; r < p->n_ranks; r++) {
        Writer w = {.p = p, .rank = r};
        write_rank(&w);
        VEC_FREE(&w.put_off);
    }
}
