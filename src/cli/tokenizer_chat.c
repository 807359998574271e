/* drover tokenizer chat: a conversation as the ids that a model would be given, for looking and
 * comparing. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "chat/chat.h"

typedef struct TokenizerChatFlags {
    const char *format;
    bool show_template;
} TokenizerChatFlags;

static const Option options[] = {
    {"chat-format", OPTION_TEXT, "NAME", 0, 0, NULL, NULL, offsetof(TokenizerChatFlags, format),
     "llama3, llama3.1 (and 3.3), llama3.2, llama4 or drover; else the one whose template "
     "TOKENIZER has"},
    {"template", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(TokenizerChatFlags, show_template),
     "print drover's own template for this vocabulary, to be saved as chat_template.jinja"},
};

enum { MAX_LINES_BYTES = 1 << 30 };

static void print_tokens(const ChatFormat *format, const ChatTokens *tokens)
{
    Str line = {0};
    str_printf(&line, "{\"format\": \"%s\", \"ids\": [", chat_format_name(format));
    for (size_t i = 0; i < tokens->ids.n; i++)
        str_printf(&line, "%s%d", i ? ", " : "", tokens->ids.at[i]);
    str_add(&line, "], \"mask\": [");
    for (size_t i = 0; i < tokens->mask.n; i++)
        str_printf(&line, "%s%d", i ? ", " : "", tokens->mask.at[i]);
    str_add(&line, "]}\n");
    fwrite(line.at, 1, line.n, stdout);
    str_deinit(&line);
}

static Status show(const ChatFormat *format, Encoder *encoder, Bytes json, const char *name)
{
    Chat chat = {0};
    ChatTokens tokens = {0};
    TRY(chat_parse(json, name, &chat));
    Status status = chat_render(format, encoder, &chat, &tokens);
    if (status == OK)
        print_tokens(format, &tokens);
    else
        fail_context("%s", name);
    chat_tokens_deinit(&tokens);
    chat_deinit(&chat);
    return status;
}

static Status show_lines(const ChatFormat *format, Encoder *encoder, Bytes text, const char *path)
{
    for (int number = 1; text.n; number++) {
        const uint8_t *end = memchr(text.at, '\n', text.n);
        size_t n = end ? (size_t)(end - text.at) : text.n;
        char name[300];
        snprintf(name, sizeof name, "%.260s:%d", path, number);
        if (n) TRY(show(format, encoder, (Bytes){text.at, n}, name));
        text = (Bytes){text.at + n + (end != NULL), text.n - n - (end != NULL)};
    }
    return OK;
}

static Status show_file(Arena *arena, const ChatFormat *format, const Tokenizer *tokenizer,
                        const char *path)
{
    Bytes text;
    Encoder *encoder;
    size_t n = strlen(path);
    bool lines = n > 6 && !strcmp(path + n - 6, ".jsonl");
    TRY(file_read(arena, path, MAX_LINES_BYTES, &text));
    TRY(encoder_create(tokenizer, &encoder));
    Status status = lines ? show_lines(format, encoder, text, path)
                          : show(format, encoder, text, path);
    encoder_destroy(encoder);
    return status;
}

static Status show_template(const Tokenizer *tokenizer, Arena *arena, const char *path)
{
    const char *text = chat_template_own(tokenizer, arena);
    if (!text) return fail(ERR_FORMAT, "%s has no special tokens for turns", path);
    fputs(text, stdout);
    return OK;
}

static Status run_loaded(const TokenizerChatFlags *o, const Tokenizer *tokenizer, Operands operands)
{
    Arena arena = {0};
    ChatFormat *format = NULL;
    Status status;
    if (o->show_template) {
        status = show_template(tokenizer, &arena, operands.at[0]);
    } else if (operands.n < 2) {
        status = fail(ERR_ARG, "tokenizer chat needs FILE, a conversation as JSON");
    } else {
        status = chat_format_create(tokenizer, o->format, operands.at[0], &format);
        if (status == OK && !format)
            status = fail(ERR_ARG, "%s has no chat format; --chat-format NAME chooses one",
                          operands.at[0]);
        if (status == OK) status = show_file(&arena, format, tokenizer, operands.at[1]);
    }
    chat_format_destroy(format);
    arena_deinit(&arena);
    return status;
}

static Status run(const void *opaque, Operands operands)
{
    Tokenizer *tokenizer;
    TRY(tokenizer_load(operands.at[0], &tokenizer));
    Status status = run_loaded(opaque, tokenizer, operands);
    tokenizer_destroy(tokenizer);
    return status;
}

const Command command_tokenizer_chat = {
    .name = "tokenizer chat",
    .operands = "TOKENIZER [FILE]",
    .min_operands = 1,
    .max_operands = 2,
    .sentence = "print the ids of a conversation, and a mask of what the assistant says, as JSON",
    .details =
        "FILE is a list of messages as in the OpenAI API, or an object with messages, tools and\n"
        "what else docs/chat.md names; FILE.jsonl has one in each line.",
    COMMAND_OPTIONS(TokenizerChatFlags, options),
    .run = run,
};
