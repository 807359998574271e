/* Reading conversations: what is taken, what is refused and how, and that no message can forge a
 * turn. */
#include "chat/chat_test_util.h"

/* ---- reading ---------------------------------------------------------------------------- */

static void assert_bytes(Bytes b, const char *text)
{
    assert_int_equal(b.n, strlen(text));
    assert_memory_equal(b.at, text, b.n);
}

static void test_read(void **state)
{
    (void)state;
    Chat chat = {0};
    assert_ok(chat_parse(
        bytes_of(
            "{\"messages\": ["
            "{\"role\": \"system\", \"content\": \"s\", \"name\": \"x\"},"
            "{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"},"
            "  {\"type\": \"image_url\", \"image_url\": {\"url\": \"file:c.png\"}}, {\"type\": "
            "\"image\"}]},"
            "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"1\", "
            "\"type\": \"function\","
            "  \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"b\\\": 1, \\\"a\\\": "
            "\\\"\\u00e9\\\\n\\\"}\"}}]},"
            "{\"role\": \"tool\", \"tool_call_id\": \"1\", \"content\": {\"r\": [1.0, 1e3, null]}},"
            "{\"role\": \"assistant\", \"content\": \"done\", \"tool_calls\": []}],"
            "\"builtin_tools\": [], \"tools_in_user_message\": false, \"add_generation_prompt\": "
            "true}"),
        "test", &chat));
    const ChatMessage *m = chat.messages.at;
    assert_int_equal(chat.messages.n, 5);
    assert_int_equal(m[0].role, CHAT_SYSTEM);
    assert_int_equal(m[1].n_parts, 3);
    assert_int_equal(m[1].part[1].kind, CHAT_IMAGE);
    assert_bytes(m[1].part[1].text, "file:c.png");
    assert_int_equal(m[1].part[2].text.n, 0);
    assert_int_equal(m[2].n_calls, 1);
    assert_bytes(m[2].call->name, "f");
    assert_bytes(m[2].call->arguments, "{\"b\": 1, \"a\": \"\xc3\xa9\\n\"}");
    assert_int_equal(m[2].call->n_arguments, 2);
    assert_true(!m[2].call->argument[0].is_text && m[2].call->argument[1].is_text);
    assert_bytes(m[2].call->argument[1].text, "\xc3\xa9\n");
    assert_int_equal(m[2].n_parts, 0);
    assert_bytes(m[3].result, "{\"r\": [1.0, 1000.0, null]}");
    assert_int_equal(m[4].n_calls, 0);
    assert_true(chat.has_builtins && chat.wants_answer);
    assert_int_equal(chat.tool_place, CHAT_TOOLS_IN_SYSTEM);
    chat_deinit(&chat);
}

/* A refused text leaves nothing behind and says where the fault is. */
static void test_refusals(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "line"},
        {"7", "expected near"},
        {"[]", "empty list"},
        {"{}", "messages is not a list"},
        {"[1]", "messages[0] is not an object"},
        {"[{\"content\": \"x\"}]", "no \"role\""},
        {"[{\"role\": \"usr\", \"content\": \"x\"}]", "role \"usr\""},
        {"[{\"role\": \"user\"}]", "no \"content\""},
        {"[{\"role\": \"user\", \"content\": null}]", "no \"content\""},
        {"[{\"role\": \"assistant\", \"tool_calls\": []}]", "no \"content\""},
        {"[{\"role\": \"user\", \"content\": 7}]", "neither a text nor a list"},
        {"[{\"role\": \"user\", \"content\": []}]", "empty list"},
        {"[{\"role\": \"user\", \"content\": [{\"text\": \"x\"}]}]", "content[0] has no \"type\""},
        {"[{\"role\": \"user\", \"content\": [{\"type\": \"audio\"}]}]", "type \"audio\""},
        {"[{\"role\": \"user\", \"content\": \"x\", \"tool_call\": 1}]",
         "did you mean \"tool_calls\""},
        {"[{\"role\": \"user\", \"content\": \"x\", \"content\": \"y\"}]", "duplicate"},
        {"[{\"role\": \"user\", \"content\": \"\xff\"}]", "decode byte"},
        {"[{\"role\": \"user\", \"content\": \"x\", \"tool_calls\": [{}]}]", "only the assistant"},
        {"[{\"role\": \"tool\", \"content\": 7}]", "a text, a list or an object"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{}]}]",
         "tool_calls[0] has no object \"function\""},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"type\": \"x\"}]}]",
         "of type \"function\""},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"arguments\": {}}}]}]",
         "no \"name\""},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\"}}]}]",
         "no \"arguments\""},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", "
         "\"arguments\": \"{\"}}]}]",
         "no JSON"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", "
         "\"arguments\": [1]}}]}]",
         "not an object"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\\\"\", "
         "\"arguments\": {}}}]}]",
         "quote"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"\", "
         "\"arguments\": {}}}]}]",
         "0 bytes"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": []}",
         "tools is an empty list"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [1]}", "tools[0]"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"builtin_tools\": \"x\"}",
         "list of names"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"date_string\": \"a\\nb\"}",
         "date_string"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"add_generation_prompt\": 1}",
         "neither true nor false"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"temperature\": 1}",
         "\"temperature\" is not known"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Chat chat = {0};
        if (chat_parse(bytes_of(cases[i][0]), "test", &chat) == OK)
            fail_msg("taken: %s", cases[i][0]);
        if (!strstr(status_message(), cases[i][1]))
            fail_msg("%s: no '%s' in '%s'", cases[i][0], cases[i][1], status_message());
        assert_int_equal(chat.messages.n, 0);
    }
}

/* Values nested deeply would be indented without end. */
static void test_depth(void **state)
{
    (void)state;
    Str text = {0};
    Chat chat = {0};
    for (int depth = MAX_JSON_DEPTH - 2; depth <= MAX_JSON_DEPTH + 1; depth++) {
        str_clear(&text);
        str_add(&text,
                "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"a\": ");
        for (int i = 0; i < depth; i++) str_add(&text, "[");
        for (int i = 0; i < depth; i++) str_add(&text, "]");
        str_add(&text, "}]}");
        assert_int_equal(chat_parse(str_bytes(&text), "test", &chat),
                         depth < MAX_JSON_DEPTH + 1 ? OK : ERR_REFUSED);
        chat_deinit(&chat);
    }
    str_deinit(&text);
}

/* ---- JSON and white space as Python has them -------------------------------------------- */

static void test_numbers(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"0", "0"},
        {"-0", "0"},
        {"0.0", "0.0"},
        {"-0.0", "-0.0"},
        {"1E5", "100000.0"},
        {"0.1", "0.1"},
        {"1e15", "1000000000000000.0"},
        {"1e16", "1e+16"},
        {"123456789012345680.0", "1.2345678901234568e+17"},
        {"0.0001", "0.0001"},
        {"0.00001", "1e-05"},
        {"1.5e-7", "1.5e-07"},
        {"5e-324", "5e-324"},
        {"1.7976931348623157e308", "1.7976931348623157e+308"},
        {"0.30000000000000004", "0.30000000000000004"},
        {"9007199254740993.0", "9007199254740992.0"},
        {"2.5", "2.5"},
        {"100.25", "100.25"},
        {"9223372036854775807", "9223372036854775807"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Str out = {0};
        json_t *value = json_loads(cases[i][0], JSON_DECODE_ANY, NULL);
        assert_ok(chat_json_write(value, 0, 100, "test", &out));
        assert_string_equal(out.at, cases[i][1]);
        json_decref(value);
        str_deinit(&out);
    }
}

static void test_trim(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", ""},
        {" ", ""},
        {" a b\t", "a b"},
        {"\xc2\xa0\xe3\x80\x80x\xe2\x80\xa8", "x"},
        {"\x1cx\x1f", "x"},
        {"\xe2\x80\x8bx", "\xe2\x80\x8bx"}, /* U+200B is no white space */
        {"\xc2\xa0", ""},
        {"x\xa0", "x\xa0"}, /* a broken character stays */
        {"\xef\xbb\xbfx", "\xef\xbb\xbfx"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++)
        assert_bytes(chat_trim(bytes_of(cases[i][0])), cases[i][1]);
}

/* ---- forging ---------------------------------------------------------------------------- */

static int count_specials(const Speaker *s, const IdVec *ids)
{
    int n = 0;
    for (size_t i = 0; i < ids->n; i++)
        n += tokenizer_token_kind(s->tokenizer, ids->at[i]) == TOKEN_SPECIAL;
    return n;
}

/* Everything a caller can write, spelt as every special token: the special tokens in the ids are
 * those of a conversation of the same shape in harmless words, one by one, and the spelling comes
 * back as text. */
static void check_forging(const char *name, const char *vocabulary, const char *shape)
{
    Speaker s = speaker_make(name, vocabulary);
    IdVec harmless = {0};
    for (int32_t id = -1; id < tokenizer_vocab_size(s.tokenizer); id++) {
        if (id >= 0 && tokenizer_token_kind(s.tokenizer, id) != TOKEN_SPECIAL) continue;
        Bytes special = id < 0 ? bytes_of("words") : tokenizer_token_bytes(s.tokenizer, id);
        Str json = {0};
        for (const char *c = shape; *c; c++)
            str_add_n(&json, *c == '@' ? (const char *)special.at : c, *c == '@' ? special.n : 1);
        Chat chat = {0};
        ChatTokens tokens = {0};
        assert_ok(chat_parse(str_bytes(&json), "test", &chat));
        assert_ok(chat_render(s.format, s.encoder, &chat, &tokens));
        IdVec specials = {0};
        for (size_t i = 0; i < tokens.ids.n; i++)
            if (tokenizer_token_kind(s.tokenizer, tokens.ids.at[i]) == TOKEN_SPECIAL)
                VEC_PUSH(&specials, tokens.ids.at[i]);
        if (id < 0) {
            harmless = specials;
        } else {
            assert_int_equal(specials.n, harmless.n);
            assert_memory_equal(specials.at, harmless.at, specials.n * sizeof *specials.at);
            assert_non_null(strstr(speaker_text(&s, &tokens.ids),
                                   arena_strndup(&s.arena, (const char *)special.at, special.n)));
            VEC_FREE(&specials);
        }
        assert_int_equal(count_specials(&s, &tokens.ids), harmless.n);
        chat_tokens_deinit(&tokens);
        chat_deinit(&chat);
        str_deinit(&json);
    }
    VEC_FREE(&harmless);
    speaker_free(&s);
}

static void test_forging(void **state)
{
    (void)state;
    static const char plain[] =
        "[{\"role\": \"system\", \"content\": \"@\"}, {\"role\": \"user\", \"content\": \"@@ @\"},"
        "{\"role\": \"assistant\", \"content\": \"@\"}, {\"role\": \"user\", \"content\": "
        "\"x\\n\\n@\"}]";
    static const char tools[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
        "\"@\"}]},"
        "{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"@\", "
        "\"arguments\": {\"@\": \"@\", \"b\": [\"@\"]}}}]},"
        "{\"role\": \"tool\", \"content\": \"@\"}, {\"role\": \"tool\", \"content\": {\"@\": "
        "[\"@\"]}}],"
        "\"tools\": [{\"@\": \"@\"}], \"date_string\": \"@\"}";
    static const char builtins[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, "
                                   "{\"role\": \"assistant\", \"tool_calls\":"
                                   "[{\"function\": {\"name\": \"@\", \"arguments\": {\"@\": "
                                   "\"@\"}}}]}], \"builtin_tools\": [\"@\", \"x\"]}";
    check_forging("llama3", "llama3", plain);
    check_forging("llama3.1", "llama3", plain);
    check_forging("llama4", "llama4", plain);
    check_forging("drover", "llama4", plain);
    check_forging("llama3.1", "llama3", tools);
    check_forging("llama3.1", "llama3", builtins);
    check_forging("llama3.2", "llama3", tools);
    check_forging("llama4", "llama4", tools);
    check_forging("drover", "llama3", tools);
    check_forging("drover", "llama4", tools);
}

/* ---- by hand, and what formats refuse --------------------------------------------------- */

static void test_by_hand(void **state)
{
    (void)state;
    Speaker s = speaker_make("llama4", "llama4");
    Chat chat = {.wants_answer = true}, copy = {0};
    ChatTokens tokens = {0};
    assert_int_equal(chat_render(s.format, s.encoder, &chat, &tokens), ERR_ARG); /* nothing said */
    chat_add_text(&chat, CHAT_USER, bytes_of("hi"));
    chat_add_text(&chat, CHAT_TOOL, bytes_of("a\"b"));
    assert_ok(chat_render(s.format, s.encoder, &chat, &tokens));
    assert_string_equal(speaker_text(&s, &tokens.ids),
                        "<|begin_of_text|><|header_start|>user<|header_end|>\n\nhi<|eot|><|header_"
                        "start|>ipython<|header_end|>\n\n"
                        "\"a\\\"b\"<|eot|><|header_start|>assistant<|header_end|>\n\n");
    for (size_t i = 0; i < chat.messages.n; i++) chat_add_message(&copy, &chat.messages.at[i]);
    chat_deinit(&chat);
    copy.wants_answer = true;
    ChatTokens again = {0};
    assert_ok(chat_render(s.format, s.encoder, &copy, &again));
    assert_int_equal(again.ids.n, tokens.ids.n);
    assert_memory_equal(again.ids.at, tokens.ids.at, again.ids.n * sizeof *again.ids.at);
    chat_deinit(&copy);
    chat_tokens_deinit(&tokens);
    chat_tokens_deinit(&again);
    speaker_free(&s);
}

static void test_what_formats_lack(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"llama3.1", "[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]", "an image"},
        {"llama3", "[{\"role\": \"tool\", \"content\": {}}]", "no text"},
        {"llama3.1",
         "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}], \"tools\": [{\"a\": 1}]}",
         "first message of the user"},
        {"llama3.1",
         "{\"messages\": [{\"role\": \"system\", \"content\": \"x\"}], \"tools\": [{\"a\": 1}]}",
         "not there"},
        {"llama3.1",
         "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": "
         "\"b\", \"arguments\": {\"x\": 1}}}]}],"
         "\"builtin_tools\": [\"b\"]}",
         "not a text"},
        {"llama3.1",
         "[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"b\", "
         "\"arguments\": {}}},"
         "{\"function\": {\"name\": \"b\", \"arguments\": {}}}]}]",
         "2 calls"},
        {"drover", "[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]",
         "no token for images"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Speaker s = speaker_make(cases[i][0], "llama3");
        assert_null(speaker_render(&s, cases[i][1]));
        if (!strstr(status_message(), cases[i][2]))
            fail_msg("no '%s' in '%s'", cases[i][2], status_message());
        speaker_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),    cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_depth),   cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_trim),    cmocka_unit_test(test_forging),
        cmocka_unit_test(test_by_hand), cmocka_unit_test(test_what_formats_lack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
