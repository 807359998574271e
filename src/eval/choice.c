/* Which of several answers the model finds likeliest, after the same context. The choice by the sum
 * of log-likelihoods is what lm-evaluation-harness calls acc; by the sum over the length of the
 * answer, acc_norm. */
#include "eval/eval_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- tokens ----------------------------------------------------------------------------- */

static bool is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Context and answer are encoded as one text, joined by a space where there is none. White space at
 * the context's end counts as the answer's, so that it is encoded with the word that follows. */
static size_t join(const EvalItem *item, int choice, Str *out)
{
    Bytes context = item->prompt, answer = item->list[choice];
    size_t end = context.n;
    while (end > 0 && is_space(context.at[end - 1])) end--;
    str_add_n(out, (const char *)context.at, context.n);
    if (context.n > 0 && end == context.n && !is_space(answer.at[0])) str_add(out, " ");
    str_add_n(out, (const char *)answer.at, answer.n);
    return end;
}

Status choice_encode(Encoder *encoder, int32_t prefix, const EvalItem *item, int choice, IdVec *ids,
                     int64_t *begin)
{
    Str text = {0};
    IdVec context = {0};
    size_t end = join(item, choice, &text), first = prefix >= 0;
    if (prefix >= 0) VEC_PUSH(ids, prefix);
    Status status = encoder_encode(encoder, text.at, text.n, ENCODE_TEXT, ids);
    if (status == OK) status = encoder_encode(encoder, text.at, end, ENCODE_TEXT, &context);
    /* where a token spans both, it is the answer's; the first token of all cannot be scored */
    size_t at = first + context.n < ids->n ? first + context.n : ids->n - 1;
    *begin = at > 0 ? (int64_t)at : 1;
    VEC_FREE(&context);
    str_deinit(&text);
    return status;
}

/* A choice without context needs a token to follow. */
static int32_t prefix(const EvalJob *job, const EvalItem *item)
{
    if (job->bos >= 0 || item->prompt.n > 0) return job->bos;
    int32_t bos = tokenizer_bos(job->model->tokenizer);
    return bos >= 0 ? bos : tokenizer_eos(job->model->tokenizer);
}

static Status measure(EvalJob *job, const EvalItem *item, int64_t *tokens)
{
    *tokens = 0;
    for (int c = 0; c < item->n_list; c++) {
        IdVec ids = {0};
        int64_t begin;
        Status status = choice_encode(job->encoder, prefix(job, item), item, c, &ids, &begin);
        *tokens = max_i64(*tokens, (int64_t)ids.n);
        VEC_FREE(&ids);
        TRY(status);
    }
    return OK;
}

static void plan(EvalJob *job, int64_t longest, InferOptions *infer)
{
    EvalResult *r = job->result;
    int64_t most = job->options->context ? job->options->context : job->model->config.max_positions;
    r->context = min_i64(max_i64(longest, 2), most);
    infer->score_tokens = r->context;
    infer->score_rows = r->batch = eval_rows(job, r->context);
}

/* ---- some questions --------------------------------------------------------------------- */

typedef struct Choice {
    IdVec ids;
    int64_t begin; /* of the answer */
    float *nll;
} Choice;

/* What is too long loses its beginning, as in lm-evaluation-harness. */
static Status encode(EvalJob *job, const EvalItem *item, int c, Choice *choice)
{
    TRY(choice_encode(job->encoder, prefix(job, item), item, c, &choice->ids, &choice->begin));
    int64_t cut = (int64_t)choice->ids.n - job->result->context;
    if (cut > 0) {
        choice->ids.n -= (size_t)cut;
        memmove(choice->ids.at, choice->ids.at + cut, choice->ids.n * sizeof *choice->ids.at);
        choice->begin = max_i64(choice->begin - cut, 1);
        job->result->n_cut++;
    }
    choice->nll = xcalloc(choice->ids.n, sizeof *choice->nll);
    return OK;
}

static int best(const double *score, int n)
{
    int at = 0;
    for (int i = 1; i < n; i++)
        if (score[i] > score[at]) at = i;
    return at;
}

static void judge(EvalJob *job, const EvalItem *item, const Choice *choice)
{
    double sum[EVAL_MAX_LIST], per_byte[EVAL_MAX_LIST], per_token[EVAL_MAX_LIST];
    json_t *list = json_array();
    for (int c = 0; c < item->n_list; c++) {
        int64_t tokens = (int64_t)choice[c].ids.n - choice[c].begin;
        sum[c] = 0;
        for (int64_t i = choice[c].begin; i < (int64_t)choice[c].ids.n; i++)
            sum[c] -= (double)choice[c].nll[i];
        per_byte[c] = sum[c] / (double)item->list[c].n;
        per_token[c] = sum[c] / (double)max_i64(tokens, 1);
        job->result->n_tokens += tokens;
        job->result->n_bytes += item->list[c].n;
        json_array_append_new(list, json_real(sum[c]));
    }
    int chosen = best(sum, item->n_list), norm = best(per_byte, item->n_list),
        token = best(per_token, item->n_list);
    mean_add(&job->mean[0], chosen == item->answer);
    mean_add(&job->mean[1], norm == item->answer);
    mean_add(&job->mean_token, token == item->answer);
    eval_add_line(job, json_pack("{s:I, s:i, s:i, s:i, s:i, s:o}", "line", (json_int_t)item->line,
                                 "answer", item->answer, "chosen", chosen, "chosen_norm", norm,
                                 "chosen_token", token, "loglikelihoods", list));
}

static Status run(EvalJob *job, const EvalItem *items, int n)
{
    int total = 0;
    for (int i = 0; i < n; i++) total += items[i].n_list;
    Choice *choices = xcalloc((size_t)total, sizeof *choices);
    ScoreSequence *sequences = xcalloc((size_t)total, sizeof *sequences);
    Status status = OK;
    for (int i = 0, at = 0; i < n; i++)
        for (int c = 0; c < items[i].n_list && status == OK; c++, at++) {
            status = encode(job, &items[i], c, &choices[at]);
            sequences[at] = (ScoreSequence){choices[at].ids.at, (int64_t)choices[at].ids.n,
                                            choices[at].nll};
        }
    if (status == OK) status = infer_score(job->infer, sequences, total);
    for (int i = 0, at = 0; i < n && status == OK; at += items[i++].n_list)
        judge(job, &items[i], &choices[at]);
    for (int at = 0; at < total; at++) {
        VEC_FREE(&choices[at].ids);
        free(choices[at].nll);
    }
    free(choices);
    free(sequences);
    return status;
}

static void finish(EvalJob *job)
{
    eval_add_figure(job, "acc", mean_value(&job->mean[0]), mean_error(&job->mean[0]));
    eval_add_figure(job, "acc_norm", mean_value(&job->mean[1]), mean_error(&job->mean[1]));
    eval_add_figure(job, "acc_per_token", mean_value(&job->mean_token),
                    mean_error(&job->mean_token));
}

const EvalTaskDef eval_choice = {
    .name = "choice", .measure = measure, .plan = plan, .run = run, .finish = finish};
