/* drover data: texts tokenised into shards ahead of a run, and what is in them. */
#include "data/data.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "run/run.h"

typedef struct DataFlags {
    const char *tokenizer, *cache, *key;
    double holdout;
    int64_t threads;
    bool verify;
} DataFlags;

static const Option options[] = {
    {"tokenizer", OPTION_TEXT, "PATH", 0, 0, NULL, NULL, offsetof(DataFlags, tokenizer),
     "a tokenizer; with a run file: its own, if not given"},
    {"cache", OPTION_TEXT, "DIR", 0, 0, NULL, NULL, offsetof(DataFlags, cache),
     "where the shards lie; with a run file: where it says, if not given"},
    {"holdout", OPTION_FLOAT, "SHARE", 0, 0.5, "0.01", NULL, offsetof(DataFlags, holdout),
     "of the documents, kept for validation; a run file says it itself"},
    {"key", OPTION_TEXT, "NAME", 0, 0, "text", NULL, offsetof(DataFlags, key),
     "the field of JSON lines that holds the text"},
    {"threads", OPTION_INT, "N", 0, 4096, "0", NULL, offsetof(DataFlags, threads), "0: all cores"},
    {"verify", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(DataFlags, verify),
     "check every byte against its hash"},
};

/* ---- from operands to options ----------------------------------------------------------- */

typedef struct Plan {
    Arena arena;
    RunConfig config; /* of a run file */
    bool has_config;
    Tokenizer *tokenizer;
    DataOptions data;
} Plan;

static bool is_run_file(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot && (!strcmp(dot, ".yaml") || !strcmp(dot, ".yml"));
}

/* As training finds it: given, or beside the weights it starts from, or the run's own. */
static Status find_tokenizer(Plan *p, const char *given)
{
    const RunConfig *c = &p->config;
    const char *own = path_join(
        &p->arena, *c->dir ? c->dir : arena_printf(&p->arena, "runs/%s", c->name), "tokenizer");
    if (given) return tokenizer_load(given, &p->tokenizer);
    if (*c->tokenizer.path) return tokenizer_load(c->tokenizer.path, &p->tokenizer);
    if (*c->model.from && !c->tokenizer.train && tokenizer_exists(c->model.from))
        return tokenizer_load(c->model.from, &p->tokenizer);
    if (!dir_exists(own))
        return fail(
            ERR_IO,
            "%s has no tokenizer yet: give one with --tokenizer, or let drover train make it",
            c->name);
    return tokenizer_load(own, &p->tokenizer);
}

static Status plan_from_run(Plan *p, const DataFlags *o, Operands operands)
{
    TRY(run_config_load(operands.at[0], operands.at + 1, operands.n - 1, &p->config));
    p->has_config = true;
    const RunConfig *c = &p->config;
    DataSource *sources = ARENA_ARRAY(&p->arena, DataSource, c->n_sources);
    for (int i = 0; i < c->n_sources; i++) {
        const RunSource *s = &c->sources[i];
        sources[i] = (DataSource){.path = s->synthetic == RUN_SYNTHETIC_NONE ? s->path : NULL,
                                  .weight = s->weight,
                                  .key = s->key};
    }
    TRY(find_tokenizer(p, o->tokenizer));
    const char *dir = *c->dir ? c->dir : arena_printf(&p->arena, "runs/%s", c->name);
    const RunDataset *d = &c->dataset;
    p->data = (DataOptions){.sources = sources,
                            .n_sources = c->n_sources,
                            .holdout = d->holdout,
                            .bad_share = d->bad_share,
                            .line_limit = (size_t)d->line_limit,
                            .bos = d->bos,
                            .eos = d->eos,
                            .shuffle = d->shuffle,
                            .cache_dir = o->cache    ? o->cache
                                         : *d->cache ? d->cache
                                                     : path_join(&p->arena, dir, "data")};
    return OK;
}

static Status plan_from_paths(Plan *p, const DataFlags *o, Operands operands)
{
    if (!o->tokenizer || !o->cache)
        return fail(ERR_ARG, "data needs --tokenizer PATH and --cache DIR, or a run file");
    DataSource *sources = ARENA_ARRAY(&p->arena, DataSource, operands.n);
    for (int i = 0; i < operands.n; i++)
        sources[i] = (DataSource){.path = operands.at[i], .weight = 1, .key = o->key};
    TRY(tokenizer_load(o->tokenizer, &p->tokenizer));
    p->data = (DataOptions){.sources = sources,
                            .n_sources = operands.n,
                            .cache_dir = o->cache,
                            .holdout = o->holdout,
                            .bad_share = 0.01,
                            .bos = true,
                            .eos = true,
                            .shuffle = true};
    return OK;
}

static void plan_deinit(Plan *p)
{
    tokenizer_destroy(p->tokenizer);
    if (p->has_config) run_config_deinit(&p->config);
    arena_deinit(&p->arena);
}

/* ---- the work --------------------------------------------------------------------------- */

typedef struct Progress {
    double next_s;
    bool terminal;
} Progress;

static Status show_progress(void *context, const DataProgress *at)
{
    Progress *p = context;
    char done[32], total[32], tokens[32];
    if (cli_interrupted())
        return fail(ERR_CANCELLED, "interrupted; the same command begins the source anew");
    if (clock_s() < p->next_s) return OK;
    p->next_s = clock_s() + (p->terminal ? 0.5 : 10);
    format_bytes((double)at->done_bytes, done);
    format_bytes((double)at->total_bytes, total);
    format_count((double)at->n_tokens, tokens);
    if (p->terminal)
        fprintf(stderr, "\r\033[K%s: %s of %s, %s tokens", at->path, done, total, tokens);
    else
        log_info("%s: %s of %s, %s tokens", at->path, done, total, tokens);
    return OK;
}

static void print_stats(const Data *data, DataSplit split, const char *name)
{
    DataStats s = data_stats(data, split);
    char bytes[32], tokens[32];
    printf("%-9s %9lld documents  %10s  %10s tokens  %.3f bytes per token\n", name,
           (long long)s.n_documents, format_bytes((double)s.text_bytes, bytes),
           format_count((double)s.n_tokens, tokens),
           s.n_tokens ? (double)s.text_bytes / (double)s.n_tokens : 0.0);
    if (s.n_skipped_files)
        log_info("%lld files were skipped: binary, or not UTF-8", (long long)s.n_skipped_files);
    if (s.n_bad_records)
        log_warn("%lld records were skipped: not JSON, or without the text",
                 (long long)s.n_bad_records);
}

typedef enum Wish { BUILD, INSPECT, HOLDOUT } Wish;

/* All held-out text at once would not be sensible for a large corpus. */
enum { HOLDOUT_MAX_BYTES = 1 << 30 };

static Status fulfil(const Data *data, Wish wish)
{
    Str text = {0};
    Status status = OK;
    if (wish == BUILD) {
        print_stats(data, DATA_TRAIN, "training");
        print_stats(data, DATA_HOLDOUT, "held out");
    } else {
        status = wish == INSPECT ? data_inspect(data, &text)
                                 : data_holdout_text(data, HOLDOUT_MAX_BYTES, &text);
    }
    if (status == OK && text.n) fwrite(text.at, 1, text.n, stdout);
    str_deinit(&text);
    return status;
}

static Status with_data(const DataFlags *o, Operands operands, Wish wish)
{
    Plan p = {0};
    Data *data;
    Progress progress = {clock_s() + 1, isatty(STDERR_FILENO)};
    Status status = is_run_file(operands.at[0]) ? plan_from_run(&p, o, operands)
                                                : plan_from_paths(&p, o, operands);
    p.data.tokenizer = p.tokenizer;
    p.data.threads = (int)o->threads;
    p.data.progress = show_progress;
    p.data.progress_context = &progress;
    cli_catch_interrupts();
    if (status == OK) status = data_open(&p.data, &data);
    if (status == OK) {
        if (progress.terminal) fputs("\r\033[K", stderr);
        if (o->verify) status = data_verify(data);
        if (status == OK) status = fulfil(data, wish);
        data_close(data);
    }
    plan_deinit(&p);
    return status;
}

static Status run_build(const void *opaque, Operands operands)
{
    return with_data(opaque, operands, BUILD);
}
static Status run_inspect(const void *opaque, Operands operands)
{
    return with_data(opaque, operands, INSPECT);
}
static Status run_holdout(const void *opaque, Operands operands)
{
    return with_data(opaque, operands, HOLDOUT);
}

static const char details[] =
    "PATH is a text file, a directory, a pattern such as 'src/**/*.c', or JSON lines (.jsonl,\n"
    ".jsonl.gz, .jsonl.zst). With a run file its sources, tokenizer and cache are taken, and\n"
    "key=value changes it as for drover train. Shards that are there already are not made again.";

const Command command_data_build = {
    .name = "data build",
    .operands = "RUN.yaml|PATH...",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .group = "tokenise texts ahead of a run; look at them",
    .sentence = "tokenise texts into shards ahead of a run",
    .details = details,
    COMMAND_OPTIONS(DataFlags, options),
    .run = run_build,
};

const Command command_data_inspect = {
    .name = "data inspect",
    .operands = "RUN.yaml|PATH...",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .sentence = "counts, commonest tokens and samples of the shards",
    .details = details,
    COMMAND_OPTIONS(DataFlags, options),
    .run = run_inspect,
};

const Command command_data_holdout = {
    .name = "data holdout",
    .operands = "RUN.yaml|PATH...",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .sentence = "the held-out text, as it was, to compare compressors with bits per byte",
    .details = details,
    COMMAND_OPTIONS(DataFlags, options),
    .run = run_holdout,
};
