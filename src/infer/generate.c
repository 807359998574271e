/* The loop that makes tokens. Requests sit in slots: as long as any has a prompt left, pieces
 * of such prompts are taken in; then every request that has one token left to feed feeds it, and
 * draws the next. A prompt that comes later so holds up the others by a run at a time. */
#include "infer/generate.h"

#include <stdlib.h>
#include <string.h>

const char *generate_end_name(GenerateEnd end)
{
    static const char *const names[] = {"stop", "length", "context", "cancelled"};
    return names[end];
}

/* ---- one token -------------------------------------------------------------------------- */

static bool is_stop(const InferModel *model, int32_t id)
{
    for (int i = 0; i < model->n_stop; i++)
        if (model->stop[i] == id) return true;
    return false;
}

enum { STOPPED, CANCELLED, GOES_ON };

/* Takes a drawn token into the request, and tells who listens. */
static int32_t take(const Infer *infer, GenerateRequest *r, int32_t id)
{
    if (is_stop(infer->model, id)) return STOPPED;
    VEC_PUSH(&r->tokens, id);
    bool listens = r->on_token && (!infer->options.world || comm_rank(infer->options.world) == 0);
    return !listens || r->on_token(r->context, id) ? GOES_ON : CANCELLED;
}

/* True when the request has ended. */
static bool ended(const Infer *infer, GenerateRequest *r, int slot, int32_t state)
{
    r->end = state == STOPPED                        ? GENERATE_STOP
             : state == CANCELLED                    ? GENERATE_CANCELLED
             : (int64_t)r->tokens.n >= r->max_tokens ? GENERATE_LENGTH
                                                     : GENERATE_CONTEXT;
    return r->end != GENERATE_CONTEXT || infer->length[slot] >= infer->options.context;
}

/* ---- seats ------------------------------------------------------------------------------ */

void seats_init(Seats *seats, Infer *infer, GenerateStats *stats)
{
    size_t n = (size_t)infer->options.batch;
    *stats = (GenerateStats){0};
    *seats = (Seats){.infer = infer, .stats = stats};
    seats->at = xcalloc(n, sizeof *seats->at);
    seats->feed = xcalloc(n, sizeof *seats->feed);
    seats->logits = xcalloc(n, sizeof *seats->logits);
    seats->state = xcalloc(n, sizeof *seats->state);
}

void seats_deinit(Seats *seats)
{
    free(seats->at);
    free(seats->feed);
    free(seats->logits);
    free(seats->state);
}

Status request_begin(GenerateRequest *r)
{
    TRY(sampler_check(&r->sampler));
    r->tokens = (IdVec){0};
    r->end = GENERATE_LENGTH;
    if (r->n_prompt < 1)
        return fail(ERR_ARG, "a prompt without tokens: there is nothing to go on from");
    return OK;
}

void seats_take(Seats *seats, int slot, GenerateRequest *request)
{
    seats->at[slot] = (Seat){.request = request, .base = infer_length(seats->infer, slot)};
    seats->stats->prompt_tokens += request->n_prompt;
    seats->n_taken++;
}

static void leave(Seats *seats, int slot)
{
    seats->at[slot].request = NULL;
    seats->n_taken--;
}

/* What the request has that its slot does not hold yet. */
static SlotTokens left_of(const Seats *seats, int slot)
{
    const Seat *seat = &seats->at[slot];
    const GenerateRequest *r = seat->request;
    int64_t fed = infer_length(seats->infer, slot) - seat->base;
    if (fed < r->n_prompt) return (SlotTokens){slot, r->prompt + fed, r->n_prompt - fed};
    return (SlotTokens){slot, r->tokens.at + (fed - r->n_prompt),
                        r->n_prompt + (int64_t)r->tokens.n - fed};
}

/* Pieces of prompts, but not their last tokens. *any: there was one. */
static Status take_in(Seats *seats, bool *any)
{
    int n = 0;
    for (int slot = 0; slot < seats->infer->options.batch; slot++) {
        if (!seats->at[slot].request || seats->at[slot].waits) continue;
        SlotTokens left = left_of(seats, slot);
        if (left.n < 2) continue;
        left.n--;
        seats->feed[n++] = left;
    }
    *any = n > 0;
    return n > 0 ? infer_prefill(seats->infer, seats->feed, n) : OK;
}

/* Those who have one token left feed it; *prompt: of some it was the last of their prompt. */
static Status feed_last(Seats *seats, int *n, bool *prompt)
{
    *n = 0;
    for (int slot = 0; slot < seats->infer->options.batch; slot++) {
        if (!seats->at[slot].request || seats->at[slot].waits) continue;
        SlotTokens left = left_of(seats, slot);
        if (left.n != 1) continue;
        *prompt |= seats->at[slot].request->tokens.n == 0;
        seats->feed[(*n)++] = left;
    }
    return *n > 0 ? infer_decode(seats->infer, seats->feed, *n, seats->logits) : OK;
}

/* One draw for each of n that were fed; who ended leaves. A request for no token at all only wants
 * its prompt taken in. */
static Status draw_all(Seats *seats, int n)
{
    Infer *infer = seats->infer;
    for (int i = 0; i < n; i++) {
        int slot = seats->feed[i].slot;
        GenerateRequest *r = seats->at[slot].request;
        int32_t id;
        seats->state[i] = GOES_ON;
        if (r->max_tokens < 1) continue;
        TRY(sampler_draw(infer->sampler, &r->sampler, seats->logits[i],
                         (uint64_t)infer->length[slot], &id));
        seats->stats->made_tokens++;
        seats->state[i] = take(infer, r, id);
    }
    if (n > 0) TRY(infer_agree(infer, seats->state, n));
    for (int i = 0; i < n; i++) {
        int slot = seats->feed[i].slot;
        if (ended(infer, seats->at[slot].request, slot, seats->state[i])) leave(seats, slot);
    }
    return OK;
}

Status seats_step(Seats *seats)
{
    double begin = clock_s();
    bool prompt;
    int n;
    TRY(take_in(seats, &prompt));
    TRY(seats_share(seats));
    TRY(feed_last(seats, &n, &prompt));
    *(prompt ? &seats->stats->prompt_s : &seats->stats->made_s) += clock_s() - begin;
    begin = clock_s();
    TRY(draw_all(seats, n));
    seats->stats->made_s += clock_s() - begin;
    return OK;
}

/* ---- each request goes on where its slot is --------------------------------------------- */

/* Pages are there for all that may be made, or nothing is. */
static Status go_on(Seats *seats, GenerateRequest *requests, int n)
{
    Infer *infer = seats->infer;
    for (int i = 0; i < n; i++) {
        GenerateRequest *r = &requests[i];
        TRY(request_begin(r));
        TRY(infer_check_tokens(infer, r->prompt, r->n_prompt, infer->length[i]));
        int64_t positions = r->n_prompt + max_i64(r->max_tokens - 1, 0);
        seats->feed[i] = (SlotTokens){
            i, NULL, min_i64(positions, infer->options.context - infer->length[i])};
    }
    TRY(infer_cache_check(infer, seats->feed, n));
    for (int i = 0; i < n; i++) seats_take(seats, i, &requests[i]);
    while (seats->n_taken > 0) TRY(seats_step(seats));
    return OK;
}

Status infer_generate(Infer *infer, GenerateRequest *requests, int n, GenerateStats *stats)
{
    Seats seats;
    if (n < 1 || n > infer->options.batch)
        return fail(ERR_ARG, "%d requests for %lld slots", n, (long long)infer->options.batch);
    seats_init(&seats, infer, stats);
    Status status = go_on(&seats, requests, n);
    seats_deinit(&seats);
    return status;
}
