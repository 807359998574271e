/* drover chat: a conversation in the terminal, or one answer to a conversation in a file. */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chat/chat.h"
#include "cli/sampling.h"

typedef struct ChatFlags {
    const char *system, *messages, *format, *date;
    int64_t max_tokens, context;
    bool no_bos;
    SamplingFlags sampling;
    ModelFlags model;
} ChatFlags;

static const Option options[] = {
    {"system", OPTION_TEXT, "TEXT", 0, 0, NULL, NULL, offsetof(ChatFlags, system),
     "a message that sets the tone"},
    {"messages", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(ChatFlags, messages),
     "answer the conversation in this JSON file, once (docs/chat.md)"},
    {"chat-format", OPTION_TEXT, "NAME", 0, 0, NULL, NULL, offsetof(ChatFlags, format),
     "llama3, llama3.1 (and 3.3), llama3.2, llama4, drover, or plain: the model goes on from what "
     "you type"},
    {"date", OPTION_TEXT, "DATE", 0, 0, NULL, NULL, offsetof(ChatFlags, date),
     "what formats with a date call today, as in \"26 Jul 2024\""},
    {"max-tokens", OPTION_INT, "N", 1, 1 << 30, "512", NULL, offsetof(ChatFlags, max_tokens),
     "tokens of an answer at most"},
    {"context", OPTION_INT, "N", 1, 1 << 30, NULL, NULL, offsetof(ChatFlags, context),
     "tokens of the conversation at most; else 4096, or what the model can"},
    {"no-bos", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(ChatFlags, no_bos),
     "no begin-of-text token in front where there is no format"},
    SAMPLING_FLAGS(ChatFlags, sampling),
    MODEL_FLAGS(ChatFlags, model),
};

enum { DEFAULT_CONTEXT = 4096, MAX_MESSAGES_BYTES = 64 << 20 };

typedef struct Talk {
    const ChatFlags *flags;
    const Rank *rank; /* all ranks have the same conversation; the first reads and prints */
    const InferModel *model;
    Infer *infer;
    Encoder *encoder;
    ChatFormat *format; /* NULL: plain */
    Chat chat;          /* what was said, where there is a format */
    IdVec history;      /* the same as ids; the slot holds the beginning of it */
    Decoder decoder;
    int64_t turn;
} Talk;

static Bytes bytes_of(const char *text) { return (Bytes){(const uint8_t *)text, strlen(text)}; }

static Status add_plain(Talk *talk, const char *text)
{
    return encoder_encode(talk->encoder, text, strlen(text), ENCODE_TEXT, &talk->history);
}

static Status begin(Talk *talk)
{
    talk->history.n = 0;
    infer_truncate(talk->infer, 0, 0);
    chat_deinit(&talk->chat);
    talk->chat.wants_answer = true;
    if (talk->flags->date) talk->chat.date = bytes_of(talk->flags->date);
    if (talk->format) {
        if (talk->flags->system)
            chat_add_text(&talk->chat, CHAT_SYSTEM, bytes_of(talk->flags->system));
        return OK;
    }
    int32_t bos = tokenizer_bos(talk->model->tokenizer);
    if (bos >= 0 && tokenizer_adds_bos(talk->model->tokenizer) && !talk->flags->no_bos)
        VEC_PUSH(&talk->history, bos);
    return talk->flags->system ? add_plain(talk, talk->flags->system) : OK;
}

/* The whole conversation anew, as the format writes it. What the slot holds of it, from the start
 * on, need not be computed again; nearly always that is all but the last turn. */
static Status render(Talk *talk)
{
    ChatTokens tokens = {0};
    TRY(chat_render(talk->format, talk->encoder, &talk->chat, &tokens));
    int64_t same = 0, held = infer_length(talk->infer, 0), n = (int64_t)tokens.ids.n;
    while (same < held && same < n - 1 && tokens.ids.at[same] == talk->history.at[same]) same++;
    infer_truncate(talk->infer, 0, same);
    VEC_FREE(&talk->history);
    talk->history = tokens.ids;
    tokens.ids = (IdVec){0};
    chat_tokens_deinit(&tokens);
    return OK;
}

/* ---- a turn ----------------------------------------------------------------------------- */

static bool on_token(void *context, int32_t id)
{
    Talk *talk = context;
    Str text = {0};
    bool good = decoder_push(&talk->decoder, id, &text) == OK;
    if (text.n) fputs(text.at, stdout);
    fflush(stdout);
    str_deinit(&text);
    return good && !cli_interrupted();
}

static Status take_answer(Talk *talk, const IdVec *ids)
{
    for (size_t i = 0; i < ids->n; i++) VEC_PUSH(&talk->history, ids->at[i]);
    if (!talk->format) return OK;
    ChatAnswer answer;
    TRY(chat_parse_answer(talk->format, ids->at, ids->n, &answer));
    chat_add_message(&talk->chat, &answer.message);
    chat_answer_deinit(&answer);
    return OK;
}

static void print_rest(Talk *talk)
{
    Str rest = {0};
    decoder_finish(&talk->decoder, &rest);
    if (rest.n) fputs(rest.at, stdout);
    str_deinit(&rest);
    putchar('\n');
    fflush(stdout);
}

static Status answer(Talk *talk)
{
    GenerateStats stats;
    int64_t held = infer_length(talk->infer, 0);
    talk->decoder = (Decoder){
        .tokenizer = talk->model->tokenizer, .skip_special = true, .continues = true};
    GenerateRequest r = {.prompt = talk->history.at + held,
                         .n_prompt = (int64_t)talk->history.n - held,
                         .max_tokens = talk->flags->max_tokens,
                         .on_token = on_token,
                         .context = talk,
                         .sampler = sampling_apply(&talk->flags->sampling, talk->model)};
    r.sampler.seed += (uint64_t)talk->turn++;
    Status status = infer_generate(talk->infer, &r, 1, &stats);
    if (talk->rank->first) print_rest(talk);
    if (status == OK) status = take_answer(talk, &r.tokens);
    VEC_FREE(&r.tokens);
    if (status == OK && r.end == GENERATE_CONTEXT)
        log_info("the context of %lld tokens is full; /reset begins anew",
                 (long long)infer_planned(talk->infer).context);
    return status;
}

static Status check_room(const Talk *talk)
{
    int64_t n = (int64_t)talk->history.n, context = infer_planned(talk->infer).context;
    if (n <= context) return OK;
    return fail(ERR_REFUSED,
                "a conversation of %lld tokens in a context of %lld; --context N makes more room",
                (long long)n, (long long)context);
}

static Status take_turn(Talk *talk, const char *line)
{
    size_t before = talk->history.n, messages = talk->chat.messages.n;
    if (talk->format) {
        chat_add_text(&talk->chat, CHAT_USER, bytes_of(line));
        TRY(render(talk));
    } else {
        TRY(add_plain(talk, line));
    }
    if (check_room(talk) != OK) {
        log_warn("%s; /reset begins anew", status_message());
        talk->history.n = talk->format ? (size_t)infer_length(talk->infer, 0) : before;
        talk->chat.messages.n = messages;
        return OK;
    }
    if (talk->history.n == (size_t)infer_length(talk->infer, 0))
        return OK; /* an empty line: nothing new */
    return answer(talk);
}

/* n < 0: the end of what is typed. Line ends are cut off. */
static Status read_line(const Talk *talk, bool terminal, char **line, size_t *cap, int64_t *n)
{
    if (terminal) fputs("> ", stderr);
    if (talk->rank->first) *n = getline(line, cap, stdin);
    TRY(ranks_share_line(talk->rank, line, cap, n));
    while (*n > 0 && ((*line)[*n - 1] == '\n' || (*line)[*n - 1] == '\r')) (*line)[--*n] = 0;
    return OK;
}

static Status converse(Talk *talk)
{
    bool terminal = talk->rank->first && isatty(STDIN_FILENO);
    char *line = NULL;
    size_t cap = 0;
    int64_t n;
    Status status = begin(talk);
    if (terminal)
        log_info("%s; /reset begins anew, /quit or Ctrl-D ends", infer_device_text(talk->infer));
    while (status == OK) {
        status = read_line(talk, terminal, &line, &cap, &n);
        if (status != OK || n < 0 || !strcmp(line, "/quit")) break;
        cli_clear_interrupt();
        if (!strcmp(line, "/reset"))
            status = begin(talk);
        else if (n > 0)
            status = take_turn(talk, line);
    }
    if (terminal) fputs("\n", stderr);
    free(line);
    return status;
}

/* ---- a file ----------------------------------------------------------------------------- */

static Status answer_file(Talk *talk)
{
    Arena arena = {0};
    Bytes json;
    Status status = file_read(&arena, talk->flags->messages, MAX_MESSAGES_BYTES, &json);
    if (status == OK) status = chat_parse(json, talk->flags->messages, &talk->chat);
    arena_deinit(&arena);
    if (status != OK) return status;
    talk->chat.wants_answer = true;
    if (talk->flags->date) talk->chat.date = bytes_of(talk->flags->date);
    TRY(render(talk));
    TRY(check_room(talk));
    return answer(talk);
}

/* ---- the run ---------------------------------------------------------------------------- */

static Status choose_format(const ChatFlags *o, const InferModel *model, ChatFormat **format)
{
    bool plain = o->format && !strcmp(o->format, "plain");
    if (!plain) TRY(chat_format_create(model->tokenizer, o->format, model->path, format));
    if (o->messages && o->system)
        return fail(
            ERR_ARG,
            "--messages and --system exclude each other: the file can hold a system message");
    if (o->messages && !*format)
        return fail(ERR_ARG, "%s has no chat format for --messages; --chat-format NAME chooses one",
                    model->path);
    return OK;
}

static Status talk_with(Talk *talk, InferOptions with)
{
    TRY(choose_format(talk->flags, talk->model, &talk->format));
    TRY(infer_create(talk->model, with, &talk->infer));
    TRY(encoder_create(talk->model->tokenizer, &talk->encoder));
    cli_catch_interrupts();
    return talk->flags->messages ? answer_file(talk) : converse(talk);
}

static Status run_rank(const Rank *rank, const InferModel *model, const void *flags)
{
    const ChatFlags *o = flags;
    if (!model->tokenizer)
        return fail(ERR_FORMAT, "%s has no tokenizer; drover logits takes ids", model->path);
    Talk talk = {.flags = o, .rank = rank, .model = model};
    InferOptions with = {.batch = 1,
                         .context = o->context > 0
                                        ? o->context
                                        : min_i64(DEFAULT_CONTEXT, model->config.max_positions)};
    model_flags_apply(&o->model, rank, &with);
    Status status = talk_with(&talk, with);
    encoder_destroy(talk.encoder);
    infer_destroy(talk.infer);
    chat_format_destroy(talk.format);
    chat_deinit(&talk.chat);
    VEC_FREE(&talk.history);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    const ChatFlags *o = opaque;
    return model_flags_run(&o->model, operands.at[0], run_rank, o);
}

const Command command_chat = {
    .name = "chat",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "talk with a model in the terminal",
    .details = "A model whose files have a chat template that drover knows is spoken to in turns; "
               "any other\n"
               "goes on from what you type. Ctrl-C ends an answer; /reset begins anew; /quit or "
               "Ctrl-D ends.",
    COMMAND_OPTIONS(ChatFlags, options),
    .run = run,
};
