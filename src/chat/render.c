/* What every format is written with: special tokens, text between them, and who says it.
 *
 * A tokenizer given a rendered template cuts it at the special tokens and encodes each stretch in
 * between by itself. So text is gathered here until a special token comes: the "\n\n" behind a
 * header and the content after it are one stretch, and a content that begins with a newline may
 * share a token with them.
 */
#include "chat/chat_internal.h"

#include <stdlib.h>

static void push(Writer *w, int32_t id, bool is_said)
{
    VEC_PUSH(&w->out->ids, id);
    VEC_PUSH(&w->out->mask, (uint8_t)is_said);
}

/* Encodes the stretch. Tokens are the stretch cut into pieces, so the end of each is known; one
 * that ends behind said_from has a byte that the assistant says. */
static Status flush(Writer *w)
{
    if (w->text.n == 0) return OK;
    ChatTokens *out = w->out;
    size_t first = out->ids.n, end = 0;
    TRY(encoder_encode(w->encoder, w->text.at, w->text.n, ENCODE_TEXT, &out->ids));
    for (size_t i = first; i < out->ids.n; i++) {
        end += tokenizer_token_bytes(w->format->tokenizer, out->ids.at[i]).n;
        VEC_PUSH(&out->mask, (uint8_t)(end > w->said_from));
    }
    CHECK(end == w->text.n);
    str_clear(&w->text);
    if (w->is_speaking) w->said_from = 0;
    return OK;
}

Status write_special(Writer *w, FormatToken token)
{
    int32_t id = w->format->token[token];
    const char *name = w->format->token_names[token];
    if (id < 0)
        return fail(ERR_UNSUPPORTED, "%s: the vocabulary has no token for %s", w->format->def->name,
                    name                   ? name
                    : token == TOKEN_IMAGE ? "images"
                                           : "tool calls");
    TRY(flush(w));
    push(w, id, w->is_speaking);
    return OK;
}

void write_text(Writer *w, Bytes text)
{
    if (text.n) str_add_n(&w->text, (const char *)text.at, text.n);
}

void write_word(Writer *w, const char *text) { str_add(&w->text, text); }

void write_speech_begin(Writer *w)
{
    w->is_speaking = true;
    w->said_from = w->text.n;
}

void write_speech_end(Writer *w)
{
    CHECK(w->text.n == 0);
    w->is_speaking = false;
    w->said_from = SIZE_MAX;
}

Status write_header(Writer *w, const char *role)
{
    TRY(write_special(w, TOKEN_HEADER_START));
    write_word(w, role);
    TRY(write_special(w, TOKEN_HEADER_END));
    write_word(w, "\n\n");
    return OK;
}

/* ---- contents --------------------------------------------------------------------------- */

/* str.isspace of Python, which str.strip and Jinja's trim go by. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

Bytes chat_trim(Bytes text)
{
    uint32_t c;
    while (text.n) {
        int n = utf8_decode(text.at, text.n, &c);
        if (n == 0 || !is_space(c)) break;
        text = (Bytes){text.at + n, text.n - (size_t)n};
    }
    while (text.n) {
        size_t start = text.n - 1;
        while (start > 0 && text.n - start < 4 && (text.at[start] & 0xc0) == 0x80) start--;
        int n = utf8_decode(text.at + start, text.n - start, &c);
        if (n == 0 || (size_t)n != text.n - start || !is_space(c)) break;
        text.n = start;
    }
    return text;
}

Status write_joined(Writer *w, const ChatMessage *message, bool trim)
{
    Str all = {0};
    for (int i = 0; i < message->n_parts; i++) {
        const ChatPart *part = &message->part[i];
        if (part->kind != CHAT_TEXT) {
            str_deinit(&all);
            return fail(ERR_UNSUPPORTED,
                        "%s: an image in a message where the format has only text (%s)",
                        w->format->def->name, chat_role_name(message->role));
        }
        if (part->text.n) str_add_n(&all, (const char *)part->text.at, part->text.n);
    }
    write_text(w, trim ? chat_trim(str_bytes(&all)) : str_bytes(&all));
    str_deinit(&all);
    return OK;
}

Status write_parts(Writer *w, const ChatMessage *message)
{
    for (int i = 0; i < message->n_parts; i++) {
        if (message->part[i].kind == CHAT_TEXT)
            write_text(w, message->part[i].text);
        else
            TRY(write_special(w, TOKEN_IMAGE));
    }
    return OK;
}

void write_tools(Writer *w, const Chat *chat, ChatToolPlace place)
{
    write_text(w, chat_format_preamble(w->format, place));
    for (size_t i = 0; i < chat->tools.n; i++) {
        write_text(w, chat->tools.at[i]);
        write_word(w, "\n\n");
    }
}

Status write_tools_in_user(Writer *w, const Chat *chat, size_t first)
{
    if (first >= chat->messages.n || chat->messages.at[first].role != CHAT_USER)
        return fail(ERR_FORMAT,
                    "%s: tools go into the first message of the user, but message %zu is %s; "
                    "tools_in_user_message: false "
                    "puts them in the system's",
                    w->format->def->name, first,
                    first < chat->messages.n ? chat_role_name(chat->messages.at[first].role)
                                             : "not there");
    TRY(write_header(w, "user"));
    write_tools(w, chat, CHAT_TOOLS_IN_USER);
    TRY(write_joined(w, &chat->messages.at[first], true));
    return write_special(w, TOKEN_EOT);
}

void write_json_call(Writer *w, const ChatCall *call)
{
    write_word(w, "{\"name\": \"");
    write_text(w, call->name);
    write_word(w, "\", \"parameters\": ");
    write_text(w, call->arguments);
    write_word(w, "}");
}

/* ---- the whole -------------------------------------------------------------------------- */

static Status render(Writer *w, const Chat *chat)
{
    if (chat->messages.n == 0) return fail(ERR_ARG, "a conversation without messages");
    if (w->format->token[TOKEN_BOS] >= 0) TRY(write_special(w, TOKEN_BOS));
    TRY(w->format->def->write(w, chat));
    if (chat->wants_answer || w->format->always_answers) TRY(write_header(w, "assistant"));
    return flush(w);
}

Status chat_render(const ChatFormat *format, Encoder *encoder, const Chat *chat, ChatTokens *tokens)
{
    Writer w = {.format = format, .encoder = encoder, .out = tokens, .said_from = SIZE_MAX};
    size_t n = tokens->ids.n;
    Status status = render(&w, chat);
    if (status != OK) tokens->ids.n = tokens->mask.n = n;
    str_deinit(&w.text);
    return status;
}

void chat_tokens_deinit(ChatTokens *tokens)
{
    VEC_FREE(&tokens->ids);
    VEC_FREE(&tokens->mask);
}
