/* Tokens in, logits out: whole rows without a cache, and slots that grow. */
#include "infer/infer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- rows ------------------------------------------------------------------------------- */

static Status check_ids(const Infer *infer, const int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= infer->model->config.vocab)
            return fail(ERR_FORMAT, "token %d at place %lld is not one of the model's %lld", ids[i],
                        (long long)i, (long long)infer->model->config.vocab);
    return OK;
}

/* A shorter row is filled up with token 0: what comes after a token does not change its logits. */
Status infer_logits(Infer *infer, const int32_t *ids, int64_t n, const float **logits)
{
    int64_t width = infer->options.logits_tokens;
    if (infer->logits < 0 || n < 1 || n > width)
        return fail(ERR_ARG,
                    "logits of %lld tokens were asked for; this model was loaded for up to %lld",
                    (long long)n, (long long)width);
    TRY(check_ids(infer, ids, n));
    int32_t *in = session_input(infer->session, infer->logits, "ids");
    int32_t *pos = session_input(infer->session, infer->logits, "pos");
    for (int64_t i = 0; i < width; i++) {
        in[i] = i < n ? ids[i] : 0;
        pos[i] = (int32_t)i;
    }
    TRY(session_run(infer->session, infer->logits, PHASE_FORWARD, PHASE_FORWARD));
    const float *own;
    TRY(infer_fetch(infer, infer->logits, "logits", &own));
    return infer_share_same(infer, own, width * infer->model->config.vocab, logits);
}

/* ---- slots ------------------------------------------------------------------------------ */

int64_t infer_length(const Infer *infer, int slot) { return infer->length[slot]; }

void infer_truncate(Infer *infer, int slot, int64_t length)
{
    if (length >= 0 && length < infer->length[slot]) infer_cache_cut(infer, slot, length);
}

Status infer_check_tokens(const Infer *infer, const int32_t *ids, int64_t n, int64_t length)
{
    if (n > infer->options.context - length)
        return fail(ERR_REFUSED, "%lld tokens after %lld do not fit in a context of %lld",
                    (long long)n, (long long)length, (long long)infer->options.context);
    return check_ids(infer, ids, n);
}

static Status check_feed(const Infer *infer, const SlotTokens *feed, int n)
{
    for (int i = 0; i < n; i++) {
        const SlotTokens *f = &feed[i];
        if (f->slot < 0 || f->slot >= infer->options.batch || f->n < 1)
            return fail(ERR_ARG, "%lld tokens for slot %d of %lld", (long long)f->n, f->slot,
                        (long long)infer->options.batch);
        TRY(infer_check_tokens(infer, f->ids, f->n, infer->length[f->slot]));
    }
    return infer_cache_check(infer, feed, n);
}

/* ---- runs ------------------------------------------------------------------------------- */

typedef struct Grid {
    int32_t *ids, *pos; /* [rows of this rank, width] of a program; pos < 0: nothing there */
    int64_t rows, width;
} Grid;

static Grid empty_grid(Infer *infer, int program, int64_t rows, int64_t width)
{
    Grid grid = {session_input(infer->session, program, "ids"),
                 session_input(infer->session, program, "pos"), rows, width};
    for (int64_t i = 0; i < rows * width; i++) {
        grid.ids[i] = 0;
        grid.pos[i] = -1;
    }
    return grid;
}

/* Takes what a row has into the grid, where it is this rank's, and into the slot's length. */
static Status put(Infer *infer, Grid *grid, int64_t row)
{
    const SlotTokens *from = &infer->row[row];
    int64_t at = row - infer->data_rank * grid->rows, length = infer->length[from->slot];
    TRY(infer_cache_extend(infer, from->slot, from->n, row));
    infer->length[from->slot] += from->n;
    if (at < 0 || at >= grid->rows) return OK;
    for (int64_t i = 0; i < from->n; i++) {
        grid->ids[at * grid->width + i] = from->ids[i];
        grid->pos[at * grid->width + i] = (int32_t)(length + i);
    }
    return OK;
}

/* Pages that are given back come first: they may be taken for the next slot. */
static Status run(Infer *infer, int program, int64_t rows, int64_t width)
{
    Grid grid = empty_grid(infer, program, rows, width);
    int64_t n = rows * infer->data_ranks;
    for (int64_t i = 0; i < n; i++)
        if (infer->row[i].n > 0) infer_cache_drop(infer, infer->row[i].slot);
    for (int64_t i = 0; i < n; i++)
        if (infer->row[i].n > 0) TRY(put(infer, &grid, i));
    infer_cache_inputs(infer, program, rows);
    return session_run(infer->session, program, PHASE_FORWARD, PHASE_FORWARD);
}

/* A row of the slot's rank for the next piece of what the slot has left, after those of its pieces
 * before; false: no row is free, or nothing is left. */
static bool take_row(Infer *infer, SlotTokens *left)
{
    int64_t first = left->slot / infer->slots * infer->prefill_rows, i = 0;
    while (i < infer->prefill_rows && infer->row[first + i].n > 0) i++;
    if (i == infer->prefill_rows || left->n < 1) return false;
    int64_t n = min_i64(left->n, infer->options.prefill);
    infer->row[first + i] = (SlotTokens){left->slot, left->ids, n};
    left->ids += n;
    left->n -= n;
    return true;
}

static void clear_rows(Infer *infer, int64_t rows)
{
    memset(infer->row, 0, sizeof *infer->row * (size_t)(rows * infer->data_ranks));
}

Status infer_prefill(Infer *infer, SlotTokens *feed, int n)
{
    clear_rows(infer, infer->prefill_rows);
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < n; i++) more |= take_row(infer, &feed[i]);
    }
    return run(infer, infer->prefill, infer->prefill_rows, infer->options.prefill);
}

/* Slots have the rows of their numbers. */
Status infer_decode(Infer *infer, const SlotTokens *feed, int n, const float **logits)
{
    int64_t vocab = infer->model->config.vocab;
    const float *own, *all;
    clear_rows(infer, infer->slots);
    for (int i = 0; i < n; i++) infer->row[feed[i].slot] = feed[i];
    TRY(run(infer, infer->decode, infer->slots, 1));
    TRY(infer_fetch(infer, infer->decode, "logits", &own));
    TRY(infer_share_rows(infer, own, infer->slots * vocab, &all));
    for (int i = 0; i < n; i++) logits[i] = all + feed[i].slot * vocab;
    return OK;
}

static bool any_left(const SlotTokens *feed, int n)
{
    for (int i = 0; i < n; i++)
        if (feed[i].n > 0) return true;
    return false;
}

/* All tokens but the last of each slot, then the last. */
static Status feed_all(Infer *infer, const SlotTokens *feed, int n, SlotTokens *now,
                       const float **logits)
{
    for (int i = 0; i < n; i++) now[i] = (SlotTokens){feed[i].slot, feed[i].ids, feed[i].n - 1};
    while (any_left(now, n)) TRY(infer_prefill(infer, now, n));
    for (int i = 0; i < n; i++) now[i] = (SlotTokens){feed[i].slot, feed[i].ids + feed[i].n - 1, 1};
    return infer_decode(infer, now, n, logits);
}

Status infer_feed(Infer *infer, const SlotTokens *feed, int n, const float **logits)
{
    if (infer->decode < 0) return fail(ERR_ARG, "this model was loaded without slots");
    TRY(check_feed(infer, feed, n));
    SlotTokens *now = xcalloc((size_t)n + 1, sizeof *now);
    Status status = feed_all(infer, feed, n, now, logits);
    free(now);
    return status;
}
