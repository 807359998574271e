/* Shared by the files of infer/. */
#ifndef INFER_INFER_INTERNAL_H
#define INFER_INFER_INTERNAL_H

#include "infer/infer.h"
#include "infer/pages.h"

enum { INFER_MAX_PROGRAMS = 4 };

/* Pages of the layers that have this chunk (cache.c). */
typedef struct CacheKind {
    int64_t chunk, pages;               /* pages: of a data rank's pool */
    const char *table_name, *copy_name; /* of inputs */
    PagePool **pool;                    /* of each data rank */
    PageTable *table;                   /* of each slot */
    int32_t *copy; /* of each row of the next run, of all data ranks: see op_cache_append */
} CacheKind;

struct Infer {
    const InferModel *model; /* borrowed */
    InferOptions options;    /* complete: dtype, context and prefill are set */
    Device *device;
    Store *store;
    Program *program[INFER_MAX_PROGRAMS];
    int n_programs;
    int logits, score, prefill, decode; /* indices of programs, -1: none */
    Session *session;
    InferPlan plan;
    int64_t *length; /* per slot */
    CacheKind kind[MODEL_MAX_POOLS];
    int n_kinds;
    Arena names; /* of inputs */
    Sampler *sampler;
    /* ranks.c; of one rank: 1, 0, all slots, all rows */
    int data_ranks, data_rank;
    int64_t slots, rows; /* of this rank, of each program's batch */
    int64_t prefill_rows;
    SlotTokens *row;  /* what a run takes, by rows of all data ranks; n 0: nothing */
    bool has_answers; /* the last stage has */
    Comm *data, *stages;
    float *exchange;
    size_t exchange_bytes;
};

Status infer_ranks_setup(Infer *infer); /* completes the layout; before programs are compiled */
Status infer_ranks_start(Infer *infer); /* groups and buffer */
/* `own`, n values that each data rank computed, of all of them in order; on every rank, valid until
 * the next call. Only the last stage has any. */
Status infer_fetch(Infer *infer, int program, const char *output, const float **own);
Status infer_share_rows(Infer *infer, const float *own, int64_t n, const float **all);
/* n values that every data rank computed alike. */
Status infer_share_same(Infer *infer, const float *own, int64_t n, const float **all);
Status infer_agree(Infer *infer, int32_t *flags, int64_t n); /* on what the first rank says */
Status infer_load_share(Infer *infer);                       /* this rank's part of the weights */

/* feed.c: that n tokens of the vocabulary fit behind `length` */
Status infer_check_tokens(const Infer *infer, const int32_t *ids, int64_t n, int64_t length);
/* A run of the program that takes prompts in. It has rows of options.prefill tokens, each of which
 * takes a piece of any slot's: one of each slot's as far as there are rows, then more of those that
 * have more. feed: what they have left, afterwards too. Each slot at most once. */
Status infer_prefill(Infer *infer, SlotTokens *feed, int n);
/* One token of each; the logits after it. */
Status infer_decode(Infer *infer, const SlotTokens *feed, int n, const float **logits);

/* cache.c */
Status infer_cache_setup(Infer *infer); /* sizes of pools; after infer_ranks_setup */
void infer_cache_start(Infer *infer);   /* books */
void infer_cache_end(Infer *infer);
/* Pages that a slot of so many positions holds at most. */
int64_t infer_cache_need(const Infer *infer, int kind, int64_t positions);
/* That there are pages for all of it, before any of it is run. */
Status infer_cache_check(const Infer *infer, const SlotTokens *feed, int n);
/* Before a run, for all slots that are in it, first the one, then the other: gives back what they
 * will not read again; makes room for n tokens more, which come in this row. */
void infer_cache_drop(Infer *infer, int slot);
Status infer_cache_extend(Infer *infer, int slot, int64_t n, int64_t row);
/* Writes the tables of the slots that infer->row names, `rows` of them this rank's. */
void infer_cache_inputs(Infer *infer, int program, int64_t rows);
void infer_cache_cut(Infer *infer, int slot, int64_t length);

#endif
