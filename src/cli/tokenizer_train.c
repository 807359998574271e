/* drover tokenizer train: merges learnt from texts. */
#include "cli/cli.h"

#include <unistd.h>

#include "data/data.h"

typedef struct TrainFlags {
    int64_t vocab_size, limit, threads;
    const char *out, *key;
} TrainFlags;

static const Option options[] = {
    {"vocab-size", OPTION_INT, "N", 288, 1 << 24, "4096", NULL, offsetof(TrainFlags, vocab_size),
     "ids in all: bytes, merges and special tokens"},
    {"out", OPTION_TEXT, "DIR", 0, 0, NULL, NULL, offsetof(TrainFlags, out),
     "where tokenizer.json is written"},
    {"limit", OPTION_INT, "BYTES", 1, 1e15, "1000000000", NULL, offsetof(TrainFlags, limit),
     "of text to learn from, taken evenly from all files"},
    {"key", OPTION_TEXT, "NAME", 0, 0, "text", NULL, offsetof(TrainFlags, key),
     "the field of JSON lines that holds the text"},
    {"threads", OPTION_INT, "N", 0, 4096, "0", NULL, offsetof(TrainFlags, threads), "0: all cores"},
};

typedef struct Progress {
    double next_s;
    bool terminal;
} Progress;

/* Twice a second on a terminal, every ten seconds elsewhere. */
static Status show_progress(void *context, const TrainProgress *at)
{
    Progress *p = context;
    char bytes[32];
    if (cli_interrupted()) return fail(ERR_CANCELLED, "interrupted; nothing was written");
    if (clock_s() < p->next_s) return OK;
    p->next_s = clock_s() + (p->terminal ? 0.5 : 10);
    if (p->terminal)
        fprintf(stderr, "\r%s read, %lld of %lld merges ",
                format_bytes((double)at->read_bytes, bytes), (long long)at->n_merges,
                (long long)at->max_merges);
    else
        log_info("%s read, %lld of %lld merges", format_bytes((double)at->read_bytes, bytes),
                 (long long)at->n_merges, (long long)at->max_merges);
    return OK;
}

static Status train(const TrainFlags *o, DataTexts *texts, Tokenizer **tokenizer)
{
    Progress progress = {clock_s() + 1, isatty(STDERR_FILENO)};
    TokenizerTrainOptions how = {.vocab_size = (int32_t)o->vocab_size,
                                 .threads = (int)o->threads,
                                 .progress = show_progress,
                                 .progress_context = &progress};
    cli_catch_interrupts();
    Status status = tokenizer_train(&how, &(TextSource){data_texts_next, texts}, tokenizer);
    if (progress.terminal) fputs("\r\033[K", stderr);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    const TrainFlags *o = opaque;
    if (!o->out) return fail(ERR_ARG, "tokenizer train needs --out DIR");
    Arena arena = {0};
    DataTexts *texts;
    Tokenizer *tokenizer;
    DataSource *sources = ARENA_ARRAY(&arena, DataSource, operands.n);
    for (int i = 0; i < operands.n; i++)
        sources[i] = (DataSource){.path = operands.at[i], .weight = 1, .key = o->key};
    double begin = clock_s();
    Status status = data_texts_open(
        &(DataOptions){.sources = sources, .n_sources = operands.n, .bad_share = 0.01},
        (uint64_t)o->limit, &texts);
    if (status == OK) {
        status = train(o, texts, &tokenizer);
        data_texts_close(texts);
    }
    if (status == OK) {
        status = tokenizer_save(tokenizer, o->out);
        char time[32];
        if (status == OK)
            log_info("%d ids learnt in %s, written to %s", tokenizer_vocab_size(tokenizer),
                     format_duration(clock_s() - begin, time), o->out);
        tokenizer_destroy(tokenizer);
    }
    arena_deinit(&arena);
    return status;
}

const Command command_tokenizer_train = {
    .name = "tokenizer train",
    .operands = "PATH...",
    .min_operands = 1,
    .max_operands = ANY_NUMBER,
    .group = "train a tokenizer; encode, decode, inspect",
    .sentence = "learn a byte-level BPE tokenizer from texts",
    .details =
        "PATH is a text file, a directory, a pattern such as 'src/**/*.c', or JSON lines (.jsonl,\n"
        ".jsonl.gz, .jsonl.zst).",
    COMMAND_OPTIONS(TrainFlags, options),
    .run = run,
};
