/* One call of a function: its name and its arguments, from JSON or from another call. */
#include "chat/chat_internal.h"

Bytes chat_copy(Arena *arena, Bytes text)
{
    return text.n ? (Bytes){arena_copy(arena, text.at, text.n), text.n}
                  : (Bytes){(const uint8_t *)"", 0};
}

Status chat_check_name(Bytes name, const char *where)
{
    if (name.n == 0 || name.n > MAX_NAME_BYTES)
        return fail(ERR_FORMAT, "%s: a function's name of %zu bytes; 1 to %d are allowed", where,
                    name.n, MAX_NAME_BYTES);
    for (size_t i = 0; i < name.n; i++)
        if (name.at[i] < 0x20 || name.at[i] == '"' || name.at[i] == '\\')
            return fail(ERR_FORMAT,
                        "%s: a function's name with a quote, backslash or control character",
                        where);
    return OK;
}

static Status make_argument(Arena *arena, Bytes key, const json_t *value, const char *where,
                            ChatArgument *argument)
{
    argument->name = chat_copy(arena, key);
    argument->is_text = json_is_string(value);
    if (argument->is_text) {
        argument->text = chat_copy(arena, json_bytes(value));
        return OK;
    }
    Str text = {0};
    Status status = chat_json_write(value, 0, MAX_CHAT_BYTES, where, &text);
    argument->text = chat_copy(arena, str_bytes(&text));
    str_deinit(&text);
    return status;
}

Status chat_make_call(Arena *arena, Bytes name, const json_t *arguments, const char *where,
                      ChatCall *call)
{
    TRY(chat_check_name(name, where));
    if (!json_is_object(arguments))
        return fail(ERR_FORMAT, "%s: the arguments of \"%.*s\" are not an object", where,
                    (int)name.n, (const char *)name.at);
    size_t n = json_object_size(arguments);
    if (n > MAX_LIST)
        return fail(ERR_REFUSED, "%s: %zu arguments; at most %d are read", where, n, MAX_LIST);
    ChatArgument *argument = ARENA_ARRAY(arena, ChatArgument, n + 1);
    const char *key;
    size_t key_n, i = 0;
    json_t *value;
    json_object_keylen_foreach((json_t *)(uintptr_t)arguments, key, key_n, value)
    {
        TRY(make_argument(arena, (Bytes){(const uint8_t *)key, key_n}, value, where,
                          &argument[i++]));
    }
    Str text = {0};
    Status status = chat_json_write(arguments, 0, MAX_CHAT_BYTES, where, &text);
    if (status == OK)
        *call = (ChatCall){chat_copy(arena, name), chat_copy(arena, str_bytes(&text)), argument,
                           (int)n};
    str_deinit(&text);
    return status;
}

ChatCall chat_copy_call(Arena *arena, const ChatCall *call)
{
    ChatArgument *argument = ARENA_ARRAY(arena, ChatArgument, (size_t)call->n_arguments + 1);
    for (int i = 0; i < call->n_arguments; i++)
        argument[i] = (ChatArgument){chat_copy(arena, call->argument[i].name),
                                     chat_copy(arena, call->argument[i].text),
                                     call->argument[i].is_text};
    return (ChatCall){chat_copy(arena, call->name), chat_copy(arena, call->arguments), argument,
                      call->n_arguments};
}
