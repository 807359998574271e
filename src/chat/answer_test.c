/* Answers back to messages: what is a call in which format, and that nothing else is. */
#include "chat/chat_test_util.h"

/* What the model made: text in which special tokens are spelt out. */
static void parse(Speaker *s, const char *text, ChatAnswer *answer)
{
    IdVec ids = {0};
    assert_ok(encoder_encode(s->encoder, text, strlen(text), ENCODE_SPECIALS, &ids));
    assert_ok(chat_parse_answer(s->format, ids.at, ids.n, answer));
    VEC_FREE(&ids);
}

/* "content|name(arguments)|name(arguments)", with "*" in front while it is open and "#" for code.
 */
static const char *shown(Speaker *s, const char *text)
{
    ChatAnswer answer;
    Str out = {0};
    parse(s, text, &answer);
    const ChatMessage *m = &answer.message;
    assert_int_equal(m->role, CHAT_ASSISTANT);
    assert_true(m->n_parts <= 1 && (m->n_parts || m->n_calls));
    str_printf(&out, "%s%s", answer.open ? "*" : "", answer.is_code ? "#" : "");
    if (m->n_parts) str_add_n(&out, (const char *)m->part->text.at, m->part->text.n);
    for (int i = 0; i < m->n_calls; i++)
        str_printf(&out, "|%.*s(%.*s)", (int)m->call[i].name.n, (const char *)m->call[i].name.at,
                   (int)m->call[i].arguments.n, (const char *)m->call[i].arguments.at);
    const char *copy = arena_strndup(&s->arena, out.n ? out.at : "", out.n);
    str_deinit(&out);
    chat_answer_deinit(&answer);
    return copy;
}

static void check(const char *name, const char *vocabulary, const char *const cases[][2], int n)
{
    Speaker s = speaker_make(name, vocabulary);
    for (int i = 0; i < n; i++) {
        const char *got = shown(&s, cases[i][0]);
        if (strcmp(got, cases[i][1]))
            fail_msg("%s: %s gives %s, not %s", name, cases[i][0], got, cases[i][1]);
    }
    speaker_free(&s);
}

static void test_llama31(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"Hello.<|eot_id|>", "Hello."},
        {"Hello.", "Hello."},
        {"Hello.<|eot_id|><|start_header_id|>user", "Hello."},
        {"", "*"},
        {"{\"name\": \"f\", \"parameters\": {\"b\": 1, \"a\": \"x\"}}<|eot_id|>",
         "|f({\"b\": 1, \"a\": \"x\"})"},
        {" {\"type\": \"function\", \"name\": \"f\", \"arguments\": {}}\n<|eom_id|>", "|f({})"},
        {"{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
         "|f({})|g({})"},
        {"{\"name\": \"f\", \"parameters\": {}", "*{\"name\": \"f\", \"parameters\": {}"},
        {"{\"name\": \"f\", \"parameters\": {}} I think",
         "*{\"name\": \"f\", \"parameters\": {}} I think"},
        {"I call {\"name\": \"f\", \"parameters\": {}}",
         "I call {\"name\": \"f\", \"parameters\": {}}"},
        {"{\"name\": \"f\", \"parameters\": []}", "*{\"name\": \"f\", \"parameters\": []}"},
        {"{\"name\": \"f\", \"parameters\": {}, \"more\": 1}",
         "*{\"name\": \"f\", \"parameters\": {}, \"more\": 1}"},
        {"{\"name\": \"f\", \"parameters\": {\"a\": 1, \"a\": 2}}",
         "*{\"name\": \"f\", \"parameters\": {\"a\": 1, \"a\": 2}}"},
        {"{\"name\": \"f\", \"parameters\": {}, \"arguments\": {}}",
         "*{\"name\": \"f\", \"parameters\": {}, \"arguments\": {}}"},
        {"<|python_tag|>brave_search.call(query=\"a b\")<|eom_id|>",
         "|brave_search({\"query\": \"a b\"})"},
        {"<|python_tag|>f.call(a=\"1\\n\", b=\"\")", "|f({\"a\": \"1\\\\n\", \"b\": \"\"})"},
        {"<|python_tag|>f.call()", "|f({})"},
        {"<|python_tag|>f.call(a=\"1\"", "*#f.call(a=\"1\""},
        {"<|python_tag|>f.call(a=\"1\", a=\"2\")", "*#f.call(a=\"1\", a=\"2\")"},
        {"<|python_tag|>f.call(a=1)", "*#f.call(a=1)"},
        {"<|python_tag|>f.call(a=\"1\") + 1", "*#f.call(a=\"1\") + 1"},
        {"<|python_tag|>f.call(a=\"1\", )", "*#f.call(a=\"1\", )"},
        {"<|python_tag|>print(1)<|eom_id|>", "*#print(1)"},
        {"<|python_tag|>{\"name\": \"f\", \"parameters\": {}}<|eom_id|>", "|f({})"},
        {"<function=f>{\"a\": 1}</function><|eot_id|>", "|f({\"a\": 1})"},
        {"<function=f>{\"a\": 1}</function> <function=g>{}</function>", "|f({\"a\": 1})|g({})"},
        {"<function=f>{\"a\": 1}", "*<function=f>{\"a\": 1}"},
        {"<function=f>{\"a\": 1}</function>.", "*<function=f>{\"a\": 1}</function>."},
        {"<func", "*<func"},
        {"<div>", "<div>"},
        {"[f(a=1), g.h(b=\"x\", c=[1, -2.5, {'k': None}], d=True)]",
         "|f({\"a\": 1})|g.h({\"b\": \"x\", \"c\": [1, -2.5, {\"k\": null}], \"d\": true})"},
        {"[ f ( a = 1 , ) , g() ]", "|f({\"a\": 1})|g({})"},
        {"[f(a='it\\'s \\u00e9\\n', ) ]", "|f({\"a\": \"it's \xc3\xa9\\n\"})"},
        {"[f()]", "|f({})"},
        {"[f(1)]", "*[f(1)]"},
        {"[f(a=b)]", "*[f(a=b)]"},
        {"[f(a=1, a=2)]", "*[f(a=1, a=2)]"},
        {"[f(a=1)", "*[f(a=1)"},
        {"[f(a=1)] then", "*[f(a=1)] then"},
        {"[]", "*[]"},
        {"[f(a=1e999)]", "*[f(a=1e999)]"},
        {"[f(a=\"\\ud800\")]", "*[f(a=\"\\ud800\")]"},
    };
    check("llama3.1", "llama3", cases, COUNT_OF(cases));
    static const char *const plain[][2] = {{"{\"name\": \"f\", \"parameters\": {}}<|eot_id|>",
                                            "{\"name\": \"f\", \"parameters\": {}}"}};
    check("llama3", "llama3", plain, COUNT_OF(plain));
}

static void test_llama4(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"Hello.<|eot|>", "Hello."},
        {"<|python_start|><|python_end|>{\"name\": \"f\", \"parameters\": {}}<|eot|>", "|f({})"},
        {"<|python_start|>I look.<|python_end|>{\"name\": \"f\", \"parameters\": {\"a\": "
         "1}}{\"name\": \"g\", \"parameters\": {}}<|eom|>",
         "I look.|f({\"a\": 1})|g({})"},
        {"Well: <|python_start|>[f(a=1)]<|python_end|><|eom|>", "Well: |f({\"a\": 1})"},
        {"[f(a=1)]<|eot|>", "|f({\"a\": 1})"},
        {"<|python_start|>print(1)<|python_end|><|eom|>", "*print(1)"},
        {"<|python_start|><|python_end|>{\"name\": \"f\", \"para", "*{\"name\": \"f\", \"para"},
    };
    check("llama4", "llama4", cases, COUNT_OF(cases));
}

static void test_drover(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"name\": \"f\", \"parameters\": {}}<|eot|>",
         "{\"name\": \"f\", \"parameters\": {}}"}, /* no token: text */
        {"A.<|python_start|>{\"name\": \"f\", \"parameters\": "
         "{}}<|python_end|><|python_start|>{\"name\": \"g\", \"parameters\": "
         "{}}<|python_end|><|eom|>",
         "A.|f({})|g({})"},
        {"<|python_start|>{\"name\": \"f\", \"parameters\": {}}<|python_end|> more",
         "*{\"name\": \"f\", \"parameters\": {}} more"},
        {"<|python_start|>f()<|python_end|><|eom|>", "*f()"},
        {"<|python_start|>{\"name\": \"f\", \"parameters\": {}}{\"name\": \"g\", \"parameters\": "
         "{}}<|python_end|>",
         "*{\"name\": \"f\", \"parameters\": {}}{\"name\": \"g\", \"parameters\": {}}"},
    };
    check("drover", "llama4", cases, COUNT_OF(cases));
}

/* What was rendered as the assistant's comes back as it was, for every format with calls. */
static void check_return(const char *name, const char *vocabulary)
{
    Speaker s = speaker_make(name, vocabulary);
    static const char json[] = "[{\"role\": \"user\", \"content\": \"x\"}, {\"role\": "
                               "\"assistant\", \"tool_calls\": [{\"function\":"
                               "{\"name\": \"f\", \"arguments\": {\"z\": [1, 2.5, \"\\u00e9\\n\"], "
                               "\"a\": {\"b\": null}}}}]}]";
    Chat chat = {0};
    ChatTokens tokens = {0};
    ChatAnswer answer;
    assert_ok(chat_parse(bytes_of(json), "test", &chat));
    assert_ok(chat_render(s.format, s.encoder, &chat, &tokens));
    size_t first = 0;
    while (!tokens.mask.at[first]) first++;
    assert_ok(chat_parse_answer(s.format, tokens.ids.at + first, tokens.ids.n - first, &answer));
    assert_int_equal(answer.message.n_calls, 1);
    assert_int_equal(answer.message.n_parts, 0);
    const ChatCall *sent = chat.messages.at[1].call, *back = answer.message.call;
    assert_int_equal(sent->arguments.n, back->arguments.n);
    assert_memory_equal(sent->arguments.at, back->arguments.at, back->arguments.n);
    for (size_t n = first; n + 1 < tokens.ids.n - 1;
         n++) { /* while it grows it is never shown, and no call too early */
        ChatAnswer part;
        assert_ok(chat_parse_answer(s.format, tokens.ids.at + first, n - first, &part));
        assert_int_equal(part.message.n_calls, 0);
        if (n > first + 1) assert_true(part.open);
        chat_answer_deinit(&part);
    }
    chat_answer_deinit(&answer);
    chat_tokens_deinit(&tokens);
    chat_deinit(&chat);
    speaker_free(&s);
}

static void test_return(void **state)
{
    (void)state;
    check_return("llama3.1", "llama3");
    check_return("llama3.2", "llama3");
    check_return("llama4", "llama4");
    check_return("drover", "llama4");
    check_return("drover", "llama3");
}

/* Bytes that are no UTF-8 come out as U+FFFD, ids that do not exist are refused. */
static void test_broken(void **state)
{
    (void)state;
    Speaker s = speaker_make("llama4", "llama4");
    ChatAnswer answer;
    int32_t ids[2] = {0xff, 'a'}; /* a byte's id is its value in a vocabulary of ours */
    assert_ok(chat_parse_answer(s.format, ids, 2, &answer));
    assert_int_equal(answer.message.part->text.n, 4);
    assert_memory_equal(answer.message.part->text.at,
                        "\xef\xbf\xbd"
                        "a",
                        4);
    chat_answer_deinit(&answer);
    ids[0] = 1 << 30;
    assert_int_equal(chat_parse_answer(s.format, ids, 2, &answer), ERR_ARG);
    chat_answer_deinit(&answer);
    speaker_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama31), cmocka_unit_test(test_llama4),
        cmocka_unit_test(test_drover),  cmocka_unit_test(test_return),
        cmocka_unit_test(test_broken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
