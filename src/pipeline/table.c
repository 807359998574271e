/* The table itself: filled, verified, counted. */
#include "pipeline/pipeline_internal.h"

#include <stdlib.h>
#include <string.h>

const char *pipeline_work_name(PipelineWork work)
{
    static const char *const names[] = {"F", "B", "W", "BW"};
    return names[work];
}

Pipeline *pipeline_new(const char *name, int n_ranks, int n_stages, int n_micro)
{
    Pipeline *p = xcalloc(1, sizeof *p);
    p->name = xstrdup(name);
    p->n_ranks = n_ranks;
    p->n_stages = n_stages;
    p->n_micro = n_micro;
    p->rank_of = xcalloc((size_t)n_stages, sizeof *p->rank_of);
    p->rank = xcalloc((size_t)n_ranks, sizeof *p->rank);
    for (int s = 0; s < n_stages; s++) p->rank_of[s] = s % n_ranks;
    return p;
}

void pipeline_destroy(Pipeline *p)
{
    if (!p) return;
    for (int r = 0; r < p->n_ranks; r++) free(p->rank[r].at);
    free(p->rank);
    free(p->rank_of);
    free(p->place);
    free(p->slots);
    free(p->name);
    free(p);
}

void pipeline_add(Pipeline *p, int rank, PipelineWork work, int stage, int micro)
{
    PipelineRank *r = &p->rank[rank];
    if (r->n == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 64;
        r->at = xrealloc(r->at, sizeof *r->at * (size_t)r->cap);
    }
    r->at[r->n++] = (PipelineAction){.work = work, .stage = stage, .micro = micro};
}

int pipeline_stages_of(const Pipeline *p, int rank, int *stage)
{
    int n = 0;
    for (int s = 0; s < p->n_stages; s++) {
        if (p->rank_of[s] != rank) continue;
        if (stage) stage[n] = s;
        n++;
    }
    return n;
}

/* ---- verifier --------------------------------------------------------------------------- */

static void action_name(const PipelineAction *a, char text[40])
{
    snprintf(text, 40, "%s%d.%d", pipeline_work_name(a->work), a->stage, a->micro);
}

/* Each action once, where its stage lies. */
static Status place_actions(Pipeline *p)
{
    size_t n = (size_t)p->n_stages * (size_t)p->n_micro * 3;
    p->place = xmalloc(n * sizeof *p->place);
    for (size_t i = 0; i < n; i++) p->place[i] = -1;
    for (int r = 0; r < p->n_ranks; r++) {
        for (int i = 0; i < p->rank[r].n; i++) {
            const PipelineAction *a = &p->rank[r].at[i];
            char name[40];
            action_name(a, name);
            if (p->rank_of[a->stage] != r)
                return fail(ERR_REFUSED, "rank %d does %s, but stage %d lies on rank %d", r, name,
                            a->stage, p->rank_of[a->stage]);
            int first = a->work == PIPELINE_BOTH ? 1 : (int)a->work,
                last = a->work == PIPELINE_BOTH ? 2 : (int)a->work;
            for (int w = first; w <= last; w++) {
                int *place = pipeline_place(p, a->stage, a->micro, w);
                if (*place >= 0) return fail(ERR_REFUSED, "%s is done twice", name);
                *place = i;
            }
            p->splits |= a->work == PIPELINE_BACKWARD;
        }
    }
    for (int s = 0; s < p->n_stages; s++)
        for (int m = 0; m < p->n_micro; m++)
            for (int w = 0; w < 3; w++)
                if (*pipeline_place(p, s, m, w) < 0)
                    return fail(ERR_REFUSED, "%s%d.%d is missing",
                                pipeline_work_name((PipelineWork)w), s, m);
    return OK;
}

static Status check_ranks(const Pipeline *p)
{
    for (int r = 0; r < p->n_ranks; r++) {
        if (p->rank[r].n == 0) return fail(ERR_REFUSED, "rank %d has no stage", r);
        for (int i = 0; i < p->rank[r].n; i++) {
            const PipelineAction *a = &p->rank[r].at[i], *b = a + 1;
            if (!a->paired) continue;
            bool last = i + 1 == p->rank[r].n, forward = a->work == PIPELINE_FORWARD;
            if (last || b->paired || forward == (b->work == PIPELINE_FORWARD) ||
                a->work == PIPELINE_WEIGHTS || b->work == PIPELINE_WEIGHTS)
                return fail(ERR_REFUSED, "rank %d: a pair is a forward action and a backward one",
                            r);
        }
    }
    return OK;
}

/* Messages between two stages carry no number: both must take the micro-batches in the same order.
 */
static Status check_order(const Pipeline *p)
{
    Status status = OK;
    int *next = xcalloc((size_t)p->n_stages * 2, sizeof *next);
    int *order = xcalloc((size_t)p->n_micro * 2, sizeof *order); /* as stage 0 has it */
    for (int s = 0; s < p->n_stages && status == OK; s++) {
        const PipelineRank *rank = &p->rank[p->rank_of[s]];
        for (int i = 0; i < rank->n && status == OK; i++) {
            const PipelineAction *a = &rank->at[i];
            if (a->stage != s || a->work == PIPELINE_WEIGHTS) continue;
            int back = a->work != PIPELINE_FORWARD, k = next[2 * s + back]++;
            int *mine = &order[back * p->n_micro + k];
            if (s == 0)
                *mine = a->micro;
            else if (*mine != a->micro)
                status = fail(ERR_REFUSED,
                              "stage %d does %s%d.%d where stage 0 does micro-batch %d: all stages "
                              "take them in the same order",
                              s, pipeline_work_name(a->work), s, a->micro, *mine);
        }
    }
    free(next);
    free(order);
    return status;
}

/* Who waits for what when nothing moves any more: the first rank that is not done. */
static Status stands_still(const Pipeline *p, const int *at)
{
    for (int r = 0; r < p->n_ranks; r++) {
        if (at[r] >= p->rank[r].n) continue;
        const PipelineAction *a = &p->rank[r].at[at[r]];
        char name[40];
        action_name(a, name);
        return fail(
            ERR_REFUSED,
            "the ranks wait for each other: rank %d never comes past %s, the %d%s of its actions",
            r, name, at[r] + 1,
            at[r] == 0   ? "st"
            : at[r] == 1 ? "nd"
            : at[r] == 2 ? "rd"
                         : "th");
    }
    return OK;
}

static Status verify(Pipeline *p)
{
    TRY(check_ranks(p));
    TRY(place_actions(p));
    TRY(check_order(p));
    int *at = xcalloc((size_t)p->n_ranks, sizeof *at);
    Status status = pipeline_run(p, pipeline_equal_cost(), at) ? OK : stands_still(p, at);
    free(at);
    return status;
}

/* ---- slots ------------------------------------------------------------------------------ */

/* Where a span begins and ends, in the rank's list. */
static void span_ends(const Pipeline *p, const PipelineAction *a, int span, int *begin, int *end)
{
    *begin = *pipeline_place(p, a->stage, a->micro, span == PIPELINE_BW ? 1 : 0);
    *end = *pipeline_place(p, a->stage, a->micro, span == PIPELINE_FB ? 1 : 2);
}

typedef struct Slots {
    bool *used;
    int *of; /* [stages x micro-batches]: of a span that has begun */
    int most;
} Slots;

/* A span takes the lowest slot that is free, which makes as few slots as can be. */
static void begin_span(const Pipeline *p, const PipelineAction *a, Slots *slots)
{
    int *slot = &slots->of[(int64_t)a->stage * p->n_micro + a->micro];
    for (*slot = 0; slots->used[*slot];) (*slot)++;
    slots->used[*slot] = true;
    if (*slot + 1 > slots->most) slots->most = *slot + 1;
}

/* One action's part in a span; `used` may be that of another kind of span too. */
static void walk_span(const Pipeline *p, PipelineAction *a, int i, int span, Slots *slots,
                      bool ends)
{
    int begin, end;
    span_ends(p, a, span, &begin, &end);
    if (i < begin || i > end) return;
    if (ends) {
        if (i == end) slots->used[a->slot[span]] = false;
        return;
    }
    if (i == begin) begin_span(p, a, slots);
    a->slot[span] = slots->of[(int64_t)a->stage * p->n_micro + a->micro];
}

/* What B makes for W takes the slots that what F made for B gives up: both kinds have the same
 * ones. A backward that is never split leaves nothing between B and W. */
static void assign_slots(Pipeline *p, int r, int *of)
{
    PipelineRank *rank = &p->rank[r];
    size_t n = (size_t)p->n_stages * (size_t)p->n_micro;
    Slots work = {.used = xcalloc(2 * (size_t)rank->n + 1, sizeof(bool)), .of = of},
          kept = {.used = xcalloc((size_t)rank->n + 1, sizeof(bool)), .of = of + n};
    int *of_fb = of, *of_bw = of + 2 * n;
    for (int i = 0; i < rank->n; i++) {
        for (int ends = 0; ends < 2; ends++) {
            work.of = of_fb;
            walk_span(p, &rank->at[i], i, PIPELINE_FB, &work, ends);
            work.of = of_bw;
            if (p->splits) walk_span(p, &rank->at[i], i, PIPELINE_BW, &work, ends);
            walk_span(p, &rank->at[i], i, PIPELINE_FW, &kept, ends);
        }
    }
    p->slots[r * PIPELINE_SPANS + PIPELINE_FB] = p->slots[r * PIPELINE_SPANS + PIPELINE_BW] =
        work.most;
    p->slots[r * PIPELINE_SPANS + PIPELINE_FW] = kept.most;
    free(work.used);
    free(kept.used);
}

Status pipeline_finish(Pipeline *p, const char *from, Pipeline **out)
{
    Status status = verify(p);
    if (status != OK) {
        fail_context("%s", from);
        pipeline_destroy(p);
        return status;
    }
    p->slots = xcalloc((size_t)p->n_ranks * PIPELINE_SPANS, sizeof *p->slots);
    int *of = xcalloc((size_t)p->n_stages * (size_t)p->n_micro * PIPELINE_SPANS, sizeof *of);
    for (int r = 0; r < p->n_ranks; r++) assign_slots(p, r, of);
    free(of);
    *out = p;
    return OK;
}

/* ---- what is under way ------------------------------------------------------------------ */

static const PipelineAction *action_at(const Pipeline *p, int stage, int micro, PipelineWork work)
{
    return &p->rank[p->rank_of[stage]]
                .at[*pipeline_place(p, stage, micro, work == PIPELINE_FORWARD ? 0 : 1)];
}

/* Micro-batches in the order in which a stage takes them. */
static void order_of(const Pipeline *p, int stage, bool forward, int *micro)
{
    const PipelineRank *rank = &p->rank[p->rank_of[stage]];
    int n = 0;
    for (int i = 0; i < rank->n; i++) {
        const PipelineAction *a = &rank->at[i];
        if (a->stage == stage && a->work != PIPELINE_WEIGHTS &&
            (a->work == PIPELINE_FORWARD) == forward)
            micro[n++] = a->micro;
    }
}

/* A message is under way from the end of the action that sends it until the start of the one that
 * takes it. One that is taken in the very moment in which another is sent counts too: two ranks
 * that do so could wait for each other. Since then every send comes later than what it waits for in
 * one way of running the table, there is no circle of waiting in any. */
int pipeline_depth(const Pipeline *p, int from, PipelineWork made, int to, PipelineWork read)
{
    int *micro = xcalloc((size_t)p->n_micro, sizeof *micro), most = 1;
    order_of(p, from, made == PIPELINE_FORWARD, micro);
    for (int k = 0, taken = 0; k < p->n_micro; k++) {
        double sent = action_at(p, from, micro[k], made)->end;
        while (taken < k && action_at(p, to, micro[taken], read)->start < sent) taken++;
        if (k - taken + 1 > most) most = k - taken + 1;
    }
    free(micro);
    return most;
}

int pipeline_inputs(const Pipeline *p, int rank)
{
    int *left = xcalloc((size_t)p->n_micro, sizeof *left), held = 0, most = 0,
        own = pipeline_stages_of(p, rank, NULL);
    for (int i = 0; i < p->rank[rank].n; i++) {
        const PipelineAction *a = &p->rank[rank].at[i];
        if (a->work != PIPELINE_FORWARD) continue;
        if (left[a->micro]++ == 0) held++;
        if (held > most) most = held;
        if (left[a->micro] == own) held--;
    }
    free(left);
    return most;
}
