/* A SentencePiece BPE model from inside, for the files sp_*.c. */
#ifndef TEXT_SP_MODEL_H
#define TEXT_SP_MODEL_H

#include "text/encoder.h"

/* What a SentencePiece model writes for a space: U+2581. */
#define SP_SPACE "\xe2\x96\x81"
enum { SP_SPACE_BYTES = 3, SP_SPACE_CHAR = 0x2581, SP_PAGE = 256 };

typedef enum SpType {
    SP_NORMAL = 1,
    SP_UNKNOWN = 2,
    SP_CONTROL = 3, /* never in text: begin, end, padding */
    SP_USER = 4,    /* in text always this one piece */
    SP_UNUSED = 5,
    SP_BYTE = 6,
} SpType;

/* As read from the file, which owns the texts. */
typedef struct SpPiece {
    Bytes text;
    float score;
    SpType type;
} SpPiece;

typedef struct SpSpec {
    const char *name; /* of the file */
    VEC(SpPiece) piece;
    uint64_t model_type;
    bool byte_fallback, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    bool whitespace_as_suffix;
    Bytes normalizer, charsmap, denormalizer_charsmap;
    Bytes unk_surface, bos, eos, pad;
} SpSpec;

/* Which two characters stand side by side inside some piece. Elsewhere no merge can join them, so
 * that text is cut there. */
typedef struct SpNear {
    uint8_t small[256][256]; /* of characters below U+00FF, and 255: U+2581 */
    uint64_t *pair;          /* the others, hashed: left << 32 | right, 0 = empty */
    uint64_t mask;
} SpNear;

/* Symbols are the normal pieces by their ids, and behind them, from n_ids on, the characters that
 * are no piece themselves but occur in pieces: two of them may still merge into one. */
typedef struct SpModel {
    bool byte_fallback, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    int32_t unk;
    uint8_t *type; /* [n_ids] SpType */
    uint32_t
        *surface_offset; /* [n_ids + 1] into surface: the text of each piece as it is decoded */
    uint8_t *surface;
    int32_t *page[CODE_POINTS /
                  SP_PAGE]; /* [SP_PAGE] symbol + 1 of each character, 0 = none; NULL: all none */
    AddedSet user;          /* user-defined pieces */
    AddedFilter user_filter;
    size_t max_user_bytes;
    SpNear near_chars;
    uint64_t hash;
} SpModel;

static inline uint32_t sp_place(uint32_t c)
{
    return c == SP_SPACE_CHAR ? 255 : c == 255 ? 256 : c;
}
bool sp_near_wide(const SpNear *chars, uint32_t left, uint32_t right);
static inline bool sp_near(const SpNear *chars, uint32_t left, uint32_t right)
{
    uint32_t a = sp_place(left), b = sp_place(right);
    return a < 256 && b < 256 ? chars->small[a][b] : sp_near_wide(chars, left, right);
}

/* The symbol of a character, or -1. */
static inline int32_t sp_symbol(const SpModel *sp, uint32_t c)
{
    const int32_t *page = sp->page[c / SP_PAGE];
    return page ? page[c % SP_PAGE] - 1 : -1;
}

/* From what was read to a tokenizer: everything but the files. */
Status sp_build(const SpSpec *spec, Bytes file, Tokenizer *t);

#endif
