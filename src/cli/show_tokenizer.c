/* A tokenizer as text. */
#include "cli/show.h"

#include <string.h>

#include "chat/chat.h"

enum { LONGEST = 12, SPECIALS_SHOWN = 24 };

void show_visible(Bytes text, Str *out)
{
    for (size_t i = 0; i < text.n;) {
        uint32_t c;
        int n = utf8_decode(text.at + i, text.n - i, &c);
        if (n && c == '\n')
            str_add(out, "\\n");
        else if (n && (c == '"' || c == '\\'))
            str_printf(out, "\\%c", (char)c);
        else if (n == 0 || c < 0x20 || (c >= 0x7f && c < 0xa0))
            str_printf(out, "\\x%02x", text.at[i]);
        else
            str_add_n(out, (const char *)text.at + i, (size_t)n);
        i += n > 1 ? (size_t)n : 1;
    }
}

static void add_id(const Tokenizer *t, const char *what, int32_t id, Str *out)
{
    str_printf(out, "  %-16s", what);
    if (id < 0) {
        str_add(out, "none\n");
        return;
    }
    str_printf(out, "%d ", id);
    show_visible(tokenizer_token_bytes(t, id), out);
    str_add(out, "\n");
}

/* Insertion into a short list, longest first. */
static void add_longest(const Tokenizer *t, Str *out)
{
    int32_t best[LONGEST];
    int n = 0;
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        size_t bytes = tokenizer_token_bytes(t, id).n;
        if (tokenizer_token_kind(t, id) != TOKEN_PLAIN) continue;
        if (n == LONGEST && tokenizer_token_bytes(t, best[n - 1]).n >= bytes) continue;
        int at = n < LONGEST ? n++ : n - 1;
        for (; at > 0 && tokenizer_token_bytes(t, best[at - 1]).n < bytes; at--)
            best[at] = best[at - 1];
        best[at] = id;
    }
    str_add(out, "longest tokens:\n");
    for (int i = 0; i < n; i++) {
        Bytes bytes = tokenizer_token_bytes(t, best[i]);
        str_printf(out, "  %7d  %3zu bytes  \"", best[i], bytes.n);
        show_visible(bytes, out);
        str_add(out, "\"\n");
    }
}

static void add_specials(const Tokenizer *t, Str *out)
{
    int shown = 0, n = 0;
    str_add(out, "special tokens:\n");
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        if (tokenizer_token_kind(t, id) != TOKEN_SPECIAL) continue;
        Bytes name = tokenizer_token_bytes(t, id);
        bool reserved = memmem(name.at, name.n, "reserved", 8) != NULL;
        n++;
        if (reserved || shown == SPECIALS_SHOWN) continue;
        shown++;
        str_printf(out, "  %7d  %.*s\n", id, (int)name.n, (const char *)name.at);
    }
    if (n > shown) str_printf(out, "  and %d more, mostly reserved\n", n - shown);
}

static const char *template_name(const Tokenizer *t)
{
    ChatFormat *format = NULL;
    if (!tokenizer_chat_template(t)) return "none";
    if (chat_format_create(t, NULL, "the tokenizer", &format) != OK || !format)
        return "one that drover does not know";
    const char *name = chat_format_name(format);
    chat_format_destroy(format);
    return name;
}

void show_tokenizer(const Tokenizer *t, Str *out)
{
    int32_t n = tokenizer_vocab_size(t), plain = 0, special = 0, added = 0, n_stops;
    for (int32_t id = 0; id < n; id++) {
        plain += tokenizer_token_kind(t, id) == TOKEN_PLAIN;
        special += tokenizer_token_kind(t, id) == TOKEN_SPECIAL;
        added += tokenizer_token_kind(t, id) == TOKEN_ADDED;
    }
    str_printf(out,
               "tokenizer: %s, %d ids: %d plain, %d added, %d special; %zu merges; hash %016llx\n",
               tokenizer_algorithm(t), n, plain, added, special, tokenizer_merge_count(t),
               (unsigned long long)tokenizer_hash(t));
    add_id(t, "begin of text", tokenizer_bos(t), out);
    add_id(t, "end of text", tokenizer_eos(t), out);
    add_id(t, "padding", tokenizer_pad(t), out);
    const int32_t *stops = tokenizer_stops(t, &n_stops);
    for (int i = 0; i < n_stops; i++) add_id(t, "ends a reply", stops[i], out);
    str_printf(out, "  %-16s%s\n", "chat template", template_name(t));
    str_printf(out, "  %-16s%s\n", "bytes come back",
               tokenizer_is_reversible(t) ? "yes" : "not all");
    if (tokenizer_pattern(t)) str_printf(out, "  %-16s%s\n", "pattern", tokenizer_pattern(t));
    add_specials(t, out);
    add_longest(t, out);
}
