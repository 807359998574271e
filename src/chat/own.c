/* Our own format, for models trained here, and the same as a Jinja template for everybody else.
 *
 * Turns are marked with the tokens of the vocabulary, Llama 4's or Llama 3's. Contents are written
 * as they are, so that what the model said is found again token by token when the conversation goes
 * on. Tools stand in the system's message, below its text. Each call stands between the tokens for
 * calls, and a message with calls ends in end-of-message: an answer of the tool is awaited.
 */
#include "chat/chat_internal.h"

const char preamble_system[] =
    "These functions can be called. A call is one JSON object with two keys: \"name\", the name of "
    "the "
    "function, and \"parameters\", an object with a value for each argument.\n\n";
const char preamble_user[] = "Answer with a call of one of the functions below where that helps. A "
                             "call is one JSON object with two "
                             "keys: \"name\", the name of the function, and \"parameters\", an "
                             "object with a value for each argument.\n\n";

static Status write_system(Writer *w, const Chat *chat, const ChatMessage *message)
{
    TRY(write_header(w, "system"));
    if (message) TRY(write_parts(w, message));
    if (chat->tools.n) {
        if (message) write_word(w, "\n\n");
        write_text(w, chat_format_preamble(w->format, CHAT_TOOLS_IN_SYSTEM));
        for (size_t i = 0; i < chat->tools.n; i++) {
            write_word(w, i ? "\n\n" : "");
            write_text(w, chat->tools.at[i]);
        }
    }
    return write_special(w, TOKEN_EOT);
}

static Status write_answer(Writer *w, const ChatMessage *message)
{
    TRY(write_header(w, "assistant"));
    write_speech_begin(w);
    TRY(write_parts(w, message));
    for (int i = 0; i < message->n_calls; i++) {
        TRY(write_special(w, TOKEN_CALL_START));
        write_json_call(w, &message->call[i]);
        if (w->format->token[TOKEN_CALL_END] >= 0) TRY(write_special(w, TOKEN_CALL_END));
    }
    TRY(write_special(w, message->n_calls ? TOKEN_EOM : TOKEN_EOT));
    write_speech_end(w);
    return OK;
}

static Status write_message(Writer *w, const ChatMessage *message)
{
    if (message->role == CHAT_ASSISTANT) return write_answer(w, message);
    TRY(write_header(w, message->result.n ? "ipython" : chat_role_name(message->role)));
    if (message->result.n && message->n_parts == 0) write_text(w, message->result);
    TRY(write_parts(w, message));
    return write_special(w, TOKEN_EOT);
}

static Status write_all(Writer *w, const Chat *chat)
{
    const ChatMessage *message = chat->messages.at;
    size_t first = message[0].role == CHAT_SYSTEM;
    if (chat->has_builtins)
        return fail(ERR_UNSUPPORTED, "drover: the format has no built-in tools");
    if (chat->tools.n && chat->tool_place == CHAT_TOOLS_IN_USER)
        return fail(ERR_UNSUPPORTED, "drover: the format has tools in the system's message only");
    if (first || chat->tools.n) TRY(write_system(w, chat, first ? &message[0] : NULL));
    for (size_t i = first; i < chat->messages.n; i++) TRY(write_message(w, &message[i]));
    return OK;
}

const FormatDef format_own = {
    "drover",  NULL,      1 << TOKEN_HEADER_START | 1 << TOKEN_HEADER_END | 1 << TOKEN_EOT,
    CALLS_OWN, write_all,
};

/* ---- the template ----------------------------------------------------------------------- */

/* @N stands for the name of FormatToken N, @P for the preamble. `generation` marks what the
 * assistant says, for masks in training. */
static const char own_template[] =
    "{#- Turns of system, user, assistant and ipython, which is what a tool gave back. -#}\n"
    "{%- macro write(content) -%}\n"
    "    {%- if content is string -%}\n"
    "        {{- content -}}\n"
    "    {%- else -%}\n"
    "        {%- for part in content -%}\n"
    "            {%- if part.type == 'text' -%}{{- part.text -}}{%- else -%}{{- '@7' -}}{%- endif "
    "-%}\n"
    "        {%- endfor -%}\n"
    "    {%- endif -%}\n"
    "{%- endmacro -%}\n"
    "{{- bos_token -}}\n"
    "{%- set has_system = messages[0].role == 'system' -%}\n"
    "{%- if has_system or tools -%}\n"
    "    {{- '@1system@2\\n\\n' -}}\n"
    "    {%- if has_system -%}{{- write(messages[0].content) -}}{%- endif -%}\n"
    "    {%- if tools -%}\n"
    "        {%- if has_system -%}{{- '\\n\\n' -}}{%- endif -%}\n"
    "        {{- '@P' -}}\n"
    "        {%- for tool in tools -%}\n"
    "            {{- '' if loop.first else '\\n\\n' -}}{{- tool | tojson(indent=4) -}}\n"
    "        {%- endfor -%}\n"
    "    {%- endif -%}\n"
    "    {{- '@3' -}}\n"
    "{%- endif -%}\n"
    "{%- for message in messages -%}\n"
    "    {%- if message.role == 'assistant' -%}\n"
    "        {{- '@1assistant@2\\n\\n' -}}\n"
    "        {%- generation -%}\n"
    "            {{- write(message.content) -}}\n"
    "            {%- for call in message.tool_calls or [] -%}\n"
    "                {{- '@5{\"name\": \"' ~ call.function.name ~ '\", \"parameters\": ' -}}\n"
    "                {{- call.function.arguments | tojson -}}\n"
    "                {{- '}@6' -}}\n"
    "            {%- endfor -%}\n"
    "            {{- '@4' if message.tool_calls else '@3' -}}\n"
    "        {%- endgeneration -%}\n"
    "    {%- elif message.role in ['tool', 'ipython'] -%}\n"
    "        {{- '@1ipython@2\\n\\n' -}}\n"
    "        {{- message.content if message.content is string else message.content | tojson -}}\n"
    "        {{- '@3' -}}\n"
    "    {%- elif not loop.first or not has_system -%}\n"
    "        {{- '@1' ~ message.role ~ '@2\\n\\n' -}}\n"
    "        {{- write(message.content) -}}\n"
    "        {{- '@3' -}}\n"
    "    {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '@1assistant@2\\n\\n' -}}{%- endif -%}\n";

/* In single quotes of Jinja. */
static void add_literal(Str *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') str_add(out, "\\");
        if (*text == '\n')
            str_add(out, "\\n");
        else
            str_add_n(out, text, 1);
    }
}

const char *chat_template_own(const Tokenizer *tokenizer, Arena *arena)
{
    ChatFormat *format;
    if (chat_format_create(tokenizer, format_own.name, "", &format) != OK) return NULL;
    Str out = {0};
    for (const char *c = own_template; *c; c++) {
        if (*c != '@') {
            str_add_n(&out, c, 1);
        } else if (*++c == 'P') {
            add_literal(&out, preamble_system);
        } else if (format->token[*c - '0'] >= 0) {
            Bytes name = tokenizer_token_bytes(tokenizer, format->token[*c - '0']);
            str_add_n(&out, (const char *)name.at, name.n);
        }
    }
    chat_format_destroy(format);
    const char *text = arena_strndup(arena, out.at, out.n);
    str_deinit(&out);
    return text;
}
