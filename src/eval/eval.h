/* eval: how good a model is, on the lines of a file.
 *
 * What it is.   Three tasks: perplexity (how likely texts are), choice (which of several answers is
 *               the
 *               likeliest), exact (whether what it writes is the answer); batches, figures with
 *               their errors.
 * Depends on.   base, text, data, infer; jansson
 * Owns.         Nothing across calls.
 * Invariants.   Every line is looked at before the model is loaded: bad ones are named, counted,
 *               and refused
 *               above a share. A figure does not depend on the batch, beyond rounding.
 *               Log-likelihoods
 *               come from the training graph; none of a sequence's logits are held.
 * Use:
 *     EvalOptions options = {.task = EVAL_CHOICE, .data = "questions.jsonl", .bos = true};
 *     TRY(infer_model_open("runs/demo", &model));
 *     TRY(eval_run(&model, &options, &result));
 *     for (int i = 0; i < result.n_figures; i++)
 *         printf("%s %g +- %g\n", result.figure[i].name, result.figure[i].value,
 *         result.figure[i].error);
 */
#ifndef EVAL_EVAL_H
#define EVAL_EVAL_H

#include "infer/infer.h"

typedef enum EvalTask {
    EVAL_PERPLEXITY, /* {"text": ...} */
    EVAL_CHOICE, /* {"context" and/or "question": ..., "choices": [...], "answer": index from 0} */
    EVAL_EXACT,  /* {"prompt" or "question": ..., "answer": ... or "answers": [...], "stop":
                    optional} */
} EvalTask;
const char *eval_task_name(EvalTask task);

typedef struct EvalOptions {
    EvalTask task;
    const char *data;   /* JSON lines, may be compressed */
    const char *out;    /* a line for each item; NULL: none */
    int64_t limit;      /* items at most; 0: all */
    double bad_share;   /* of lines that may be bad */
    int64_t context;    /* tokens of a window; 0: as trained if that is known, at most 2048 */
    int64_t stride;     /* tokens by which windows move on; 0: half a window */
    int64_t batch;      /* rows or slots run together; 0: chosen */
    int64_t max_tokens; /* of an answer; 0: 64 */
    const char *stop;   /* ends an answer, beside those of the line; NULL: none */
    bool bos;           /* begin-of-text in front, where the tokenizer wants one */
    InferOptions infer; /* dtype, threads, memory; the rest is set here */
    /* Called after each batch; anything but OK stops. May be NULL. */
    Status (*progress)(void *context, int64_t done, int64_t total);
    void *progress_context;
} EvalOptions;

typedef struct EvalFigure {
    const char *name;
    double value;
    double error; /* standard error of the mean; NAN for a single item */
} EvalFigure;

enum { EVAL_MAX_FIGURES = 4 };

typedef struct EvalResult {
    int64_t n_items, n_bad;
    int64_t n_tokens; /* scored, or made */
    uint64_t n_bytes; /* of the text that the scored tokens stand for */
    int64_t n_cut;    /* items that were longer than the model's context and lost their beginning */
    int64_t context, stride, batch; /* as used; stride 0 where there is none */
    double seconds;                 /* without loading */
    EvalFigure figure[EVAL_MAX_FIGURES];
    int n_figures;
} EvalResult;

/* ERR_REFUSED when more lines are bad than may be, before anything is computed. */
Status eval_run(const InferModel *model, const EvalOptions *options, EvalResult *result);

#endif
