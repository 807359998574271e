/* Requests in slots: what generate.c (the loop) and queue.c (who comes next) share. */
#ifndef INFER_GENERATE_H
#define INFER_GENERATE_H

#include "infer/infer_internal.h"

typedef struct Seat {
    GenerateRequest *request; /* NULL: nobody */
    int64_t base;             /* tokens that the slot held before the prompt */
    /* until slot `from` has the first `share` tokens of `source`, which this one begins with too */
    bool waits;
    int from;
    const GenerateRequest *source;
    int64_t share;
} Seat;

typedef struct Seats {
    Infer *infer;
    GenerateStats *stats;
    Seat *at;         /* of each slot */
    SlotTokens *feed; /* of one run */
    const float **logits;
    int32_t *state; /* of each in feed, after a token */
    int n_taken;
} Seats;

void seats_init(Seats *seats, Infer *infer, GenerateStats *stats);
void seats_deinit(Seats *seats);
Status request_begin(GenerateRequest *request); /* checks it, empties its results */
void seats_take(Seats *seats, int slot, GenerateRequest *request);
/* Pieces of prompts, and a token of every request whose prompt is in; whoever has ended
 * leaves the seat. */
Status seats_step(Seats *seats);
/* Who waits for tokens that are there by now begins with them (queue.c). */
Status seats_share(Seats *seats);

#endif
