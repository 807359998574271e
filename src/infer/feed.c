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

typedef struct Grid {
    int32_t *ids, *pos; /* [slots of this rank, width] of a program; pos < 0: nothing there */
    int64_t width;
} Grid;

static Grid empty_grid(Infer *infer, int program, int64_t width)
{
    Grid grid = {session_input(infer->session, program, "ids"),
                 session_input(infer->session, program, "pos"), width};
    for (int64_t i = 0; i < infer->slots * width; i++) {
        grid.ids[i] = 0;
        grid.pos[i] = -1;
    }
    return grid;
}

/* Takes a slot's tokens into the grid, where the slot is this rank's, and into the slot's length.
 */
static Status put(Infer *infer, Grid *grid, const SlotTokens *feed)
{
    int64_t row = feed->slot - infer->data_rank * infer->slots, length = infer->length[feed->slot];
    TRY(infer_cache_extend(infer, feed->slot, feed->n));
    infer->length[feed->slot] += feed->n;
    if (row < 0 || row >= infer->slots) return OK;
    for (int64_t i = 0; i < feed->n; i++) {
        grid->ids[row * grid->width + i] = feed->ids[i];
        grid->pos[row * grid->width + i] = (int32_t)(length + i);
    }
    return OK;
}

/* Pages that are given back come first: they may be taken for the next slot. */
static Status run(Infer *infer, int program, int64_t width, const SlotTokens *feed, int n)
{
    Grid grid = empty_grid(infer, program, width);
    for (int i = 0; i < n; i++) infer_cache_drop(infer, feed[i].slot);
    for (int i = 0; i < n; i++) TRY(put(infer, &grid, &feed[i]));
    infer_cache_inputs(infer, program);
    return session_run(infer->session, program, PHASE_FORWARD, PHASE_FORWARD);
}

Status infer_prefill(Infer *infer, const SlotTokens *feed, int n)
{
    return run(infer, infer->prefill, infer->options.prefill, feed, n);
}

Status infer_decode(Infer *infer, const SlotTokens *feed, int n, const float **logits)
{
    int64_t vocab = infer->model->config.vocab;
    const float *own, *all;
    TRY(run(infer, infer->decode, 1, feed, n));
    TRY(infer_fetch(infer, infer->decode, "logits", &own));
    TRY(infer_share_rows(infer, own, infer->slots * vocab, &all));
    for (int i = 0; i < n; i++) logits[i] = all + feed[i].slot * vocab;
    return OK;
}

/* All tokens but the last of each slot, a piece of every slot at a time, then the last. */
static Status feed_all(Infer *infer, const SlotTokens *feed, int n, SlotTokens *now,
                       const float **logits)
{
    int64_t width = infer->options.prefill;
    for (int64_t first = 0;; first += width) {
        int k = 0;
        for (int i = 0; i < n; i++)
            if (feed[i].n - 1 > first)
                now[k++] = (SlotTokens){feed[i].slot, feed[i].ids + first,
                                        min_i64(width, feed[i].n - 1 - first)};
        if (k == 0) break;
        TRY(infer_prefill(infer, now, k));
    }
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
