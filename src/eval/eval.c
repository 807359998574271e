/* From a file to figures: every line is looked at first, then the model is loaded for what they
 * need, then they go through it a batch at a time. */
#include "eval/eval_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/data.h"

enum { BAD_NAMED = 10, BATCH_ITEMS = 64, BATCH_BYTES = 1 << 20 };

static const EvalTaskDef *const tasks[] = {&eval_perplexity, &eval_choice, &eval_exact};

const char *eval_task_name(EvalTask task) { return tasks[task]->name; }

int64_t eval_rows(const EvalJob *job, int64_t width)
{
    return job->options->batch ? job->options->batch : max_i64(EVAL_GRID_TOKENS / width, 1);
}

void eval_add_figure(EvalJob *job, const char *name, double value, double error)
{
    EvalResult *r = job->result;
    CHECK(r->n_figures < EVAL_MAX_FIGURES);
    r->figure[r->n_figures++] = (EvalFigure){name, value, error};
}

void eval_add_line(EvalJob *job, json_t *line)
{
    char *text = job->options->out ? json_dumps(line, JSON_COMPACT) : NULL;
    if (text) str_printf(&job->out, "%s\n", text);
    free(text);
    json_decref(line);
}

/* ---- the first look --------------------------------------------------------------------- */

typedef struct Survey {
    int64_t n_lines, longest;
} Survey;

static void name_bad(EvalJob *job, int64_t number, const char *why)
{
    if (++job->result->n_bad <= BAD_NAMED)
        log_warn("%s, line %lld: %s", job->options->data, (long long)number, why);
    if (job->result->n_bad == BAD_NAMED + 1)
        log_warn("%s: more bad lines, which are only counted", job->options->data);
}

static bool enough(const EvalJob *job, int64_t n)
{
    return job->options->limit > 0 && n >= job->options->limit;
}

static Status look_at(EvalJob *job, DataLines *lines, Survey *survey)
{
    const EvalTaskDef *task = tasks[job->options->task];
    while (!enough(job, job->result->n_items)) {
        DataLine line;
        EvalItem item;
        Arena arena = {0};
        char why[EVAL_WHY];
        int64_t tokens = 0;
        TRY(data_lines_next(lines, &line));
        if (!line.bad && !line.json.at) return OK;
        survey->n_lines++;
        bool good = !line.bad && eval_item_parse(&arena, job->options->task, line.json, &item, why);
        Status status = good ? task->measure(job, &item, &tokens) : OK;
        arena_deinit(&arena);
        TRY_AS(status, "%s, line %lld", job->options->data, (long long)line.number);
        survey->longest = max_i64(survey->longest, tokens);
        if (good)
            job->result->n_items++;
        else
            name_bad(job, line.number, line.bad ? line.why : why);
    }
    return OK;
}

static Status survey_file(EvalJob *job, Survey *survey)
{
    DataLines *lines;
    const EvalResult *r = job->result;
    TRY(data_lines_open(job->options->data, &lines));
    Status status = look_at(job, lines, survey);
    data_lines_close(lines);
    TRY(status);
    double share = survey->n_lines ? (double)r->n_bad / (double)survey->n_lines : 0;
    if (share > job->options->bad_share)
        return fail(ERR_REFUSED,
                    "%s: %lld of %lld lines are bad for the task %s, at most %g%% may be; mend "
                    "them, or allow more",
                    job->options->data, (long long)r->n_bad, (long long)survey->n_lines,
                    eval_task_name(job->options->task), 100 * job->options->bad_share);
    return r->n_items ? OK
                      : fail(ERR_FORMAT, "%s has no item for the task %s", job->options->data,
                             eval_task_name(job->options->task));
}

/* ---- output ----------------------------------------------------------------------------- */

typedef struct Output {
    char *beside; /* NULL: none is wanted */
    int fd;
} Output;

static Status output_open(Arena *arena, const EvalOptions *o, Output *output)
{
    *output = (Output){.fd = -1};
    if (!o->out) return OK;
    output->beside = arena_printf(arena, "%s.part", o->out);
    return file_create(output->beside, &output->fd);
}

static Status output_flush(EvalJob *job, Output *output)
{
    if (output->fd < 0 || job->out.n == 0) return OK;
    TRY(file_write(output->fd, job->out.at, job->out.n, output->beside));
    str_clear(&job->out);
    return OK;
}

static Status output_close(EvalJob *job, Output *output, Status status)
{
    if (output->fd < 0) return status;
    if (status == OK) status = file_sync(output->fd, output->beside);
    if (status == OK) {
        TRY(file_close(output->fd, output->beside));
        return file_rename(output->beside, job->options->out);
    }
    close(output->fd);
    unlink(output->beside); /* what is unfinished has no use; the sentence of the failure stays */
    return status;
}

/* ---- the work --------------------------------------------------------------------------- */

typedef struct Batch {
    Arena arena;
    EvalItem item[BATCH_ITEMS];
    int n;
    size_t bytes;
    int64_t done; /* items of batches before */
} Batch;

static Status run_batch(EvalJob *job, Batch *batch, Output *output)
{
    if (batch->n == 0) return OK;
    const EvalOptions *o = job->options;
    TRY(tasks[o->task]->run(job, batch->item, batch->n));
    TRY(output_flush(job, output));
    batch->done += batch->n;
    batch->n = 0;
    batch->bytes = 0;
    arena_deinit(&batch->arena);
    return o->progress ? o->progress(o->progress_context, batch->done, job->result->n_items) : OK;
}

static Status run_lines(EvalJob *job, DataLines *lines, Batch *batch, Output *output)
{
    while (batch->done + batch->n < job->result->n_items) {
        DataLine line;
        char why[EVAL_WHY];
        TRY(data_lines_next(lines, &line));
        if (!line.bad && !line.json.at)
            return fail(ERR_IO, "%s became shorter while it was read", job->options->data);
        if (line.bad || !eval_item_parse(&batch->arena, job->options->task, line.json,
                                         &batch->item[batch->n], why))
            continue;
        batch->item[batch->n++].line = line.number;
        batch->bytes += line.json.n;
        if (batch->n == BATCH_ITEMS || batch->bytes >= BATCH_BYTES)
            TRY(run_batch(job, batch, output));
    }
    return run_batch(job, batch, output);
}

static Status run_items(EvalJob *job)
{
    DataLines *lines;
    Output output;
    Arena arena = {0};
    Batch *batch = xcalloc(1, sizeof *batch);
    double start = clock_s();
    Status status = data_lines_open(job->options->data, &lines);
    if (status == OK) {
        status = output_open(&arena, job->options, &output);
        if (status == OK)
            status = output_close(job, &output, run_lines(job, lines, batch, &output));
        data_lines_close(lines);
    }
    job->result->seconds = clock_s() - start;
    arena_deinit(&batch->arena);
    free(batch);
    arena_deinit(&arena);
    return status;
}

static Status check_options(const InferModel *model, const EvalOptions *o)
{
    if (!o->data) return fail(ERR_ARG, "no file of items was given");
    if (!model->tokenizer)
        return fail(ERR_FORMAT, "%s has no tokenizer, and the items are texts", model->path);
    if (o->context == 1) return fail(ERR_ARG, "a window of one token predicts nothing");
    int64_t most = model->config.max_positions;
    if (o->context > most)
        return fail(
            ERR_REFUSED,
            "%s has %lld positions (max_position_embeddings), but a context of %lld was asked for",
            model->path, (long long)most, (long long)o->context);
    return OK;
}

static Status run_job(EvalJob *job)
{
    const EvalOptions *o = job->options;
    Survey survey = {0};
    InferOptions infer = o->infer;
    TRY(survey_file(job, &survey));
    tasks[o->task]->plan(job, survey.longest, &infer);
    if (job->result->stride >= job->result->context)
        return fail(
            ERR_ARG,
            "a stride of %lld in windows of %lld leaves nothing before a window's first token",
            (long long)job->result->stride, (long long)job->result->context);
    TRY(infer_create(job->model, infer, &job->infer));
    Status status = run_items(job);
    infer_destroy(job->infer);
    if (status == OK) tasks[o->task]->finish(job);
    return status;
}

Status eval_run(const InferModel *model, const EvalOptions *options, EvalResult *result)
{
    TRY(check_options(model, options));
    EvalResult made = {0};
    EvalJob job = {.model = model, .options = options, .bos = -1, .result = &made};
    if (options->bos && tokenizer_adds_bos(model->tokenizer))
        job.bos = tokenizer_bos(model->tokenizer);
    TRY(encoder_create(model->tokenizer, &job.encoder));
    Status status = run_job(&job);
    encoder_destroy(job.encoder);
    str_deinit(&job.out);
    if (status == OK) *result = made;
    return status;
}
