/* Any text through a SentencePiece model whose pieces are parts of the text: the ids are those of
 * the definition, and what can be undone is. */
#include "text/sp_test_util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_TEXT = 200, MAX_PIECES = 40 };

/* A part of the text that begins and ends with a character, spaces as the model has them. */
static void add_part(SpMade *m, Bytes text, uint64_t draw)
{
    size_t at = draw % text.n, n = 1 + draw / 997 % 9;
    if (n > text.n - at) n = text.n - at;
    Str part = {0};
    SpType type = draw / 131 % 6 == 0 ? SP_USER : SP_NORMAL;
    for (size_t i = at; i < at + n; i++)
        if (text.at[i] == ' ' && m->escape_whitespaces && (type == SP_NORMAL || draw & 1))
            str_add(&part, SP_SPACE);
        else
            str_add_n(&part, (const char *)text.at + i, 1);
    Bytes piece = bytes_of_str(&part);
    if (utf8_valid(piece.at, piece.n) && !memchr(piece.at, 0, piece.n) && !made_has(m, piece))
        made_add(m, piece, (float)(draw / 7919 % 7), type);
    str_deinit(&part);
}

static void check(const SpMade *m, const Tokenizer *t, Bytes text)
{
    Encoder *e;
    IdVec first = {0}, again = {0}, slow = {0};
    Str back = {0};
    CHECK(encoder_create(t, &e) == OK);
    CHECK(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &first) == OK);
    CHECK(encoder_encode(e, text.at, text.n, ENCODE_TEXT, &again) == OK);
    CHECK(first.n == again.n &&
          (first.n == 0 || memcmp(first.at, again.at, first.n * sizeof *first.at) == 0));
    if (utf8_valid(text.at, text.n)) {
        slow_encode(m, text, &slow);
        CHECK(first.n == slow.n &&
              (slow.n == 0 || memcmp(first.at, slow.at, slow.n * sizeof *slow.at) == 0));
    }
    CHECK(tokenizer_decode(t, first.at, first.n, &back) == OK);
    bool has_symbol = memmem(text.at, text.n, SP_SPACE, SP_SPACE_BYTES) != NULL;
    if (tokenizer_is_reversible(t) && !has_symbol)
        CHECK(back.n == text.n && (text.n == 0 || memcmp(back.at, text.at, text.n) == 0));
    str_deinit(&back);
    VEC_FREE(&first);
    VEC_FREE(&again);
    VEC_FREE(&slow);
    encoder_destroy(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3 || size > MAX_TEXT) return 0;
    SpMade m = {.byte_fallback = data[0] & 1,
                .add_dummy_prefix = data[0] & 2,
                .remove_extra_whitespaces = data[0] & 4,
                .escape_whitespaces = !(data[0] & 8)};
    Bytes text = {data + 2, size - 2};
    made_begin(&m);
    if (data[0] & 16) made_add(&m, bytes_of(SP_SPACE), -1, SP_NORMAL);
    for (uint64_t i = 0; i < MAX_PIECES; i++) add_part(&m, text, rng_u64(data[1], i) >> 8);
    Str file = made_file(&m);
    Tokenizer *t = NULL;
    CHECK(sp_parse(bytes_of_str(&file), "made", &t) == OK);
    check(&m, t, text);
    tokenizer_destroy(t);
    str_deinit(&file);
    made_deinit(&m);
    return 0;
}
