/* Whether what the model writes, always the likeliest token, is one of the answers. */
#include "eval/eval_internal.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 64, SLOTS = 8 };

static int64_t max_tokens(const EvalJob *job)
{
    return job->options->max_tokens ? job->options->max_tokens : MAX_TOKENS;
}

static Status encode(const EvalJob *job, const EvalItem *item, IdVec *ids)
{
    int32_t first = job->bos;
    if (first < 0 && item->prompt.n == 0)
        first = tokenizer_eos(job->model->tokenizer); /* something to go on from */
    if (first >= 0) VEC_PUSH(ids, first);
    return encoder_encode(job->encoder, item->prompt.at, item->prompt.n, ENCODE_TEXT, ids);
}

static Status measure(EvalJob *job, const EvalItem *item, int64_t *tokens)
{
    IdVec ids = {0};
    Status status = encode(job, item, &ids);
    *tokens = (int64_t)ids.n;
    VEC_FREE(&ids);
    return status;
}

static void plan(EvalJob *job, int64_t longest, InferOptions *infer)
{
    EvalResult *r = job->result;
    int64_t most = job->options->context ? job->options->context : job->model->config.max_positions;
    r->context = min_i64(longest + max_tokens(job), most);
    r->batch = job->options->batch ? job->options->batch : SLOTS;
    infer->context = r->context;
    infer->batch = r->batch;
}

/* ---- some prompts ----------------------------------------------------------------------- */

/* What one slot writes, watched for its stops. */
typedef struct Answer {
    IdVec ids;
    Decoder decoder;
    Str text;
    Bytes *stop;
    int n_stop;
} Answer;

static bool on_token(void *context, int32_t id)
{
    Answer *a = context;
    if (decoder_push(&a->decoder, id, &a->text) != OK) return false;
    return match_stop((Bytes){(const uint8_t *)a->text.at, a->text.n}, a->stop, a->n_stop) ==
           a->text.n;
}

/* A prompt that leaves no room for an answer loses its beginning. */
static Status prepare(EvalJob *job, const EvalItem *item, Answer *a, GenerateRequest *request)
{
    const char *stop = job->options->stop;
    *a = (Answer){.decoder = {.tokenizer = job->model->tokenizer, .skip_special = true}};
    a->stop = xcalloc((size_t)item->n_stop + 1, sizeof *a->stop);
    for (int i = 0; i < item->n_stop; i++) a->stop[a->n_stop++] = item->stop[i];
    if (stop) a->stop[a->n_stop++] = (Bytes){(const uint8_t *)stop, strlen(stop)};
    TRY(encode(job, item, &a->ids));
    int64_t room = max_i64(job->result->context - max_tokens(job), 1),
            cut = (int64_t)a->ids.n - room;
    if (cut > 0) {
        a->ids.n -= (size_t)cut;
        memmove(a->ids.at, a->ids.at + cut, a->ids.n * sizeof *a->ids.at);
        job->result->n_cut++;
    }
    *request = (GenerateRequest){.prompt = a->ids.at,
                                 .n_prompt = (int64_t)a->ids.n,
                                 .max_tokens = max_tokens(job),
                                 .sampler = {.temperature = 0, .top_p = 1},
                                 .on_token = on_token,
                                 .context = a};
    return OK;
}

static bool matches(Bytes text, const EvalItem *item, bool strict)
{
    Str ours = {0}, theirs = {0};
    bool found = false;
    match_normalise(text, &ours);
    for (int i = 0; i < item->n_list && !found; i++) {
        str_clear(&theirs);
        match_normalise(item->list[i], &theirs);
        found = strict ? match_equal(text, item->list[i])
                       : ours.n == theirs.n && (ours.n == 0 || !memcmp(ours.at, theirs.at, ours.n));
    }
    str_deinit(&ours);
    str_deinit(&theirs);
    return found;
}

static void judge(EvalJob *job, const EvalItem *item, Answer *a, const GenerateRequest *request)
{
    decoder_finish(&a->decoder, &a->text);
    Bytes text = {(const uint8_t *)(a->text.at ? a->text.at : ""), a->text.n};
    text.n = match_stop(text, a->stop, a->n_stop);
    bool match = matches(text, item, false), strict = matches(text, item, true);
    mean_add(&job->mean[0], match);
    mean_add(&job->mean[1], strict);
    job->result->n_tokens += (int64_t)request->tokens.n;
    job->result->n_bytes += text.n;
    eval_add_line(job,
                  json_pack("{s:I, s:b, s:b, s:s%, s:s}", "line", (json_int_t)item->line, "match",
                            match, "strict", strict, "text", text.at, text.n, "end",
                            text.n < a->text.n ? "stop string" : generate_end_name(request->end)));
}

static Status run_batch(EvalJob *job, const EvalItem *items, int n)
{
    Answer *answers = xcalloc((size_t)n, sizeof *answers);
    GenerateRequest *requests = xcalloc((size_t)n, sizeof *requests);
    GenerateStats stats;
    Status status = OK;
    for (int i = 0; i < n && status == OK; i++)
        status = prepare(job, &items[i], &answers[i], &requests[i]);
    if (status == OK) status = infer_generate_all(job->infer, requests, n, &stats);
    for (int i = 0; i < n && status == OK; i++) judge(job, &items[i], &answers[i], &requests[i]);
    for (int i = 0; i < n; i++) {
        VEC_FREE(&answers[i].ids);
        VEC_FREE(&requests[i].tokens);
        str_deinit(&answers[i].text);
        free(answers[i].stop);
    }
    free(answers);
    free(requests);
    return status;
}

static Status run(EvalJob *job, const EvalItem *items, int n)
{
    for (int at = 0; at < n;) {
        int count = (int)min_i64(n - at, job->result->batch);
        TRY(run_batch(job, items + at, count));
        at += count;
    }
    return OK;
}

static void finish(EvalJob *job)
{
    eval_add_figure(job, "exact_match", mean_value(&job->mean[0]), mean_error(&job->mean[0]));
    eval_add_figure(job, "exact_match_strict", mean_value(&job->mean[1]),
                    mean_error(&job->mean[1]));
}

const EvalTaskDef eval_exact = {
    .name = "exact", .measure = measure, .plan = plan, .run = run, .finish = finish};
