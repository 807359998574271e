/* A SentencePiece model's tables.
 *
 * sentencepiece merges strings: any two neighbours whose texts together are a piece, the piece of
 * the highest score first, the leftmost among equals. So each cut of a piece between two characters
 * into two symbols is a merge rule, and its priority is the rank of the piece's score.
 */
#include "text/sp_model.h"

#include <stdlib.h>

typedef struct Builder {
    const SpSpec *spec;
    Tokenizer *t;
    SpModel *sp;
    Arena arena;
    int32_t n_pieces;
    VEC(Bytes) lone; /* characters of pieces that are no piece themselves */
    VEC(MergeRule) rules;
    VEC(uint64_t) pairs;
} Builder;

/* Length of the character at `at`; pieces are valid UTF-8. */
static size_t char_at(Bytes text, size_t at, uint32_t *c)
{
    return (size_t)utf8_decode(text.at + at, text.n - at, c);
}

/* ---- symbols ---------------------------------------------------------------------------- */

static int32_t *symbol_slot(Builder *b, uint32_t c)
{
    int32_t **page = &b->sp->page[c / SP_PAGE];
    if (!*page) *page = ARENA_ARRAY(&b->t->arena, int32_t, SP_PAGE);
    return *page + c % SP_PAGE;
}

static void note_single_chars(Builder *b)
{
    for (int32_t i = 0; i < b->n_pieces; i++) {
        const SpPiece *p = &b->spec->piece.at[i];
        uint32_t c;
        if (p->type == SP_NORMAL && char_at(p->text, 0, &c) == p->text.n)
            *symbol_slot(b, c) = i + 1;
    }
}

static void note_lone_chars(Builder *b)
{
    for (int32_t i = 0; i < b->n_pieces; i++) {
        const SpPiece *p = &b->spec->piece.at[i];
        uint32_t c;
        if (p->type != SP_NORMAL) continue;
        for (size_t at = 0, n; at < p->text.n; at += n) {
            n = char_at(p->text, at, &c);
            int32_t *symbol = symbol_slot(b, c);
            if (*symbol) continue;
            VEC_PUSH(&b->lone, ((Bytes){p->text.at + at, n}));
            *symbol = b->n_pieces + (int32_t)b->lone.n;
        }
    }
}

/* Symbols into the tokenizer's table of tokens; those behind the pieces are no ids. */
static Status add_symbols(Builder *b)
{
    size_t n = (size_t)b->n_pieces + b->lone.n;
    TokenList list = {.n = (int32_t)n,
                      .token = ARENA_ARRAY(&b->arena, Bytes, n),
                      .kind = arena_alloc(&b->arena, n),
                      .where = b->spec->name};
    static const uint8_t kind[] = {
        [SP_NORMAL] = TOKEN_PLAIN, [SP_UNKNOWN] = TOKEN_NONE, [SP_CONTROL] = TOKEN_SPECIAL,
        [SP_USER] = TOKEN_ADDED,   [SP_UNUSED] = TOKEN_NONE,  [SP_BYTE] = TOKEN_NONE};
    b->sp->type = arena_alloc(&b->t->arena, (size_t)b->n_pieces);
    for (int32_t i = 0; i < b->n_pieces; i++) {
        const SpPiece *p = &b->spec->piece.at[i];
        list.token[i] = p->text;
        list.kind[i] = kind[p->type];
        b->sp->type[i] = (uint8_t)p->type;
    }
    for (size_t i = 0; i < b->lone.n; i++) {
        list.token[(size_t)b->n_pieces + i] = b->lone.at[i];
        list.kind[(size_t)b->n_pieces + i] = TOKEN_PLAIN;
    }
    TRY(build_tokens(b->t, &list));
    b->t->n_ids = b->n_pieces;
    for (int32_t i = 0; i < b->n_pieces; i++)
        if (b->t->kind[i] == TOKEN_NONE)
            b->t->kind[i] = TOKEN_PLAIN; /* bytes and the unknown one */
    return OK;
}

/* ---- pieces with a meaning -------------------------------------------------------------- */

static int hex_digit(int c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<0x0A>": 10; -1: no such name. */
static int byte_of_name(Bytes name)
{
    if (name.n != 6 || memcmp(name.at, "<0x", 3) != 0 || name.at[5] != '>') return -1;
    int high = hex_digit(name.at[3]), low = hex_digit(name.at[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static Status find_bytes_and_unknown(Builder *b)
{
    const SpSpec *s = b->spec;
    b->sp->unk = -1;
    for (int i = 0; i < 256; i++) b->t->byte_id[i] = -1;
    for (int32_t i = 0; i < b->n_pieces; i++) {
        const SpPiece *p = &s->piece.at[i];
        int byte = p->type == SP_BYTE ? byte_of_name(p->text) : -1;
        if (p->type == SP_BYTE && (byte < 0 || !s->byte_fallback))
            return fail(ERR_FORMAT, "%s: piece %d is a byte%s", s->name, i,
                        byte < 0 ? " without one in its name" : ", but byte_fallback is off");
        if (byte >= 0) b->t->byte_id[byte] = i;
        if (p->type == SP_UNKNOWN && b->sp->unk >= 0)
            return fail(ERR_FORMAT, "%s: pieces %d and %d are both the unknown one", s->name,
                        b->sp->unk, i);
        if (p->type == SP_UNKNOWN) b->sp->unk = i;
    }
    if (b->sp->unk < 0) return fail(ERR_FORMAT, "%s: no unknown piece", s->name);
    for (int i = 0; i < 256 && s->byte_fallback; i++)
        if (b->t->byte_id[i] < 0)
            return fail(ERR_FORMAT, "%s: byte_fallback is on, but no piece is <0x%02X>", s->name,
                        i);
    return OK;
}

static int compare_pieces(const void *a, const void *b, void *spec)
{
    const SpSpec *s = spec;
    Bytes x = s->piece.at[*(const int32_t *)a].text, y = s->piece.at[*(const int32_t *)b].text;
    int order = memcmp(x.at, y.at, x.n < y.n ? x.n : y.n);
    return order ? order : (x.n > y.n) - (x.n < y.n);
}

/* A text that is two pieces of different types has two ids; sentencepiece would take the stranger
 * one. */
static Status check_unique(Builder *b)
{
    int32_t *other = ARENA_ARRAY(&b->arena, int32_t, b->n_pieces), n = 0;
    for (int32_t i = 0; i < b->n_pieces; i++)
        if (b->sp->type[i] != SP_NORMAL) other[n++] = i;
    qsort_r(other, (size_t)n, sizeof *other, compare_pieces, (void *)(uintptr_t)b->spec);
    for (int32_t i = 0; i < n; i++) {
        Bytes text = b->spec->piece.at[other[i]].text;
        int32_t twin = vocab_find_bytes(b->t, text.at, text.n);
        if (twin >= b->n_pieces) twin = -1;
        if (i > 0 && compare_pieces(&other[i - 1], &other[i], (void *)(uintptr_t)b->spec) == 0)
            twin = other[i - 1];
        if (twin >= 0)
            return fail(ERR_FORMAT, "%s: pieces %d and %d have the same text", b->spec->name, twin,
                        other[i]);
    }
    return OK;
}

static Status sort_sets(Builder *b)
{
    Tokenizer *t = b->t;
    SpModel *sp = b->sp;
    TRY(added_sort(t, &t->added[0], (AddedWanted){TOKEN_SPECIAL, TOKEN_SPECIAL, 0}, b->spec->name));
    TRY(added_sort(t, &sp->user, (AddedWanted){TOKEN_ADDED, TOKEN_ADDED, 0}, b->spec->name));
    added_fill(t, &sp->user, &sp->user_filter);
    for (int32_t i = 0; i < sp->user.n; i++) {
        size_t n = token_bytes(t, sp->user.id[i]).n;
        if (n > sp->max_user_bytes) sp->max_user_bytes = n;
    }
    return OK;
}

static int32_t control(const Tokenizer *t, Bytes name)
{
    int32_t id = added_find(t, &t->added[0], name);
    return id >= 0 && token_bytes(t, id).n == name.n ? id : -1;
}

/* ---- decoded texts ---------------------------------------------------------------------- */

static void add_surfaces(Builder *b)
{
    SpModel *sp = b->sp;
    Str all = {0};
    sp->surface_offset = ARENA_ARRAY(&b->t->arena, uint32_t, (size_t)b->n_pieces + 1);
    for (int32_t i = 0; i < b->n_pieces; i++) {
        const SpPiece *p = &b->spec->piece.at[i];
        Bytes text = p->type == SP_UNKNOWN ? b->spec->unk_surface : p->text;
        uint8_t byte = p->type == SP_BYTE ? (uint8_t)byte_of_name(p->text) : 0;
        if (p->type == SP_BYTE) text = (Bytes){&byte, 1};
        sp->surface_offset[i] = (uint32_t)all.n;
        bool replace = p->type == SP_NORMAL || p->type == SP_USER;
        for (size_t at = 0, n; at < text.n; at += n) {
            bool is_space = replace && text.n - at >= SP_SPACE_BYTES &&
                            memcmp(text.at + at, SP_SPACE, SP_SPACE_BYTES) == 0;
            n = is_space ? SP_SPACE_BYTES : 1;
            str_add_n(&all, is_space ? " " : (const char *)text.at + at, 1);
        }
    }
    sp->surface_offset[b->n_pieces] = (uint32_t)all.n;
    sp->surface = arena_copy(&b->t->arena, all.at, all.n);
    str_deinit(&all);
}

/* ---- merges ----------------------------------------------------------------------------- */

static int compare_scores(const void *a, const void *b, void *spec)
{
    const SpSpec *s = spec;
    float x = s->piece.at[*(const int32_t *)a].score, y = s->piece.at[*(const int32_t *)b].score;
    return (x < y) - (x > y);
}

/* priority[i] of piece i: 0 for the highest score; equal scores are equal. */
static uint32_t *rank_scores(Builder *b)
{
    int32_t *order = ARENA_ARRAY(&b->arena, int32_t, b->n_pieces);
    uint32_t *priority = ARENA_ARRAY(&b->arena, uint32_t, b->n_pieces), rank = 0;
    for (int32_t i = 0; i < b->n_pieces; i++) order[i] = i;
    qsort_r(order, (size_t)b->n_pieces, sizeof *order, compare_scores, (void *)(uintptr_t)b->spec);
    for (int32_t i = 0; i < b->n_pieces; i++) {
        if (i > 0 && compare_scores(&order[i - 1], &order[i], (void *)(uintptr_t)b->spec) != 0)
            rank++;
        priority[order[i]] = rank;
    }
    return priority;
}

static Status add_rules(Builder *b)
{
    const Tokenizer *t = b->t;
    const uint32_t *priority = rank_scores(b);
    for (int32_t i = 0; i < b->n_pieces && b->rules.n <= MAX_MERGES; i++) {
        if (b->sp->type[i] != SP_NORMAL) continue;
        Bytes text = token_bytes(t, i);
        for (size_t cut = 1; cut < text.n; cut++) {
            if ((text.at[cut] & 0xc0) == 0x80) continue;
            int32_t left = vocab_find_bytes(t, text.at, cut);
            if (left < 0) continue;
            int32_t right = vocab_find_bytes(t, text.at + cut, text.n - cut);
            if (right < 0) continue;
            VEC_PUSH(&b->rules, ((MergeRule){left, right, i, priority[i]}));
        }
    }
    return build_rules(b->t, b->rules.at, b->rules.n, b->spec->name);
}

/* ---- neighbours ------------------------------------------------------------------------- */

static uint64_t hash_of_pair(uint64_t pair)
{
    pair *= 0x9e3779b97f4a7c15u;
    return (pair ^ pair >> 32) * 0xc2b2ae3d27d4eb4fu >> 24;
}

bool sp_near_wide(const SpNear *chars, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    for (uint64_t i = hash_of_pair(pair);; i++) { /* the table is half empty */
        uint64_t slot = chars->pair[i & chars->mask];
        if (slot == pair) return true;
        if (slot == 0) return false;
    }
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void note_pairs(Builder *b)
{
    SpNear *chars = &b->sp->near_chars;
    for (int32_t i = 0; i < b->n_pieces; i++) {
        if (b->sp->type[i] != SP_NORMAL) continue;
        Bytes text = token_bytes(b->t, i);
        uint32_t left, right;
        for (size_t at = char_at(text, 0, &left), n; at < text.n; at += n, left = right) {
            n = char_at(text, at, &right);
            if (sp_place(left) < 256 && sp_place(right) < 256)
                chars->small[sp_place(left)][sp_place(right)] = 1;
            else
                VEC_PUSH(&b->pairs, (uint64_t)left << 32 | right);
        }
    }
}

static Status hash_pairs(Builder *b)
{
    SpNear *chars = &b->sp->near_chars;
    size_t n = 0;
    if (b->pairs.n) qsort(b->pairs.at, b->pairs.n, sizeof *b->pairs.at, compare_u64);
    for (size_t i = 0; i < b->pairs.n; i++)
        if (n == 0 || b->pairs.at[i] != b->pairs.at[n - 1]) b->pairs.at[n++] = b->pairs.at[i];
    chars->pair = table_alloc(b->t, n, sizeof *chars->pair, &chars->mask);
    for (size_t k = 0; k < n; k++) {
        uint64_t i = hash_of_pair(b->pairs.at[k]);
        int probe = 0;
        while (chars->pair[i & chars->mask] != 0 && probe < MAX_PROBES) i++, probe++;
        if (probe == MAX_PROBES)
            return fail(ERR_REFUSED, "%s: a pair of characters collides with %d others",
                        b->spec->name, MAX_PROBES);
        chars->pair[i & chars->mask] = b->pairs.at[k];
    }
    return OK;
}

/* ---- all of it -------------------------------------------------------------------------- */

static Status build(Builder *b)
{
    const SpSpec *s = b->spec;
    SpModel *sp = b->sp;
    sp->byte_fallback = s->byte_fallback;
    sp->add_dummy_prefix = s->add_dummy_prefix;
    sp->remove_extra_whitespaces = s->remove_extra_whitespaces;
    sp->escape_whitespaces = s->escape_whitespaces;
    note_single_chars(b);
    note_lone_chars(b);
    TRY(add_symbols(b));
    TRY(check_unique(b));
    TRY(find_bytes_and_unknown(b));
    TRY(sort_sets(b));
    TRY(add_rules(b));
    note_pairs(b);
    TRY(hash_pairs(b));
    add_surfaces(b);
    b->t->bos = control(b->t, s->bos);
    b->t->eos = control(b->t, s->eos);
    b->t->pad = control(b->t, s->pad);
    return OK;
}

Status sp_build(const SpSpec *spec, Bytes file, Tokenizer *t)
{
    Builder b = {.spec = spec,
                 .t = t,
                 .sp = ARENA_NEW(&t->arena, SpModel),
                 .n_pieces = (int32_t)spec->piece.n};
    t->sp = b.sp;
    b.sp->hash = hash_bytes(file.at, file.n);
    Status status = build(&b);
    VEC_FREE(&b.lone);
    VEC_FREE(&b.rules);
    VEC_FREE(&b.pairs);
    arena_deinit(&b.arena);
    return status;
}
