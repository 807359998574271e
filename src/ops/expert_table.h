/* What all ranks' offsets say of the rows of experts that go between them (expert_exchange.c): the
 * table that expert_plan makes, [n (E+1)]. For kernels of the processor and of the cuda device.
 * Internal to ops/. */
#ifndef OPS_EXPERT_TABLE_H
#define OPS_EXPERT_TABLE_H

#include "ops/device_too.h"
#include "ops/expert_attr.h"
#include "ops/ops.h"

typedef struct ExpertTable {
    const int32_t *at; /* on whatever device reads it */
    int n, rank;
    int64_t experts, each; /* in all, and owned by each rank */
} ExpertTable;

static inline ExpertTable expert_table(const int32_t *at, int64_t count, const ExchangeAttr *attr)
{
    ExpertTable t;
    t.at = at;
    t.n = attr->n;
    t.rank = attr->rank;
    t.experts = count / attr->n - 1;
    t.each = t.experts / attr->n;
    return t;
}

DEVICE_TOO static inline int32_t expert_offset(const ExpertTable *t, int rank, int64_t expert)
{
    return t->at[rank * (t->experts + 1) + expert];
}

/* that rank `from` has for the experts of rank `to`: they lie together */
DEVICE_TOO static inline int64_t expert_rows_between(const ExpertTable *t, int from, int to)
{
    return expert_offset(t, from, (to + 1) * t->each) - expert_offset(t, from, to * t->each);
}

/* that rank r has for expert e of this rank's own */
DEVICE_TOO static inline int64_t expert_rows(const ExpertTable *t, int r, int64_t e)
{
    int64_t expert = t->rank * t->each + e;
    return expert_offset(t, r, expert + 1) - expert_offset(t, r, expert);
}

/* that rank r has for those of this rank's own experts that come before e */
DEVICE_TOO static inline int64_t expert_rows_before(const ExpertTable *t, int r, int64_t e)
{
    int64_t first = t->rank * t->each;
    return expert_offset(t, r, first + e) - expert_offset(t, r, first);
}

/* Where rank r's rows of own expert e begin in the order of arrival: by rank, then expert. */
DEVICE_TOO static inline int64_t expert_arrival(const ExpertTable *t, int r, int64_t e)
{
    int64_t at = expert_rows_before(t, r, e);
    for (int k = 0; k < r; k++) at += expert_rows_between(t, k, t->rank);
    return at;
}

/* And in the order of use: by expert, then rank. r may be n, e may be each. */
DEVICE_TOO static inline int64_t expert_use(const ExpertTable *t, int r, int64_t e)
{
    int64_t at = 0;
    for (int k = 0; k < t->n; k++) at += expert_rows_before(t, k, e + (k < r));
    return at;
}

/* What COMM_ALL_TO_ALL of rows `width` wide brings from tokens to experts, or back: [n] each, in
 * elements. */
typedef struct ExpertCounts {
    int64_t *tokens, *tokens_at; /* of this rank's rows, by the owner of their experts */
    int64_t *owned, *owned_at;   /* of the rows of its experts, by the rank they come from */
} ExpertCounts;

static inline ExpertCounts expert_counts_at(int64_t *memory, int n)
{
    ExpertCounts c;
    c.tokens = memory;
    c.tokens_at = memory + n;
    c.owned = memory + 2 * n;
    c.owned_at = memory + 3 * n;
    return c;
}

/* Refuses what does not fit into buffers of so many rows. The table is the host's. */
static inline Status expert_count(const ExpertTable *t, int64_t width, int64_t token_room,
                                  int64_t owned_room, const ExpertCounts *c)
{
    int64_t owned = 0, tokens = expert_offset(t, t->rank, t->experts);
    for (int r = 0; r < t->n; r++) {
        c->tokens[r] = expert_rows_between(t, t->rank, r) * width;
        c->tokens_at[r] = expert_offset(t, t->rank, r * t->each) * width;
        c->owned[r] = expert_rows_between(t, r, t->rank) * width;
        c->owned_at[r] = owned * width;
        if (c->tokens[r] < 0 || c->owned[r] < 0 || c->tokens_at[r] < 0)
            return fail(ERR_ARG, "rank %d's offsets of experts' rows do not rise",
                        c->owned[r] < 0 ? r : t->rank);
        owned += expert_rows_between(t, r, t->rank);
    }
    if (tokens > token_room || owned > owned_room)
        return fail(ERR_ARG,
                    "%lld rows for experts in a buffer of %lld, %lld rows from all ranks in one of "
                    "%lld",
                    (long long)tokens, (long long)token_room, (long long)owned,
                    (long long)owned_room);
    return OK;
}

#endif
