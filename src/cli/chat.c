/* drover chat: a conversation in the terminal. */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/sampling.h"

typedef struct ChatFlags {
    const char *system;
    int format;
    int64_t max_tokens, context;
    bool no_bos;
    SamplingFlags sampling;
    ModelFlags model;
} ChatFlags;

static const Option options[] = {
    {"system", OPTION_TEXT, "TEXT", 0, 0, NULL, NULL, offsetof(ChatFlags, system), "a message that sets the tone"},
    {"format", OPTION_CHOICE, "NAME", 0, 0, "auto", "auto|llama3|llama4|plain", offsetof(ChatFlags, format),
     "how turns are marked; plain: the model goes on from what you type"},
    {"max-tokens", OPTION_INT, "N", 1, 1 << 30, "512", NULL, offsetof(ChatFlags, max_tokens), "tokens of an answer at most"},
    {"context", OPTION_INT, "N", 1, 1 << 30, NULL, NULL, offsetof(ChatFlags, context),
     "tokens of the conversation at most; else 4096, or what the model can"},
    {"no-bos", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(ChatFlags, no_bos), "no begin-of-text token in front"},
    SAMPLING_FLAGS(ChatFlags, sampling),
    MODEL_FLAGS(ChatFlags, model),
};

enum { DEFAULT_CONTEXT = 4096 };

/* ---- formats (models.md 4.5) ------------------------------------------------------------------- */

typedef struct ChatFormat {
    const char *name, *header_start, *header_end, *end_of_turn;
} ChatFormat;

static const ChatFormat formats[] = {
    {"llama3", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    {"llama4", "<|header_start|>", "<|header_end|>", "<|eot|>"},
};

typedef struct Chat {
    const ChatFlags *flags;
    const InferModel *model;
    Infer *infer;
    Encoder *encoder;
    const ChatFormat *format; /* NULL: plain */
    IdVec history;            /* the whole conversation; the slot holds the beginning of it */
    Decoder decoder;
    int64_t turn;
} Chat;

static bool speaks(const Tokenizer *t, const ChatFormat *f)
{
    return tokenizer_id_of(t, f->header_start) >= 0 && tokenizer_id_of(t, f->header_end) >= 0 &&
           tokenizer_id_of(t, f->end_of_turn) >= 0;
}

/* A model that was never taught to answer has no chat template, whatever its special tokens. */
static Status choose_format(Chat *chat)
{
    const Tokenizer *t = chat->model->tokenizer;
    if (chat->flags->format == 3) return OK;
    for (int i = 0; i < COUNT_OF(formats); i++) {
        bool wanted = chat->flags->format == i + 1;
        if (wanted && !speaks(t, &formats[i]))
            return fail(ERR_FORMAT, "%s: the tokenizer lacks the tokens of the %s format", chat->model->path, formats[i].name);
        if (wanted || (chat->flags->format == 0 && tokenizer_chat_template(t) && speaks(t, &formats[i])))
            chat->format = &formats[i];
    }
    return OK;
}

static Status add_text(Chat *chat, const char *text)
{
    return encoder_encode(chat->encoder, text, strlen(text), ENCODE_TEXT, &chat->history);
}

static void add_special(Chat *chat, const char *name)
{
    int32_t id = tokenizer_id_of(chat->model->tokenizer, name);
    if (id >= 0) VEC_PUSH(&chat->history, id);
}

static Status add_header(Chat *chat, const char *role)
{
    add_special(chat, chat->format->header_start);
    TRY(add_text(chat, role));
    add_special(chat, chat->format->header_end);
    return add_text(chat, "\n\n");
}

static Status add_message(Chat *chat, const char *role, const char *text)
{
    TRY(add_header(chat, role));
    TRY(add_text(chat, text));
    add_special(chat, chat->format->end_of_turn);
    return OK;
}

static Status begin(Chat *chat)
{
    chat->history.n = 0;
    infer_truncate(chat->infer, 0, 0);
    int32_t bos = tokenizer_bos(chat->model->tokenizer);
    if (bos >= 0 && tokenizer_adds_bos(chat->model->tokenizer) && !chat->flags->no_bos) VEC_PUSH(&chat->history, bos);
    if (!chat->flags->system) return OK;
    return chat->format ? add_message(chat, "system", chat->flags->system) : add_text(chat, chat->flags->system);
}

/* ---- a turn --------------------------------------------------------------------------------------- */

static bool on_token(void *context, int32_t id)
{
    Chat *chat = context;
    Str text = {0};
    bool good = decoder_push(&chat->decoder, id, &text) == OK;
    if (text.n) fputs(text.at, stdout);
    fflush(stdout);
    str_deinit(&text);
    return good && !cli_interrupted();
}

static Status answer(Chat *chat)
{
    GenerateStats stats;
    int64_t held = infer_length(chat->infer, 0);
    chat->decoder = (Decoder){.tokenizer = chat->model->tokenizer, .skip_special = true, .continues = true};
    GenerateRequest r = {.prompt = chat->history.at + held, .n_prompt = (int64_t)chat->history.n - held,
                         .max_tokens = chat->flags->max_tokens, .on_token = on_token, .context = chat,
                         .sampler = sampling_apply(&chat->flags->sampling, chat->model)};
    r.sampler.seed += (uint64_t)chat->turn++;
    Status status = infer_generate(chat->infer, &r, 1, &stats);
    Str rest = {0};
    decoder_finish(&chat->decoder, &rest);
    if (rest.n) fputs(rest.at, stdout);
    str_deinit(&rest);
    putchar('\n');
    fflush(stdout);
    for (size_t i = 0; i < r.tokens.n; i++) VEC_PUSH(&chat->history, r.tokens.at[i]);
    VEC_FREE(&r.tokens);
    if (status == OK && r.end == GENERATE_CONTEXT)
        log_info("the context of %lld tokens is full; /reset begins anew", (long long)infer_planned(chat->infer).context);
    if (chat->format) add_special(chat, chat->format->end_of_turn);
    return status;
}

static Status take_turn(Chat *chat, const char *line)
{
    size_t before = chat->history.n;
    if (chat->format) {
        TRY(add_message(chat, "user", line));
        TRY(add_header(chat, "assistant"));
    } else {
        TRY(add_text(chat, line));
    }
    if ((int64_t)chat->history.n > infer_planned(chat->infer).context) {
        log_warn("this no longer fits in the context of %lld tokens; /reset begins anew, --context N makes more room",
                 (long long)infer_planned(chat->infer).context);
        chat->history.n = before;
        return OK;
    }
    if (chat->history.n == (size_t)infer_length(chat->infer, 0)) return OK; /* an empty line: nothing new */
    return answer(chat);
}

static Status talk(Chat *chat)
{
    bool terminal = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t cap = 0;
    Status status = begin(chat);
    if (terminal) log_info("%s; /reset begins anew, /quit or Ctrl-D ends", infer_device_text(chat->infer));
    while (status == OK) {
        if (terminal) fputs("> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0) break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (!strcmp(line, "/quit")) break;
        cli_clear_interrupt();
        if (!strcmp(line, "/reset")) status = begin(chat);
        else if (n > 0) status = take_turn(chat, line);
    }
    if (terminal) fputs("\n", stderr);
    free(line);
    return status;
}

/* ---- the run ----------------------------------------------------------------------------------------- */

static Status run_open(const ChatFlags *o, const InferModel *model)
{
    if (!model->tokenizer) return fail(ERR_FORMAT, "%s has no tokenizer; drover logits takes ids", model->path);
    Chat chat = {.flags = o, .model = model};
    InferOptions with = {.batch = 1, .context = o->context > 0 ? o->context : min_i64(DEFAULT_CONTEXT, model->config.max_positions)};
    model_flags_apply(&o->model, &with);
    TRY(choose_format(&chat));
    TRY(infer_create(model, with, &chat.infer));
    Status status = encoder_create(model->tokenizer, &chat.encoder);
    cli_catch_interrupts();
    if (status == OK) status = talk(&chat);
    encoder_destroy(chat.encoder);
    infer_destroy(chat.infer);
    VEC_FREE(&chat.history);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    InferModel model;
    TRY(infer_model_open(operands.at[0], &model));
    Status status = run_open(opaque, &model);
    infer_model_deinit(&model);
    return status;
}

const Command command_chat = {
    .name = "chat",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "talk with a model in the terminal",
    .details = "A model whose files have a chat template is spoken to in turns; any other goes on from what\n"
               "you type. Ctrl-C ends an answer; /reset begins anew; /quit or Ctrl-D ends.",
    COMMAND_OPTIONS(ChatFlags, options),
    .run = run,
};
