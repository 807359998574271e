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
};

#endif
