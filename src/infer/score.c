/* Likelihoods of given tokens, many sequences at a time. A row holds one sequence after another;
 * positions begin at zero with each, so that attention keeps them apart. */
#include "infer/infer_internal.h"

#include <stdlib.h>
#include <string.h>

/* Where a sequence went. */
typedef struct ScorePlace {
    const ScoreSequence *sequence;
    int64_t at; /* of its first token, in the grid */
} ScorePlace;

typedef struct Grid {
    int32_t *ids, *pos, *targets; /* of this rank's rows */
    float *weights;
    int64_t rows, width; /* of all ranks */
    int64_t first, own;  /* this rank's rows */
    int64_t *used;       /* [rows] tokens so far */
    ScorePlace *place;
    int64_t n_places;
} Grid;

static Status check(const Infer *infer, const ScoreSequence *s)
{
    if (s->n < 1 || s->n > infer->options.score_tokens)
        return fail(
            ERR_ARG,
            "a sequence of %lld tokens is to be scored; this model was loaded for up to %lld",
            (long long)s->n, (long long)infer->options.score_tokens);
    for (int64_t i = 0; i < s->n; i++)
        if (s->ids[i] < 0 || s->ids[i] >= infer->model->config.vocab)
            return fail(ERR_FORMAT, "token %d at place %lld is not one of the model's %lld",
                        s->ids[i], (long long)i, (long long)infer->model->config.vocab);
    return OK;
}

/* Tokens that nobody asked about are documents of one token each: attention passes over them. */
static void clear(Grid *g)
{
    for (int64_t i = 0; i < g->own * g->width; i++) {
        g->ids[i] = g->pos[i] = 0;
        g->targets[i] = -1;
        g->weights[i] = 0;
    }
    memset(g->used, 0, (size_t)g->rows * sizeof *g->used);
    g->n_places = 0;
}

static void write(Grid *g, const ScoreSequence *s, int64_t at)
{
    for (int64_t i = 0; i < s->n; i++) {
        bool last = i + 1 == s->n;
        g->ids[at + i] = s->ids[i];
        g->pos[at + i] = (int32_t)i;
        g->targets[at + i] = last ? -1 : s->ids[i + 1];
        g->weights[at + i] = last ? 0 : 1;
    }
}

/* Into the first row with room; false when there is none. */
static bool put(Grid *g, const ScoreSequence *s)
{
    int64_t row = 0;
    while (row < g->rows && g->width - g->used[row] < s->n) row++;
    if (row == g->rows) return false;
    g->place[g->n_places++] = (ScorePlace){s, row * g->width + g->used[row]};
    if (row >= g->first && row < g->first + g->own)
        write(g, s, (row - g->first) * g->width + g->used[row]);
    g->used[row] += s->n;
    return true;
}

static Status run(Infer *infer, Grid *g)
{
    if (g->n_places == 0) return OK;
    TRY(session_run(infer->session, infer->score, PHASE_FORWARD, PHASE_FORWARD));
    const float *own, *nll;
    TRY(infer_fetch(infer, infer->score, "nll", &own));
    TRY(infer_share_rows(infer, own, g->own * g->width, &nll));
    for (int64_t i = 0; i < g->n_places; i++) {
        const ScoreSequence *s = g->place[i].sequence;
        s->nll[0] = 0;
        memcpy(s->nll + 1, nll + g->place[i].at, (size_t)(s->n - 1) * sizeof *nll);
    }
    return OK;
}

static Status score_all(Infer *infer, Grid *g, const ScoreSequence *sequences, int64_t n)
{
    clear(g);
    for (int64_t i = 0; i < n; i++) {
        if (put(g, &sequences[i])) continue;
        TRY(run(infer, g));
        clear(g);
        CHECK(put(g, &sequences[i]));
    }
    return run(infer, g);
}

Status infer_score(Infer *infer, const ScoreSequence *sequences, int64_t n)
{
    if (infer->score < 0)
        return fail(ERR_ARG, "this model was loaded without a program that scores");
    for (int64_t i = 0; i < n; i++) TRY(check(infer, &sequences[i]));
    Grid g = {.rows = infer->rows * infer->data_ranks,
              .width = infer->options.score_tokens,
              .own = infer->rows,
              .first = infer->rows * infer->data_rank};
    g.ids = session_input(infer->session, infer->score, "ids");
    g.pos = session_input(infer->session, infer->score, "pos");
    g.targets = session_input(infer->session, infer->score, "targets");
    g.weights = session_input(infer->session, infer->score, "weights");
    g.used = xcalloc((size_t)g.rows, sizeof *g.used);
    g.place = xcalloc((size_t)n + 1, sizeof *g.place);
    Status status = score_all(infer, &g, sequences, n);
    free(g.used);
    free(g.place);
    return status;
}
