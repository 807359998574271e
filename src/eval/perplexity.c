/* How likely texts are. A text that is longer than a window is gone through in windows that
 * overlap: every token is scored once, in the first window that holds it, so with at least context
 * - stride tokens before it. */
#include "eval/eval_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void window_list(int64_t n, int64_t context, int64_t stride, WindowVec *out)
{
    int64_t scored = 1;
    for (int64_t begin = 0; scored < n; begin += stride) {
        int64_t end = min_i64(begin + context, n);
        VEC_PUSH(out, ((Window){begin, end, scored}));
        scored = end;
    }
}

static Status measure(EvalJob *job, const EvalItem *item, int64_t *tokens)
{
    (void)job, (void)item;
    *tokens = 0; /* windows are of one size */
    return OK;
}

/* The length of the sequences that one of our checkpoints was trained on; 0: not known. */
static int64_t trained_tokens(const InferModel *model)
{
    if (!model->ckpt) return 0;
    json_t *run = json_loads(ckpt_run_json(model->ckpt), JSON_REJECT_DUPLICATES, NULL);
    int64_t seq = json_integer_value(json_object_get(run, "seq"));
    json_decref(run);
    return seq;
}

static void plan(EvalJob *job, int64_t longest, InferOptions *infer)
{
    (void)longest;
    enum { WINDOW = 2048 };
    const EvalOptions *o = job->options;
    EvalResult *r = job->result;
    int64_t most = job->model->config.max_positions, trained = trained_tokens(job->model);
    r->context = o->context ? o->context
                            : min_i64(trained > 1 ? min_i64(trained, WINDOW) : WINDOW, most);
    r->stride = o->stride ? o->stride : max_i64(r->context / 2, 1);
    infer->score_tokens = r->context;
    infer->score_rows = r->batch = eval_rows(job, r->context);
}

/* ---- some texts ------------------------------------------------------------------------- */

typedef struct Text {
    IdVec ids;
    int64_t n_windows;
    uint64_t bytes; /* that the scored tokens stand for */
} Text;

static Status encode(EvalJob *job, const EvalItem *item, Text *text)
{
    if (job->bos >= 0) VEC_PUSH(&text->ids, job->bos);
    TRY(encoder_encode(job->encoder, item->prompt.at, item->prompt.n, ENCODE_TEXT, &text->ids));
    text->bytes = item->prompt.n;
    if (job->bos < 0)
        text->bytes -= tokenizer_token_bytes(job->model->tokenizer, text->ids.at[0]).n;
    return OK;
}

typedef struct Windows {
    WindowVec at;
    ScoreSequence *sequence;
    float *nll;
} Windows;

static Status score(EvalJob *job, Text *texts, int n, Windows *w)
{
    int64_t tokens = 0;
    for (int i = 0; i < n; i++) {
        size_t before = w->at.n;
        window_list((int64_t)texts[i].ids.n, job->result->context, job->result->stride, &w->at);
        texts[i].n_windows = (int64_t)(w->at.n - before);
        for (size_t k = before; k < w->at.n; k++) tokens += w->at.at[k].end - w->at.at[k].begin;
    }
    w->sequence = xcalloc(w->at.n + 1, sizeof *w->sequence);
    w->nll = xcalloc((size_t)tokens + 1, sizeof *w->nll);
    float *nll = w->nll;
    for (int64_t i = 0, k = 0; i < n; i++)
        for (int64_t end = k + texts[i].n_windows; k < end; k++) {
            const Window *window = &w->at.at[k];
            w->sequence[k] = (ScoreSequence){texts[i].ids.at + window->begin,
                                             window->end - window->begin, nll};
            nll += window->end - window->begin;
        }
    return infer_score(job->infer, w->sequence, (int64_t)w->at.n);
}

static void add(EvalJob *job, const EvalItem *item, const Text *text, const Window *window,
                const ScoreSequence *sequence)
{
    double sum = 0;
    int64_t tokens = max_i64((int64_t)text->ids.n - 1, 0);
    for (int64_t k = 0; k < text->n_windows; k++)
        for (int64_t i = window[k].scored; i < window[k].end; i++)
            sum += (double)sequence[k].nll[i - window[k].begin];
    if (tokens > 0) { /* a text of one token without begin-of-text says nothing */
        ratio_add(&job->per_token, sum, (double)tokens);
        ratio_add(&job->per_byte, sum / log(2), (double)text->bytes);
    }
    job->result->n_tokens += tokens;
    job->result->n_bytes += tokens > 0 ? text->bytes : 0;
    eval_add_line(job, json_pack("{s:I, s:I, s:I, s:f}", "line", (json_int_t)item->line, "tokens",
                                 (json_int_t)tokens, "bytes", (json_int_t)text->bytes, "nll", sum));
}

static Status run(EvalJob *job, const EvalItem *items, int n)
{
    Text *texts = xcalloc((size_t)n, sizeof *texts);
    Windows w = {0};
    Status status = OK;
    for (int i = 0; i < n && status == OK; i++) status = encode(job, &items[i], &texts[i]);
    if (status == OK) status = score(job, texts, n, &w);
    for (int64_t i = 0, k = 0; i < n && status == OK; k += texts[i++].n_windows)
        add(job, &items[i], &texts[i], w.at.at + k, w.sequence + k);
    for (int i = 0; i < n; i++) VEC_FREE(&texts[i].ids);
    VEC_FREE(&w.at);
    free(w.sequence);
    free(w.nll);
    free(texts);
    return status;
}

static void finish(EvalJob *job)
{
    double loss = ratio_value(&job->per_token), error = ratio_error(&job->per_token);
    eval_add_figure(job, "loss", loss, error);
    eval_add_figure(job, "perplexity", exp(loss), exp(loss) * error);
    eval_add_figure(job, "bits_per_byte", ratio_value(&job->per_byte), ratio_error(&job->per_byte));
}

const EvalTaskDef eval_perplexity = {
    .name = "perplexity", .measure = measure, .plan = plan, .run = run, .finish = finish};
