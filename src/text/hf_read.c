/* Reading Hugging Face's tokenizer.json and tokenizer_config.json.
 *
 * Read is what describes a byte-level BPE: model BPE with or without ignore_merges, merges as texts
 * or as pairs; pre_tokenizer a Split by a Regex, Isolated, then ByteLevel, or ByteLevel alone with
 * or without use_regex; decoder ByteLevel; no normalizer; added tokens with all their flags. Any
 * regex is taken; those of Llama 3 and Llama 4 are scanned by hand. What would change the ids and
 * is not known here is refused by its name; truncation and padding, which concern batches, are
 * passed over.
 */
#include "text/text_internal.h"

#include <jansson.h>
#include <stdlib.h>

typedef struct Reader {
    const char *name; /* of the file */
    Arena arena;
    json_t *root;
    Tokenizer *t;
    int32_t id_limit; /* ids are below */
    int32_t next_id;  /* of an added token that the vocabulary does not have */
    TokenList list;
    VEC(MergeRule) rules;
} Reader;

/* ---- the byte map ----------------------------------------------------------------------- */

/* Printable bytes stand for themselves; the other 68, in order, for U+0100 and on. */
static bool is_printable_byte(int b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
}

int32_t byte_char(uint8_t byte)
{
    if (is_printable_byte(byte)) return byte;
    int32_t n = 0;
    for (int b = 0; b < byte; b++) n += !is_printable_byte(b);
    return 256 + n;
}

int byte_of_char(uint32_t code_point)
{
    if (code_point < 256) return is_printable_byte((int)code_point) ? (int)code_point : -1;
    if (code_point < 256 + 33) return (int)code_point - 256;
    if (code_point < 256 + 67) return (int)code_point - 256 - 33 + 127;
    return code_point == 256 + 67 ? 173 : -1;
}

/* The bytes a token string stands for, into out (n bytes are enough); -1 where the map ends. */
static int64_t decode_token(const char *text, size_t n, uint8_t *out)
{
    int64_t n_out = 0;
    for (size_t i = 0; i < n;) {
        uint32_t code_point;
        int length = utf8_decode((const uint8_t *)text + i, n - i, &code_point);
        int byte = length ? byte_of_char(code_point) : -1;
        if (byte < 0) return -1;
        out[n_out++] = (uint8_t)byte;
        i += (size_t)length;
    }
    return n_out;
}

/* ---- small questions to JSON ------------------------------------------------------------ */

static bool is_null(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value);
}

static bool is_true(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static bool type_is(const json_t *object, const char *type)
{
    return strcmp(text_of(object, "type"), type) == 0;
}

/* ---- vocabulary ------------------------------------------------------------------------- */

static Status check_id(const Reader *r, const char *what, const char *token, const json_t *value,
                       int32_t *id)
{
    if (!json_is_integer(value))
        return fail(ERR_FORMAT, "%s: %s \"%.60s\" has no integer id", r->name, what, token);
    json_int_t n = json_integer_value(value);
    if (n < 0 || n >= r->id_limit)
        return fail(ERR_FORMAT,
                    "%s: %s \"%.60s\" has id %lld; with that many entries ids are from 0 to %d (at "
                    "most half unused)",
                    r->name, what, token, (long long)n, r->id_limit - 1);
    *id = (int32_t)n;
    return OK;
}

static uint8_t added_flags(const json_t *entry)
{
    return (uint8_t)((is_true(entry, "lstrip") ? ADDED_LSTRIP : 0) |
                     (is_true(entry, "rstrip") ? ADDED_RSTRIP : 0) |
                     (is_true(entry, "single_word") ? ADDED_SINGLE_WORD : 0) |
                     (is_true(entry, "normalized") ? ADDED_NORMALIZED : 0));
}

/* tokenizers does not take the id from here: a token that the vocabulary has gets its id there, any
 * other the next one. A file in which these differ means other ids to other readers. */
static Status check_added_id(Reader *r, const char *content, const json_t *vocab, int32_t id)
{
    const json_t *in_vocab = json_object_get(vocab, content);
    json_int_t expected = in_vocab ? json_integer_value(in_vocab) : r->next_id++;
    if (expected == id) return OK;
    return fail(ERR_FORMAT, "%s: added token \"%.60s\" has id %d, but %s is %lld", r->name, content,
                id, in_vocab ? "in vocab it" : "the next free one", (long long)expected);
}

static Status read_added_token(Reader *r, const json_t *entry, const json_t *vocab)
{
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (!content)
        return fail(ERR_FORMAT, "%s: an entry of added_tokens has no \"content\"", r->name);
    int32_t id = -1;
    TRY(check_id(r, "added token", content, json_object_get(entry, "id"), &id));
    if (r->list.kind[id] != TOKEN_NONE)
        return fail(ERR_FORMAT, "%s: added token \"%.60s\" has id %d, which another one has too",
                    r->name, content, id);
    TRY(check_added_id(r, content, vocab, id));
    r->list.token[id] = (Bytes){(const uint8_t *)content, strlen(content)};
    r->list.kind[id] = is_true(entry, "special") ? TOKEN_SPECIAL : TOKEN_ADDED;
    r->list.flags[id] = added_flags(entry);
    if (id >= r->list.n) r->list.n = id + 1;
    return OK;
}

static Status read_vocab_entry(Reader *r, const char *key, size_t n, const json_t *value)
{
    int32_t id = -1;
    TRY(check_id(r, "vocab entry", key, value, &id));
    Bytes *token = &r->list.token[id];
    uint8_t *kind = &r->list.kind[id];
    uint8_t *bytes = arena_alloc(&r->arena, n);
    int64_t n_bytes = decode_token(key, n, bytes);
    if (*kind >= TOKEN_ADDED && token->n == n && memcmp(token->at, key, n) == 0) {
        /* Listed twice. A word that is not special may also come from merging, where it is not
         * cut out; a special token never comes from a text's letters. */
        bool same = n_bytes == (int64_t)n && memcmp(bytes, key, n) == 0;
        if (*kind == TOKEN_ADDED && same) r->list.flags[id] |= ADDED_MERGEABLE;
        return OK;
    }
    if (*kind != TOKEN_NONE)
        return fail(ERR_FORMAT, "%s: vocab entry \"%.60s\" has id %d, which another one has too",
                    r->name, key, id);
    if (n_bytes < 0)
        return fail(ERR_UNSUPPORTED,
                    "%s: vocab entry \"%.60s\" (id %d) has a character outside the byte map: not a "
                    "byte-level BPE",
                    r->name, key, id);
    *token = (Bytes){bytes, (size_t)n_bytes};
    *kind = TOKEN_PLAIN;
    if (id >= r->list.n) r->list.n = id + 1;
    return OK;
}

static Status read_vocabulary(Reader *r, json_t *model)
{
    json_t *vocab = json_object_get(model, "vocab"),
           *added = json_object_get(r->root, "added_tokens"), *value;
    if (!json_is_object(vocab))
        return fail(ERR_FORMAT, "%s: model.vocab is not an object", r->name);
    if (added && !json_is_array(added))
        return fail(ERR_FORMAT, "%s: added_tokens is not a list", r->name);
    size_t n = json_object_size(vocab) + json_array_size(added);
    if (n > MAX_TOKENS)
        return fail(ERR_REFUSED, "%s: %zu tokens; at most %d are read", r->name, n, MAX_TOKENS);
    r->id_limit = (int32_t)(2 * n);
    r->next_id = (int32_t)json_object_size(vocab);
    r->list = (TokenList){.token = ARENA_ARRAY(&r->arena, Bytes, 2 * n),
                          .kind = arena_alloc(&r->arena, 2 * n),
                          .flags = arena_alloc(&r->arena, 2 * n),
                          .where = r->name};
    for (size_t i = 0; i < json_array_size(added); i++)
        TRY(read_added_token(r, json_array_get(added, i), vocab));
    const char *key;
    size_t key_n;
    json_object_keylen_foreach(vocab, key, key_n, value)
    {
        TRY(read_vocab_entry(r, key, key_n, value));
    }
    return build_vocabulary(r->t, &r->list);
}

/* ---- merges ----------------------------------------------------------------------------- */

/* "a b" or ["a", "b"]. */
static bool merge_parts(const json_t *entry, Bytes part[2])
{
    if (json_is_string(entry)) {
        const char *text = json_string_value(entry), *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' ')) return false;
        part[0] = (Bytes){(const uint8_t *)text, (size_t)(space - text)};
        part[1] = (Bytes){(const uint8_t *)space + 1, strlen(space + 1)};
        return true;
    }
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_array_get(entry, i);
        if (!json_is_string(value)) return false;
        part[i] = (Bytes){(const uint8_t *)json_string_value(value), json_string_length(value)};
    }
    return json_array_size(entry) == 2;
}

static Status read_merge(Reader *r, const json_t *entry, size_t index)
{
    Bytes part[2];
    if (!merge_parts(entry, part))
        return fail(ERR_FORMAT, "%s: merge %zu is neither \"a b\" nor [\"a\", \"b\"]", r->name,
                    index);
    uint8_t bytes[2 * MAX_TOKEN_BYTES];
    int32_t id[3];
    size_t n = 0;
    for (int i = 0; i < 2; i++) {
        int64_t n_part = part[i].n > 2 * MAX_TOKEN_BYTES - n
                             ? -1
                             : decode_token((const char *)part[i].at, part[i].n, bytes + n);
        id[i] = n_part < 0 ? -1 : vocab_find_bytes(r->t, bytes + n, (size_t)n_part);
        if (id[i] < 0)
            return fail(ERR_FORMAT, "%s: merge %zu joins \"%.*s\", which is no entry of vocab",
                        r->name, index, (int)min_i64(60, (int64_t)part[i].n),
                        (const char *)part[i].at);
        n += (size_t)n_part;
    }
    id[2] = vocab_find_bytes(r->t, bytes, n);
    if (id[2] < 0)
        return fail(ERR_FORMAT, "%s: merge %zu gives \"%.*s%.*s\", which is no entry of vocab",
                    r->name, index, (int)min_i64(60, (int64_t)part[0].n), (const char *)part[0].at,
                    (int)min_i64(60, (int64_t)part[1].n), (const char *)part[1].at);
    VEC_PUSH(&r->rules, ((MergeRule){id[0], id[1], id[2], (uint32_t)index}));
    return OK;
}

static Status read_merges(Reader *r, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_array(merges)) return fail(ERR_FORMAT, "%s: model.merges is not a list", r->name);
    size_t n = json_array_size(merges);
    if (n > MAX_TOKENS)
        return fail(ERR_REFUSED, "%s: %zu merges; at most %d are read", r->name, n, MAX_TOKENS);
    for (size_t i = 0; i < n; i++) TRY(read_merge(r, json_array_get(merges, i), i));
    return build_merges(r->t, r->rules.at, r->rules.n, r->name);
}

/* ---- the other parts -------------------------------------------------------------------- */

static Status check_model(const Reader *r, const json_t *model)
{
    if (!json_is_object(model)) return fail(ERR_FORMAT, "%s has no \"model\"", r->name);
    if (!type_is(model, "BPE"))
        return fail(ERR_UNSUPPORTED, "%s: model type \"%.40s\"; only byte-level BPE is read",
                    r->name, text_of(model, "type"));
    if (is_true(model, "byte_fallback"))
        return fail(ERR_UNSUPPORTED,
                    "%s: byte_fallback is on: a SentencePiece vocabulary, which is read from its "
                    "tokenizer.model",
                    r->name);
    if (*text_of(model, "continuing_subword_prefix") || *text_of(model, "end_of_word_suffix"))
        return fail(ERR_UNSUPPORTED, "%s: subword prefixes or suffixes are not supported", r->name);
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) > 0)
        return fail(ERR_UNSUPPORTED, "%s: dropout of merges is not supported", r->name);
    return OK;
}

static Status read_split(Reader *r, const json_t *split)
{
    const json_t *pattern = json_object_get(split, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    if (!regex)
        return fail(ERR_UNSUPPORTED, "%s: a Split without a Regex pattern is not supported",
                    r->name);
    if (strcmp(text_of(split, "behavior"), "Isolated") != 0 || is_true(split, "invert"))
        return fail(ERR_UNSUPPORTED,
                    "%s: Split with behavior \"%.40s\"%s; only Isolated is supported", r->name,
                    text_of(split, "behavior"), is_true(split, "invert") ? ", inverted" : "");
    if (r->t->pattern)
        return fail(ERR_UNSUPPORTED, "%s: more than one pre-tokenizer pattern", r->name);
    return build_pattern(r->t, regex, r->name);
}

static Status read_byte_level(Reader *r, const json_t *part)
{
    if (is_true(part, "add_prefix_space"))
        return fail(ERR_UNSUPPORTED, "%s: ByteLevel with add_prefix_space is not supported",
                    r->name);
    const json_t *use_regex = json_object_get(part, "use_regex");
    if (use_regex && !json_is_true(use_regex)) return OK;
    if (r->t->pattern)
        return fail(ERR_UNSUPPORTED, "%s: more than one pre-tokenizer pattern", r->name);
    return build_pattern(r->t, pattern_gpt2, r->name);
}

static Status read_pre_tokenizer(Reader *r, const json_t *part, bool *has_byte_level)
{
    if (*has_byte_level)
        return fail(ERR_UNSUPPORTED,
                    "%s: pre_tokenizer \"%.40s\" behind ByteLevel is not supported: it would see "
                    "the byte map",
                    r->name, text_of(part, "type"));
    if (type_is(part, "Split")) return read_split(r, part);
    if (type_is(part, "ByteLevel")) {
        *has_byte_level = true;
        return read_byte_level(r, part);
    }
    return fail(ERR_UNSUPPORTED, "%s: pre_tokenizer \"%.40s\" is not supported", r->name,
                text_of(part, "type"));
}

static Status read_pre_tokenizers(Reader *r)
{
    const json_t *pre = json_object_get(r->root, "pre_tokenizer");
    bool has_byte_level = false;
    if (type_is(pre, "Sequence")) {
        const json_t *parts = json_object_get(pre, "pretokenizers");
        for (size_t i = 0; i < json_array_size(parts); i++)
            TRY(read_pre_tokenizer(r, json_array_get(parts, i), &has_byte_level));
    } else {
        TRY(read_pre_tokenizer(r, pre, &has_byte_level));
    }
    if (!has_byte_level) return fail(ERR_UNSUPPORTED, "%s: no ByteLevel pre_tokenizer", r->name);
    if (!r->t->pattern)
        return build_pattern(r->t, "[\\s\\S]+", r->name); /* no split: the text is one piece */
    return OK;
}

static Status check_normalizer_and_decoder(const Reader *r)
{
    const json_t *normalizer = json_object_get(r->root, "normalizer"),
                 *decoder = json_object_get(r->root, "decoder");
    bool is_empty = type_is(normalizer, "Sequence") &&
                    json_array_size(json_object_get(normalizer, "normalizers")) == 0;
    if (!is_null(r->root, "normalizer") && !is_empty)
        return fail(
            ERR_UNSUPPORTED,
            "%s: normalizer \"%.40s\" is not supported: decoding would not give the text back",
            r->name, text_of(normalizer, "type"));
    if (!is_null(r->root, "decoder") && !type_is(decoder, "ByteLevel"))
        return fail(ERR_UNSUPPORTED, "%s: decoder \"%.40s\"; only ByteLevel is supported", r->name,
                    text_of(decoder, "type"));
    return OK;
}

/* Only whether something comes before the text matters, and that it is one token. */
static Status read_post_processor(Reader *r, const json_t *post)
{
    if (!post || json_is_null(post) || type_is(post, "ByteLevel")) return OK;
    if (type_is(post, "Sequence")) {
        const json_t *parts = json_object_get(post, "processors");
        for (size_t i = 0; i < json_array_size(parts); i++) {
            const json_t *part = json_array_get(parts, i);
            if (type_is(part, "Sequence"))
                return fail(ERR_UNSUPPORTED, "%s: a post_processor Sequence in a Sequence",
                            r->name);
            TRY(read_post_processor(r, part));
        }
        return OK;
    }
    if (!type_is(post, "TemplateProcessing"))
        return fail(ERR_UNSUPPORTED, "%s: post_processor \"%.40s\" is not supported", r->name,
                    text_of(post, "type"));
    const json_t *special = json_object_get(json_array_get(json_object_get(post, "single"), 0),
                                            "SpecialToken");
    if (!special) return OK;
    r->t->adds_bos = true;
    r->t->bos = tokenizer_id_of(r->t, text_of(special, "id"));
    return OK;
}

/* A tree of JSON takes up to a hundred bytes for a value, which is two in the text. */
static Status check_size(const char *name, Bytes file)
{
    size_t n_values = 0;
    for (size_t i = 0; i < file.n; i++) n_values += file.at[i] == ',' || file.at[i] == '[';
    if (n_values <= MAX_JSON_VALUES) return OK;
    return fail(ERR_REFUSED, "%s: %zu values; at most %d are read", name, n_values,
                MAX_JSON_VALUES);
}

static Status parse(Reader *r, Bytes file)
{
    json_error_t error;
    TRY(check_size(r->name, file));
    r->root = json_loadb((const char *)file.at, file.n, JSON_REJECT_DUPLICATES, &error);
    if (!r->root) return fail(ERR_FORMAT, "%s line %d: %s", r->name, error.line, error.text);
    json_t *model = json_object_get(r->root, "model");
    TRY(check_model(r, model));
    TRY(check_normalizer_and_decoder(r));
    TRY(read_pre_tokenizers(r));
    r->t->whole_piece = is_true(model, "ignore_merges");
    TRY(read_vocabulary(r, model));
    TRY(read_merges(r, model));
    return read_post_processor(r, json_object_get(r->root, "post_processor"));
}

Status hf_parse(Bytes file, const char *name, Tokenizer **out)
{
    Reader r = {.name = name, .t = tokenizer_new(&kind_byte_level)};
    Status status = parse(&r, file);
    json_decref(r.root);
    VEC_FREE(&r.rules);
    arena_deinit(&r.arena);
    if (status != OK) {
        tokenizer_destroy(r.t);
        return status;
    }
    build_finish(r.t);
    *out = r.t;
    return OK;
}

/* ---- tokenizer_config.json -------------------------------------------------------------- */

/* "name" or {"content": "name", ...}; absent or null leaves *id as it is. */
static Status read_named_token(const json_t *root, const char *key, const char *name,
                               const Tokenizer *t, int32_t *id)
{
    const json_t *value = json_object_get(root, key);
    const char *text = json_is_object(value) ? text_of(value, "content") : json_string_value(value);
    if (!text) return OK;
    int32_t found = tokenizer_id_of(t, text);
    if (found < 0)
        return fail(ERR_FORMAT, "%s: %s \"%.60s\" is no token of the vocabulary", name, key, text);
    *id = found;
    return OK;
}

static Status read_named_tokens(const json_t *root, const char *name, Tokenizer *t)
{
    TRY(read_named_token(root, "bos_token", name, t, &t->bos));
    TRY(read_named_token(root, "eos_token", name, t, &t->eos));
    return read_named_token(root, "pad_token", name, t, &t->pad);
}

/* A text, or a list of {"name", "template"}, of which the one named default counts. */
static const char *default_template(const json_t *value)
{
    if (json_is_string(value)) return json_string_value(value);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        if (strcmp(text_of(entry, "name"), "default") == 0)
            return json_string_value(json_object_get(entry, "template"));
    }
    return NULL;
}

static Status read_config(const json_t *root, const char *name, Tokenizer *t)
{
    TRY(read_named_tokens(root, name, t));
    t->model_max_length = json_number_value(json_object_get(root, "model_max_length"));
    const char *chat_template = default_template(json_object_get(root, "chat_template"));
    if (chat_template) tokenizer_set_chat_template(t, chat_template);
    /* A tokenizer.json says it in its post_processor, a SentencePiece model cannot. */
    const json_t *adds_bos = json_object_get(root, "add_bos_token");
    if (t->sp && json_is_boolean(adds_bos)) t->adds_bos = json_is_true(adds_bos);
    return OK;
}

static Status load_json(Bytes file, const char *name, json_t **root)
{
    json_error_t error;
    TRY(check_size(name, file));
    /* transformers writes "no limit" as an integer of 31 digits: read as real */
    *root = json_loadb((const char *)file.at, file.n,
                       JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error);
    return *root ? OK : fail(ERR_FORMAT, "%s line %d: %s", name, error.line, error.text);
}

Status hf_parse_config(Bytes file, const char *name, Tokenizer *t)
{
    json_t *root;
    TRY(load_json(file, name, &root));
    Status status = read_config(root, name, t);
    json_decref(root);
    return status;
}

Status hf_parse_special_map(Bytes file, const char *name, Tokenizer *t)
{
    json_t *root;
    TRY(load_json(file, name, &root));
    Status status = read_named_tokens(root, name, t);
    json_decref(root);
    return status;
}
