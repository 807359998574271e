/* The table of settings, and the texts that are made of it. */
#include "run/run.h"

#include <string.h>

#define AT(field)        offsetof(RunConfig, field)
#define IN_SOURCE(field) offsetof(RunSource, field)
#define INT(name, unit, min, max, value, field, sentence)                                          \
    {                                                                                              \
        name, SETTING_INT, unit, min, max, value, NULL, AT(field), sentence                        \
    }
#define FLOAT(name, unit, min, max, value, field, sentence)                                        \
    {                                                                                              \
        name, SETTING_FLOAT, unit, min, max, value, NULL, AT(field), sentence                      \
    }
#define BYTES(name, min, max, value, field, sentence)                                              \
    {                                                                                              \
        name, SETTING_BYTES, "bytes", min, max, value, NULL, AT(field), sentence                   \
    }
#define BOOL(name, value, field, sentence)                                                         \
    {                                                                                              \
        name, SETTING_BOOL, "", 0, 1, value, NULL, AT(field), sentence                             \
    }
#define TEXT(name, value, field, sentence)                                                         \
    {                                                                                              \
        name, SETTING_TEXT, "", 0, 0, value, NULL, AT(field), sentence                             \
    }
#define CHOICE(name, choices, value, field, sentence)                                              \
    {                                                                                              \
        name, SETTING_CHOICE, "", 0, 0, value, choices, AT(field), sentence                        \
    }

/* In the order of the resolved file; settings of one section stand together. */
static const Setting settings[] = {
    TEXT("name", "", name, "name of the run; empty: the run file's own name"),
    TEXT("dir", "", dir, "where the run keeps everything; empty: runs/NAME"),

    TEXT("model.preset", "", model.preset,
         "a model by name; `model: NAME` is short for it; any field of "
         "config.json may stand beside it and wins"),
    TEXT("model.from", "", model.from,
         "a Hugging Face model directory or a checkpoint to start from"),

    TEXT("tokenizer.path", "", tokenizer.path,
         "a tokenizer's directory or file; `tokenizer: PATH` is short "
         "for it; empty: that of model.from; without model.from one is trained on the data"),
    CHOICE("tokenizer.chat_template", "none|drover", "none", tokenizer.chat_template,
           "drover: checkpoints carry our own template for conversations, in the tokens that this "
           "vocabulary has for turns"),
    INT("tokenizer.train.vocab_size", "ids", 288, 1 << 24, "4096", tokenizer.vocab_size,
        "ids of a tokenizer that is trained, special tokens included; beside model.from it is "
        "trained only if this is said"),
    BYTES("tokenizer.train.limit", 1e4, 1e15, "64MB", tokenizer.train_limit,
          "text that it is trained on at most, taken evenly over the documents"),

    {"data[].path", SETTING_TEXT, "", 0, 0, "", NULL, IN_SOURCE(path),
     "text file, .jsonl, .jsonl.gz, .jsonl.zst, directory, or glob (`*`, `?`, `[]`, `**`)"},
    {"data[].weight", SETTING_FLOAT, "", 1e-9, 1e9, "1", NULL, IN_SOURCE(weight),
     "share of the sequences, relative to the other sources"},
    {"data[].key", SETTING_TEXT, "", 0, 0, "text", NULL, IN_SOURCE(key),
     "field of a JSON line that holds the text"},
    {"data[].synthetic", SETTING_CHOICE, "", 0, 0, "none", "none|uniform", IN_SOURCE(synthetic),
     "random token ids instead of text, for benchmarks"},

    FLOAT("dataset.holdout", "share", 0, 0.5, "0.01", dataset.holdout,
          "documents kept for validation; at least one when there are several"),
    TEXT("dataset.cache", "", dataset.cache,
         "where tokenised shards are kept; empty: data/ of the run"),
    FLOAT("dataset.bad_share", "share", 0, 1, "0.001", dataset.bad_share,
          "records that may be skipped because they are damaged, before the run stops"),
    BYTES("dataset.line_limit", 1 << 10, 1 << 30, "64MiB", dataset.line_limit,
          "longest line of a .jsonl file and longest text file"),
    BOOL("dataset.bos", "true", dataset.bos, "begin-of-text before each document"),
    BOOL("dataset.eos", "true", dataset.eos, "end-of-text after each document"),
    BOOL("dataset.shuffle", "true", dataset.shuffle, "documents and sequences in random order"),

    INT("train.steps", "steps", 1, 1e12, "200", train.steps, "optimizer steps"),
    FLOAT("train.minutes", "minutes", 0, 1e7, "0", train.minutes,
          "about how long to train: the steps are then chosen by measuring a few, once, at the "
          "start; 0: train.steps counts"),
    INT("train.batch", "sequences", 1, 1 << 30, "16", train.batch,
        "sequences per step, over all ranks"),
    INT("train.micro_batch", "sequences", 0, 1 << 30, "0", train.micro_batch,
        "sequences computed at once; divides the batch; 0: the whole batch, in canonical mode one"),
    INT("train.seq", "tokens", 1, 1 << 24, "256", train.seq, "tokens per sequence"),
    CHOICE("train.precision", "auto|f32|bf16|fp8", "auto", train.precision,
           "of computation; master weights are f32; auto: bf16 where the processor has it; fp8: "
           "products of layers in 8 bits, the rest as in bf16 (docs/fp8.md)"),
    CHOICE("train.fp8_scaling", "row|block", "block", train.fp8_scaling,
           "what shares a scale in 8 bits: all of a row that a product sums over, or 128 of its "
           "numbers (of weights a square of 128 by 128)"),
    CHOICE("train.device", "auto|cpu|cuda", "auto", train.device,
           "where steps run; auto: a GPU where there is one, else the processor"),
    CHOICE(
        "train.tune", "auto|off", "auto", train.tune,
        "how a GPU computes a product; auto: what is fastest, tried out when a shape is first met "
        "on the machine and kept in ~/.cache/drover; off: what its library proposes"),
    CHOICE("train.attention", "own|cudnn", "own", train.attention,
           "on GPUs: by our own kernels, or by cuDNN where it has the mask and an order of sums "
           "that is always the same (docs/cuda.md)"),
    FLOAT("train.lr", "", 1e-12, 10, "3e-4", train.lr, "highest learning rate"),
    FLOAT("train.min_lr_ratio", "of lr", 0, 1, "0.1", train.min_lr_ratio,
          "the last learning rate, as a part of lr"),
    CHOICE("train.schedule", "wsd|cosine|constant", "wsd", train.schedule,
           "of the learning rate after warm-up: stable then decay, cosine, or constant"),
    INT("train.warmup", "steps", -1, 1e12, "-1", train.warmup,
        "steps in which the rate rises from zero; -1: a twentieth of the steps, at most 2000"),
    FLOAT("train.decay", "share of steps", 0, 1, "0.2", train.decay, "length of the decay of wsd"),
    FLOAT("train.weight_decay", "", 0, 10, "0.1", train.weight_decay, "of AdamW, on matrices only"),
    FLOAT("train.beta1", "", 0, 0.999999, "0.9", train.beta1, "of AdamW: memory of the gradient"),
    FLOAT("train.beta2", "", 0, 0.9999999, "0.95", train.beta2, "of AdamW: memory of its square"),
    FLOAT("train.eps", "", 1e-20, 1, "1e-8", train.eps,
          "of AdamW: added to the root of the square"),
    FLOAT("train.clip", "", 0, 1e9, "1", train.clip,
          "largest norm of the whole gradient; 0: never clipped"),
    CHOICE("train.recompute", "none|selective|full", "none", train.recompute,
           "what the backward pass computes again instead of keeping it"),
    BOOL("train.pack_weights", "false", train.pack_weights,
         "weights are packed for the processor's products once a step instead of once a product: "
         "pays where a micro-batch has few tokens, takes their bytes twice more, changes no bit"),
    INT("train.seed", "", 0, 9007199254740991.0, "0", train.seed,
        "of initial weights and data order"),
    BOOL("train.canonical", "false", train.canonical,
         "the same bits under every layout, somewhat slower; train.micro_batch is then the same "
         "for all of them, 0: one sequence (docs/parallel.md)"),
    INT("train.canonical_chunks", "chunks", 0, 1024, "0", train.canonical_chunks,
        "of products that parallel.tp may cut, in canonical mode: a power of two that tp divides; "
        "0: the largest up to 8 that the model allows"),
    INT("train.val_every", "steps", 0, 1e12, "100", train.val_every,
        "steps between validations; 0: only at the end"),
    INT("train.val_batches", "batches", 0, 1e9, "8", train.val_batches,
        "batches of a validation, always the same ones; 0: all that was held out"),
    FLOAT("train.z_loss", "", 0, 1, "0", train.z_loss,
          "factor of the squared log-sum of the output layer"),
    CHOICE("train.balance", "bias|aux|none", "aux", train.balance,
           "how experts are kept equally busy: a bias on the choice, an auxiliary loss, or not at "
           "all"),
    FLOAT("train.balance_rate", "", 0, 1, "0.001", train.balance_rate,
          "step of the bias per optimizer step"),
    FLOAT("train.balance_aux", "", 0, 10, "0.01", train.balance_aux,
          "factor of the auxiliary loss"),
    FLOAT("train.router_z_loss", "", 0, 1, "0", train.router_z_loss,
          "factor of the router's z-loss"),
    BOOL("train.skip_nonfinite", "true", train.skip_nonfinite,
         "a step whose loss or gradient is not finite changes nothing; false: the run stops there"),
    FLOAT("train.spike_factor", "", 0, 1e9, "0", train.spike_factor,
          "a step whose loss is this many times the running mean changes nothing; 0: spikes are "
          "accepted"),
    INT("train.max_skips", "steps", 0, 1e9, "10", train.max_skips,
        "steps skipped one after another before the run stops; 0: it never stops"),
    INT("train.check_replicas", "steps", 0, 1e12, "100", train.check_replicas,
        "steps between comparisons of what several ranks hold the same; a difference is silent "
        "corruption and stops the run; also before each checkpoint; 0: never"),
    INT("train.threads", "threads", 0, 4096, "0", train.threads,
        "of computation; 0: as many as there are cores"),
    BYTES("train.memory_limit", 0, 1e18, "0", train.memory_limit,
          "a run that needs more is refused before it starts; 0: what the machine has free"),

    INT("parallel.dp", "ranks", 1, 1048576, "1", parallel.dp, "data-parallel replicas"),
    INT("parallel.fsdp", "ranks", 1, 1048576, "1", parallel.fsdp,
        "ranks that share a replica, each with a part of all weights"),
    INT("parallel.tp", "ranks", 1, 1048576, "1", parallel.tp,
        "ranks that share each matrix: heads, feed-forward, vocabulary"),
    INT("parallel.pp", "ranks", 1, 1048576, "1", parallel.pp, "pipeline stages"),
    TEXT("parallel.schedule", "1f1b", parallel.schedule,
         "of the pipeline: 1f1b, gpipe, interleaved, zb-h1, zb-v, dualpipev, or a file with a "
         "table (docs/parallel.md)"),
    INT("parallel.virtual_stages", "", 0, 64, "0", parallel.virtual_stages,
        "stages per rank of the pipeline; 0: as many as the schedule has (interleaved: 2)"),
    INT("parallel.cp", "ranks", 1, 1048576, "1", parallel.cp, "ranks that share each sequence"),
    CHOICE("parallel.context", "gather|ring", "gather", parallel.context,
           "how the ranks of cp get at each other's keys and values: all gathered for each layer, "
           "or passed round while they compute"),
    INT("parallel.ep", "ranks", 1, 1048576, "1", parallel.ep,
        "ranks that share the experts, each with its own sequences"),
    BOOL("parallel.fold_experts", "false", parallel.fold_experts,
         "the ranks of tp share out whole experts, instead of each having a part of every one"),
    INT("parallel.zero", "", 0, 3, "0", parallel.zero,
        "what the ranks of dp share (ZeRO): 1 optimizer states, 2 sums of gradients too, 3 weights "
        "too, which is what fsdp does; 0: nothing"),
    BOOL("parallel.overlap", "true", parallel.overlap,
         "ranks exchange beside the computation; false: one after the other, the same numbers with "
         "smaller buffers"),
    BYTES("parallel.bucket", 1, 1e12, "25MiB", parallel.bucket,
          "gradients that are summed over ranks in one message"),
    FLOAT("parallel.deadline", "seconds", 0.1, 1e6, "600", parallel.deadline,
          "longest wait for another rank; then the run stops and names the ranks that it waits "
          "for, and what they do"),

    INT("checkpoint.every", "steps", 0, 1e12, "100", checkpoint.every,
        "steps between checkpoints; 0: only at the end"),
    FLOAT("checkpoint.minutes", "minutes", 0, 1e7, "0", checkpoint.minutes,
          "also after this time since the last one; 0: no"),
    INT("checkpoint.keep", "checkpoints", 1, 1e6, "3", checkpoint.keep,
        "how many of the newest stay"),
    BOOL("checkpoint.async", "true", checkpoint.async,
         "written by a thread of its own while training goes on"),
    INT("checkpoint.memory_every", "steps", 0, 1e12, "0", checkpoint.memory_every,
        "steps between copies in the memory of this host and another, for ranks that are lost; 0: "
        "none"),
    TEXT("checkpoint.memory_dir", "/dev/shm", checkpoint.memory_dir,
         "a memory file system, where these copies lie"),

    INT("log.every", "steps", 1, 1e9, "1", log.every, "steps between lines of metrics.jsonl"),
    BOOL("log.tensorboard", "true", log.tensorboard, "write event files for TensorBoard too"),
    TEXT("log.trace", "", log.trace,
         "a file for a trace of some steps, for chrome://tracing or Perfetto: what every rank "
         "computed and exchanged when; empty: none"),
    INT("log.trace_after", "steps", 0, 1e12, "2", log.trace_after,
        "steps of this run before those that are traced"),
    INT("log.trace_steps", "steps", 1, 1e6, "2", log.trace_steps, "how many are traced"),
    FLOAT("log.slow_rank", "times the median", 0, 1000, "1.2", log.slow_rank,
          "a rank whose computing takes this much longer than that of its peers, in four "
          "windows of four steps and for two seconds, is named; 0: never"),
};

int run_setting_count(void) { return COUNT_OF(settings); }

const Setting *run_setting(int i)
{
    CHECK(i >= 0 && i < COUNT_OF(settings));
    return &settings[i];
}

const Setting *run_setting_find(const char *name)
{
    return setting_find(settings, COUNT_OF(settings), name);
}

/* ---- texts ------------------------------------------------------------------------------ */

static const char *type_name(const Setting *s)
{
    static const char *const names[] = {"whole number", "number", "true or false", "text",
                                        "choice",       "bytes",  "range"};
    return names[s->type];
}

enum { HELP_INDENT = 30, HELP_WIDTH = 100 };

/* Adds text at column HELP_INDENT, broken at spaces. */
static void add_wrapped(const char *text, Str *out)
{
    int column = HELP_INDENT;
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column + 1 + word > HELP_WIDTH) {
            str_printf(out, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        }
        if (column > HELP_INDENT) str_add(out, " ");
        str_add_n(out, text, (size_t)word);
        column += word + 1;
        text += word;
        text += strspn(text, " ");
    }
    str_add(out, "\n");
}

void run_settings_help(Str *out)
{
    Str text = {0};
    for (int i = 0; i < COUNT_OF(settings); i++) {
        const Setting *s = &settings[i];
        str_clear(&text);
        str_printf(&text, "%s (", s->sentence);
        setting_range_text(s, &text);
        if (*s->unit) str_printf(&text, " %s", s->unit);
        if (*s->default_text) str_printf(&text, "; default %s", s->default_text);
        str_add(&text, ")");
        str_printf(out, "  %-*s", HELP_INDENT - 2, s->name);
        add_wrapped(text.at, out);
    }
    str_deinit(&text);
}

/* The part of a name before its last dot: "" for name, "train" for train.lr. */
static int section_length(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? (int)(dot - name) : 0;
}

static const char doc_head[] =
    "# Run file\n\n"
    "A run file is YAML. Everything has a default; a misspelt key is refused and the nearest right "
    "one named.\n"
    "`key=value` on the command line wins over the file: `train.steps=500`, `data=/usr/include`,\n"
    "`data.0.weight=2`, `model.num_hidden_layers=4`. Each run writes the resolved file, every "
    "value in it,\n"
    "to `run.yaml` in its directory. Anchors, aliases and tags are refused; a file has at most 1 "
    "MiB.\n\n"
    "This page is made from the table of settings in `src/run/settings.c`.\n\n"
    "    name: demo\n"
    "    model: llama4-nano\n"
    "    data: [{path: \"/usr/include/**/*.h\"}]\n\n"
    "Short forms: `model: NAME` for `model: {preset: NAME}`; `tokenizer: PATH` for `tokenizer: "
    "{path: PATH}`;\n"
    "`data: PATH`, or a path as an element of the list, for `{path: PATH}`. Every other key under "
    "`model:` is a\n"
    "field as in a Hugging Face `config.json` and is laid over the preset or over `model.from`.\n";

void run_settings_markdown(Str *out)
{
    str_add(out, doc_head);
    const char *section = "-";
    int length = 1;
    Str range = {0};
    for (int i = 0; i < COUNT_OF(settings); i++) {
        const Setting *s = &settings[i];
        int n = section_length(s->name);
        if (n != length || strncmp(section, s->name, (size_t)n) != 0) {
            section = s->name;
            length = n;
            str_printf(out,
                       "\n## %.*s\n\n| key | type | default | range | what it is |\n| --- | --- | "
                       "--- | --- | --- |\n",
                       n ? n : 7, n ? section : "the run");
        }
        str_clear(&range);
        setting_range_text(s, &range);
        if (*s->unit) str_printf(&range, " %s", s->unit);
        str_printf(out, "| `%s` | %s | %s%s%s | %s | %s |\n", s->name, type_name(s),
                   *s->default_text ? "`" : "", s->default_text, *s->default_text ? "`" : "",
                   range.at, s->sentence);
    }
    str_deinit(&range);
}

const char *run_precision_name(RunPrecision precision)
{
    static const char *const names[] = {"auto", "f32", "bf16", "fp8"};
    return names[precision];
}
