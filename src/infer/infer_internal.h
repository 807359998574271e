/* Shared by the files of infer/. */
#ifndef INFER_INFER_INTERNAL_H
#define INFER_INFER_INTERNAL_H

#include "infer/infer.h"

enum { INFER_MAX_PROGRAMS = 4 };

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
    Sampler *sampler;
    /* ranks.c; of one rank: 1, 0, all slots, all rows */
    int data_ranks, data_rank;
    int64_t slots, rows; /* of this rank, of each program's batch */
    bool has_answers;    /* the last stage has */
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

#endif
