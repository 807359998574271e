/* The loop that makes tokens: feed, draw, tell, until every request has ended. */
#include "infer/infer_internal.h"

#include <stdlib.h>
#include <string.h>

const char *generate_end_name(GenerateEnd end)
{
    static const char *const names[] = {"stop", "length", "context", "cancelled"};
    return names[end];
}

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

typedef struct Loop {
    Infer *infer;
    GenerateRequest *request;
    SlotTokens *feed; /* of the requests that go on; feed[i].slot is the request too */
    const float **logits;
    int32_t *state; /* of each in feed, after a token */
    int n;
} Loop;

/* One draw for every request that goes on; those that ended leave the list. */
static Status draw_all(Loop *loop, GenerateStats *stats)
{
    int left = 0;
    for (int i = 0; i < loop->n; i++) {
        int slot = loop->feed[i].slot;
        GenerateRequest *r = &loop->request[slot];
        int32_t id;
        TRY(sampler_draw(loop->infer->sampler, &r->sampler, loop->logits[i],
                         (uint64_t)loop->infer->length[slot], &id));
        stats->made_tokens++;
        loop->state[i] = take(loop->infer, r, id);
    }
    TRY(infer_agree(loop->infer, loop->state, loop->n));
    for (int i = 0; i < loop->n; i++) {
        int slot = loop->feed[i].slot;
        GenerateRequest *r = &loop->request[slot];
        if (!ended(loop->infer, r, slot, loop->state[i]))
            loop->feed[left++] = (SlotTokens){slot, &r->tokens.at[r->tokens.n - 1], 1};
    }
    loop->n = left;
    return OK;
}

static Status start(Loop *loop, GenerateRequest *requests, int n, GenerateStats *stats)
{
    for (int i = 0; i < n; i++) {
        GenerateRequest *r = &requests[i];
        TRY(sampler_check(&r->sampler));
        r->tokens = (IdVec){0};
        r->end = GENERATE_LENGTH;
        if (r->n_prompt < 1)
            return fail(ERR_ARG, "a prompt without tokens: there is nothing to go on from");
        stats->prompt_tokens += r->n_prompt;
        loop->feed[loop->n++] = (SlotTokens){i, r->prompt, r->n_prompt};
    }
    return OK;
}

static Status run(Loop *loop, GenerateRequest *requests, int n, GenerateStats *stats)
{
    double begin = clock_s();
    TRY(start(loop, requests, n, stats));
    TRY(infer_feed(loop->infer, loop->feed, loop->n, loop->logits));
    stats->prompt_s = clock_s() - begin;
    int left = 0; /* who asks for no token at all only wants the prompt taken in */
    for (int i = 0; i < loop->n; i++) {
        if (requests[i].max_tokens < 1) continue;
        loop->logits[left] = loop->logits[i];
        loop->feed[left++] = loop->feed[i];
    }
    loop->n = left;
    while (loop->n > 0) {
        TRY(draw_all(loop, stats));
        if (loop->n > 0) TRY(infer_feed(loop->infer, loop->feed, loop->n, loop->logits));
    }
    stats->made_s = clock_s() - begin - stats->prompt_s;
    return OK;
}

Status infer_generate(Infer *infer, GenerateRequest *requests, int n, GenerateStats *stats)
{
    if (n < 1 || n > infer->options.batch)
        return fail(ERR_ARG, "%d requests for %lld slots", n, (long long)infer->options.batch);
    Loop loop = {.infer = infer, .request = requests};
    loop.feed = xcalloc((size_t)n, sizeof *loop.feed);
    loop.logits = xcalloc((size_t)n, sizeof *loop.logits);
    loop.state = xcalloc((size_t)n, sizeof *loop.state);
    *stats = (GenerateStats){0};
    Status status = run(&loop, requests, n, stats);
    free(loop.feed);
    free(loop.logits);
    free(loop.state);
    return status;
}
