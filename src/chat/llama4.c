/* Llama 4: a message of the system only where one is given, contents as they are, images among
 * them, and several calls in a message. Only the message that carries the tools and the system's
 * are trimmed. */
#include "chat/chat_internal.h"

const char *const llama4_tokens[FORMAT_TOKENS] = {
    "<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>",
    "<|eom|>",           "<|python_start|>", "<|python_end|>", "<|image|>",
};

/* The template takes the first part of a list alone; the others would be lost without a word. */
static Status write_system(Writer *w, const Chat *chat, const ChatMessage *message)
{
    if (message->n_parts > 1)
        return fail(ERR_UNSUPPORTED, "llama4: a system message of %d parts; the format takes one",
                    message->n_parts);
    TRY(write_header(w, "system"));
    if (chat->tools.n) write_word(w, "Environment: ipython\n");
    if (chat->tools.n && chat->tool_place == CHAT_TOOLS_IN_SYSTEM)
        write_tools(w, chat, CHAT_TOOLS_IN_SYSTEM);
    TRY(write_joined(w, message, true));
    return write_special(w, TOKEN_EOT);
}

static Status write_calls(Writer *w, const ChatMessage *message)
{
    TRY(write_special(w, TOKEN_CALL_START));
    TRY(write_parts(w, message));
    TRY(write_special(w, TOKEN_CALL_END));
    for (int i = 0; i < message->n_calls; i++) write_json_call(w, &message->call[i]);
    return OK;
}

static Status write_message(Writer *w, const ChatMessage *message)
{
    bool speaks = message->role == CHAT_ASSISTANT;
    TRY(write_header(w, message->result.n ? "ipython" : chat_role_name(message->role)));
    if (speaks) write_speech_begin(w);
    if (message->n_calls)
        TRY(write_calls(w, message));
    else if (message->result.n)
        write_text(w, message->result);
    else
        TRY(write_parts(w, message));
    TRY(write_special(w, TOKEN_EOT));
    if (speaks) write_speech_end(w);
    return OK;
}

static Status write_all(Writer *w, const Chat *chat)
{
    const ChatMessage *message = chat->messages.at;
    size_t first = message[0].role == CHAT_SYSTEM;
    if (chat->has_builtins)
        return fail(ERR_UNSUPPORTED, "llama4: the format has no built-in tools");
    if (chat->tools.n && chat->tool_place == CHAT_TOOLS_IN_SYSTEM && !first)
        return fail(ERR_FORMAT, "llama4: tools in the system's message, but there is none; the "
                                "first message can be an empty one");
    if (first) TRY(write_system(w, chat, &message[0]));
    if (chat->tools.n && chat->tool_place != CHAT_TOOLS_IN_SYSTEM)
        TRY(write_tools_in_user(w, chat, first++));
    for (size_t i = first; i < chat->messages.n; i++) TRY(write_message(w, &message[i]));
    return OK;
}

const FormatDef format_llama4 = {
    "llama4",     llama4_tokens, 1 << TOKEN_HEADER_START | 1 << TOKEN_HEADER_END | 1 << TOKEN_EOT,
    CALLS_LLAMA4, write_all,
};
