/* tiktoken files: a line per token, "base64(bytes) rank", ranks dense from 0. */
#include "text/text_internal.h"

#include <stdlib.h>

/* 0..63, or -1. */
static int base64_digit(int c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes text[0..n) into out (3n/4 bytes) with its padding; the number of bytes, or -1. */
static int base64_decode(const uint8_t *text, size_t n, uint8_t *out)
{
    if (n == 0 || n % 4) return -1;
    size_t n_pad = text[n - 1] == '=' ? text[n - 2] == '=' ? 2 : 1 : 0;
    int n_out = 0;
    for (size_t i = 0; i < n; i += 4) {
        size_t n_digits = i + 4 == n ? 4 - n_pad : 4;
        uint32_t bits = 0;
        for (size_t k = 0; k < 4; k++) {
            int digit = k < n_digits ? base64_digit(text[i + k]) : 0;
            if (digit < 0) return -1;
            bits = bits << 6 | (uint32_t)digit;
        }
        if (bits & ((1u << 8 * (4 - n_digits)) - 1)) return -1; /* bits that no byte holds */
        for (size_t k = 0; k + 1 < n_digits; k++) out[n_out++] = (uint8_t)(bits >> (16 - 8 * k));
    }
    return n_out;
}

typedef struct Ranks {
    Arena arena;
    size_t limit; /* of tokens; a file with more is not read to its end */
    VEC(Bytes) token;
} Ranks;

/* One line without its newline. */
static Status parse_line(Ranks *ranks, Bytes line, const char *name)
{
    size_t n_line = ranks->token.n + 1;
    uint8_t bytes[MAX_TOKEN_BYTES + 3];
    size_t n = 0;
    while (n < line.n && line.at[n] != ' ') n++;
    if (n > (MAX_TOKEN_BYTES + 2) / 3 * 4)
        return fail(ERR_FORMAT, "%s line %zu: a token of more than %d bytes", name, n_line,
                    MAX_TOKEN_BYTES);
    int n_bytes = base64_decode(line.at, n, bytes);
    if (n_bytes <= 0)
        return fail(ERR_FORMAT, "%s line %zu: not base64, a space and a rank", name, n_line);
    char digits[24] = "";
    size_t n_digits = line.n - n;
    if (n_digits >= 2 && n_digits <= sizeof digits) memcpy(digits, line.at + n + 1, n_digits - 1);
    int64_t rank;
    if (!parse_i64(digits, &rank)) return fail(ERR_FORMAT, "%s line %zu: no rank", name, n_line);
    if (rank != (int64_t)ranks->token.n)
        return fail(ERR_FORMAT,
                    "%s line %zu: rank %lld where %zu has to come: ranks are dense from 0", name,
                    n_line, (long long)rank, ranks->token.n);
    Bytes token = {arena_copy(&ranks->arena, bytes, (size_t)n_bytes), (size_t)n_bytes};
    VEC_PUSH(&ranks->token, token);
    return OK;
}

static Status parse_lines(Ranks *ranks, Bytes file, const char *name)
{
    size_t pos = 0;
    while (pos < file.n) {
        const uint8_t *newline = memchr(file.at + pos, '\n', file.n - pos);
        size_t end = newline ? (size_t)(newline - file.at) : file.n;
        size_t n = end - pos;
        if (n > 0 && file.at[end - 1] == '\r') n--;
        if (n > 0) {
            if (ranks->token.n == ranks->limit)
                return fail(ERR_REFUSED, "%s: more than %zu tokens", name, ranks->limit);
            TRY(parse_line(ranks, (Bytes){file.at + pos, n}, name));
        }
        pos = end + 1;
    }
    return OK;
}

/* Ranks and the special tokens behind them. */
static Status build(Tokenizer *t, Ranks *ranks, const char *name)
{
    bool is_llama3 = ranks->token.n == 128000;
    SpecialSet set = is_llama3 ? SPECIALS_LLAMA3 : SPECIALS_LLAMA4;
    int n_specials = is_llama3 ? LLAMA3_SPECIALS : LLAMA4_SPECIALS;
    size_t n_ranks = ranks->token.n;
    for (int i = 0; i < n_specials; i++) {
        char *special = special_name(&ranks->arena, set, i);
        Bytes token = {(const uint8_t *)special, strlen(special)};
        VEC_PUSH(&ranks->token, token);
    }
    uint8_t *kind = arena_alloc(&ranks->arena, ranks->token.n);
    memset(kind, TOKEN_PLAIN, n_ranks);
    memset(kind + n_ranks, TOKEN_SPECIAL, (size_t)n_specials);
    TokenList list = {
        .n = (int32_t)ranks->token.n, .token = ranks->token.at, .kind = kind, .where = name};
    TRY(build_vocabulary(t, &list));
    TRY(build_merges_by_rank(t, name));
    TRY(build_pattern(t, is_llama3 ? pattern_llama3 : pattern_llama4, name));
    t->adds_bos = true;
    build_finish(t);
    return OK;
}

/* any_size: with Llama 4's pattern and special tokens where the number of ranks is not Llama 3's.
 */
Status tiktoken_parse(Bytes file, const char *name, bool any_size, Tokenizer **out)
{
    Ranks ranks = {.limit = any_size ? MAX_TOKENS : 200000};
    Tokenizer *t = tokenizer_new(&kind_byte_level);
    Status status;
    TRY_GOTO(parse_lines(&ranks, file, name), done);
    size_t n = ranks.token.n;
    if (!any_size && n != 128000 && n != 200000) {
        status = fail(ERR_UNSUPPORTED,
                      "%s has %zu tokens: neither Llama 3's 128000 nor Llama 4's 200000, so its "
                      "pattern and special "
                      "tokens are unknown; give a tokenizer.json instead",
                      name, n);
        goto done;
    }
    TRY_GOTO(build(t, &ranks, name), done);
    *out = t;
    t = NULL;
done:
    tokenizer_destroy(t);
    VEC_FREE(&ranks.token);
    arena_deinit(&ranks.arena);
    return status;
}
