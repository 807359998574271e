/* Every format against transformers: tests/golden_chat, written by tools/golden/make_chat.py. A
 * line "null" is a conversation that the format must refuse, "today" one whose date is the day of
 * the test. */
#include "chat/chat_test_util.h"

#include <time.h>

typedef struct Golden {
    Speaker s;
    int n_same, n_refused;
} Golden;

static Bytes next_line(Bytes *text)
{
    const uint8_t *end = memchr(text->at, '\n', text->n);
    assert_non_null(end);
    Bytes line = {text->at, (size_t)(end - text->at)};
    *text = (Bytes){end + 1, text->n - line.n - 1};
    return line;
}

static void set_preambles(Golden *g)
{
    Bytes text;
    assert_ok(file_read(&g->s.arena, path_join(&g->s.arena, golden_dir, "preambles.json"), 1 << 20,
                        &text));
    json_t *json = json_loadb((const char *)text.at, text.n, 0, NULL);
    chat_format_set_preamble(g->s.format, CHAT_TOOLS_IN_SYSTEM,
                             json_bytes(json_object_get(json, "system")));
    chat_format_set_preamble(g->s.format, CHAT_TOOLS_IN_USER,
                             json_bytes(json_object_get(json, "user")));
    json_decref(json);
}

static void check_ids(const json_t *expected, const ChatTokens *tokens, int line)
{
    const json_t *ids = json_object_get(expected, "ids"), *said = json_object_get(expected, "said");
    if (json_array_size(ids) != tokens->ids.n)
        fail_msg("line %d: %zu ids, not %zu", line, tokens->ids.n, json_array_size(ids));
    assert_int_equal(tokens->mask.n, tokens->ids.n);
    for (size_t i = 0; i < tokens->ids.n; i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));
        bool is_said = false;
        for (size_t s = 0; s < json_array_size(said); s++) {
            const json_t *span = json_array_get(said, s);
            is_said |= (json_int_t)i >= json_integer_value(json_array_get(span, 0)) &&
                       (json_int_t)i < json_integer_value(json_array_get(span, 1));
        }
        if (id != tokens->ids.at[i])
            fail_msg("line %d: id %zu is %d, not %d", line, i, tokens->ids.at[i], (int)id);
        if (is_said != tokens->mask.at[i])
            fail_msg("line %d: mask %zu is %d", line, i, tokens->mask.at[i]);
    }
}

/* Without a date the ids are those with today's. */
static void check_today(const Golden *g, const ChatTokens *tokens, Chat *chat)
{
    char date[32];
    ChatTokens again = {0};
    time_t now = time(NULL);
    struct tm day;
    localtime_r(&now, &day);
    strftime(date, sizeof date, "%d %b %Y", &day);
    chat->date = bytes_of(date);
    assert_ok(chat_render(g->s.format, g->s.encoder, chat, &again));
    assert_int_equal(again.ids.n, tokens->ids.n);
    assert_memory_equal(again.ids.at, tokens->ids.at, again.ids.n * sizeof *again.ids.at);
    chat_tokens_deinit(&again);
}

static void check_line(Golden *g, Bytes chat_line, Bytes expected_line, int line)
{
    Chat chat = {0};
    ChatTokens tokens = {0};
    json_t *expected = json_loadb((const char *)expected_line.at, expected_line.n, JSON_DECODE_ANY,
                                  NULL);
    assert_ok(chat_parse(chat_line, "golden", &chat));
    Status status = chat_render(g->s.format, g->s.encoder, &chat, &tokens);
    if (json_is_null(expected)) {
        if (status == OK) fail_msg("line %d: not refused", line);
        assert_true(status == ERR_UNSUPPORTED || status == ERR_FORMAT);
        assert_int_equal(tokens.ids.n, 0);
        g->n_refused++;
    } else {
        if (status != OK) fail_msg("line %d: %s", line, status_message());
        if (json_is_string(expected))
            check_today(g, &tokens, &chat);
        else
            check_ids(expected, &tokens, line);
        g->n_same++;
    }
    json_decref(expected);
    chat_tokens_deinit(&tokens);
    chat_deinit(&chat);
}

static void check_format(const char *name, const char *vocabulary)
{
    Golden g = {.s = speaker_make(name, vocabulary)};
    Bytes chats, expected;
    bool is_own = !strcmp(name, "drover");
    if (!is_own) set_preambles(&g);
    assert_ok(file_read(&g.s.arena, path_join(&g.s.arena, golden_dir, "conversations.jsonl"),
                        1 << 20, &chats));
    const char *file = arena_printf(&g.s.arena, "%s.%s.jsonl", name, vocabulary);
    assert_ok(file_read(&g.s.arena, path_join(&g.s.arena, golden_dir, file), 1 << 20, &expected));
    for (int line = 1; chats.n; line++) {
        Bytes chat_line = next_line(&chats), expected_line = next_line(&expected);
        check_line(&g, chat_line, expected_line, line);
    }
    assert_int_equal(expected.n, 0);
    assert_true(g.n_same >= 40);
    assert_true(g.n_refused >= 5);
    speaker_free(&g.s);
}

static void test_llama3(void **state)
{
    (void)state;
    check_format("llama3", "llama3");
}

static void test_llama31(void **state)
{
    (void)state;
    check_format("llama3.1", "llama3");
}

static void test_llama32(void **state)
{
    (void)state;
    check_format("llama3.2", "llama3");
}

static void test_llama4(void **state)
{
    (void)state;
    check_format("llama4", "llama4");
}

static void test_drover(void **state)
{
    (void)state;
    check_format("drover", "llama3");
    check_format("drover", "llama4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3),  cmocka_unit_test(test_llama31),
        cmocka_unit_test(test_llama32), cmocka_unit_test(test_llama4),
        cmocka_unit_test(test_drover),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
