/* Conversations from JSON, as the OpenAI API and Hugging Face data sets have them.
 *
 * Strict: a key that is not known is refused by its name, for a misspelt "tool_calls" must not make
 * a conversation without calls. Keys that clients add and no template reads may stand and are
 * passed over.
 */
#include "chat/chat_internal.h"

#include <stdlib.h>

static const char *const role_names[CHAT_ROLES] = {"system", "user", "assistant", "tool",
                                                   "ipython"};

const char *chat_role_name(ChatRole role) { return role_names[role]; }

/* ---- small questions to JSON ------------------------------------------------------------ */

/* A value that is there and not null. */
static const json_t *get(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static Status check_keys(const json_t *object, const char *const *known, int n, const char *where)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        bool found = json_is_null(value);
        for (int i = 0; i < n && !found; i++) found = strcmp(key, known[i]) == 0;
        if (found) continue;
        const char *nearest = name_nearest(key, known, n);
        return fail(ERR_FORMAT, "%s: \"%.60s\" is not known here%s%s%s", where, key,
                    nearest ? "; did you mean \"" : "", nearest ? nearest : "",
                    nearest ? "\"?" : "");
    }
    return OK;
}

static Status check_list(const json_t *list, const char *where, size_t most)
{
    if (!json_is_array(list)) return fail(ERR_FORMAT, "%s is not a list", where);
    if (json_array_size(list) == 0)
        return fail(ERR_FORMAT, "%s is an empty list; leave it out", where);
    if (json_array_size(list) > most)
        return fail(ERR_REFUSED, "%s has %zu entries; at most %zu are read", where,
                    json_array_size(list), most);
    return OK;
}

/* ---- calls ------------------------------------------------------------------------------ */

/* The OpenAI API has arguments as a text that holds JSON, data sets as an object. */
static Status read_arguments(Arena *arena, Bytes name, const json_t *arguments, const char *where,
                             ChatCall *call)
{
    if (!json_is_string(arguments)) return chat_make_call(arena, name, arguments, where, call);
    json_error_t error;
    Bytes text = json_bytes(arguments);
    json_t *object = json_loadb((const char *)text.at, text.n,
                                JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!object) return fail(ERR_FORMAT, "%s: the arguments are no JSON: %s", where, error.text);
    Status status = chat_make_call(arena, name, object, where, call);
    json_decref(object);
    return status;
}

static Status read_call(Arena *arena, const json_t *entry, const char *where, ChatCall *call)
{
    static const char *const keys[] = {"function", "type", "id", "index"},
                             *const function_keys[] = {"name", "arguments"};
    if (!json_is_object(entry)) return fail(ERR_FORMAT, "%s is not an object", where);
    TRY(check_keys(entry, keys, COUNT_OF(keys), where));
    const json_t *function = get(entry, "function"), *type = get(entry, "type");
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "function")))
        return fail(ERR_UNSUPPORTED, "%s: only calls of type \"function\" are known", where);
    if (!json_is_object(function)) return fail(ERR_FORMAT, "%s has no object \"function\"", where);
    TRY(check_keys(function, function_keys, COUNT_OF(function_keys), where));
    const json_t *name = get(function, "name"), *arguments = get(function, "arguments");
    if (!json_is_string(name)) return fail(ERR_FORMAT, "%s: the function has no \"name\"", where);
    if (!arguments)
        return fail(ERR_FORMAT, "%s: the function has no \"arguments\"; {} where there are none",
                    where);
    return read_arguments(arena, json_bytes(name), arguments, where, call);
}

static Status read_calls(Chat *chat, const json_t *list, const char *where, ChatMessage *message)
{
    if (json_is_array(list) && json_array_size(list) == 0)
        return OK; /* clients send it for "none" */
    TRY(check_list(list, where, MAX_LIST));
    size_t n = json_array_size(list);
    ChatCall *call = ARENA_ARRAY(&chat->arena, ChatCall, n);
    for (size_t i = 0; i < n; i++) {
        char entry[512];
        snprintf(entry, sizeof entry, "%s[%zu]", where, i);
        TRY(read_call(&chat->arena, json_array_get(list, i), entry, &call[i]));
    }
    message->call = call;
    message->n_calls = (int)n;
    return OK;
}

/* ---- content ---------------------------------------------------------------------------- */

/* Where an image is does not matter to a template; whoever shows it to the model needs it. */
static Bytes image_source(const json_t *part)
{
    static const char *const keys[] = {"image_url", "image", "url", "path"};
    for (int i = 0; i < COUNT_OF(keys); i++) {
        const json_t *value = get(part, keys[i]);
        if (json_is_object(value)) value = get(value, "url");
        if (json_is_string(value)) return json_bytes(value);
    }
    return (Bytes){0};
}

static Status read_part(Chat *chat, const json_t *entry, const char *where, ChatPart *part)
{
    static const char *const text_keys[] = {"type", "text"}, *const image_keys[] = {
                                                                 "type", "image_url", "image",
                                                                 "url", "path"};
    const char *type = json_string_value(get(entry, "type"));
    if (!type) return fail(ERR_FORMAT, "%s has no \"type\"", where);
    if (!strcmp(type, "text")) {
        TRY(check_keys(entry, text_keys, COUNT_OF(text_keys), where));
        const json_t *text = get(entry, "text");
        if (!json_is_string(text)) return fail(ERR_FORMAT, "%s has no \"text\"", where);
        *part = (ChatPart){CHAT_TEXT, chat_copy(&chat->arena, json_bytes(text))};
        return OK;
    }
    if (strcmp(type, "image") && strcmp(type, "image_url"))
        return fail(ERR_UNSUPPORTED,
                    "%s: a part of type \"%.40s\"; text, image and image_url are known", where,
                    type);
    TRY(check_keys(entry, image_keys, COUNT_OF(image_keys), where));
    *part = (ChatPart){CHAT_IMAGE, chat_copy(&chat->arena, image_source(entry))};
    return OK;
}

static Status read_parts(Chat *chat, const json_t *list, const char *where, ChatMessage *message)
{
    TRY(check_list(list, where, MAX_LIST));
    size_t n = json_array_size(list);
    ChatPart *part = ARENA_ARRAY(&chat->arena, ChatPart, n);
    for (size_t i = 0; i < n; i++) {
        char entry[512];
        snprintf(entry, sizeof entry, "%s[%zu]", where, i);
        TRY(read_part(chat, json_array_get(list, i), entry, &part[i]));
    }
    message->part = part;
    message->n_parts = (int)n;
    return OK;
}

static void set_text(Chat *chat, Bytes text, ChatMessage *message)
{
    ChatPart *part = ARENA_NEW(&chat->arena, ChatPart);
    *part = (ChatPart){CHAT_TEXT, chat_copy(&chat->arena, text)};
    message->part = part;
    message->n_parts = 1;
}

/* What a tool gave back may be any text, list or object: templates write it as JSON. */
static Status read_result(Chat *chat, const json_t *content, const char *where,
                          ChatMessage *message)
{
    if (!json_is_string(content) && !json_is_array(content) && !json_is_object(content))
        return fail(ERR_FORMAT,
                    "%s: the content of a tool's message is a text, a list or an object", where);
    if (json_is_string(content)) set_text(chat, json_bytes(content), message);
    Str text = {0};
    Status status = chat_json_write(content, 0, MAX_CHAT_BYTES, where, &text);
    message->result = chat_copy(&chat->arena, str_bytes(&text));
    str_deinit(&text);
    return status;
}

static Status read_content(Chat *chat, const json_t *content, const char *where,
                           ChatMessage *message)
{
    if (message->role == CHAT_TOOL || message->role == CHAT_IPYTHON)
        return read_result(chat, content, where, message);
    if (json_is_string(content)) {
        set_text(chat, json_bytes(content), message);
        return OK;
    }
    if (!content && message->n_calls) return OK;
    if (!content) return fail(ERR_FORMAT, "%s has no \"content\"", where);
    if (!json_is_array(content))
        return fail(ERR_FORMAT, "%s: the content is neither a text nor a list of parts", where);
    char parts[320];
    snprintf(parts, sizeof parts, "%s.content", where);
    return read_parts(chat, content, parts, message);
}

/* ---- messages --------------------------------------------------------------------------- */

static Status read_role(const json_t *entry, const char *where, ChatRole *role)
{
    const char *text = json_string_value(get(entry, "role"));
    if (!text) return fail(ERR_FORMAT, "%s has no \"role\"", where);
    for (int i = 0; i < CHAT_ROLES; i++) {
        *role = (ChatRole)i;
        if (!strcmp(text, role_names[i])) return OK;
    }
    return fail(ERR_FORMAT,
                "%s: role \"%.40s\"; it is one of system, user, assistant, tool, ipython", where,
                text);
}

static Status read_message(Chat *chat, const json_t *entry, const char *where)
{
    static const char *const keys[] = {
        "role", "content",      "tool_calls", /* and what no template reads: */
        "name", "tool_call_id", "id",         "refusal", "annotations", "audio"};
    ChatMessage message = {0};
    char calls[320];
    if (!json_is_object(entry)) return fail(ERR_FORMAT, "%s is not an object", where);
    TRY(check_keys(entry, keys, COUNT_OF(keys), where));
    TRY(read_role(entry, where, &message.role));
    const json_t *list = get(entry, "tool_calls");
    snprintf(calls, sizeof calls, "%s.tool_calls", where);
    if (list && message.role != CHAT_ASSISTANT)
        return fail(ERR_FORMAT, "%s: only the assistant makes tool calls", where);
    if (list) TRY(read_calls(chat, list, calls, &message));
    TRY(read_content(chat, get(entry, "content"), where, &message));
    VEC_PUSH(&chat->messages, message);
    return OK;
}

static Status read_messages(const json_t *list, const char *name, Chat *chat)
{
    char where[256];
    snprintf(where, sizeof where, "%.200s: messages", name);
    TRY(check_list(list, where, MAX_MESSAGES));
    for (size_t i = 0; i < json_array_size(list); i++) {
        snprintf(where, sizeof where, "%.200s: messages[%zu]", name, i);
        TRY(read_message(chat, json_array_get(list, i), where));
    }
    return OK;
}

static Status read_tools(const json_t *list, const char *name, Chat *chat)
{
    char where[256];
    snprintf(where, sizeof where, "%.200s: tools", name);
    TRY(check_list(list, where, MAX_LIST));
    size_t total = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *tool = json_array_get(list, i);
        snprintf(where, sizeof where, "%.200s: tools[%zu]", name, i);
        if (!json_is_object(tool))
            return fail(ERR_FORMAT, "%s is not an object with a JSON schema", where);
        Str text = {0};
        Status status = chat_json_write(tool, 4, MAX_TOOLS_BYTES - total, where, &text);
        if (status == OK) VEC_PUSH(&chat->tools, chat_copy(&chat->arena, str_bytes(&text)));
        total += text.n;
        str_deinit(&text);
        if (status != OK) return status;
    }
    return OK;
}

/* ---- the whole -------------------------------------------------------------------------- */

/* An empty list is a list here: the template asks whether it is defined. */
static Status read_builtins(const json_t *list, const char *name, Chat *chat)
{
    if (!json_is_array(list) || json_array_size(list) > MAX_LIST)
        return fail(ERR_FORMAT, "%s: builtin_tools is not a list of names", name);
    chat->has_builtins = true;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        if (!json_is_string(entry))
            return fail(ERR_FORMAT, "%s: builtin_tools[%zu] is not a name", name, i);
        TRY(chat_check_name(json_bytes(entry), name));
        VEC_PUSH(&chat->builtins, chat_copy(&chat->arena, json_bytes(entry)));
    }
    return OK;
}

static Status read_date(const json_t *date, const char *name, Chat *chat)
{
    Bytes text = json_bytes(date);
    bool good = text.at && text.n > 0 && text.n <= MAX_DATE_BYTES;
    for (size_t i = 0; i < text.n && good; i++) good = text.at[i] >= 0x20;
    if (!good)
        return fail(ERR_FORMAT, "%s: date_string is not a line of 1 to %d bytes", name,
                    MAX_DATE_BYTES);
    chat->date = chat_copy(&chat->arena, text);
    return OK;
}

static Status read_flag(const json_t *root, const char *key, const char *name, bool *value)
{
    const json_t *flag = get(root, key);
    if (flag && !json_is_boolean(flag))
        return fail(ERR_FORMAT, "%s: %s is neither true nor false", name, key);
    if (flag) *value = json_is_true(flag);
    return OK;
}

static Status read_root(const json_t *root, const char *name, Chat *chat)
{
    static const char *const keys[] = {"messages",      "tools",
                                       "builtin_tools", "tools_in_user_message",
                                       "date_string",   "add_generation_prompt"};
    if (json_is_array(root)) return read_messages(root, name, chat);
    if (!json_is_object(root))
        return fail(ERR_FORMAT, "%s is neither a list of messages nor an object with one", name);
    TRY(check_keys(root, keys, COUNT_OF(keys), name));
    TRY(read_messages(get(root, "messages"), name, chat));
    bool in_user = true;
    TRY(read_flag(root, "tools_in_user_message", name, &in_user));
    TRY(read_flag(root, "add_generation_prompt", name, &chat->wants_answer));
    if (get(root, "tools_in_user_message"))
        chat->tool_place = in_user ? CHAT_TOOLS_IN_USER : CHAT_TOOLS_IN_SYSTEM;
    if (get(root, "tools")) TRY(read_tools(get(root, "tools"), name, chat));
    if (get(root, "builtin_tools")) TRY(read_builtins(get(root, "builtin_tools"), name, chat));
    return get(root, "date_string") ? read_date(get(root, "date_string"), name, chat) : OK;
}

Status chat_parse(Bytes json, const char *name, Chat *chat)
{
    json_error_t error;
    if (json.n > MAX_CHAT_BYTES)
        return fail(ERR_REFUSED, "%s: a conversation of %zu bytes; at most %d are read", name,
                    json.n, MAX_CHAT_BYTES);
    json_t *root = json_loadb((const char *)json.at, json.n,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) return fail(ERR_FORMAT, "%s line %d: %s", name, error.line, error.text);
    Chat read = {0};
    Status status = read_root(root, name, &read);
    json_decref(root);
    if (status == OK)
        *chat = read;
    else
        chat_deinit(&read);
    return status;
}

/* ---- by hand ---------------------------------------------------------------------------- */

void chat_add_text(Chat *chat, ChatRole role, Bytes text)
{
    ChatMessage message = {.role = role};
    set_text(chat, text, &message);
    if (role == CHAT_TOOL || role == CHAT_IPYTHON) {
        Str quoted = {0};
        chat_json_string(text, &quoted);
        message.result = chat_copy(&chat->arena, str_bytes(&quoted));
        str_deinit(&quoted);
    }
    VEC_PUSH(&chat->messages, message);
}

void chat_add_message(Chat *chat, const ChatMessage *message)
{
    ChatMessage copy = *message;
    ChatPart *part = ARENA_ARRAY(&chat->arena, ChatPart, (size_t)message->n_parts + 1);
    ChatCall *call = ARENA_ARRAY(&chat->arena, ChatCall, (size_t)message->n_calls + 1);
    for (int i = 0; i < message->n_parts; i++)
        part[i] = (ChatPart){message->part[i].kind, chat_copy(&chat->arena, message->part[i].text)};
    for (int i = 0; i < message->n_calls; i++)
        call[i] = chat_copy_call(&chat->arena, &message->call[i]);
    copy.part = part;
    copy.call = call;
    copy.result = chat_copy(&chat->arena, message->result);
    VEC_PUSH(&chat->messages, copy);
}

void chat_deinit(Chat *chat)
{
    VEC_FREE(&chat->messages);
    VEC_FREE(&chat->tools);
    VEC_FREE(&chat->builtins);
    arena_deinit(&chat->arena);
    *chat = (Chat){0};
}
