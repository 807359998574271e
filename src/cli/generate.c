/* drover generate: a prompt goes on. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/sampling.h"

typedef struct GenerateFlags {
    const char *prompt, *prompt_file;
    int64_t max_tokens, samples, context;
    bool echo, no_bos, json;
    SamplingFlags sampling;
    ModelFlags model;
} GenerateFlags;

static const Option options[] = {
    {"prompt", OPTION_TEXT, "TEXT", 0, 0, NULL, NULL, offsetof(GenerateFlags, prompt),
     "what to go on from"},
    {"prompt-file", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(GenerateFlags, prompt_file),
     "the same, from a file"},
    {"max-tokens", OPTION_INT, "N", 0, 1 << 30, "256", NULL, offsetof(GenerateFlags, max_tokens),
     "tokens to make at most"},
    {"samples", OPTION_INT, "N", 1, 256, "1", NULL, offsetof(GenerateFlags, samples),
     "texts to make side by side, with seeds one apart"},
    SAMPLING_FLAGS(GenerateFlags, sampling),
    {"context", OPTION_INT, "N", 1, 1 << 30, NULL, NULL, offsetof(GenerateFlags, context),
     "positions to make room for; else as many as are needed"},
    {"echo", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(GenerateFlags, echo),
     "print the prompt too"},
    {"no-bos", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(GenerateFlags, no_bos),
     "no begin-of-text token in front"},
    {"json", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(GenerateFlags, json),
     "one JSON object: texts, ids, times"},
    MODEL_FLAGS(GenerateFlags, model),
};

enum { MAX_PROMPT_BYTES = 64 << 20 };

/* ---- prompt ----------------------------------------------------------------------------- */

static Status read_prompt(Arena *arena, const GenerateFlags *o, Bytes *text)
{
    if (o->prompt && o->prompt_file)
        return fail(ERR_ARG, "--prompt and --prompt-file exclude each other");
    if (o->prompt_file) return file_read(arena, o->prompt_file, MAX_PROMPT_BYTES, text);
    const char *prompt = o->prompt ? o->prompt : "";
    *text = (Bytes){(const uint8_t *)prompt, strlen(prompt)};
    return OK;
}

static Status encode_prompt(const InferModel *model, Bytes text, bool no_bos, IdVec *ids)
{
    int32_t bos = tokenizer_bos(model->tokenizer);
    if (bos >= 0 && tokenizer_adds_bos(model->tokenizer) && !no_bos) VEC_PUSH(ids, bos);
    Encoder *encoder;
    TRY(encoder_create(model->tokenizer, &encoder));
    Status status = encoder_encode(encoder, text.at, text.n, ENCODE_TEXT, ids);
    encoder_destroy(encoder);
    if (status == OK && ids->n == 0)
        return fail(ERR_ARG, "the prompt is empty, and %s has no begin-of-text token", model->path);
    return status;
}

/* ---- output ----------------------------------------------------------------------------- */

/* Text appears while it is made when there is one sample; the samples of several come one after
 * another. */
typedef struct Stream {
    Decoder decoder;
    bool print;
    Str text;
} Stream;

static bool on_token(void *context, int32_t id)
{
    Stream *s = context;
    size_t before = s->text.n;
    if (decoder_push(&s->decoder, id, &s->text) != OK) return false;
    if (s->print && s->text.n > before) {
        fputs(s->text.at + before, stdout);
        fflush(stdout);
    }
    return !cli_interrupted();
}

static void finish(Stream *s)
{
    size_t before = s->text.n;
    decoder_finish(&s->decoder, &s->text);
    if (s->print && s->text.n > before) fputs(s->text.at + before, stdout);
}

static json_t *sample_json(const GenerateRequest *r, const Stream *s)
{
    json_t *ids = json_array();
    for (size_t i = 0; i < r->tokens.n; i++)
        json_array_append_new(ids, json_integer(r->tokens.at[i]));
    return json_pack("{s:s, s:o, s:s, s:I}", "text", s->text.at ? s->text.at : "", "ids", ids,
                     "end", generate_end_name(r->end), "seed", (json_int_t)r->sampler.seed);
}

static void print_json(const InferModel *model, const GenerateRequest *r, const Stream *s, int n,
                       const GenerateStats *stats)
{
    json_t *samples = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(samples, sample_json(&r[i], &s[i]));
    json_t *all = json_pack("{s:s, s:o, s:I, s:I, s:f, s:f}", "model", model->path, "samples",
                            samples, "prompt_tokens", (json_int_t)stats->prompt_tokens,
                            "made_tokens", (json_int_t)stats->made_tokens, "prompt_s",
                            stats->prompt_s, "made_s", stats->made_s);
    json_dumpf(all, stdout, JSON_COMPACT);
    fputc('\n', stdout);
    json_decref(all);
}

static void print_samples(const GenerateFlags *o, Bytes prompt, const GenerateRequest *r,
                          const Stream *s, int n)
{
    for (int i = 0; i < n && n > 1; i++) {
        printf("--- sample %d, seed %llu ---\n", i + 1, (unsigned long long)r[i].sampler.seed);
        if (o->echo) fwrite(prompt.at, 1, prompt.n, stdout);
        puts(s[i].text.at ? s[i].text.at : "");
    }
    if (n == 1) putchar('\n');
}

static void report(const GenerateStats *s, const GenerateRequest *r)
{
    log_info("%lld prompt tokens in %.2f s (%.0f/s), %lld made in %.2f s (%.1f/s); end: %s",
             (long long)s->prompt_tokens, s->prompt_s,
             (double)s->prompt_tokens / fmax(s->prompt_s, 1e-9), (long long)s->made_tokens,
             s->made_s, (double)s->made_tokens / fmax(s->made_s, 1e-9), generate_end_name(r->end));
}

/* ---- the run ---------------------------------------------------------------------------- */

static Status generate(const GenerateFlags *o, const Rank *rank, const InferModel *model,
                       Infer *infer, Bytes prompt, const IdVec *ids)
{
    int n = (int)o->samples;
    GenerateRequest *r = xcalloc((size_t)n, sizeof *r);
    Stream *s = xcalloc((size_t)n, sizeof *s);
    GenerateStats stats;
    for (int i = 0; i < n; i++) {
        s[i] = (Stream){.decoder = {.tokenizer = model->tokenizer,
                                    .skip_special = true,
                                    .continues = prompt.n > 0},
                        .print = n == 1 && !o->json && rank->first};
        r[i] = (GenerateRequest){.prompt = ids->at,
                                 .n_prompt = (int64_t)ids->n,
                                 .max_tokens = o->max_tokens,
                                 .sampler = sampling_apply(&o->sampling, model),
                                 .on_token = on_token,
                                 .context = &s[i]};
        r[i].sampler.seed += (uint64_t)i;
    }
    if (o->echo && s[0].print) fwrite(prompt.at, 1, prompt.n, stdout);
    cli_catch_interrupts();
    Status status = infer_generate(infer, r, n, &stats);
    for (int i = 0; i < n; i++) finish(&s[i]);
    if (status == OK && o->json && rank->first) print_json(model, r, s, n, &stats);
    if (!o->json && rank->first) print_samples(o, prompt, r, s, status == OK ? n : 0);
    if (status == OK) report(&stats, r);
    for (int i = 0; i < n; i++) {
        str_deinit(&s[i].text);
        VEC_FREE(&r[i].tokens);
    }
    free(r);
    free(s);
    return status;
}

static Status run_open(Arena *arena, const GenerateFlags *o, const Rank *rank,
                       const InferModel *model)
{
    Bytes prompt;
    IdVec ids = {0};
    Infer *infer;
    if (!model->tokenizer)
        return fail(ERR_FORMAT, "%s has no tokenizer; drover logits takes ids", model->path);
    TRY(read_prompt(arena, o, &prompt));
    Status status = encode_prompt(model, prompt, o->no_bos, &ids);
    int64_t wanted = (int64_t)ids.n + o->max_tokens, most = model->config.max_positions;
    InferOptions with = {.batch = o->samples,
                         .context = o->context > 0 ? o->context : min_i64(wanted, most)};
    if ((int64_t)ids.n > with.context && o->context <= 0)
        with.context = (int64_t)ids.n; /* refused, with the numbers */
    model_flags_apply(&o->model, rank, &with);
    if (status == OK) status = infer_create(model, with, &infer);
    if (status == OK) {
        log_debug("%s", infer_device_text(infer));
        status = generate(o, rank, model, infer, prompt, &ids);
        infer_destroy(infer);
    }
    VEC_FREE(&ids);
    return status;
}

static Status run_rank(const Rank *rank, const InferModel *model, const void *flags)
{
    Arena arena = {0};
    Status status = run_open(&arena, flags, rank, model);
    arena_deinit(&arena);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    const GenerateFlags *o = opaque;
    return model_flags_run(&o->model, operands.at[0], run_rank, o);
}

const Command command_generate = {
    .name = "generate",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "make text that goes on from a prompt",
    COMMAND_OPTIONS(GenerateFlags, options),
    .run = run,
};
