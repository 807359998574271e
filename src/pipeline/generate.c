/* Schedules whose stages lie on the ranks in turn, and the list of all. */
#include "pipeline/pipeline_internal.h"

#include <string.h>

/* All forward, then all backward. */
void pipeline_gpipe(Pipeline *p)
{
    for (int r = 0; r < p->n_ranks; r++) {
        for (int m = 0; m < p->n_micro; m++) pipeline_add(p, r, PIPELINE_FORWARD, r, m);
        for (int m = 0; m < p->n_micro; m++) pipeline_add(p, r, PIPELINE_BOTH, r, m);
    }
}

/* As many forward actions ahead as there are ranks behind; then one forward, one backward. */
void pipeline_1f1b(Pipeline *p)
{
    for (int r = 0; r < p->n_ranks; r++) {
        int ahead = (int)min_i64(p->n_ranks - r - 1, p->n_micro), forward = 0;
        while (forward < ahead) pipeline_add(p, r, PIPELINE_FORWARD, r, forward++);
        for (int m = 0; m < p->n_micro; m++) {
            if (forward < p->n_micro) pipeline_add(p, r, PIPELINE_FORWARD, r, forward++);
            pipeline_add(p, r, PIPELINE_BOTH, r, m);
        }
    }
}

/* Micro-batches go through a rank's stages in groups, of at least n_ranks each so that none waits
 * for the last rank: as many groups as that allows, the earlier ones by one larger where they do
 * not divide. */
typedef struct Groups {
    int size, n_larger; /* of size + 1 */
} Groups;

static Groups groups_of(const Pipeline *p)
{
    int n = p->n_micro < p->n_ranks ? 1 : p->n_micro / p->n_ranks;
    return (Groups){p->n_micro / n, p->n_micro % n};
}

/* The k-th forward action of a rank with several stages: a group goes through the first stage, then
 * through the second, ... */
static void interleaved_at(const Pipeline *p, int k, int *chunk, int *micro)
{
    Groups g = groups_of(p);
    int per_rank = p->n_stages / p->n_ranks, larger = g.n_larger * (g.size + 1) * per_rank;
    int size = k < larger ? g.size + 1 : g.size, in = k < larger ? k : k - larger;
    int group = in / (size * per_rank),
        first = group * size + (k < larger ? 0 : g.n_larger * (g.size + 1));
    in -= group * size * per_rank;
    *chunk = in / size;
    *micro = first + in % size;
}

void pipeline_interleaved(Pipeline *p)
{
    Groups groups = groups_of(p);
    int per_rank = p->n_stages / p->n_ranks, n = p->n_micro * per_rank,
        group = groups.size + (groups.n_larger > 0), chunk, micro;
    for (int r = 0; r < p->n_ranks; r++) {
        int ahead = (int)min_i64((int64_t)(per_rank - 1) * group + 2 * (p->n_ranks - r - 1), n),
            forward = 0;
        for (int k = -ahead; k < n; k++) {
            if (forward < n) {
                interleaved_at(p, forward++, &chunk, &micro);
                pipeline_add(p, r, PIPELINE_FORWARD, chunk * p->n_ranks + r, micro);
            }
            if (k < 0) continue;
            interleaved_at(p, k, &chunk, &micro);
            pipeline_add(p, r, PIPELINE_BOTH, (per_rank - 1 - chunk) * p->n_ranks + r, micro);
        }
    }
}

/* 1f1b with the weight gradients of rank r put off by r micro-batches: B comes to the earlier ranks
 * sooner, what was put off fills the end, and no rank holds more micro-batches than the first one
 * does in 1f1b. */
void pipeline_zb_h1(Pipeline *p)
{
    for (int r = 0; r < p->n_ranks; r++) {
        int ahead = (int)min_i64(p->n_ranks - r - 1, p->n_micro), forward = 0, weights = 0;
        while (forward < ahead) pipeline_add(p, r, PIPELINE_FORWARD, r, forward++);
        for (int m = 0; m < p->n_micro; m++) {
            if (forward < p->n_micro) pipeline_add(p, r, PIPELINE_FORWARD, r, forward++);
            pipeline_add(p, r, PIPELINE_BACKWARD, r, m);
            if (m >= r) pipeline_add(p, r, PIPELINE_WEIGHTS, r, weights++);
        }
        while (weights < p->n_micro) pipeline_add(p, r, PIPELINE_WEIGHTS, r, weights++);
    }
}

/* ---- by name ---------------------------------------------------------------------------- */

enum { ANY_STAGES = 0 };

static const struct Generator {
    const char *name;
    void (*fill)(Pipeline *p);
    int stages_per_rank; /* that it has, or ANY_STAGES: two or more */
    int micro_per_rank;  /* micro-batches that it needs, in multiples of the ranks; 0: one is
                          enough */
} generators[] = {
    {"1f1b", pipeline_1f1b, 1, 0},
    {"gpipe", pipeline_gpipe, 1, 0},
    {"interleaved", pipeline_interleaved, ANY_STAGES, 0},
    {"zb-h1", pipeline_zb_h1, 1, 0},
    {"zb-v", pipeline_zb_v, 2, 0},
    {"dualpipev", pipeline_dualpipev, 2, 2},
};

const char *const *pipeline_names(int *n)
{
    static const char *const names[] = {"1f1b",  "gpipe", "interleaved",
                                        "zb-h1", "zb-v",  "dualpipev"};
    *n = COUNT_OF(names);
    return names;
}

static const struct Generator *find(const char *name)
{
    for (int i = 0; i < COUNT_OF(generators); i++)
        if (!strcmp(generators[i].name, name)) return &generators[i];
    return NULL;
}

int pipeline_default_stages(const char *name)
{
    const struct Generator *g = find(name);
    return !g ? 1 : g->stages_per_rank == ANY_STAGES ? 2 : g->stages_per_rank;
}

static Status check(const struct Generator *g, int n_ranks, int stages_per_rank, int n_micro)
{
    if (n_ranks < 1 || n_ranks > PIPELINE_MAX_RANKS)
        return fail(ERR_REFUSED, "schedule %s: a pipeline of %d ranks; 1 to %d are possible",
                    g->name, n_ranks, PIPELINE_MAX_RANKS);
    if (n_micro < 1 || n_micro > PIPELINE_MAX_MICRO)
        return fail(ERR_REFUSED, "schedule %s: %d micro-batches; 1 to %d are possible", g->name,
                    n_micro, PIPELINE_MAX_MICRO);
    if (g->stages_per_rank != ANY_STAGES && stages_per_rank != g->stages_per_rank)
        return fail(ERR_REFUSED,
                    "schedule %s has %d stage%s on a rank, not %d; schedule interleaved takes any "
                    "number above 1",
                    g->name, g->stages_per_rank, g->stages_per_rank == 1 ? "" : "s",
                    stages_per_rank);
    if (stages_per_rank < 1 || (int64_t)stages_per_rank * n_ranks > PIPELINE_MAX_STAGES)
        return fail(ERR_REFUSED,
                    "schedule %s: %d stages on each of %d ranks; at most %d in all are possible",
                    g->name, stages_per_rank, n_ranks, PIPELINE_MAX_STAGES);
    if (g->stages_per_rank == ANY_STAGES && stages_per_rank < 2)
        return fail(ERR_REFUSED,
                    "schedule %s has two or more stages on a rank; with one it is schedule 1f1b",
                    g->name);
    if ((int64_t)stages_per_rank * n_ranks * n_micro * 3 > PIPELINE_MAX_ACTIONS)
        return fail(ERR_REFUSED,
                    "schedule %s: %d stages and %d micro-batches are more actions than %d", g->name,
                    stages_per_rank * n_ranks, n_micro, PIPELINE_MAX_ACTIONS);
    if (n_micro < g->micro_per_rank * n_ranks)
        return fail(ERR_REFUSED,
                    "schedule %s needs %d micro-batches, twice as many as ranks, and there are %d; "
                    "schedule zb-v takes any number",
                    g->name, g->micro_per_rank * n_ranks, n_micro);
    return OK;
}

Status pipeline_create(const char *name, int n_ranks, int stages_per_rank, int n_micro,
                       Pipeline **out)
{
    const struct Generator *g = find(name);
    if (!g) return fail(ERR_ARG, "there is no schedule '%s'", name);
    TRY(check(g, n_ranks, stages_per_rank, n_micro));
    Pipeline *p = pipeline_new(name, n_ranks, n_ranks * stages_per_rank, n_micro);
    g->fill(p);
    return pipeline_finish(p, name, out);
}
