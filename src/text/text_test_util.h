/* For the tests of src/text: small tokenizers made on the spot, and texts of many scripts. */
#ifndef TEXT_TEXT_TEST_UTIL_H
#define TEXT_TEXT_TEST_UTIL_H

#include "text/text_internal.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <time.h>

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s", status_message());                                        \
    } while (0)

/* Not by the clock: other work on the machine must not fail a test. */
static inline double processor_s(void) { return (double)clock() / CLOCKS_PER_SEC; }

/* 256 bytes, then n_more tokens, each two earlier ones joined, mostly of the letters a to d so that
 * they meet in text; then the specials "<|a|>", "<|ab|>" and the added word "<ok>". Ranks are ids.
 */
static inline Tokenizer *make_tokenizer(uint64_t seed, int n_more, const char *pattern)
{
    Arena arena = {0};
    int n = 256 + n_more + 3, at = 256;
    TokenList list = {.n = n,
                      .token = ARENA_ARRAY(&arena, Bytes, n),
                      .kind = arena_alloc(&arena, (size_t)n),
                      .where = "made"};
    memset(list.kind, TOKEN_PLAIN, (size_t)n);
    for (int b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        list.token[b] = (Bytes){arena_copy(&arena, &byte, 1), 1};
    }
    for (uint64_t draw = 0; at < 256 + n_more; draw += 3) {
        Bytes half[2];
        for (int i = 0; i < 2; i++) {
            uint64_t pick = rng_below(seed, draw + i, (uint64_t)(at - 256 + 4));
            half[i] = list.token[pick < 4 ? 'a' + pick : 256 + pick - 4];
        }
        size_t total = half[0].n + half[1].n;
        uint8_t *joined = arena_alloc(&arena, total);
        memcpy(joined, half[0].at, half[0].n);
        memcpy(joined + half[0].n, half[1].at, half[1].n);
        bool is_new = total <= 30;
        for (int i = 0; is_new && i < at; i++)
            is_new = list.token[i].n != total || memcmp(list.token[i].at, joined, total) != 0;
        if (is_new) list.token[at++] = (Bytes){joined, total};
    }
    static const char *const names[] = {"<|a|>", "<|ab|>", "<ok>"};
    for (int i = 0; i < 3; i++) {
        list.token[at + i] = (Bytes){(const uint8_t *)names[i], strlen(names[i])};
        list.kind[at + i] = i < 2 ? TOKEN_SPECIAL : TOKEN_ADDED;
    }
    Tokenizer *t = tokenizer_new(&kind_byte_level);
    assert_ok(build_vocabulary(t, &list));
    assert_ok(build_merges_by_rank(t, "made"));
    assert_ok(build_pattern(t, pattern, "made"));
    build_finish(t);
    arena_deinit(&arena);
    return t;
}

/* A random character that makes patterns interesting: letters of all kinds, marks, digits, the
 * white spaces, apostrophes, slashes, and now and then any code point. */
static inline uint32_t random_char(uint64_t seed, uint64_t i)
{
    static const uint32_t some[] = {
        'a',    'b',   's',    't',    'r',    'e',    'l',     'v',    'm',    'd',
        'A',    'B',   'S',    'L',    'E',    ' ',    ' ',     ' ',    '\n',   '\r',
        '\t',   '\'',  '\'',   '/',    '.',    '!',    '_',     '0',    '7',    0x0b,
        0x85,   0xa0,  0x2003, 0x3000, 0x2028, 0x17f,  0x301,   0x300,  0x5d0,  0x6771,
        0x4eac, 0x1c5, 0x2b0,  0x660,  0xb2,   0x2167, 0x1f600, 0x200d, 0x94d,  0x915,
        0xe9,   0xc9,  0x3b1,  0x391,  0x434,  0x414,  0x10400, 0xad,   0xfeff, 0x1f1e6,
        0x212a, 0x130, 0x131,  0xdf,   0x1e9e, 0xfb05, 0x2019,  0x1160, 0xac00, 0xe0001};
    uint64_t pick = rng_below(seed, 2 * i, 80);
    if (pick < COUNT_OF(some)) return some[pick];
    uint32_t code_point = (uint32_t)rng_below(seed, 2 * i + 1, pick < 78 ? 0x3000 : CODE_POINTS);
    return code_point >= 0xd800 && code_point < 0xe000 ? 'x' : code_point;
}

static inline void random_text(uint64_t seed, int n_chars, Str *out)
{
    str_clear(out);
    for (int i = 0; i < n_chars; i++) {
        uint8_t utf8[4];
        int n = utf8_encode(random_char(seed, (uint64_t)i), utf8);
        str_add_n(out, (const char *)utf8, (size_t)n);
    }
}

#endif
