/* drover eval: figures of a model on the lines of a file. */
#include "eval/eval.h"

#include <math.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/meter.h"

typedef struct EvalFlags {
    const char *data, *out, *stop;
    int task;
    int64_t limit, context, stride, batch, max_tokens;
    double bad_share;
    bool no_bos, json;
    ModelFlags model;
} EvalFlags;

static const Option options[] = {
    {"data", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(EvalFlags, data),
     "the items, one JSON object a line (.jsonl, .gz, .zst)"},
    {"task", OPTION_CHOICE, "NAME", 0, 0, "perplexity", "perplexity|choice|exact",
     offsetof(EvalFlags, task), "what is asked of the model"},
    {"json", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(EvalFlags, json),
     "one JSON object: figures, their errors, counts"},
    {"out", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(EvalFlags, out),
     "a JSON line for each item"},
    {"limit", OPTION_INT, "N", 0, 1e15, "0", NULL, offsetof(EvalFlags, limit),
     "only the first N items; 0: all"},
    {"bad-share", OPTION_FLOAT, "SHARE", 0, 1, "0.01", NULL, offsetof(EvalFlags, bad_share),
     "of lines that may be bad"},
    {"context", OPTION_INT, "N", 0, 1 << 30, "0", NULL, offsetof(EvalFlags, context),
     "tokens of a window; 0: as trained if that is known, at most 2048"},
    {"stride", OPTION_INT, "N", 0, 1 << 30, "0", NULL, offsetof(EvalFlags, stride),
     "tokens that windows move on, fewer than context; 0: half of it"},
    {"max-tokens", OPTION_INT, "N", 1, 1 << 20, "64", NULL, offsetof(EvalFlags, max_tokens),
     "of an answer, with exact"},
    {"stop", OPTION_TEXT, "TEXT", 0, 0, NULL, NULL, offsetof(EvalFlags, stop),
     "ends an answer, beside the stops of the line"},
    {"batch", OPTION_INT, "N", 0, 65536, "0", NULL, offsetof(EvalFlags, batch),
     "rows or slots run together; 0: as many as are useful"},
    {"no-bos", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(EvalFlags, no_bos),
     "no begin-of-text token in front"},
    MODEL_FLAGS(EvalFlags, model),
};

static Status show(void *context, int64_t done, int64_t total)
{
    Meter *m = context;
    char left[32];
    if (cli_interrupted())
        return fail(ERR_CANCELLED, "interrupted after %lld of %lld items", (long long)done,
                    (long long)total);
    if (!meter_due(m)) return OK;
    double spent = clock_s() - m->start_s;
    meter_show(m, "%lld of %lld items  %s left", (long long)done, (long long)total,
               format_duration(spent / (double)done * (double)(total - done), left));
    return OK;
}

static void print_json(const EvalFlags *f, const InferModel *model, const EvalResult *r)
{
    json_t *all = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "model", model->path,
                            "task", eval_task_name((EvalTask)f->task), "data", f->data, "items",
                            (json_int_t)r->n_items, "bad_lines", (json_int_t)r->n_bad, "tokens",
                            (json_int_t)r->n_tokens, "bytes", (json_int_t)r->n_bytes, "cut_items",
                            (json_int_t)r->n_cut);
    json_object_set_new(all, "context", json_integer(r->context));
    if (r->stride) json_object_set_new(all, "stride", json_integer(r->stride));
    json_object_set_new(all, "batch", json_integer(r->batch));
    json_object_set_new(all, "seconds", json_real(r->seconds));
    for (int i = 0; i < r->n_figures; i++) {
        const EvalFigure *figure = &r->figure[i];
        char name[64];
        snprintf(name, sizeof name, "%s_error", figure->name);
        json_object_set_new(all, figure->name,
                            isfinite(figure->value) ? json_real(figure->value) : json_null());
        json_object_set_new(all, name,
                            isfinite(figure->error) ? json_real(figure->error) : json_null());
    }
    json_dumpf(all, stdout, JSON_COMPACT);
    fputc('\n', stdout);
    json_decref(all);
}

static void print_text(const EvalFlags *f, const InferModel *model, const EvalResult *r)
{
    char bytes[32], took[32];
    printf("%s, %s on %s\n", eval_task_name((EvalTask)f->task), model->path, f->data);
    for (int i = 0; i < r->n_figures; i++) {
        printf("  %-20s %.5g", r->figure[i].name, r->figure[i].value);
        if (isfinite(r->figure[i].error)) printf(" +- %.2g", r->figure[i].error);
        putchar('\n');
    }
    printf("  %lld items, %lld tokens, %s, in %s; a context of %lld", (long long)r->n_items,
           (long long)r->n_tokens, format_bytes((double)r->n_bytes, bytes),
           format_duration(r->seconds, took), (long long)r->context);
    if (r->stride) printf(", moved on by %lld", (long long)r->stride);
    putchar('\n');
    if (r->n_bad) printf("  %lld bad lines were left out\n", (long long)r->n_bad);
    if (r->n_cut)
        printf("  %lld texts were longer than the context and lost their beginning\n",
               (long long)r->n_cut);
}

static Status evaluate(const Rank *rank, const InferModel *model, const void *flags)
{
    const EvalFlags *f = flags;
    Meter meter;
    EvalResult result;
    EvalOptions o = {.task = (EvalTask)f->task,
                     .data = f->data,
                     .out = rank->first ? f->out : NULL,
                     .limit = f->limit,
                     .bad_share = f->bad_share,
                     .context = f->context,
                     .stride = f->stride,
                     .batch = f->batch,
                     .max_tokens = f->max_tokens,
                     .stop = f->stop,
                     .bos = !f->no_bos,
                     .progress = rank->first ? show : NULL,
                     .progress_context = &meter};
    model_flags_apply(&f->model, rank, &o.infer);
    cli_catch_interrupts();
    if (rank->first) meter_begin(&meter);
    Status status = eval_run(model, &o, &result);
    if (rank->first) meter_end(&meter);
    TRY(status);
    if (!rank->first) return OK;
    if (f->json)
        print_json(f, model, &result);
    else
        print_text(f, model, &result);
    return OK;
}

static Status run(const void *opaque, Operands operands)
{
    const EvalFlags *f = opaque;
    if (!f->data) return fail(ERR_ARG, "eval needs --data FILE.jsonl");
    return model_flags_run(&f->model, operands.at[0], evaluate, f);
}

const Command command_eval = {
    .name = "eval",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "perplexity, choices, exact answers of a model",
    .details = "perplexity  {\"text\": ...}: loss per token, bits per byte; long texts in "
               "overlapping windows\n"
               "choice      {\"context\" or \"question\": ..., \"choices\": [...], \"answer\": "
               "index from 0}: acc by the\n"
               "            sum of log-likelihoods, acc_norm by the sum per byte of the choice\n"
               "exact       {\"prompt\": ..., \"answer\": ..., \"stop\": [...]}: what it writes, "
               "greedily, compared in\n"
               "            lower case without punctuation and articles; strict: as it is but for "
               "outer blanks\n"
               "An error is the standard error of the mean over items.",
    COMMAND_OPTIONS(EvalFlags, options),
    .run = run,
};
