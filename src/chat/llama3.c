/* Llama 3 and the formats that grew from it: 3.1, which 3.3 shares, and 3.2.
 *
 * A message is a header, its content without white space around it, and a token that ends the
 * turn. 3.0 knows nothing else. From 3.1 on there is always a message of the system, with two
 * dates, and tools; 3.1 has built-in ones besides, which are called as Python code.
 */
#include "chat/chat_internal.h"

#include <time.h>

const char *const llama3_tokens[FORMAT_TOKENS] = {
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    NULL,
    NULL,
};

static Status write_message(Writer *w, const ChatMessage *message)
{
    bool speaks = message->role == CHAT_ASSISTANT;
    TRY(write_header(w, chat_role_name(message->role)));
    if (speaks) write_speech_begin(w);
    TRY(write_joined(w, message, true));
    TRY(write_special(w, TOKEN_EOT));
    if (speaks) write_speech_end(w);
    return OK;
}

/* ---- 3.0 -------------------------------------------------------------------------------- */

static Status write_llama3(Writer *w, const Chat *chat)
{
    if (chat->tools.n || chat->has_builtins)
        return fail(ERR_UNSUPPORTED, "llama3: the format has no tools");
    for (size_t i = 0; i < chat->messages.n; i++) {
        const ChatMessage *message = &chat->messages.at[i];
        if (message->n_calls)
            return fail(ERR_UNSUPPORTED,
                        "llama3: message %zu calls a tool; the format has no calls", i);
        if (message->result.n && message->n_parts == 0)
            return fail(ERR_UNSUPPORTED,
                        "llama3: message %zu is no text; the format has no other results of tools",
                        i);
        TRY(write_message(w, message));
    }
    return OK;
}

/* ---- 3.1 and 3.2 ------------------------------------------------------------------------ */

/* strftime("%d %b %Y") in the language of the templates, whatever the locale. */
static void write_today(Writer *w)
{
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t now = time(NULL);
    struct tm day = {.tm_mday = 1};
    localtime_r(&now, &day);
    str_printf(&w->text, "%02d %s %d", day.tm_mday, months[day.tm_mon % 12], day.tm_year + 1900);
}

static void write_builtins(Writer *w, const Chat *chat)
{
    const char *comma = "";
    write_word(w, "Tools: ");
    for (size_t i = 0; i < chat->builtins.n; i++) {
        if (bytes_equal(chat->builtins.at[i], "code_interpreter"))
            continue; /* there without being named */
        write_word(w, comma);
        write_text(w, chat->builtins.at[i]);
        comma = ", ";
    }
    write_word(w, "\n\n");
}

/* The rest of the first message: `text` is what the user says of the system, or NULL. */
static Status write_system(Writer *w, const Chat *chat, bool is_32, const ChatMessage *text)
{
    TRY(write_header(w, "system"));
    if (chat->tools.n || chat->has_builtins) write_word(w, "Environment: ipython\n");
    if (chat->has_builtins) write_builtins(w, chat);
    write_word(w, "Cutting Knowledge Date: December 2023\nToday Date: ");
    if (chat->date.n)
        write_text(w, chat->date);
    else if (is_32)
        write_today(w);
    else
        write_word(w, "26 Jul 2024");
    write_word(w, "\n\n");
    if (chat->tools.n && chat->tool_place == CHAT_TOOLS_IN_SYSTEM)
        write_tools(w, chat, CHAT_TOOLS_IN_SYSTEM);
    if (text) TRY(write_joined(w, text, true));
    return write_special(w, TOKEN_EOT);
}

static bool is_builtin(const Chat *chat, Bytes name)
{
    for (size_t i = 0; i < chat->builtins.n; i++) {
        Bytes b = chat->builtins.at[i];
        if (b.n == name.n && memcmp(b.at, name.at, b.n) == 0) return true;
    }
    return false;
}

/* name.call(key="value", ...), values as they are. */
static Status write_builtin_call(Writer *w, const ChatCall *call)
{
    TRY(write_special(w, TOKEN_CALL_START));
    write_text(w, call->name);
    write_word(w, ".call(");
    for (int i = 0; i < call->n_arguments; i++) {
        const ChatArgument *a = &call->argument[i];
        if (!a->is_text)
            return fail(ERR_UNSUPPORTED,
                        "llama3.1: argument \"%.*s\" of the built-in tool %.*s is not a text",
                        (int)a->name.n, (const char *)a->name.at, (int)call->name.n,
                        (const char *)call->name.at);
        write_word(w, i ? ", " : "");
        write_text(w, a->name);
        write_word(w, "=\"");
        write_text(w, a->text);
        write_word(w, "\"");
    }
    write_word(w, ")");
    return OK;
}

static Status write_call(Writer *w, const Chat *chat, const ChatMessage *message)
{
    if (message->n_calls != 1)
        return fail(ERR_UNSUPPORTED, "%s: a message with %d calls; the format has one in a message",
                    w->format->def->name, message->n_calls);
    TRY(write_header(w, "assistant"));
    write_speech_begin(w);
    if (chat->has_builtins && is_builtin(chat, message->call->name))
        TRY(write_builtin_call(w, message->call));
    else
        write_json_call(w, message->call);
    TRY(write_special(w, chat->has_builtins ? TOKEN_EOM : TOKEN_EOT));
    write_speech_end(w);
    return OK;
}

static Status write_result(Writer *w, const ChatMessage *message)
{
    TRY(write_header(w, "ipython"));
    write_text(w, message->result);
    return write_special(w, TOKEN_EOT);
}

static Status write_with_tools(Writer *w, const Chat *chat, bool is_32)
{
    const ChatMessage *message = chat->messages.at;
    size_t first = message[0].role == CHAT_SYSTEM;
    TRY(write_system(w, chat, is_32, first ? &message[0] : NULL));
    if (chat->tools.n && chat->tool_place != CHAT_TOOLS_IN_SYSTEM)
        TRY(write_tools_in_user(w, chat, first++));
    for (size_t i = first; i < chat->messages.n; i++) {
        if (message[i].n_calls)
            TRY(write_call(w, chat, &message[i]));
        else if (message[i].result.n)
            TRY(write_result(w, &message[i]));
        else
            TRY(write_message(w, &message[i]));
    }
    return OK;
}

static Status write_llama31(Writer *w, const Chat *chat)
{
    return write_with_tools(w, chat, false);
}

static Status write_llama32(Writer *w, const Chat *chat)
{
    if (chat->has_builtins)
        return fail(ERR_UNSUPPORTED, "llama3.2: the format has no built-in tools");
    return write_with_tools(w, chat, true);
}

enum { TURNS = 1 << TOKEN_HEADER_START | 1 << TOKEN_HEADER_END | 1 << TOKEN_EOT };

const FormatDef format_llama3 = {"llama3", llama3_tokens, TURNS, CALLS_NONE, write_llama3};
const FormatDef format_llama31 = {"llama3.1", llama3_tokens, TURNS, CALLS_LLAMA3, write_llama31};
const FormatDef format_llama32 = {"llama3.2", llama3_tokens, TURNS, CALLS_LLAMA3, write_llama32};
