/* Any number of requests, in as many slots as there are. A request is seated when a slot is free
 * and all pages that it may come to need are promised to it, so that none runs out on the way.
 * Prompts that begin alike are computed once: who begins as another waits until that one has it,
 * and shares its pages.
 *
 * What is shared is what a request would have computed itself, to the bit: tokens of prompts, never
 * the last one, which goes another way, in whole pieces of the program that takes prompts in, or
 * all of two prompts of one length. */
#include "infer/generate.h"

#include <stdlib.h>

typedef struct Queue {
    Seats seats;
    GenerateRequest *request;
    int64_t n, next;                    /* those before `next` are seated, or gone */
    int64_t *promised[MODEL_MAX_POOLS]; /* [data ranks] */
    int64_t need[MODEL_MAX_POOLS];      /* of the request in hand */
    int64_t (*held)[MODEL_MAX_POOLS];   /* [slots] what is promised to its request */
} Queue;

/* ---- pages ------------------------------------------------------------------------------ */

/* Positions that it may come to have; of the last token made, nothing is kept. */
static int64_t positions_of(const Infer *infer, const GenerateRequest *r)
{
    return min_i64(r->n_prompt + max_i64(r->max_tokens - 1, 0), infer->options.context);
}

static void find_need(Queue *q, const GenerateRequest *r)
{
    for (int i = 0; i < q->seats.infer->n_kinds; i++)
        q->need[i] = infer_cache_need(q->seats.infer, i, positions_of(q->seats.infer, r));
}

static Status check_request(Queue *q, int64_t number)
{
    const Infer *infer = q->seats.infer;
    GenerateRequest *r = &q->request[number];
    TRY(request_begin(r));
    TRY(infer_check_tokens(infer, r->prompt, r->n_prompt, 0));
    find_need(q, r);
    for (int i = 0; i < infer->n_kinds; i++)
        if (q->need[i] > infer->kind[i].pages)
            return fail(ERR_REFUSED,
                        "request %lld: a prompt of %lld tokens and up to %lld more want %lld pages "
                        "of %lld positions for keys and values, but there are %lld; fewer tokens "
                        "to make or more cache tokens",
                        (long long)number + 1, (long long)r->n_prompt, (long long)r->max_tokens,
                        (long long)q->need[i], (long long)infer->options.page_tokens,
                        (long long)infer->kind[i].pages);
    return OK;
}

static bool promise(Queue *q, int slot)
{
    const Infer *infer = q->seats.infer;
    int64_t rank = slot / infer->slots;
    for (int i = 0; i < infer->n_kinds; i++)
        if (q->promised[i][rank] + q->need[i] > infer->kind[i].pages) return false;
    for (int i = 0; i < infer->n_kinds; i++) q->promised[i][rank] += q->held[slot][i] = q->need[i];
    return true;
}

/* Of a request that is gone. */
static void give_back(Queue *q, int slot)
{
    for (int i = 0; i < q->seats.infer->n_kinds; i++) {
        q->promised[i][slot / q->seats.infer->slots] -= q->held[slot][i];
        q->held[slot][i] = 0;
    }
    infer_truncate(q->seats.infer, slot, 0);
}

/* ---- what prompts have in common -------------------------------------------------------- */

static int64_t common(const GenerateRequest *a, const GenerateRequest *b)
{
    int64_t n = 0, most = min_i64(a->n_prompt, b->n_prompt) - 1;
    while (n < most && a->prompt[n] == b->prompt[n]) n++;
    return n;
}

static int64_t shareable(const Infer *infer, const GenerateRequest *a, const GenerateRequest *b)
{
    int64_t n = common(a, b), piece = infer->options.prefill;
    return a->n_prompt == b->n_prompt && n == a->n_prompt - 1 ? n : n / piece * piece;
}

/* Who has, or will have, the most of what it begins with. */
static void find_sharer(Queue *q, int slot)
{
    Infer *infer = q->seats.infer;
    Seat *seat = &q->seats.at[slot];
    for (int other = 0; other < infer->options.batch; other++) {
        const Seat *from = &q->seats.at[other];
        if (other == slot || !from->request || other / infer->slots != slot / infer->slots)
            continue;
        int64_t n = shareable(infer, seat->request, from->request);
        if (n <= seat->share) continue;
        seat->waits = true;
        seat->from = other;
        seat->source = from->request;
        seat->share = n;
    }
}

/* Where keys are gone by now, or who had them is, it computes them itself. */
Status seats_share(Seats *seats)
{
    Infer *infer = seats->infer;
    for (int slot = 0; slot < infer->options.batch; slot++) {
        Seat *seat = &seats->at[slot];
        if (!seat->request || !seat->waits) continue;
        bool there = seats->at[seat->from].request == seat->source;
        if (there && infer_length(infer, seat->from) < seat->share) continue;
        seat->waits = false;
        if (there && infer_share(infer, slot, seat->from, seat->share) == seat->share)
            seats->stats->shared_tokens += seat->share;
        else
            infer_truncate(infer, slot, 0);
    }
    return OK;
}

/* ---- the queue -------------------------------------------------------------------------- */

/* In order: one that finds no pages holds up those behind it, or it might wait for ever. */
static void seat_next(Queue *q)
{
    for (int slot = 0; slot < q->seats.infer->options.batch && q->next < q->n; slot++) {
        if (q->seats.at[slot].request) continue;
        give_back(q, slot);
        find_need(q, &q->request[q->next]);
        if (!promise(q, slot)) continue; /* another rank may have some */
        seats_take(&q->seats, slot, &q->request[q->next++]);
        find_sharer(q, slot);
    }
}

static Status run(Queue *q)
{
    for (int64_t i = 0; i < q->n; i++) TRY(check_request(q, i));
    for (int slot = 0; slot < q->seats.infer->options.batch; slot++) give_back(q, slot);
    seat_next(q);
    while (q->seats.n_taken > 0) {
        TRY(seats_step(&q->seats));
        seat_next(q);
    }
    CHECK(q->next == q->n);
    for (int slot = 0; slot < q->seats.infer->options.batch; slot++) give_back(q, slot);
    return OK;
}

Status infer_generate_all(Infer *infer, GenerateRequest *requests, int64_t n, GenerateStats *stats)
{
    Queue q = {.request = requests, .n = n};
    if (infer->decode < 0) return fail(ERR_ARG, "this model was loaded without slots");
    seats_init(&q.seats, infer, stats);
    q.held = xcalloc((size_t)infer->options.batch, sizeof *q.held);
    for (int i = 0; i < infer->n_kinds; i++)
        q.promised[i] = xcalloc((size_t)infer->data_ranks, sizeof *q.promised[i]);
    Status status = run(&q);
    for (int i = 0; i < infer->n_kinds; i++) free(q.promised[i]);
    free(q.held);
    seats_deinit(&q.seats);
    return status;
}
