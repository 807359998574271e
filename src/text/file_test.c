/* Files: what is written is read back the same; what is not understood is refused by name. */
#include "text/text_test_util.h"

#include <stdio.h>
#include <unistd.h>

typedef struct Scratch {
    Arena arena;
    char *dir;
} Scratch;

static int make_dir(void **state)
{
    Scratch *s = xcalloc(1, sizeof *s);
    char name[] = "/tmp/drover-text-XXXXXX";
    if (!mkdtemp(name)) return -1;
    s->dir = arena_strdup(&s->arena, name);
    *state = s;
    return 0;
}

static int remove_dir(void **state)
{
    Scratch *s = *state;
    Status status = dir_remove_tree(s->dir);
    arena_deinit(&s->arena);
    free(s);
    return status == OK ? 0 : -1;
}

static void assert_same_tokenizer(const Tokenizer *a, const Tokenizer *b)
{
    assert_true(tokenizer_hash(a) == tokenizer_hash(b));
    assert_int_equal(tokenizer_bos(a), tokenizer_bos(b));
    assert_int_equal(tokenizer_eos(a), tokenizer_eos(b));
    assert_int_equal(tokenizer_pad(a), tokenizer_pad(b));
    assert_int_equal(tokenizer_adds_bos(a), tokenizer_adds_bos(b));
    assert_string_equal(tokenizer_pattern(a), tokenizer_pattern(b));
}

static void save_and_load(void **state)
{
    Scratch *s = *state;
    static const char *const patterns[] = {pattern_llama3, pattern_llama4, pattern_gpt2,
                                           "[a-z\"\\\\]+|\\s"};
    for (int i = 0; i < COUNT_OF(patterns); i++) {
        Tokenizer *t = make_tokenizer(7 + (uint64_t)i, 300, patterns[i]), *again = NULL;
        char *dir = arena_printf(&s->arena, "%s/tok%d/deeper", s->dir, i);
        t->chat_template = arena_strdup(&t->arena, "{{ \"a\\n\" }}\n\t{%- x -%}\x01");
        t->model_max_length = 1e30;
        t->whole_piece = i % 2;
        t->bos = tokenizer_id_of(t, "<|a|>");
        t->adds_bos = i != 3;
        build_finish(t);
        assert_ok(tokenizer_save(t, dir));
        assert_ok(tokenizer_load(dir, &again));
        assert_same_tokenizer(t, again);
        assert_string_equal(tokenizer_chat_template(again), tokenizer_chat_template(t));
        assert_true(again->model_max_length == 1e30);
        assert_int_equal(tokenizer_token_kind(again, 558), TOKEN_ADDED);
        tokenizer_destroy(again);
        assert_ok(tokenizer_load(path_join(&s->arena, dir, "tokenizer.json"), &again));
        assert_same_tokenizer(t, again);
        tokenizer_destroy(again);
        tokenizer_destroy(t);
    }
}

/* Bytes that are written in the byte map come back; every character of the map is its byte. */
static const char *template_with(Scratch *s, const char *dir, const char *config, const char *jinja)
{
    Arena *arena = &s->arena;
    Tokenizer *t;
    assert_ok(
        file_write_atomic(path_join(arena, dir, "tokenizer_config.json"), config, strlen(config)));
    const char *file = path_join(arena, dir, "chat_template.jinja");
    if (jinja)
        assert_ok(file_write_atomic(file, jinja, strlen(jinja)));
    else if (file_exists(file))
        assert_ok(file_unlink(file));
    assert_ok(tokenizer_load(dir, &t));
    const char *text = tokenizer_chat_template(t);
    const char *copy = text ? arena_strdup(arena, text) : "none";
    tokenizer_destroy(t);
    return copy;
}

/* A file of its own goes before tokenizer_config.json; of a list of templates the default is taken.
 */
static void chat_templates(void **state)
{
    Scratch *s = *state;
    Tokenizer *t = make_tokenizer(7, 30, pattern_llama4);
    char *dir = arena_printf(&s->arena, "%s/templates", s->dir);
    assert_ok(tokenizer_save(t, dir));
    tokenizer_destroy(t);
    static const char list[] = "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"b\"},"
                               "{\"name\": \"default\", \"template\": \"a\"}]}";
    assert_string_equal(template_with(s, dir, "{}", NULL), "none");
    assert_string_equal(template_with(s, dir, "{\"chat_template\": null}", NULL), "none");
    assert_string_equal(template_with(s, dir, "{\"chat_template\": \"x\"}", NULL), "x");
    assert_string_equal(template_with(s, dir, list, NULL), "a");
    assert_string_equal(template_with(s, dir, list, "c\n"), "c\n");
    assert_string_equal(template_with(s, dir, "{}", "c\n"), "c\n");
}

static void byte_map(void **state)
{
    (void)state;
    for (int b = 0; b < 256; b++)
        assert_int_equal(byte_of_char((uint32_t)byte_char((uint8_t)b)), b);
    assert_int_equal(byte_char(' '), 0x120);
    assert_int_equal(byte_char('\n'), 0x10a);
    assert_int_equal(byte_char(0xad), 0x143);
    for (uint32_t c = 0x144; c < 0x3000; c++) assert_int_equal(byte_of_char(c), -1);
    assert_int_equal(byte_of_char(' '), -1);
}

/* ---- refusals of tokenizer.json --------------------------------------------------------- */

/* A small file with one place changed: the first `from` becomes `to`. */
static char *sample(Arena *arena, const char *from, const char *to)
{
    Str s = {0};
    str_add(&s, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n"
                " \"added_tokens\": [{\"id\": 258, \"content\": \"<|eot|>\", \"single_word\": "
                "false, \"lstrip\": false,"
                " \"rstrip\": false, \"normalized\": false, \"special\": true}],\n"
                " \"normalizer\": null,\n"
                " \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
                "\"Split\", \"pattern\": "
                "{\"Regex\": \"\\\\p{L}+\"}, \"behavior\": \"Isolated\", \"invert\": false}, "
                "{\"type\": \"ByteLevel\", "
                "\"add_prefix_space\": false, \"use_regex\": false}]},\n"
                " \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"},\n"
                " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
                "\"byte_fallback\": false,"
                " \"ignore_merges\": false, \"vocab\": {");
    for (int b = 0; b < 256; b++) {
        uint8_t utf8[4];
        int n = utf8_encode((uint32_t)byte_char((uint8_t)b), utf8);
        str_printf(&s, "\"%s%.*s\": %d, ", b == '"' || b == '\\' ? "\\" : "", n, (const char *)utf8,
                   b);
    }
    str_add(&s, "\"ab\": 256, \"abc\": 257}, \"merges\": [\"a b\", [\"ab\", \"c\"]]}}");
    char *text = arena_strdup(arena, s.at), *place = strstr(s.at, from);
    if (!place) fail_msg("the sample has no %s", from);
    text = arena_printf(arena, "%.*s%s%s", (int)(place - s.at), text, to,
                        text + (place - s.at) + strlen(from));
    str_deinit(&s);
    return text;
}

typedef struct Refusal {
    const char *from, *to, *reason; /* reason: part of the sentence; NULL = must be accepted */
    Status status;
} Refusal;

static const Refusal refusals[] = {
    {"}", "}", NULL, OK},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": []}", NULL,
     OK},
    {"\"special\": true", "\"special\": false", NULL, OK},
    {"{\"version\"", "{\"version\": 1, \"version\"", "duplicate", ERR_FORMAT},
    {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "\"Unigram\"", ERR_UNSUPPORTED},
    {"\"byte_fallback\": false", "\"byte_fallback\": true", "byte_fallback", ERR_UNSUPPORTED},
    {"\"dropout\": null", "\"dropout\": 0.1", "dropout", ERR_UNSUPPORTED},
    {"\"unk_token\": null", "\"end_of_word_suffix\": \"</w>\"", "suffix", ERR_UNSUPPORTED},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "\"NFC\"", ERR_UNSUPPORTED},
    {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": {\"type\": \"WordPiece\"}",
     "\"WordPiece\"", ERR_UNSUPPORTED},
    {"\"post_processor\": null", "\"post_processor\": {\"type\": \"BertProcessing\"}",
     "\"BertProcessing\"", ERR_UNSUPPORTED},
    {"\"type\": \"Split\"", "\"type\": \"Digits\"", "\"Digits\"", ERR_UNSUPPORTED},
    {"\"Isolated\"", "\"Removed\"", "\"Removed\"", ERR_UNSUPPORTED},
    {"\"invert\": false", "\"invert\": true", "inverted", ERR_UNSUPPORTED},
    {"\"Regex\"", "\"String\"", "Regex", ERR_UNSUPPORTED},
    {"[{\"type\": \"Split\"",
     "[{\"type\": \"ByteLevel\", \"use_regex\": false}, {\"type\": \"Split\"",
     "\"Split\" behind ByteLevel", ERR_UNSUPPORTED},
    {"\\\\p{L}+", "(((", "pattern is wrong", ERR_FORMAT},
    {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space",
     ERR_UNSUPPORTED},
    {"\"use_regex\": false", "\"use_regex\": true", "more than one", ERR_UNSUPPORTED},
    {"\"lstrip\": false", "\"lstrip\": true", NULL, OK},
    {"\"normalized\": false", "\"normalized\": true", NULL, OK},
    {"\"id\": 258", "\"id\": 259", "\"<|eot|>\" has id 259, but the next free one is 258",
     ERR_FORMAT},
    {"\"<|eot|>\"", "\"ab\"", "\"ab\" has id 258, but in vocab it is 256", ERR_FORMAT},
    {"\"id\": 258", "\"id\": 99999", "\"<|eot|>\" has id 99999", ERR_FORMAT},
    {"\"id\": 258", "\"id\": -1", "\"<|eot|>\" has id -1", ERR_FORMAT},
    {"\"id\": 258", "\"id\": 257", "has id 257, but the next free one is 258", ERR_FORMAT},
    {"\"abc\": 257", "\"abc\": 256", "\"abc\" has id 256", ERR_FORMAT},
    {"\"abc\": 257", "\"abc\": 4294967296", "\"abc\" has id 4294967296", ERR_FORMAT},
    {"\"abc\": 257", "\"abc\": 99999999999999999999", "big integer", ERR_FORMAT},
    {"\"abc\": 257", "\"abc\": 257.0", "\"abc\" has no integer id", ERR_FORMAT},
    {"\"abc\": 257", "\"a bc\": 257", "\"a bc\"", ERR_UNSUPPORTED},
    {"\"A\": 65", "\"AA\": 65", "byte 0x41", ERR_UNSUPPORTED},
    {"\"a b\"", "\"ab\"", "merge 0", ERR_FORMAT},
    {"\"a b\"", "\"a q\"", "merge 0 gives \"aq\"", ERR_FORMAT},
    {"\"a b\"", "\"a b c\"", "merge 0", ERR_FORMAT},
    {"\"a b\"", "\"xyz b\"", "merge 0 joins \"xyz\"", ERR_FORMAT},
    {"\"a b\"", "\"a \"", "merge 0", ERR_FORMAT},
    {"[\"ab\", \"c\"]", "\"a b\"", "merge 1 is listed before", ERR_FORMAT},
    {"[\"ab\", \"c\"]", "[\"ab\"]", "merge 1", ERR_FORMAT},
    {"[\"ab\", \"c\"]", "[\"ab\", 3]", "merge 1", ERR_FORMAT},
};

static void what_is_not_understood_is_refused_by_name(void **state)
{
    Scratch *s = *state;
    for (int i = 0; i < COUNT_OF(refusals); i++) {
        const Refusal *r = &refusals[i];
        const char *text = sample(&s->arena, r->from, r->to);
        Tokenizer *t = NULL;
        Status status = hf_parse((Bytes){(const uint8_t *)text, strlen(text)}, "T.json", &t);
        if (status != r->status) fail_msg("%s: %s", r->to, status_message());
        if (r->reason &&
            (!strstr(status_message(), r->reason) || !strstr(status_message(), "T.json")))
            fail_msg("%s: the sentence is \"%s\"", r->to, status_message());
        tokenizer_destroy(t);
    }
}

static void merges_go_by_their_order(void **state)
{
    Scratch *s = *state;
    const char *text = sample(&s->arena, "\"abc\": 257}, \"merges\": [\"a b\", [\"ab\", \"c\"]]",
                              "\"bc\": 257}, \"merges\": [\"b c\", \"a b\"]");
    Tokenizer *t = NULL;
    assert_ok(hf_parse((Bytes){(const uint8_t *)text, strlen(text)}, "T.json", &t));
    Encoder *e;
    IdVec ids = {0};
    assert_ok(encoder_create(t, &e));
    assert_ok(encoder_encode(e, "abc", 3, ENCODE_TEXT, &ids));
    assert_int_equal(ids.n, 2); /* by rank "ab" (256) would come first */
    assert_int_equal(ids.at[0], 'a');
    assert_int_equal(ids.at[1], 257);
    VEC_FREE(&ids);
    encoder_destroy(e);
    tokenizer_destroy(t);
}

static void config_is_checked(void **state)
{
    (void)state;
    Tokenizer *t = make_tokenizer(1, 5, pattern_llama4);
    static const char good[] =
        "{\"eos_token\": {\"content\": \"<|ab|>\"}, \"bos_token\": null, \"pad_token\": \"<|a|>\","
        " \"model_max_length\": 1000000000000000019884624838656}";
    static const char *const bad[] = {"{\"eos_token\": \"<|none|>\"}", "{", "[",
                                      "{\"eos_token\": 1, \"eos_token\": 1}"};
    assert_ok(hf_parse_config((Bytes){(const uint8_t *)good, strlen(good)}, "C.json", t));
    assert_int_equal(t->eos, tokenizer_id_of(t, "<|ab|>"));
    assert_int_equal(t->pad, tokenizer_id_of(t, "<|a|>"));
    assert_true(t->bos == -1 && t->model_max_length > 9e29);
    for (int i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(
            hf_parse_config((Bytes){(const uint8_t *)bad[i], strlen(bad[i])}, "C.json", t),
            ERR_FORMAT);
    tokenizer_destroy(t);
}

/* ---- files beside a tokenizer ----------------------------------------------------------- */

static void put_file(Scratch *s, const char *dir, const char *name, const char *text)
{
    assert_ok(file_write_atomic(path_join(&s->arena, dir, name), text, strlen(text)));
}

static void assert_file(Scratch *s, const char *dir, const char *name, const char *text)
{
    Bytes file;
    assert_ok(file_read(&s->arena, path_join(&s->arena, dir, name), 1 << 20, &file));
    assert_int_equal(file.n, strlen(text));
    assert_memory_equal(file.at, text, file.n);
}

/* tokenizer_config.json has the last word on names, chat_template.jinja on the template; all is
 * written back as it came, what is not understood included. */
static void files_beside_are_read_and_kept(void **state)
{
    Scratch *s = *state;
    char *from = path_join(&s->arena, s->dir, "from"), *to = path_join(&s->arena, s->dir, "to");
    static const char map[] =
        "{\"eos_token\": {\"content\": \"<|eot|>\"}, \"bos_token\": \"ab\", \"more\": []}";
    static const char config[] =
        "{\"bos_token\": \"abc\", \"extra\": 1e3, \"chat_template\": [{\"name\": \"tools\", "
        "\"template\": \"T\"}, {\"name\": \"default\", \"template\": \"D\"}]}";
    static const char jinja[] = "{{ messages }}\n\xc3\xa9";
    const char *model = sample(&s->arena, "\"lstrip\": false", "\"lstrip\": true");
    Tokenizer *t = NULL;
    assert_ok(dir_create(from));
    put_file(s, from, "tokenizer.json", model);
    put_file(s, from, "special_tokens_map.json", map);
    assert_true(tokenizer_exists(from) && !tokenizer_exists(s->dir));
    assert_ok(tokenizer_load(from, &t));
    assert_int_equal(tokenizer_bos(t), 256);
    assert_int_equal(tokenizer_eos(t), 258);
    assert_null(tokenizer_chat_template(t));
    assert_false(tokenizer_is_reversible(t));
    tokenizer_destroy(t);
    put_file(s, from, "tokenizer_config.json", config);
    assert_ok(tokenizer_load(from, &t));
    assert_int_equal(tokenizer_bos(t), 257);
    assert_string_equal(tokenizer_chat_template(t), "D");
    tokenizer_destroy(t);
    put_file(s, from, "chat_template.jinja", jinja);
    assert_ok(dir_create(to));
    put_file(s, to, "tokenizer.model", "another one");
    assert_ok(tokenizer_load(from, &t));
    assert_string_equal(tokenizer_chat_template(t), jinja);
    assert_ok(tokenizer_save(t, to));
    tokenizer_destroy(t);
    assert_file(s, to, "tokenizer.json", model);
    assert_file(s, to, "special_tokens_map.json", map);
    assert_file(s, to, "tokenizer_config.json", config);
    assert_file(s, to, "chat_template.jinja", jinja);
    assert_false(file_exists(path_join(&s->arena, to, "tokenizer.model")));
    put_file(s, from, "chat_template.jinja", "\xff");
    assert_int_equal(tokenizer_load(from, &t), ERR_FORMAT);
    put_file(s, from, "special_tokens_map.json", "{\"eos_token\": \"nothing\"}");
    assert_int_equal(tokenizer_load(from, &t), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "special_tokens_map.json: eos_token \"nothing\""));
}

/* ---- tiktoken --------------------------------------------------------------------------- */

static void add_base64(Str *s, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t bits = (uint32_t)bytes[i] << 16;
        if (i + 1 < n) bits |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < n) bits |= bytes[i + 2];
        for (size_t k = 0; k < 4; k++)
            str_add_n(s, i + k > n ? "=" : &digits[bits >> (18 - 6 * k) & 63], 1);
    }
}

/* The plain tokens of a tokenizer as a tiktoken file. */
static Str tiktoken_file(const Tokenizer *t)
{
    Str s = {0};
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (t->kind[id] != TOKEN_PLAIN) continue;
        add_base64(&s, token_bytes(t, id).at, token_bytes(t, id).n);
        str_printf(&s, " %d\n", id);
    }
    return s;
}

static void tiktoken_files(void **state)
{
    (void)state;
    Tokenizer *t = make_tokenizer(11, 200, pattern_llama4), *read = NULL;
    Str file = tiktoken_file(t);
    Bytes bytes = {(const uint8_t *)file.at, file.n};
    assert_int_equal(tiktoken_parse(bytes, "T.model", false, &read), ERR_UNSUPPORTED);
    assert_non_null(strstr(status_message(), "456 tokens"));
    assert_ok(tiktoken_parse(bytes, "T.model", true, &read));
    assert_int_equal(tokenizer_merge_count(read), tokenizer_merge_count(t));
    for (int32_t id = 0; id < 456; id++) {
        Bytes a = token_bytes(t, id), b = token_bytes(read, id);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.at, b.at, a.n);
    }
    assert_int_equal(tokenizer_bos(read), 456);
    tokenizer_destroy(read);
    tokenizer_destroy(t);
    str_deinit(&file);
}

static void damaged_tiktoken_files_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"IQ==",
                                      "IQ== ",
                                      "IQ== x",
                                      "IQ== 1",
                                      "IQ== 0\nIg== 2\n",
                                      "IQ= 0",
                                      "I*== 0",
                                      "IR== 0",
                                      "IQ== 0\nIQ== 1",
                                      "=== 0",
                                      " 0",
                                      "==== 0",
                                      "IQ== 00000000000000000000000000001",
                                      "IQ==\t0",
                                      "IQ== 0 0\n",
                                      "\x0a\x0b\x01",
                                      "IQ== -1"};
    Tokenizer *t = NULL;
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Status status = tiktoken_parse((Bytes){(const uint8_t *)bad[i], strlen(bad[i])}, "T.model",
                                       true, &t);
        assert_true(status == ERR_FORMAT || status == ERR_UNSUPPORTED);
        assert_non_null(strstr(status_message(), "T.model"));
        assert_null(t);
    }
}

/* ---- files of any size ------------------------------------------------------------------ */

static Status parse_repeated(const char *head, const char *entry, size_t n,
                             Status (*parse)(Bytes, Tokenizer **))
{
    size_t head_n = strlen(head), entry_n = strlen(entry);
    uint8_t *file = xmalloc(head_n + n * entry_n);
    memcpy(file, head, head_n);
    for (size_t i = 0; i < n; i++) memcpy(file + head_n + i * entry_n, entry, entry_n);
    Tokenizer *t = NULL;
    Status status = parse((Bytes){file, head_n + n * entry_n}, &t);
    assert_null(t);
    free(file);
    return status;
}

static Status parse_json(Bytes file, Tokenizer **t) { return hf_parse(file, "T.json", t); }
static Status parse_pieces(Bytes file, Tokenizer **t) { return sp_parse(file, "T.model", t); }

/* Ranks 0 to n - 1, each of three bytes of its own. */
static Status parse_ranks(size_t n, bool any_size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    Str file = {0};
    Tokenizer *t = NULL;
    for (size_t i = 0; i < n; i++)
        str_printf(&file, "%c%c%c%c %zu\n", digits[i >> 18 & 63], digits[i >> 12 & 63],
                   digits[i >> 6 & 63], digits[i & 63], i);
    Status status = tiktoken_parse((Bytes){(const uint8_t *)file.at, file.n}, "T.model", any_size,
                                   &t);
    assert_null(t);
    str_deinit(&file);
    return status;
}

/* Ten million entries are refused before anything is built of them, in a memory of the file's
 * order. */
static void too_many_entries_are_refused(void **state)
{
    (void)state;
    enum { MANY = 10 * 1000 * 1000 };
    double start = processor_s();
    assert_int_equal(parse_repeated("{\"added_tokens\": [0", ",1", MANY, parse_json), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "T.json: 10000001 values"));
    assert_int_equal(parse_repeated("",
                                    "\x0a\x03\x0a\x01"
                                    "a",
                                    MANY, parse_pieces),
                     ERR_REFUSED);
    assert_non_null(strstr(status_message(), "T.model: more than 2097152 pieces"));
    assert_int_equal(parse_ranks(MAX_TOKENS + 1, true), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "T.model: more than 2097152 tokens"));
    assert_int_equal(parse_ranks(300 * 1000, false), ERR_REFUSED);
    assert_non_null(strstr(status_message(), "T.model: more than 200000 tokens"));
    assert_true(processor_s() - start < 60); /* about one */
    assert_true(memory_peak_rss_bytes() < (size_t)1 << 30);
}

static void wrong_paths(void **state)
{
    Scratch *s = *state;
    Tokenizer *t = NULL;
    char *file = path_join(&s->arena, s->dir, "tokenizer.model");
    assert_int_equal(tokenizer_load(s->dir, &t), ERR_IO);
    assert_int_equal(tokenizer_load(file, &t), ERR_IO);
    assert_ok(file_write_atomic(file, "\n\x0e\n\x05<unk>", 10));
    assert_int_equal(tokenizer_load(s->dir, &t), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "not a SentencePiece model"));
    assert_ok(file_write_atomic(file, "\n\n\nIQ== 0\n", 10)); /* begins like one, but is lines */
    assert_int_equal(tokenizer_load(s->dir, &t), ERR_UNSUPPORTED);
    assert_non_null(strstr(status_message(), "1 tokens: neither"));
    assert_ok(file_write_atomic(file, "", 0));
    assert_int_equal(tokenizer_load(s->dir, &t), ERR_FORMAT);
    assert_null(t);
}

/* Loading from a tiktoken file and from what is saved of it gives one tokenizer. */
static void published_survive_saving(void **state)
{
    Scratch *s = *state;
    static const char *const names[] = {"llama3.model", "llama4.model"};
    const char *dir = getenv("DROVER_TOKENIZERS");
    if (!dir) skip();
    for (int i = 0; i < COUNT_OF(names); i++) {
        Tokenizer *t = NULL, *again = NULL;
        const char *path = path_join(&s->arena, dir, names[i]);
        if (!file_exists(path)) skip();
        assert_ok(tokenizer_load(path, &t));
        char *saved = path_join(&s->arena, s->dir, names[i]);
        assert_ok(tokenizer_save(t, saved));
        assert_ok(tokenizer_load(saved, &again));
        assert_same_tokenizer(t, again);
        tokenizer_destroy(t);
        tokenizer_destroy(again);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(save_and_load, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(chat_templates, make_dir, remove_dir),
        cmocka_unit_test(byte_map),
        cmocka_unit_test_setup_teardown(what_is_not_understood_is_refused_by_name, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(merges_go_by_their_order, make_dir, remove_dir),
        cmocka_unit_test(config_is_checked),
        cmocka_unit_test_setup_teardown(files_beside_are_read_and_kept, make_dir, remove_dir),
        cmocka_unit_test(tiktoken_files),
        cmocka_unit_test(damaged_tiktoken_files_are_refused),
        cmocka_unit_test(too_many_entries_are_refused),
        cmocka_unit_test_setup_teardown(wrong_paths, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(published_survive_saving, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
