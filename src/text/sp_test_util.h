/* For tests and fuzz targets: SentencePiece models made on the spot, and the definition of encoding
 * taken literally, slow and without any table. */
#ifndef TEXT_SP_TEST_UTIL_H
#define TEXT_SP_TEST_UTIL_H

#include "text/sp_model.h"

#include <stdlib.h>

/* ---- writing a model -------------------------------------------------------------------- */

static inline void put_varint(Str *s, uint64_t value)
{
    do {
        char byte = (char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        str_add_n(s, &byte, 1);
        value >>= 7;
    } while (value);
}

static inline void put_number(Str *s, uint32_t field, uint64_t value)
{
    put_varint(s, field << 3);
    put_varint(s, value);
}

static inline void put_bytes(Str *s, uint32_t field, Bytes bytes)
{
    put_varint(s, field << 3 | 2);
    put_varint(s, bytes.n);
    str_add_n(s, (const char *)bytes.at, bytes.n);
}

static inline Bytes bytes_of(const char *text)
{
    return (Bytes){(const uint8_t *)text, strlen(text)};
}
static inline Bytes bytes_of_str(const Str *s) { return (Bytes){(const uint8_t *)s->at, s->n}; }

static inline void put_piece(Str *s, Bytes text, float score, SpType type)
{
    Str piece = {0};
    uint8_t bits[4];
    memcpy(bits, &score, 4);
    put_bytes(&piece, 1, text);
    put_varint(&piece, 2 << 3 | 5);
    str_add_n(&piece, (const char *)bits, 4);
    if (type != SP_NORMAL) put_number(&piece, 3, (uint64_t)type);
    put_bytes(s, 1, bytes_of_str(&piece));
    str_deinit(&piece);
}

/* A model: what is said of it, and pieces in the order of their ids. */
typedef struct SpMade {
    bool byte_fallback, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    Arena arena;
    VEC(SpPiece) piece;
} SpMade;

static inline void made_add(SpMade *m, Bytes text, float score, SpType type)
{
    Bytes copy = {arena_copy(&m->arena, text.at, text.n), text.n};
    VEC_PUSH(&m->piece, ((SpPiece){copy, score, type}));
}

/* The unknown one, begin, end, and the bytes where there are any. */
static inline void made_begin(SpMade *m)
{
    made_add(m, bytes_of("<unk>"), 0, SP_UNKNOWN);
    made_add(m, bytes_of("<s>"), 0, SP_CONTROL);
    made_add(m, bytes_of("</s>"), 0, SP_CONTROL);
    for (int b = 0; b < 256 && m->byte_fallback; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", b);
        made_add(m, bytes_of(name), 0, SP_BYTE);
    }
}

static inline bool made_has(const SpMade *m, Bytes text)
{
    for (size_t i = 0; i < m->piece.n; i++)
        if (m->piece.at[i].text.n == text.n && memcmp(m->piece.at[i].text.at, text.at, text.n) == 0)
            return true;
    return false;
}

static inline Str made_file(const SpMade *m)
{
    Str file = {0}, trainer = {0}, normalizer = {0};
    for (size_t i = 0; i < m->piece.n; i++)
        put_piece(&file, m->piece.at[i].text, m->piece.at[i].score, m->piece.at[i].type);
    put_number(&trainer, 3, 2);
    put_number(&trainer, 35, m->byte_fallback);
    put_bytes(&normalizer, 1, bytes_of("identity"));
    put_number(&normalizer, 3, m->add_dummy_prefix);
    put_number(&normalizer, 4, m->remove_extra_whitespaces);
    put_number(&normalizer, 5, m->escape_whitespaces);
    put_bytes(&file, 2, bytes_of_str(&trainer));
    put_bytes(&file, 3, bytes_of_str(&normalizer));
    str_deinit(&trainer);
    str_deinit(&normalizer);
    return file;
}

static inline void made_deinit(SpMade *m)
{
    VEC_FREE(&m->piece);
    arena_deinit(&m->arena);
}

/* ---- the definition --------------------------------------------------------------------- */

/* The longest user-defined piece that the text begins with: its place, or -1. */
static inline int64_t slow_user(const SpMade *m, Bytes text)
{
    int64_t best = -1;
    for (size_t i = 0; i < m->piece.n; i++) {
        const SpPiece *p = &m->piece.at[i];
        if (p->type != SP_USER || p->text.n > text.n || memcmp(p->text.at, text.at, p->text.n) != 0)
            continue;
        if (best < 0 || p->text.n > m->piece.at[best].text.n) best = (int64_t)i;
    }
    return best;
}

static inline int64_t slow_find(const SpMade *m, Bytes text)
{
    for (size_t i = 0; i < m->piece.n; i++) {
        const SpPiece *p = &m->piece.at[i];
        if (p->type == SP_NORMAL && p->text.n == text.n && memcmp(p->text.at, text.at, text.n) == 0)
            return (int64_t)i;
    }
    return -1;
}

/* Valid UTF-8 only. */
static inline void slow_normalize(const SpMade *m, Bytes text, Str *out)
{
    const char *space = m->escape_whitespaces ? SP_SPACE : " ";
    bool after_space = m->remove_extra_whitespaces;
    size_t at = 0, n;
    uint32_t c;
    for (; at < text.n && m->remove_extra_whitespaces; at++) {
        int64_t user = slow_user(m, (Bytes){text.at + at, text.n - at});
        if (text.at[at] != ' ' || (user >= 0 && m->piece.at[user].text.n > 1)) break;
    }
    if (at == text.n) return;
    if (m->add_dummy_prefix) str_add(out, space);
    for (; at < text.n; at += n) {
        int64_t user = slow_user(m, (Bytes){text.at + at, text.n - at});
        n = user >= 0 ? m->piece.at[user].text.n
                      : (size_t)utf8_decode(text.at + at, text.n - at, &c);
        size_t i = at;
        while (after_space && i < at + n && text.at[i] == ' ') i++;
        if (i == at + n) continue;
        for (; i < at + n; i++)
            if (text.at[i] == ' ')
                str_add(out, space);
            else
                str_add_n(out, (const char *)text.at + i, 1);
        after_space = m->remove_extra_whitespaces && text.at[at + n - 1] == ' ';
    }
    size_t len = strlen(space);
    while (m->remove_extra_whitespaces && out->n >= len &&
           memcmp(out->at + out->n - len, space, len) == 0)
        out->n -= len;
}

typedef struct SlowSymbol {
    size_t at, n;
    int64_t user; /* never merged */
} SlowSymbol;

/* Joins the best pair of neighbours; false when there is none. */
static inline bool slow_merge(const SpMade *m, const uint8_t *text, SlowSymbol *s, size_t *n)
{
    size_t best = 0;
    int64_t found = -1;
    for (size_t i = 0; i + 1 < *n; i++) {
        if (s[i].user >= 0 || s[i + 1].user >= 0) continue;
        int64_t piece = slow_find(m, (Bytes){text + s[i].at, s[i].n + s[i + 1].n});
        if (piece < 0 || (found >= 0 && m->piece.at[piece].score <= m->piece.at[found].score))
            continue;
        found = piece;
        best = i;
    }
    if (found < 0) return false;
    s[best].n += s[best + 1].n;
    memmove(s + best + 1, s + best + 2, (*n - best - 2) * sizeof *s);
    --*n;
    return true;
}

static inline void slow_encode(const SpMade *m, Bytes text, IdVec *ids)
{
    Str normal = {0};
    size_t n = 0;
    bool was_unknown = false;
    slow_normalize(m, text, &normal);
    SlowSymbol *s = xcalloc(normal.n + 1, sizeof *s);
    for (size_t at = 0; at < normal.n; at += s[n++].n) {
        Bytes rest = {(const uint8_t *)normal.at + at, normal.n - at};
        uint32_t c;
        s[n] = (SlowSymbol){at, (size_t)utf8_decode(rest.at, rest.n, &c), slow_user(m, rest)};
        if (s[n].user >= 0) s[n].n = m->piece.at[s[n].user].text.n;
    }
    while (slow_merge(m, (const uint8_t *)normal.at, s, &n)) continue;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *at = (const uint8_t *)normal.at + s[i].at;
        int64_t id = s[i].user >= 0 ? s[i].user : slow_find(m, (Bytes){at, s[i].n});
        if (id >= 0)
            VEC_PUSH(ids, (int32_t)id);
        else if (m->byte_fallback)
            for (size_t k = 0; k < s[i].n; k++) VEC_PUSH(ids, 3 + at[k]);
        else if (!was_unknown)
            VEC_PUSH(ids, 0);
        was_unknown = id < 0 && !m->byte_fallback;
    }
    free(s);
    str_deinit(&normal);
}

#endif
