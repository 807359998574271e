/* Ids back to bytes, whole or as they come; and what a tokenizer says of itself. */
#include "text/text_internal.h"

static Status check_id(const Tokenizer *t, int32_t id)
{
    if (id >= 0 && id < t->n_ids && t->kind[id] != TOKEN_NONE) return OK;
    return fail(ERR_ARG, "token id %d is not in the vocabulary of %d", id, t->n_ids);
}

Status tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t n, Str *out)
{
    bool at_start = true;
    for (size_t i = 0; i < n; i++) TRY(check_id(t, ids[i]));
    for (size_t i = 0; i < n; i++) {
        Bytes b = t->how->surface(t, ids[i], &at_start);
        str_add_n(out, (const char *)b.at, b.n);
    }
    return OK;
}

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/* Whether held[0..n) may still become a character when more bytes come. */
static bool is_beginning(const uint8_t *held, int n)
{
    int need = held[0] >= 0xc2 && held[0] <= 0xdf   ? 2
               : (held[0] & 0xf0) == 0xe0           ? 3
               : held[0] >= 0xf0 && held[0] <= 0xf4 ? 4
                                                    : 0;
    if (n >= need) return false;
    for (int i = 1; i < n; i++)
        if ((held[i] & 0xc0) != 0x80) return false;
    if (n < 2) return true;
    /* The second byte alone tells over-long forms, surrogates and what is past U+10FFFF. */
    if (held[0] == 0xe0) return held[1] >= 0xa0;
    if (held[0] == 0xed) return held[1] < 0xa0;
    if (held[0] == 0xf0) return held[1] >= 0x90;
    return held[0] != 0xf4 || held[1] < 0x90;
}

static void push_byte(Decoder *d, uint8_t byte, Str *out)
{
    d->held[d->n_held++] = byte;
    while (d->n_held > 0) {
        uint32_t code_point;
        int length = utf8_decode(d->held, (size_t)d->n_held, &code_point);
        if (length == 0 && is_beginning(d->held, d->n_held)) return;
        /* A broken character: what was held of it becomes one mark, the new byte starts afresh. */
        int used = length ? length : d->n_held > 1 ? d->n_held - 1 : 1;
        if (length)
            str_add_n(out, (const char *)d->held, (size_t)length);
        else
            str_add(out, replacement);
        d->n_held -= used;
        memmove(d->held, d->held + used, (size_t)d->n_held);
    }
}

Status decoder_push(Decoder *d, int32_t id, Str *out)
{
    TRY(check_id(d->tokenizer, id));
    if (d->skip_special && d->tokenizer->kind[id] == TOKEN_SPECIAL) return OK;
    bool at_start = !d->continues;
    Bytes b = d->tokenizer->how->surface(d->tokenizer, id, &at_start);
    d->continues = !at_start;
    for (size_t i = 0; i < b.n; i++) push_byte(d, b.at[i], out);
    return OK;
}

void decoder_finish(Decoder *d, Str *out)
{
    if (d->n_held > 0) str_add(out, replacement);
    d->n_held = 0;
}

int32_t tokenizer_vocab_size(const Tokenizer *t) { return t->n_ids; }
int32_t tokenizer_bos(const Tokenizer *t) { return t->bos; }
int32_t tokenizer_eos(const Tokenizer *t) { return t->eos; }
int32_t tokenizer_pad(const Tokenizer *t) { return t->pad; }
bool tokenizer_adds_bos(const Tokenizer *t) { return t->adds_bos; }
const char *tokenizer_algorithm(const Tokenizer *t) { return t->how->name; }
const char *tokenizer_pattern(const Tokenizer *t) { return t->pattern; }
const char *tokenizer_chat_template(const Tokenizer *t) { return t->chat_template; }
void tokenizer_set_chat_template(Tokenizer *t, const char *text)
{
    t->chat_template = arena_strdup(&t->arena, text);
}
size_t tokenizer_merge_count(const Tokenizer *t) { return t->n_merges; }
bool tokenizer_is_reversible(const Tokenizer *t) { return t->how->is_reversible(t); }
uint64_t tokenizer_hash(const Tokenizer *t) { return t->hash; }

TokenKind tokenizer_token_kind(const Tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_ids ? (TokenKind)t->kind[id] : TOKEN_NONE;
}

Bytes tokenizer_token_bytes(const Tokenizer *t, int32_t id)
{
    bool at_start = false;
    return id >= 0 && id < t->n_ids ? t->how->surface(t, id, &at_start) : (Bytes){0};
}

size_t tokenizer_text_bytes(const Tokenizer *t, int32_t id, bool is_first)
{
    if (id < 0 || id >= t->n_ids || t->kind[id] == TOKEN_SPECIAL) return 0;
    return t->how->surface(t, id, &is_first).n;
}

const int32_t *tokenizer_stops(const Tokenizer *t, int *n)
{
    *n = t->n_stops;
    return t->stops;
}

int32_t tokenizer_id_of(const Tokenizer *t, const char *name)
{
    Bytes text = {(const uint8_t *)name, strlen(name)};
    for (int i = 0; i < ADDED_PASSES; i++) {
        int32_t id = added_find(t, &t->added[i], text);
        if (id >= 0 && token_bytes(t, id).n == text.n) return id;
    }
    return t->how->find(t, text);
}
