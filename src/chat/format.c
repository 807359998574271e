/* The list of formats, and which of them a tokenizer's chat template is. */
#include "chat/chat_internal.h"

#include <stdlib.h>

static const FormatDef *const formats[] = {&format_llama3, &format_llama31, &format_llama32,
                                           &format_llama4, &format_own};

/* The structure (template.c) of templates whose ids and masks were compared with ours, see
 * docs/chat.md. */
static const struct {
    uint64_t structure;
    const FormatDef *def;
    bool always_answers;
} known[] = {
    {0x1205caddb85da477, &format_llama3, true},  /* Meta-Llama-3-8B-Instruct, first edition */
    {0x4c45686fe8b7a444, &format_llama3, false}, /* the same, later */
    {0x27ce5717a4d21f0a, &format_llama31,
     false}, /* Llama-3.1-8B-Instruct, Llama-3.3-70B-Instruct */
    {0x0b067197f3db4dcc, &format_llama32, false}, /* Llama-3.2-1B-Instruct, -3B-Instruct */
    {0x121b6a8e967f5c59, &format_llama4, false},  /* Llama-4-Scout-17B-16E-Instruct, Maverick */
};

const char *chat_format_name_at(int index)
{
    return index < COUNT_OF(formats) ? formats[index]->name : NULL;
}
const char *chat_format_name(const ChatFormat *format) { return format->def->name; }

/* ---- what the template says ------------------------------------------------------------- */

/* For the warning: the format that a changed template came from, by the words that set them apart.
 */
static const char *nearest_format(const char *text)
{
    if (strstr(text, "<|header_start|>")) return format_llama4.name;
    if (!strstr(text, "<|start_header_id|>")) return NULL;
    if (strstr(text, "builtin_tools")) return format_llama31.name;
    return strstr(text, "tools_in_user_message") ? format_llama32.name : format_llama3.name;
}

static const FormatDef *identify(const Tokenizer *t, const TemplateFacts *facts, Arena *arena,
                                 bool *always_answers)
{
    for (int i = 0; i < COUNT_OF(known); i++) {
        if (known[i].structure != facts->structure) continue;
        *always_answers = known[i].always_answers;
        return known[i].def;
    }
    const char *own = chat_template_own(t, arena);
    TemplateFacts of_own;
    if (!own) return NULL;
    template_read(bytes_of(own), arena, &of_own);
    return of_own.structure == facts->structure ? &format_own : NULL;
}

/* ---- making one ------------------------------------------------------------------------- */

/* Only tokens that no text can be encoded to: a token that text is searched for would let a message
 * forge turns. */
static void find_tokens(ChatFormat *f, const char *const *names)
{
    f->token_names = names;
    for (int i = 0; i < FORMAT_TOKENS; i++) {
        int32_t id = names[i] ? tokenizer_id_of(f->tokenizer, names[i]) : -1;
        f->token[i] = id >= 0 && tokenizer_token_kind(f->tokenizer, id) == TOKEN_SPECIAL ? id : -1;
    }
    int32_t bos = tokenizer_bos(f->tokenizer);
    if (tokenizer_token_kind(f->tokenizer, bos) == TOKEN_SPECIAL) f->token[TOKEN_BOS] = bos;
}

static bool has_needed(const ChatFormat *f)
{
    for (int i = 0; i < FORMAT_TOKENS; i++)
        if (f->def->needs >> i & 1 && f->token[i] < 0) return false;
    return true;
}

static Status take_tokens(ChatFormat *f, const char *where)
{
    const char *const *names = f->def->token_names;
    find_tokens(f, names ? names : llama4_tokens);
    if (!names && !has_needed(f)) find_tokens(f, llama3_tokens);
    return has_needed(f)
               ? OK
               : fail(ERR_FORMAT, "%s: the tokenizer lacks the tokens for turns of the format %s",
                      where, f->def->name);
}

Bytes chat_format_preamble(const ChatFormat *f, ChatToolPlace place)
{
    return f->preamble[place == CHAT_TOOLS_IN_SYSTEM];
}

void chat_format_set_preamble(ChatFormat *f, ChatToolPlace place, Bytes text)
{
    f->preamble[place == CHAT_TOOLS_IN_SYSTEM] = chat_copy(&f->arena, text);
}

/* Published templates have the system's first. */
static void take_preambles(ChatFormat *f, const TemplateFacts *facts)
{
    chat_format_set_preamble(f, CHAT_TOOLS_IN_SYSTEM,
                             facts->n_preambles > 0 ? facts->preamble[0]
                                                    : bytes_of(preamble_system));
    chat_format_set_preamble(f, CHAT_TOOLS_IN_USER,
                             facts->n_preambles > 1 ? facts->preamble[1] : bytes_of(preamble_user));
}

static const FormatDef *by_name(const char *name)
{
    for (int i = 0; i < COUNT_OF(formats); i++)
        if (!strcmp(formats[i]->name, name)) return formats[i];
    return NULL;
}

static Status refuse_name(const char *name)
{
    const char *names[COUNT_OF(formats)], *nearest;
    for (int i = 0; i < COUNT_OF(formats); i++) names[i] = formats[i]->name;
    nearest = name_nearest(name, names, COUNT_OF(formats));
    return fail(ERR_ARG, "there is no chat format \"%.40s\"; %s%s%s", name,
                nearest ? "did you mean " : "", nearest ? nearest : "",
                nearest ? "?" : "they are llama3, llama3.1, llama3.2, llama4, drover");
}

static Status create(ChatFormat *f, Arena *arena, const char *name, const char *where)
{
    const char *text = tokenizer_chat_template(f->tokenizer);
    TemplateFacts facts = {0};
    bool is_long = text && strlen(text) > MAX_TEMPLATE_BYTES;
    if (text && !is_long) template_read(bytes_of(text), arena, &facts);
    if (name) {
        f->def = by_name(name);
        if (!f->def) return refuse_name(name);
    } else if (text && !is_long) {
        f->def = identify(f->tokenizer, &facts, arena, &f->always_answers);
    }
    if (!name && text && !f->def) {
        const char *nearest = nearest_format(text);
        log_warn("%s: its chat template (structure %016llx) is none that drover knows%s%s%s", where,
                 (unsigned long long)facts.structure,
                 nearest ? "; the nearest is --chat-format " : "", nearest ? nearest : "",
                 nearest ? ", which may write other tokens" : "");
    }
    if (!f->def) return OK;
    take_preambles(f, &facts);
    return take_tokens(f, where);
}

Status chat_format_create(const Tokenizer *tokenizer, const char *name, const char *where,
                          ChatFormat **out)
{
    Arena arena = {0};
    ChatFormat *f = xcalloc(1, sizeof *f);
    f->tokenizer = tokenizer;
    Status status = create(f, &arena, name, where);
    arena_deinit(&arena);
    if (status != OK || !f->def) {
        chat_format_destroy(f);
        f = NULL;
    }
    if (status == OK) *out = f;
    return status;
}

void chat_format_destroy(ChatFormat *f)
{
    if (!f) return;
    arena_deinit(&f->arena);
    free(f);
}
