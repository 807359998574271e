/* Items from lines. What is wrong with a line is said in a few words, for the one who has to mend
 * it. */
#include "eval/eval_internal.h"

#include <string.h>

static bool bad(char why[EVAL_WHY], const char *format, ...) PRINTF_LIKE(2, 3);
static bool bad(char why[EVAL_WHY], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(why, EVAL_WHY, format, args);
    va_end(args);
    return false;
}

static Bytes keep(Arena *arena, const json_t *text)
{
    size_t n = json_string_length(text);
    return (Bytes){arena_copy(arena, json_string_value(text), n), n};
}

/* The first of two names that is there. */
static const json_t *either(const json_t *root, const char *a, const char *b)
{
    const json_t *value = json_object_get(root, a);
    return value ? value : json_object_get(root, b);
}

/* A text, or a list of texts; none of it must be absent, unless min is 0. */
static bool read_list(Arena *arena, const json_t *value, int min, Bytes **list, int *n)
{
    *n = 0;
    if (!value || json_is_null(value)) return min == 0;
    size_t count = json_is_string(value) ? 1 : json_array_size(value);
    if (count < (size_t)min || count > EVAL_MAX_LIST ||
        (!json_is_string(value) && !json_is_array(value)))
        return false;
    *list = ARENA_ARRAY(arena, Bytes, count + 1);
    for (size_t i = 0; i < count; i++) {
        const json_t *text = json_is_string(value) ? value : json_array_get(value, i);
        if (!json_is_string(text)) return false;
        (*list)[(*n)++] = keep(arena, text);
    }
    return true;
}

static bool read_text(Arena *arena, const json_t *root, EvalItem *item, char why[EVAL_WHY])
{
    const json_t *text = json_object_get(root, "text");
    if (!json_is_string(text))
        return bad(why, text ? "its field %s is no text" : "it has no field %s", "text");
    item->prompt = keep(arena, text);
    return item->prompt.n > 0 || bad(why, "its %s is empty", "text");
}

/* Context, a line end, question; or the one that is there. */
static bool read_context(Arena *arena, const json_t *root, EvalItem *item, char why[EVAL_WHY])
{
    const json_t *context = json_object_get(root, "context"),
                 *question = json_object_get(root, "question");
    if (!context && !question) return bad(why, "it has neither a field context nor %s", "question");
    if ((context && !json_is_string(context)) || (question && !json_is_string(question)))
        return bad(why, "its context or %s is no text", "question");
    Str all = {0};
    if (context) str_add_n(&all, json_string_value(context), json_string_length(context));
    if (context && question) str_add(&all, "\n");
    if (question) str_add_n(&all, json_string_value(question), json_string_length(question));
    item->prompt = (Bytes){arena_copy(arena, all.at, all.n), all.n};
    str_deinit(&all);
    return true;
}

static bool read_choice(Arena *arena, const json_t *root, EvalItem *item, char why[EVAL_WHY])
{
    if (!read_context(arena, root, item, why)) return false;
    if (!read_list(arena, json_object_get(root, "choices"), 2, &item->list, &item->n_list))
        return bad(why, "its field %s is no list of 2 to 256 texts", "choices");
    for (int i = 0; i < item->n_list; i++)
        if (item->list[i].n == 0) return bad(why, "one of its %s is empty", "choices");
    const json_t *answer = json_object_get(root, "answer");
    if (!json_is_integer(answer) || json_integer_value(answer) < 0 ||
        json_integer_value(answer) >= item->n_list)
        return bad(why, "its field %s is no index of a choice, from 0", "answer");
    item->answer = (int)json_integer_value(answer);
    return true;
}

static bool read_exact(Arena *arena, const json_t *root, EvalItem *item, char why[EVAL_WHY])
{
    const json_t *prompt = either(root, "prompt", "question");
    if (!json_is_string(prompt)) return bad(why, "its field %s is no text", "prompt");
    item->prompt = keep(arena, prompt);
    if (!read_list(arena, either(root, "answers", "answer"), 1, &item->list, &item->n_list))
        return bad(why, "its field %s is neither a text nor a list of texts", "answer");
    if (!read_list(arena, json_object_get(root, "stop"), 0, &item->stop, &item->n_stop))
        return bad(why, "its field %s is neither a text nor a list of texts", "stop");
    return true;
}

bool eval_item_parse(Arena *arena, EvalTask task, Bytes json, EvalItem *item, char why[EVAL_WHY])
{
    static bool (*const read[])(Arena *, const json_t *, EvalItem *,
                                char *) = {read_text, read_choice, read_exact};
    json_error_t error;
    json_t *root = json_loadb((const char *)json.at, json.n,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) return bad(why, "not JSON: %.120s", error.text);
    *item = (EvalItem){0};
    bool good = json_is_object(root) ? read[task](arena, root, item, why)
                                     : bad(why, "not %s", "a JSON object");
    json_decref(root);
    return good;
}
