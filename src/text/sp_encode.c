/* Encoding and decoding as sentencepiece's BPE does it, to the last id.
 *
 * Text is normalized: a space in front (add_dummy_prefix), runs of spaces made one and those at
 * both ends removed (remove_extra_whitespaces), spaces written as U+2581 (escape_whitespaces). From
 * left to right user-defined pieces are taken, the longest first; the characters between them are
 * merged. What is no piece in the end becomes its bytes (byte_fallback), or the unknown piece, one
 * for a run of them.
 *
 * sentencepiece merges a whole text in one heap. Here text is cut where two characters meet that
 * stand side by side in no piece: no merge can join them, so the parts come out as they would in
 * the whole, and the short parts that any text consists of come out of a cache.
 *
 * What is not UTF-8 sentencepiece turns into U+FFFD, and so it is here without byte pieces; with
 * them each such byte is its own byte piece, which decodes to what it was. U+2581 itself cannot be
 * told from a space and comes back as one. A text without merges of more than 4 MiB is cut there.
 */
#include "text/sp_model.h"

enum { BLOCK_BYTES = 1 << 14, MAX_CHAR_BYTES = 4 };

/* A text on its way. Positions are in encoder->normal. */
typedef struct Run {
    Encoder *e;
    const Tokenizer *t;
    const SpModel *sp;
    IdVec *ids;
    Bytes raw;           /* not normalized yet */
    bool swallows_space; /* the last character was a space, after which others vanish */
    size_t start, pos;   /* of the part under way, and of what comes next */
    size_t limit;        /* up to where text is complete enough to be looked at */
    uint32_t before;     /* the last character of the part */
    size_t unknown_end;  /* how many ids there were after the last unknown one */
    bool saw_unknown;    /* in this part */
} Run;

/* ---- normalization ---------------------------------------------------------------------- */

/* What normalization takes at once: a user-defined piece, a character, or a byte that is none. */
static size_t unit_length(const Run *r, bool *valid)
{
    uint32_t c;
    *valid = true;
    if (added_may_begin(&r->sp->user_filter, r->raw.at, r->raw.n)) {
        int32_t id = added_find(r->t, &r->sp->user, r->raw);
        if (id >= 0) return token_bytes(r->t, id).n;
    }
    int n = utf8_decode(r->raw.at, r->raw.n, &c);
    *valid = n > 0;
    return n > 0 ? (size_t)n : 1;
}

static void drop_raw(Run *r, size_t n) { r->raw = (Bytes){r->raw.at + n, r->raw.n - n}; }

static void add_normal(Run *r, uint8_t byte)
{
    if (byte == ' ' && r->sp->escape_whitespaces)
        str_add_n(&r->e->normal, SP_SPACE, SP_SPACE_BYTES);
    else
        str_add_n(&r->e->normal, (const char *)&byte, 1);
}

static void add_unit(Run *r)
{
    bool valid;
    size_t n = unit_length(r, &valid), i = 0;
    while (r->swallows_space && i < n && r->raw.at[i] == ' ') i++;
    if (i < n) r->swallows_space = r->sp->remove_extra_whitespaces && r->raw.at[n - 1] == ' ';
    if (valid || r->sp->byte_fallback)
        for (; i < n; i++) add_normal(r, r->raw.at[i]);
    else
        str_add_n(&r->e->normal, "\xef\xbf\xbd", 3);
    drop_raw(r, n);
}

/* Without removal of spaces text is normalized byte by byte. */
static void add_plain_block(Run *r)
{
    size_t n = r->raw.n < BLOCK_BYTES ? r->raw.n : BLOCK_BYTES;
    char out[SP_SPACE_BYTES * BLOCK_BYTES], *end = out;
    for (size_t i = 0; i < n; i++) {
        *end = (char)r->raw.at[i];
        if (*end == ' ' && r->sp->escape_whitespaces) {
            memcpy(end, SP_SPACE, SP_SPACE_BYTES);
            end += SP_SPACE_BYTES - 1;
        }
        end++;
    }
    str_add_n(&r->e->normal, out, (size_t)(end - out));
    drop_raw(r, n);
}

/* End of the normalized text without the spaces at its end. */
static size_t end_of_text(const Run *r)
{
    size_t space = r->sp->escape_whitespaces ? SP_SPACE_BYTES : 1, n = r->e->normal.n;
    const char *symbol = r->sp->escape_whitespaces ? SP_SPACE : " ";
    while (n >= r->start + space && memcmp(r->e->normal.at + n - space, symbol, space) == 0)
        n -= space;
    return n;
}

/* Normalizes some more text and says how far it may be looked at: the longest user-defined piece or
 * character must lie before it, and spaces that may turn out to be the last ones must not. */
static void normalize_more(Run *r)
{
    Str *normal = &r->e->normal;
    if (r->start > 0) {
        memmove(normal->at, normal->at + r->start, normal->n - r->start);
        normal->n -= r->start;
        r->pos -= r->start;
        r->start = 0;
    }
    size_t ahead = r->sp->max_user_bytes > MAX_CHAR_BYTES ? r->sp->max_user_bytes : MAX_CHAR_BYTES;
    size_t wanted = normal->n + BLOCK_BYTES;
    if (r->sp->byte_fallback && !r->sp->remove_extra_whitespaces)
        add_plain_block(r);
    else
        while (r->raw.n > 0 && normal->n < wanted) add_unit(r);
    size_t end = r->sp->remove_extra_whitespaces ? end_of_text(r) : normal->n;
    if (r->raw.n == 0)
        r->limit = normal->n = end;
    else
        r->limit = end > ahead ? end - ahead : 0;
}

/* ---- ids -------------------------------------------------------------------------------- */

static void push_unknown(Run *r, Bytes text)
{
    if (r->sp->byte_fallback) {
        for (size_t i = 0; i < text.n; i++) VEC_PUSH(r->ids, r->t->byte_id[text.at[i]]);
        return;
    }
    r->saw_unknown = true;
    if (r->ids->n == r->unknown_end) return;
    VEC_PUSH(r->ids, r->sp->unk);
    r->unknown_end = r->ids->n;
}

/* The symbols of a part, all of them known: how many; out is NULL to count them. */
static size_t symbols_of(const SpModel *sp, Bytes part, int32_t *out)
{
    size_t n = 0;
    uint32_t c;
    for (size_t at = 0; at < part.n; n++) {
        at += (size_t)utf8_decode(part.at + at, part.n - at, &c);
        if (out) out[n] = sp_symbol(sp, c);
    }
    return n;
}

static void encode_part(Run *r, Bytes part)
{
    int32_t few[MERGE_SHORT_BYTES], *id = few;
    size_t n = symbols_of(r->sp, part, NULL);
    if (n > MERGE_SHORT_BYTES) {
        merge_reserve(&r->e->scratch, n);
        id = r->e->scratch.id;
    }
    symbols_of(r->sp, part, id);
    n = n > MERGE_SHORT_BYTES ? merge_many_symbols(r->t, &r->e->scratch, n)
                              : merge_few_symbols(r->t, id, n);
    for (size_t i = 0; i < n; i++)
        if (id[i] < r->t->n_ids)
            VEC_PUSH(r->ids, id[i]);
        else
            push_unknown(r, token_bytes(r->t, id[i]));
    merge_release(&r->e->scratch);
}

/* The part under way, up to pos, is complete. */
static void end_part(Run *r)
{
    Bytes part = {(const uint8_t *)r->e->normal.at + r->start, r->pos - r->start};
    size_t room = r->e->normal.n - r->start;
    r->start = r->pos;
    if (part.n == 0) return;
    if (part.n > CACHE_PIECE_BYTES) {
        encode_part(r, part);
        return;
    }
    PieceKey key = piece_key(part.at, part.n, room);
    CacheSlot *slot = cache_slot(r->e, key);
    if (cache_get(slot, key, r->ids)) return;
    size_t n_before = r->ids->n;
    r->saw_unknown = false;
    encode_part(r, part);
    /* An unknown piece may have joined one before it, which it would not elsewhere. */
    if (!r->saw_unknown) cache_put(slot, key, r->ids->at + n_before, r->ids->n - n_before);
}

/* Something that is never merged: what was under way ends, and begins anew behind it. */
static void skip(Run *r, size_t n)
{
    r->pos += n;
    r->start = r->pos;
}

static void take_next(Run *r)
{
    const uint8_t *at = (const uint8_t *)r->e->normal.at + r->pos;
    size_t room = r->e->normal.n - r->pos;
    if (added_may_begin(&r->sp->user_filter, at, room)) {
        int32_t id = added_find(r->t, &r->sp->user, (Bytes){at, room});
        if (id >= 0) {
            end_part(r);
            VEC_PUSH(r->ids, id);
            skip(r, token_bytes(r->t, id).n);
            return;
        }
    }
    uint32_t c;
    int n = utf8_decode(at, room, &c);
    if (n == 0 || sp_symbol(r->sp, c) < 0) {
        n = n ? n : 1;
        end_part(r);
        push_unknown(r, (Bytes){at, (size_t)n});
        skip(r, (size_t)n);
        return;
    }
    if (r->pos > r->start &&
        (!sp_near(&r->sp->near_chars, r->before, c) || r->pos - r->start >= MAX_PIECE_BYTES))
        end_part(r);
    r->before = c;
    r->pos += (size_t)n;
}

static Status encode(Encoder *e, Bytes text, bool is_first, IdVec *ids)
{
    const SpModel *sp = e->tokenizer->sp;
    Run r = {.e = e,
             .t = e->tokenizer,
             .sp = sp,
             .ids = ids,
             .raw = text,
             .swallows_space = sp->remove_extra_whitespaces,
             .unknown_end = SIZE_MAX};
    bool valid;
    while (sp->remove_extra_whitespaces && r.raw.n > 0 && r.raw.at[0] == ' ' &&
           unit_length(&r, &valid) == 1)
        drop_raw(&r, 1);
    if (r.raw.n == 0) return OK;
    str_clear(&e->normal);
    if (is_first && sp->add_dummy_prefix) add_normal(&r, ' ');
    while (r.raw.n > 0) {
        normalize_more(&r);
        while (r.pos < r.limit) take_next(&r);
    }
    end_part(&r);
    return OK;
}

/* ---- decoding --------------------------------------------------------------------------- */

static Bytes surface(const Tokenizer *t, int32_t id, bool *at_start)
{
    const SpModel *sp = t->sp;
    Bytes text = {sp->surface + sp->surface_offset[id],
                  sp->surface_offset[id + 1] - sp->surface_offset[id]};
    if (sp->type[id] == SP_CONTROL) return text;
    bool is_piece = sp->type[id] == SP_NORMAL || sp->type[id] == SP_USER;
    Bytes piece = token_bytes(t, id);
    if (*at_start && is_piece && (sp->add_dummy_prefix || sp->remove_extra_whitespaces) &&
        piece.n >= SP_SPACE_BYTES && memcmp(piece.at, SP_SPACE, SP_SPACE_BYTES) == 0) {
        text = (Bytes){text.at + 1, text.n - 1};
        *at_start = sp->remove_extra_whitespaces;
    }
    if (text.n > 0) *at_start = false;
    return text;
}

static int32_t find(const Tokenizer *t, Bytes text)
{
    Str piece = {0};
    for (size_t i = 0; i < text.n; i++)
        if (text.at[i] == ' ' && t->sp->escape_whitespaces)
            str_add(&piece, SP_SPACE);
        else
            str_add_n(&piece, (const char *)text.at + i, 1);
    int32_t user = added_find(t, &t->sp->user, text);
    int32_t id = vocab_find_bytes(t, (const uint8_t *)piece.at, piece.n);
    str_deinit(&piece);
    if (user >= 0 && token_bytes(t, user).n == text.n) return user;
    if (id >= 0 && id < t->n_ids) return id;
    return text.n == 1 ? t->byte_id[text.at[0]] : -1;
}

static uint64_t hash(const Tokenizer *t) { return t->sp->hash; }

/* The space in front is taken away again only where it is U+2581 and a piece, not three bytes. */
static bool is_reversible(const Tokenizer *t)
{
    const SpModel *sp = t->sp;
    if (!sp->byte_fallback || sp->remove_extra_whitespaces) return false;
    if (!sp->escape_whitespaces) return !sp->add_dummy_prefix;
    int32_t symbol = sp_symbol(sp, SP_SPACE_CHAR);
    return (symbol >= 0 && symbol < t->n_ids) ||
           added_find(t, &sp->user, (Bytes){(const uint8_t *)SP_SPACE, 3}) >= 0;
}

const TokenizerKind kind_sentencepiece = {.name = "SentencePiece BPE",
                                          .encode = encode,
                                          .surface = surface,
                                          .find = find,
                                          .hash = hash,
                                          .is_reversible = is_reversible};
