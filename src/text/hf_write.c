/* Writing tokenizer.json and tokenizer_config.json.
 *
 * For tokenizers that came with neither: those of tiktoken files and trained ones, whose added
 * tokens have no flags. By hand instead of through a JSON tree: a tree of Llama 4's 640 thousand
 * strings takes longer to build than the text, and the text is plain: lists of strings. "a b" is
 * the form of merges that every version of the tokenizers library reads; no token has a space in
 * it, the byte map sees to that.
 */
#include "text/sp_model.h"

static void add_json_bytes(Str *s, const uint8_t *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"' || text[i] == '\\') {
            char pair[2] = {'\\', (char)text[i]};
            str_add_n(s, pair, 2);
        } else if (text[i] < 0x20) {
            str_printf(s, "\\u%04x", text[i]);
        } else {
            str_add_n(s, (const char *)text + i, 1);
        }
    }
}

static void add_json(Str *s, Bytes text)
{
    str_add(s, "\"");
    add_json_bytes(s, text.at, text.n);
    str_add(s, "\"");
}

/* A plain token through the byte map, without quotes. */
static void add_token(Str *s, const Tokenizer *t, int32_t id)
{
    Bytes b = token_bytes(t, id);
    for (size_t i = 0; i < b.n; i++) {
        uint8_t utf8[4];
        int n = utf8_encode((uint32_t)byte_char(b.at[i]), utf8);
        add_json_bytes(s, utf8, (size_t)n);
    }
}

static void add_added_tokens(Str *s, const Tokenizer *t)
{
    str_add(s, "  \"added_tokens\": [");
    const char *comma = "";
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (t->kind[id] < TOKEN_ADDED) continue;
        str_printf(s, "%s\n    {\"id\": %d, \"content\": ", comma, id);
        add_json(s, token_bytes(t, id));
        str_printf(s,
                   ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                   "\"normalized\": false, "
                   "\"special\": %s}",
                   t->kind[id] == TOKEN_SPECIAL ? "true" : "false");
        comma = ",";
    }
    str_add(s, "\n  ],\n");
}

static void add_split(Str *s, const Tokenizer *t)
{
    str_add(s, "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
               "    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
    add_json(s, (Bytes){(const uint8_t *)t->pattern, strlen(t->pattern)});
    str_add(s, "}, \"behavior\": \"Isolated\", \"invert\": false},\n"
               "    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
               "\"use_regex\": "
               "false}\n  ]},\n");
}

static void add_post_processor(Str *s, const Tokenizer *t)
{
    const char *byte_level = "{\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
                             "\"trim_offsets\": false, \"use_regex\": true}";
    if (!t->adds_bos || t->bos < 0) {
        str_printf(s, "  \"post_processor\": %s,\n", byte_level);
        return;
    }
    Str bos = {0};
    add_json(&bos, token_bytes(t, t->bos));
    str_printf(s, "  \"post_processor\": {\"type\": \"Sequence\", \"processors\": [\n    %s,\n",
               byte_level);
    str_printf(
        s,
        "    {\"type\": \"TemplateProcessing\",\n"
        "     \"single\": [{\"SpecialToken\": {\"id\": %s, \"type_id\": 0}}, {\"Sequence\": "
        "{\"id\": \"A\", "
        "\"type_id\": 0}}],\n"
        "     \"pair\": [{\"SpecialToken\": {\"id\": %s, \"type_id\": 0}}, {\"Sequence\": {\"id\": "
        "\"A\", "
        "\"type_id\": 0}}, {\"SpecialToken\": {\"id\": %s, \"type_id\": 1}}, {\"Sequence\": "
        "{\"id\": \"B\", "
        "\"type_id\": 1}}],\n"
        "     \"special_tokens\": {%s: {\"id\": %s, \"ids\": [%d], \"tokens\": [%s]}}}\n  ]},\n",
        bos.at, bos.at, bos.at, bos.at, bos.at, t->bos, bos.at);
    str_deinit(&bos);
}

static void add_model(Str *s, const Tokenizer *t)
{
    str_printf(s,
               "  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
               "\"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null, "
               "\"fuse_unk\": false, "
               "\"byte_fallback\": false, \"ignore_merges\": %s,\n    \"vocab\": {",
               t->whole_piece ? "true" : "false");
    const char *comma = "";
    for (int32_t id = 0; id < t->n_ids; id++) {
        if (t->kind[id] != TOKEN_PLAIN) continue;
        str_printf(s, "%s\n      \"", comma);
        add_token(s, t, id);
        str_printf(s, "\": %d", id);
        comma = ",";
    }
    str_add(s, "\n    },\n    \"merges\": [");
    comma = "";
    for (size_t i = 0; i < t->n_merges; i++) {
        str_printf(s, "%s\n      \"", comma);
        add_token(s, t, t->merges[i].left);
        str_add(s, " ");
        add_token(s, t, t->merges[i].right);
        str_add(s, "\"");
        comma = ",";
    }
    str_add(s, "\n    ]\n  }\n");
}

static void add_named(Str *s, const Tokenizer *t, const char *key, int32_t id)
{
    if (id < 0) return;
    str_printf(s, "  \"%s\": ", key);
    add_json(s, token_bytes(t, id));
    str_add(s, ",\n");
}

void hf_write_config(const Tokenizer *t, Str *s)
{
    str_add(s, "{\n");
    add_named(s, t, "bos_token", t->bos);
    add_named(s, t, "eos_token", t->eos);
    add_named(s, t, "pad_token", t->pad);
    if (t->sp) {
        add_named(s, t, "unk_token", t->sp->unk);
        str_add(s,
                "  \"add_bos_token\": false,\n  \"add_eos_token\": false,\n  \"legacy\": false,\n");
    }
    if (t->chat_template) {
        str_add(s, "  \"chat_template\": ");
        add_json(s, (Bytes){(const uint8_t *)t->chat_template, strlen(t->chat_template)});
        str_add(s, ",\n");
    }
    if (t->model_max_length > 0)
        str_printf(s, "  \"model_max_length\": %.17g,\n", t->model_max_length);
    str_printf(s,
               "  \"clean_up_tokenization_spaces\": false,\n"
               "  \"model_input_names\": [\"input_ids\", \"attention_mask\"],\n"
               "  \"tokenizer_class\": \"%s\"\n}\n",
               t->sp ? "LlamaTokenizer" : "PreTrainedTokenizerFast");
}

void hf_write_tokenizer(const Tokenizer *t, Str *s)
{
    str_add(s, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    add_added_tokens(s, t);
    str_add(s, "  \"normalizer\": null,\n");
    add_split(s, t);
    add_post_processor(s, t);
    str_add(s, "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
               "\"trim_offsets\": true, \"use_regex\": true},\n");
    add_model(s, t);
    str_add(s, "}\n");
}
