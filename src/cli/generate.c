/* drover generate: a prompt goes on; or several, side by side. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/sampling.h"

typedef struct GenerateFlags {
    const char *prompt, *prompt_file, *prompts;
    int64_t max_tokens, samples, slots, context, cache_tokens;
    bool echo, no_bos, json;
    SamplingFlags sampling;
    ModelFlags model;
} GenerateFlags;

static const Option options[] = {
    {"prompt", OPTION_TEXT, "TEXT", 0, 0, NULL, NULL, offsetof(GenerateFlags, prompt),
     "what to go on from"},
    {"prompt-file", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(GenerateFlags, prompt_file),
     "the same, from a file"},
    {"prompts", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(GenerateFlags, prompts),
     "several, one a line; what is made comes in their order"},
    {"max-tokens", OPTION_INT, "N", 0, 1 << 30, "256", NULL, offsetof(GenerateFlags, max_tokens),
     "tokens to make at most"},
    {"samples", OPTION_INT, "N", 1, 256, "1", NULL, offsetof(GenerateFlags, samples),
     "texts to make of each prompt, with seeds one apart"},
    {"slots", OPTION_INT, "N", 1, 4096, NULL, NULL, offsetof(GenerateFlags, slots),
     "texts to make side by side; else as many as there are, up to 8"},
    SAMPLING_FLAGS(GenerateFlags, sampling),
    {"context", OPTION_INT, "N", 1, 1 << 30, NULL, NULL, offsetof(GenerateFlags, context),
     "positions to make room for; else as many as are needed"},
    {"cache-tokens", OPTION_INT, "N", 1, (int64_t)1 << 40, NULL, NULL,
     offsetof(GenerateFlags, cache_tokens),
     "positions of all texts together to keep keys and values of; else as many as can be needed"},
    {"echo", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(GenerateFlags, echo),
     "print the prompt too"},
    {"no-bos", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(GenerateFlags, no_bos),
     "no begin-of-text token in front"},
    {"json", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(GenerateFlags, json),
     "one JSON object: texts, ids, times"},
    MODEL_FLAGS(GenerateFlags, model),
};

enum { MAX_PROMPT_BYTES = 64 << 20 };

/* ---- prompts ---------------------------------------------------------------------------- */

typedef struct Prompts {
    VEC(Bytes) text;
    IdVec *ids; /* of each */
} Prompts;

static void prompts_deinit(Prompts *p)
{
    for (size_t i = 0; p->ids && i < p->text.n; i++) VEC_FREE(&p->ids[i]);
    free(p->ids);
    VEC_FREE(&p->text);
}

/* One a line; of an empty one there may be an empty prompt. */
static Status split_lines(const char *path, Bytes file, Prompts *p)
{
    const uint8_t *at = file.at, *end = file.at + file.n;
    while (at < end) {
        const uint8_t *line = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((line ? line : end) - at);
        Bytes text = {at, n > 0 && at[n - 1] == '\r' ? n - 1 : n};
        VEC_PUSH(&p->text, text);
        at += n + 1;
    }
    if (p->text.n == 0) return fail(ERR_ARG, "%s has no lines, so there are no prompts", path);
    return OK;
}

static Status read_prompts(Arena *arena, const GenerateFlags *o, Prompts *p)
{
    const char *prompt = o->prompt ? o->prompt : "";
    Bytes text = {(const uint8_t *)prompt, strlen(prompt)};
    if ((o->prompt != NULL) + (o->prompt_file != NULL) + (o->prompts != NULL) > 1)
        return fail(ERR_ARG, "--prompt, --prompt-file and --prompts exclude each other");
    if (o->prompts) {
        TRY(file_read(arena, o->prompts, MAX_PROMPT_BYTES, &text));
        return split_lines(o->prompts, text, p);
    }
    if (o->prompt_file) TRY(file_read(arena, o->prompt_file, MAX_PROMPT_BYTES, &text));
    VEC_PUSH(&p->text, text);
    return OK;
}

static Status encode_prompt(const InferModel *model, Encoder *encoder, Bytes text, bool no_bos,
                            IdVec *ids)
{
    int32_t bos = tokenizer_bos(model->tokenizer);
    if (bos >= 0 && tokenizer_adds_bos(model->tokenizer) && !no_bos) VEC_PUSH(ids, bos);
    TRY(encoder_encode(encoder, text.at, text.n, ENCODE_TEXT, ids));
    if (ids->n == 0)
        return fail(ERR_ARG, "the prompt is empty, and %s has no begin-of-text token", model->path);
    return OK;
}

static Status encode_prompts(const InferModel *model, const GenerateFlags *o, Prompts *p)
{
    Encoder *encoder;
    TRY(encoder_create(model->tokenizer, &encoder));
    p->ids = xcalloc(p->text.n, sizeof *p->ids);
    Status status = OK;
    for (size_t i = 0; i < p->text.n && status == OK; i++) {
        status = encode_prompt(model, encoder, p->text.at[i], o->no_bos, &p->ids[i]);
        if (status != OK && o->prompts) fail_context("%s:%zu", o->prompts, i + 1);
    }
    encoder_destroy(encoder);
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

/* The texts of a run: sample k of prompt i is number i * samples + k. */
typedef struct Texts {
    const GenerateFlags *o;
    const Prompts *prompts;
    GenerateRequest *request;
    Stream *stream;
    int n;
} Texts;

static json_t *sample_json(const Texts *t, int i)
{
    const GenerateRequest *r = &t->request[i];
    const char *text = t->stream[i].text.at;
    json_t *ids = json_array();
    for (size_t k = 0; k < r->tokens.n; k++)
        json_array_append_new(ids, json_integer(r->tokens.at[k]));
    json_t *sample = json_pack("{s:s, s:o, s:s, s:I}", "text", text ? text : "", "ids", ids, "end",
                               generate_end_name(r->end), "seed", (json_int_t)r->sampler.seed);
    if (t->o->prompts) json_object_set_new(sample, "line", json_integer(i / t->o->samples + 1));
    return sample;
}

static void print_json(const InferModel *model, const Texts *t, const GenerateStats *stats)
{
    json_t *samples = json_array();
    for (int i = 0; i < t->n; i++) json_array_append_new(samples, sample_json(t, i));
    json_t *all = json_pack("{s:s, s:o, s:I, s:I, s:I, s:f, s:f}", "model", model->path, "samples",
                            samples, "prompt_tokens", (json_int_t)stats->prompt_tokens,
                            "shared_tokens", (json_int_t)stats->shared_tokens, "made_tokens",
                            (json_int_t)stats->made_tokens, "prompt_s", stats->prompt_s, "made_s",
                            stats->made_s);
    json_dumpf(all, stdout, JSON_COMPACT);
    fputc('\n', stdout);
    json_decref(all);
}

static void print_texts(const Texts *t)
{
    for (int i = 0; i < t->n; i++) {
        Bytes prompt = t->prompts->text.at[i / t->o->samples];
        int sample = i % (int)t->o->samples + 1;
        if (t->o->prompts && t->o->samples == 1)
            printf("--- line %d ---\n", i + 1);
        else if (t->o->prompts)
            printf("--- line %d, sample %d, seed %llu ---\n", i / (int)t->o->samples + 1, sample,
                   (unsigned long long)t->request[i].sampler.seed);
        else
            printf("--- sample %d, seed %llu ---\n", sample,
                   (unsigned long long)t->request[i].sampler.seed);
        if (t->o->echo) fwrite(prompt.at, 1, prompt.n, stdout);
        puts(t->stream[i].text.at ? t->stream[i].text.at : "");
    }
}

static void report(const GenerateStats *s, const Texts *t)
{
    char shared[64] = "";
    if (s->shared_tokens)
        snprintf(shared, sizeof shared, ", %lld of them shared", (long long)s->shared_tokens);
    log_info("%lld prompt tokens%s in %.2f s (%.0f/s), %lld made in %.2f s (%.1f/s)%s%s",
             (long long)s->prompt_tokens, shared, s->prompt_s,
             (double)s->prompt_tokens / fmax(s->prompt_s, 1e-9), (long long)s->made_tokens,
             s->made_s, (double)s->made_tokens / fmax(s->made_s, 1e-9), t->n == 1 ? "; end: " : "",
             t->n == 1 ? generate_end_name(t->request->end) : "");
}

/* ---- the run ---------------------------------------------------------------------------- */

/* A text alone is printed while it is made. */
static bool at_once(const GenerateFlags *o, int n) { return n == 1 && !o->json && !o->prompts; }

static void make_requests(Texts *t, const Rank *rank, const InferModel *model)
{
    for (int i = 0; i < t->n; i++) {
        int prompt = i / (int)t->o->samples, sample = i % (int)t->o->samples;
        t->stream[i] = (Stream){.decoder = {.tokenizer = model->tokenizer,
                                            .skip_special = true,
                                            .continues = t->prompts->text.at[prompt].n > 0},
                                .print = at_once(t->o, t->n) && rank->first};
        t->request[i] = (GenerateRequest){.prompt = t->prompts->ids[prompt].at,
                                          .n_prompt = (int64_t)t->prompts->ids[prompt].n,
                                          .max_tokens = t->o->max_tokens,
                                          .sampler = sampling_apply(&t->o->sampling, model),
                                          .on_token = on_token,
                                          .context = &t->stream[i]};
        t->request[i].sampler.seed += (uint64_t)sample;
    }
}

static Status generate(const GenerateFlags *o, const Rank *rank, const InferModel *model,
                       Infer *infer, const Prompts *prompts)
{
    int n = (int)prompts->text.n * (int)o->samples;
    Texts t = {.o = o, .prompts = prompts, .n = n};
    t.request = xcalloc((size_t)n, sizeof *t.request);
    t.stream = xcalloc((size_t)n, sizeof *t.stream);
    GenerateStats stats;
    make_requests(&t, rank, model);
    if (o->echo && t.stream[0].print)
        fwrite(prompts->text.at[0].at, 1, prompts->text.at[0].n, stdout);
    cli_catch_interrupts();
    Status status = infer_generate_all(infer, t.request, n, &stats);
    for (int i = 0; i < n; i++) finish(&t.stream[i]);
    if (status == OK && rank->first) {
        if (o->json)
            print_json(model, &t, &stats);
        else if (at_once(o, n))
            putchar('\n');
        else
            print_texts(&t);
        report(&stats, &t);
    }
    for (int i = 0; i < n; i++) {
        str_deinit(&t.stream[i].text);
        VEC_FREE(&t.request[i].tokens);
    }
    free(t.request);
    free(t.stream);
    return status;
}

enum { SIDE_BY_SIDE = 8, MOST_TEXTS = 1 << 20 };

static Status load_and_generate(const GenerateFlags *o, const Rank *rank, const InferModel *model,
                                const Prompts *prompts)
{
    Infer *infer;
    int64_t longest = 0, n = (int64_t)prompts->text.n * o->samples;
    if (n > MOST_TEXTS)
        return fail(ERR_ARG, "%lld texts at once; %d is the most", (long long)n, MOST_TEXTS);
    for (size_t i = 0; i < prompts->text.n; i++)
        longest = max_i64(longest, (int64_t)prompts->ids[i].n);
    int64_t most = model->config.max_positions;
    InferOptions with = {.batch = min_i64(n, o->slots > 0 ? o->slots : SIDE_BY_SIDE),
                         .context = o->context > 0 ? o->context
                                                   : min_i64(longest + o->max_tokens, most),
                         .cache_tokens = o->cache_tokens};
    if (longest > with.context && o->context <= 0)
        with.context = longest; /* refused, with the
                                   numbers */
    model_flags_apply(&o->model, rank, &with);
    TRY(infer_create(model, with, &infer));
    log_debug("%s", infer_device_text(infer));
    Status status = generate(o, rank, model, infer, prompts);
    infer_destroy(infer);
    return status;
}

static Status run_open(Arena *arena, const GenerateFlags *o, const Rank *rank,
                       const InferModel *model)
{
    Prompts prompts = {0};
    if (!model->tokenizer)
        return fail(ERR_FORMAT, "%s has no tokenizer; drover logits takes ids", model->path);
    Status status = read_prompts(arena, o, &prompts);
    if (status == OK) status = encode_prompts(model, o, &prompts);
    if (status == OK) status = load_and_generate(o, rank, model, &prompts);
    prompts_deinit(&prompts);
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
