/* Which template is which: what may differ between two that are the same, what may not, and the
 * texts that introduce tools. That the published ones are known is checked by `make parity-chat`,
 * which has them. */
#include "chat/chat_test_util.h"

static uint64_t structure(const char *text)
{
    Arena arena = {0};
    TemplateFacts facts;
    template_read(bytes_of(text), &arena, &facts);
    arena_deinit(&arena);
    return facts.structure;
}

static void test_same(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"{{- a }}", "{{-   a\n}}"},
        {"{{- a }}\n\n  {%- if b %}", "{{- a }}{%- if b %}"},
        {"{{- 'x\\n' }}", "{{- \"x\n\" }}"},
        {"{{- 'it\\'s' }}", "{{- \"it's\" }}"},
        {"{#- what it does -#} {{- a }}", "{{- a }}"},
        {"{{- a }}\n", "{{- a }}"},
        {"{{- a }}\r\n{{- b }}\r\n", "{{- a }}\n{{- b }}\n"},
        {"{{- 'You may' }}{{- ' call.' }}{%- for t in tools %}",
         "{{- \"other words\" }}\n{%- for t in tools %}"},
    };
    for (int i = 0; i < COUNT_OF(pairs); i++)
        if (structure(pairs[i][0]) != structure(pairs[i][1]))
            fail_msg("'%s' and '%s' differ", pairs[i][0], pairs[i][1]);
}

static void test_different(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"{{- a }}", "{{ a }}"},
        {"{{- a }} {{ b }}", "{{- a }}{{ b }}"},
        {"{{- a -}} {{ b }}", "{{- a }} {{ b }}"},
        {"{{- a }}", "{%- a %}"},
        {"{{- a }}x{{- b }}", "{{- a }}{{- b }}"},
        {"{{- 'a' }}", "{{- a }}"},
        {"{{- 'a b' }}", "{{- 'a  b' }}"},
        {"{{- 'a' 'b' }}", "{{- 'a b' }}"},
        {"{{- ab }}", "{{- a b }}"},
        {"{{- '<|eot|>' }}{%- for t in tools %}", "{{- '<|eom|>' }}{%- for t in tools %}"},
        {"{{- 'You may' }}{%- for t in things %}", "{{- 'other' }}{%- for t in things %}"},
        {"{{- 'You may' }}{{- x }}{%- for t in tools %}",
         "{{- 'other' }}{{- x }}{%- for t in tools %}"},
        {"{{- 'You may' + x }}{%- for t in tools %}", "{{- 'other' + x }}{%- for t in tools %}"},
    };
    for (int i = 0; i < COUNT_OF(pairs); i++)
        if (structure(pairs[i][0]) == structure(pairs[i][1]))
            fail_msg("'%s' and '%s' are the same", pairs[i][0], pairs[i][1]);
}

static void test_preambles(void **state)
{
    (void)state;
    Arena arena = {0};
    TemplateFacts facts;
    template_read(
        bytes_of("{{- 'unrelated' }}{%- if tools %}\n  {{- 'You may call' }}\n  {#- b -#}{{- \" "
                 "them:\\n\\n\" }}"
                 "{%- for tool in tools %}{{- tool }}{{- '\\n' }}{%- endfor %}{%- endif %}"
                 "{{- '<|header|>' }}{{- 'Given' }}{%- for t in tools %}{%- endfor %}"
                 "{{- 'third' }}{%- for t in tools %}"),
        &arena, &facts);
    assert_int_equal(facts.n_preambles, 2);
    assert_int_equal(facts.preamble[0].n, 20);
    assert_memory_equal(facts.preamble[0].at, "You may call them:\n\n", 20);
    assert_int_equal(facts.preamble[1].n, 5);
    assert_memory_equal(facts.preamble[1].at, "Given", 5);
    arena_deinit(&arena);
}

/* Nothing read past the end, nothing lost: every beginning of a template. */
static void test_cut_off(void **state)
{
    (void)state;
    static const char text[] =
        "{#- c -#}{{- 'a\\'b' ~ \"c\\n\" -}} x {%- for t in tools -%}{{ {'a': 1} }}{%";
    for (size_t n = 0; n < sizeof text; n++) {
        Arena arena = {0};
        TemplateFacts facts;
        char *copy = malloc(n + 1); /* of its exact size, for the sanitizer */
        memcpy(copy, text, n);
        template_read((Bytes){(const uint8_t *)copy, n}, &arena, &facts);
        free(copy);
        arena_deinit(&arena);
    }
}

/* ---- choosing --------------------------------------------------------------------------- */

static const char *chosen(Tokenizer *t, const char *text)
{
    ChatFormat *format = NULL;
    tokenizer_set_chat_template(t, text);
    assert_ok(chat_format_create(t, NULL, "test", &format));
    const char *name = format ? chat_format_name(format) : NULL;
    chat_format_destroy(format);
    return name;
}

static void test_own(void **state)
{
    (void)state;
    log_set_level(LOG_SILENT);
    for (int i = 0; i < 2; i++) {
        Speaker s = speaker_make("drover", i ? "llama4" : "llama3");
        ChatFormat *none = s.format;
        assert_ok(
            chat_format_create(s.tokenizer, NULL, "test", &none)); /* no template: no format */
        assert_null(none);
        const char *own = chat_template_own(s.tokenizer, &s.arena);
        assert_string_equal(chosen(s.tokenizer, own), "drover");
        Str changed = {0};
        const char *eot = strstr(own, "loop.first");
        str_add_n(&changed, own, (size_t)(eot - own));
        str_add(&changed, "loop.last");
        str_add(&changed, eot + strlen("loop.first"));
        assert_null(chosen(s.tokenizer, changed.at));
        str_deinit(&changed);
        /* By name, with the text of a template that is not known: the tools' text is taken from
         it. */
        ChatFormat *format;
        tokenizer_set_chat_template(s.tokenizer, "{{- 'Mine:' }}{%- for t in tools %}");
        assert_ok(chat_format_create(s.tokenizer, i ? "llama4" : "llama3.1", "test", &format));
        Bytes mine = chat_format_preamble(format, CHAT_TOOLS_IN_SYSTEM);
        assert_int_equal(mine.n, 5);
        assert_memory_equal(mine.at, "Mine:", 5);
        chat_format_destroy(format);
        speaker_free(&s);
    }
    log_set_level(LOG_INFO);
}

static void test_names(void **state)
{
    (void)state;
    Speaker s = speaker_make("llama4", "llama4");
    ChatFormat *format = NULL;
    assert_int_equal(chat_format_create(s.tokenizer, "lama4", "test", &format), ERR_ARG);
    assert_non_null(strstr(status_message(), "did you mean llama4"));
    assert_int_equal(chat_format_create(s.tokenizer, "llama3.1", "test", &format),
                     ERR_FORMAT); /* other tokens */
    assert_null(format);
    for (int i = 0; i < 5; i++) assert_non_null(chat_format_name_at(i));
    assert_null(chat_format_name_at(5));
    speaker_free(&s);
}

/* A token for turns that text is searched for is none: a message could forge it. */
static void test_open_tokens(void **state)
{
    (void)state;
    Arena arena = {0};
    Bytes json;
    Tokenizer *t;
    ChatFormat *format = NULL;
    char dir[] = "/tmp/drover-chat-XXXXXX";
    assert_non_null(mkdtemp(dir));
    const char *from = path_join(&arena, golden_dir, "llama4/tokenizer.json"),
               *to = path_join(&arena, dir, "tokenizer.json");
    assert_ok(file_read(&arena, from, 1 << 20, &json));
    const char *text = (const char *)json.at;
    const char *special = strstr(strstr(text, "\"<|eot|>\""), "\"special\": true");
    assert_non_null(special);
    const char *changed = arena_printf(&arena, "%.*s\"special\": false%s", (int)(special - text),
                                       text, special + strlen("\"special\": true"));
    assert_ok(file_write_atomic(to, changed, strlen(changed)));
    assert_ok(tokenizer_load(dir, &t));
    assert_int_equal(chat_format_create(t, "llama4", "test", &format), ERR_FORMAT);
    assert_null(format);
    tokenizer_destroy(t);
    assert_ok(dir_remove_tree(dir));
    arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),        cmocka_unit_test(test_different),
        cmocka_unit_test(test_preambles),   cmocka_unit_test(test_cut_off),
        cmocka_unit_test(test_own),         cmocka_unit_test(test_names),
        cmocka_unit_test(test_open_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
