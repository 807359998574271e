/* The ids of an answer as a message: text, and calls of tools.
 *
 * The ids are cut at the special tokens: text, and stretches behind the token that announces a
 * call. Then the ways in which the models of a format write calls are tried, each on the whole
 * stretch. What does not read as calls to its last letter is text: a half-made call must not run.
 */
#include "chat/chat_internal.h"

#include <ctype.h>
#include <stdlib.h>

/* Text before the first call token, inside call tokens, and behind the last one. */
typedef struct Stretches {
    Str before, inside, after;
    bool has_call; /* a token for calls was seen */
    int n_inside;
} Stretches;

static Bytes skip_blanks(Bytes text)
{
    while (text.n && isspace(text.at[0])) text = (Bytes){text.at + 1, text.n - 1};
    return text;
}

static bool starts_with(Bytes text, const char *start)
{
    return text.n >= strlen(start) && !memcmp(text.at, start, strlen(start));
}

/* ---- calls in text ---------------------------------------------------------------------- */

/* {"name": ..., "parameters": {...}}; models also say "arguments", and "type": "function". */
static bool read_json_call(Arena *arena, const json_t *value, ChatCalls *calls)
{
    const json_t *name = json_object_get(value, "name"), *type = json_object_get(value, "type");
    const json_t *parameters = json_object_get(value, "parameters"),
                 *arguments = json_object_get(value, "arguments");
    size_t known = (name != NULL) + (type != NULL) + (parameters != NULL) + (arguments != NULL);
    if (!json_is_string(name) || json_object_size(value) != known || !parameters == !arguments)
        return false;
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "function")))
        return false;
    ChatCall call;
    if (chat_make_call(arena, json_bytes(name), parameters ? parameters : arguments, "call",
                       &call) != OK)
        return false;
    VEC_PUSH(calls, call);
    return true;
}

/* One or more such objects, with white space or a semicolon between them. */
static bool read_json_calls(Arena *arena, Bytes text, ChatCalls *calls)
{
    size_t n = calls->n;
    text = skip_blanks(text);
    while (text.n && text.at[0] == '{') {
        json_error_t error;
        json_t *value = json_loadb((const char *)text.at, text.n,
                                   JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DISABLE_EOF_CHECK,
                                   &error);
        if (!value) break;
        bool good = read_json_call(arena, value, calls);
        json_decref(value);
        if (!good) break;
        text = skip_blanks((Bytes){text.at + error.position, text.n - (size_t)error.position});
        if (text.n && text.at[0] == ';') text = skip_blanks((Bytes){text.at + 1, text.n - 1});
    }
    if (text.n || calls->n == n) {
        calls->n = n;
        return false;
    }
    return true;
}

/* <function=name>{...}</function>, once or more. */
static bool read_tagged_calls(Arena *arena, Bytes text, ChatCalls *calls)
{
    static const char start[] = "<function=", end[] = "</function>";
    size_t n = calls->n;
    text = skip_blanks(text);
    while (starts_with(text, start)) {
        Bytes rest = {text.at + strlen(start), text.n - strlen(start)};
        const uint8_t *close = memchr(rest.at, '>', rest.n);
        if (!close) break;
        Bytes name = {rest.at, (size_t)(close - rest.at)}, body = {close + 1, rest.n - name.n - 1};
        json_error_t error;
        json_t *value = json_loadb((const char *)body.at, body.n,
                                   JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DISABLE_EOF_CHECK,
                                   &error);
        if (!value) break;
        ChatCall call;
        bool good = chat_make_call(arena, name, value, "call", &call) == OK;
        json_decref(value);
        body = skip_blanks((Bytes){body.at + error.position, body.n - (size_t)error.position});
        if (!good || !starts_with(body, end)) break;
        VEC_PUSH(calls, call);
        text = skip_blanks((Bytes){body.at + strlen(end), body.n - strlen(end)});
    }
    if (text.n || calls->n == n) {
        calls->n = n;
        return false;
    }
    return true;
}

static bool read_calls(Arena *arena, Bytes text, ChatCalls *calls)
{
    return read_json_calls(arena, text, calls) || read_tagged_calls(arena, text, calls) ||
           pycall_parse(arena, text, calls);
}

static size_t word_length(Bytes text)
{
    size_t n = 0;
    while (n < text.n && (isalnum(text.at[n]) || text.at[n] == '_')) n++;
    return n;
}

/* key="value", values without escapes, as the format writes them; *text goes on behind it. */
static bool read_builtin_argument(Bytes *text, json_t *arguments)
{
    char key[MAX_NAME_BYTES + 1];
    size_t n = word_length(*text);
    if (n == 0 || n > MAX_NAME_BYTES || !starts_with((Bytes){text->at + n, text->n - n}, "=\""))
        return false;
    memcpy(key, text->at, n);
    key[n] = 0;
    const uint8_t *value = text->at + n + 2, *end = text->at + text->n;
    const uint8_t *close = memchr(value, '"', (size_t)(end - value));
    if (!close || json_object_get(arguments, key)) return false;
    *text = (Bytes){close + 1, (size_t)(end - close - 1)};
    json_t *string = json_stringn((const char *)value, (size_t)(close - value));
    return json_object_set_new(arguments, key, string) == 0;
}

/* name.call(key="value", key="value") */
static bool read_builtin_call(Arena *arena, Bytes text, ChatCalls *calls)
{
    text = chat_trim(text);
    Bytes name = {text.at, word_length(text)};
    text = (Bytes){text.at + name.n, text.n - name.n};
    if (!starts_with(text, ".call(")) return false;
    text = (Bytes){text.at + strlen(".call("), text.n - strlen(".call(")};
    json_t *arguments = json_object();
    bool good = true, more = !starts_with(text, ")");
    while (good && more) {
        good = read_builtin_argument(&text, arguments);
        more = good && starts_with(text, ", ");
        if (more) text = (Bytes){text.at + 2, text.n - 2};
    }
    ChatCall call;
    good = good && bytes_equal(text, ")") &&
           chat_make_call(arena, name, arguments, "call", &call) == OK;
    json_decref(arguments);
    if (good) VEC_PUSH(calls, call);
    return good;
}

/* ---- cutting ---------------------------------------------------------------------------- */

static bool is_stop(const Tokenizer *t, int32_t id)
{
    int n;
    const int32_t *stops = tokenizer_stops(t, &n);
    for (int i = 0; i < n; i++)
        if (stops[i] == id) return true;
    return false;
}

static Str *current(Stretches *s, bool is_inside)
{
    return is_inside ? &s->inside : s->has_call ? &s->after : &s->before;
}

/* Inside stretches follow one another with a zero byte between them. */
static Status cut(const ChatFormat *f, const int32_t *ids, size_t n, Stretches *s)
{
    Decoder decoder = {.tokenizer = f->tokenizer, .skip_special = true};
    bool is_inside = false;
    for (size_t i = 0; i < n; i++) {
        bool starts = ids[i] == f->token[TOKEN_CALL_START],
             ends = ids[i] == f->token[TOKEN_CALL_END];
        bool stops = is_stop(f->tokenizer, ids[i]) || ids[i] == f->token[TOKEN_EOT] ||
                     ids[i] == f->token[TOKEN_EOM];
        if (starts || ends || stops) decoder_finish(&decoder, current(s, is_inside));
        if (stops) return OK;
        if (starts && s->n_inside++) str_add_n(&s->inside, "", 1);
        if (starts)
            s->has_call = is_inside = true;
        else if (ends)
            is_inside = false;
        else
            TRY(decoder_push(&decoder, ids[i], current(s, is_inside)));
    }
    decoder_finish(&decoder, current(s, is_inside));
    return OK;
}

/* ---- formats ---------------------------------------------------------------------------- */

static void add_text(Str *all, const Str *text)
{
    if (text->n) str_add_n(all, text->at, text->n);
}

/* Llama 3.1 and 3.2: the token stands before built-in calls and code; other calls are plain text.
 */
static void parse_llama3(Arena *arena, const Stretches *s, ChatCalls *calls, Str *content)
{
    if (s->has_call) {
        bool is_call = read_builtin_call(arena, str_bytes(&s->inside), calls) ||
                       read_calls(arena, str_bytes(&s->inside), calls);
        add_text(content, &s->before);
        if (!is_call) add_text(content, &s->inside);
        return;
    }
    if (!read_calls(arena, str_bytes(&s->before), calls)) add_text(content, &s->before);
}

/* Llama 4: the template has text between the tokens and calls behind them; models also put the
 * calls between them, or use no token at all. */
static void parse_llama4(Arena *arena, const Stretches *s, ChatCalls *calls, Str *content)
{
    bool behind = read_calls(arena, str_bytes(&s->after), calls);
    bool inside = !behind && read_calls(arena, str_bytes(&s->inside), calls);
    if (!s->has_call && read_calls(arena, str_bytes(&s->before), calls)) return;
    add_text(content, &s->before);
    if (!inside) add_text(content, &s->inside);
    if (!behind) add_text(content, &s->after);
}

/* Ours: one JSON object between each pair of tokens, nothing behind. */
static void parse_own(Arena *arena, const Stretches *s, ChatCalls *calls, Str *content)
{
    bool good = s->has_call && s->after.n == 0;
    Bytes rest = str_bytes(&s->inside);
    for (int i = 0; i < s->n_inside && good; i++) {
        const uint8_t *zero = rest.n ? memchr(rest.at, 0, rest.n) : NULL;
        Bytes one = {rest.at, zero ? (size_t)(zero - rest.at) : rest.n};
        size_t before = calls->n;
        good = read_json_calls(arena, one, calls) && calls->n == before + 1;
        rest = zero ? (Bytes){zero + 1, rest.n - one.n - 1} : (Bytes){0};
    }
    add_text(content, &s->before);
    if (good) return;
    calls->n = 0;
    add_text(content, &s->inside);
    add_text(content, &s->after);
}

/* Whether text that is no call yet could become one when it goes on. */
static bool is_beginning(Bytes text)
{
    static const char tag[] = "<function=";
    text = skip_blanks(text);
    if (text.n == 0) return true;
    return text.at[0] == '{' || text.at[0] == '[' ||
           !memcmp(text.at, tag, text.n < strlen(tag) ? text.n : strlen(tag));
}

static void finish(const ChatFormat *f, const Stretches *s, ChatCalls *calls, const Str *content,
                   ChatAnswer *answer)
{
    CallStyle style = f->def->calls;
    ChatMessage *m = &answer->message;
    m->role = CHAT_ASSISTANT;
    m->n_calls = (int)calls->n;
    if (calls->n) m->call = arena_copy(&answer->arena, calls->at, calls->n * sizeof *calls->at);
    if (content->n || !calls->n) {
        ChatPart *part = ARENA_NEW(&answer->arena, ChatPart);
        *part = (ChatPart){CHAT_TEXT, chat_copy(&answer->arena, str_bytes(content))};
        m->part = part;
        m->n_parts = 1;
    }
    answer->is_code = style == CALLS_LLAMA3 && s->has_call && !calls->n;
    bool plain_calls = style == CALLS_LLAMA3 || style == CALLS_LLAMA4;
    answer->open = !calls->n &&
                   (s->has_call || (plain_calls && is_beginning(str_bytes(&s->before))));
}

Status chat_parse_answer(const ChatFormat *f, const int32_t *ids, size_t n, ChatAnswer *answer)
{
    Stretches s = {0};
    ChatCalls calls = {0};
    Str content = {0};
    *answer = (ChatAnswer){0};
    Status status = cut(f, ids, n, &s);
    if (status == OK) {
        switch (f->def->calls) {
        case CALLS_NONE: add_text(&content, &s.before); break;
        case CALLS_LLAMA3: parse_llama3(&answer->arena, &s, &calls, &content); break;
        case CALLS_LLAMA4: parse_llama4(&answer->arena, &s, &calls, &content); break;
        case CALLS_OWN: parse_own(&answer->arena, &s, &calls, &content); break;
        }
        finish(f, &s, &calls, &content, answer);
    }
    VEC_FREE(&calls);
    str_deinit(&s.before);
    str_deinit(&s.inside);
    str_deinit(&s.after);
    str_deinit(&content);
    return status;
}

void chat_answer_deinit(ChatAnswer *answer)
{
    arena_deinit(&answer->arena);
    *answer = (ChatAnswer){0};
}
