/* drover tokenizer encode, decode, inspect. */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/show.h"

enum { READ_BLOCK = 1 << 16 };
static const size_t max_text_bytes = (size_t)8 << 30;

static Status read_stdin(Str *out)
{
    char block[READ_BLOCK];
    for (ssize_t n; (n = read(STDIN_FILENO, block, sizeof block)) != 0;) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(ERR_IO, "cannot read standard input: %s", strerror(errno));
        if (out->n + (size_t)n > max_text_bytes)
            return fail(ERR_IO, "standard input has more than %zu bytes", max_text_bytes);
        str_add_n(out, block, (size_t)n);
    }
    return OK;
}

/* A file, or standard input for "-". */
static Status read_input(Arena *arena, const char *path, Str *held, Bytes *text)
{
    if (strcmp(path, "-")) return file_read(arena, path, max_text_bytes, text);
    TRY(read_stdin(held));
    *text = (Bytes){(const uint8_t *)(held->at ? held->at : ""), held->n};
    return OK;
}

/* ---- encode ----------------------------------------------------------------------------- */

typedef struct EncodeFlags {
    bool specials;
} EncodeFlags;

static const Option encode_options[] = {
    {"specials", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(EncodeFlags, specials),
     "names of special tokens in the text are those tokens"},
};

static void print_ids(const IdVec *ids)
{
    Str line = {0};
    for (size_t i = 0; i < ids->n; i++) {
        str_printf(&line, "%s%d", i ? " " : "", ids->at[i]);
        if (line.n < READ_BLOCK) continue;
        fwrite(line.at, 1, line.n, stdout);
        str_clear(&line);
    }
    str_add(&line, "\n");
    fwrite(line.at, 1, line.n, stdout);
    str_deinit(&line);
}

/* One line of ids. */
static Status encode_file(Encoder *encoder, const char *path, unsigned flags)
{
    Arena arena = {0};
    Str held = {0};
    Bytes text;
    IdVec ids = {0};
    Status status = read_input(&arena, path, &held, &text);
    if (status == OK) status = encoder_encode(encoder, text.at, text.n, flags, &ids);
    if (status == OK) print_ids(&ids);
    VEC_FREE(&ids);
    str_deinit(&held);
    arena_deinit(&arena);
    return status;
}

static Status run_encode(const void *opaque, Operands operands)
{
    const EncodeFlags *o = opaque;
    Tokenizer *tokenizer;
    Encoder *encoder = NULL;
    TRY(tokenizer_load(operands.at[0], &tokenizer));
    Status status = encoder_create(tokenizer, &encoder);
    for (int i = 1; i < operands.n && status == OK; i++)
        status = encode_file(encoder, operands.at[i], o->specials ? ENCODE_SPECIALS : ENCODE_TEXT);
    encoder_destroy(encoder);
    tokenizer_destroy(tokenizer);
    return status;
}

/* ---- decode ----------------------------------------------------------------------------- */

static bool is_separator(uint8_t c) { return c <= ' ' || c == ',' || c == '[' || c == ']'; }

/* Ids separated by white space, commas or brackets, so that a JSON list will do. */
static Status parse_ids(Bytes text, const Tokenizer *tokenizer, const char *path, IdVec *ids)
{
    for (size_t i = 0; i < text.n;) {
        if (is_separator(text.at[i])) {
            i++;
            continue;
        }
        char word[16] = {0};
        size_t n = 0;
        while (i < text.n && !is_separator(text.at[i]) && n < sizeof word - 1)
            word[n++] = (char)text.at[i++];
        int64_t id;
        if (!parse_i64(word, &id) || id < 0 || id >= tokenizer_vocab_size(tokenizer))
            return fail(ERR_FORMAT, "%s: '%s' at byte %zu is not an id from 0 to %d", path, word,
                        i - n, tokenizer_vocab_size(tokenizer) - 1);
        VEC_PUSH(ids, (int32_t)id);
    }
    return OK;
}

/* Each file is a text of its own. */
static Status decode(const Tokenizer *tokenizer, const char *path)
{
    Arena arena = {0};
    Str held = {0}, out = {0};
    Bytes text;
    IdVec ids = {0};
    Status status = read_input(&arena, path, &held, &text);
    if (status == OK) status = parse_ids(text, tokenizer, path, &ids);
    if (status == OK) status = tokenizer_decode(tokenizer, ids.at, ids.n, &out);
    if (status == OK && out.n) fwrite(out.at, 1, out.n, stdout);
    VEC_FREE(&ids);
    str_deinit(&held);
    str_deinit(&out);
    arena_deinit(&arena);
    return status;
}

static Status run_decode(const void *opaque, Operands operands)
{
    (void)opaque;
    Tokenizer *tokenizer;
    TRY(tokenizer_load(operands.at[0], &tokenizer));
    Status status = OK;
    for (int i = 1; i < operands.n && status == OK; i++) status = decode(tokenizer, operands.at[i]);
    tokenizer_destroy(tokenizer);
    return status;
}

/* ---- inspect ---------------------------------------------------------------------------- */

static Status run_inspect(const void *opaque, Operands operands)
{
    (void)opaque;
    Tokenizer *tokenizer;
    Str out = {0};
    TRY(tokenizer_load(operands.at[0], &tokenizer));
    show_tokenizer(tokenizer, &out);
    fputs(out.at, stdout);
    str_deinit(&out);
    tokenizer_destroy(tokenizer);
    return OK;
}

/* ---- commands --------------------------------------------------------------------------- */

static const char tokenizer_details[] =
    "TOKENIZER is a directory with tokenizer.json or tokenizer.model (of tiktoken or of\n"
    "SentencePiece), or one of these files.\n"
    "FILE - is standard input.";

const Command command_tokenizer_encode = {
    .name = "tokenizer encode",
    .operands = "TOKENIZER FILE...",
    .min_operands = 2,
    .max_operands = ANY_NUMBER,
    .sentence =
        "print the ids of texts, separated by spaces, a line for each; nothing put in front",
    .details = tokenizer_details,
    COMMAND_OPTIONS(EncodeFlags, encode_options),
    .run = run_encode,
};

const Command command_tokenizer_decode = {
    .name = "tokenizer decode",
    .operands = "TOKENIZER FILE...",
    .min_operands = 2,
    .max_operands = ANY_NUMBER,
    .sentence = "print the texts of ids, byte for byte, one after another",
    .details = tokenizer_details,
    .run = run_decode,
};

const Command command_tokenizer_inspect = {
    .name = "tokenizer inspect",
    .operands = "TOKENIZER",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "what a tokenizer is: sizes, special tokens, pattern, longest tokens",
    .details = tokenizer_details,
    .run = run_inspect,
};
