/* Speed of the tokenizer. Results to stdout.
 *
 *     text_bench encode TOKENIZER FILE [specials]    three rounds of encoding, one of decoding
 *     text_bench ids TOKENIZER FILE [specials]       the ids, separated by spaces
 *     text_bench save TOKENIZER DIR                  as Hugging Face files
 *     text_bench train VOCAB_SIZE DIR|- FILE...      THREADS=n in the environment
 */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

static int failed(void)
{
    fprintf(stderr, "text_bench: %s\n", status_message());
    return 1;
}

static Status encode(const char *path, const char *file, unsigned flags, bool print)
{
    Arena arena = {0};
    Tokenizer *tokenizer;
    Encoder *encoder;
    IdVec ids = {0};
    Bytes text;
    double start = clock_s();
    TRY(tokenizer_load(path, &tokenizer));
    double load_s = clock_s() - start;
    TRY(file_read(&arena, file, (size_t)4 << 30, &text));
    TRY(encoder_create(tokenizer, &encoder));
    if (!print)
        printf("load %.3f s, %d tokens, %zu merges\n", load_s, tokenizer_vocab_size(tokenizer),
               tokenizer_merge_count(tokenizer));
    for (int round = 0; round < (print ? 1 : 3); round++) {
        ids.n = 0;
        start = clock_s();
        TRY(encoder_encode(encoder, text.at, text.n, flags, &ids));
        double s = clock_s() - start;
        if (!print)
            printf("encode %.2f MB/s: %zu bytes, %zu tokens, %.3f s\n", (double)text.n / s / 1e6,
                   text.n, ids.n, s);
    }
    Str back = {0};
    start = clock_s();
    TRY(tokenizer_decode(tokenizer, ids.at, ids.n, &back));
    if (!print) printf("decode %.2f MB/s\n", (double)text.n / (clock_s() - start) / 1e6);
    if (back.n != text.n || (text.n && memcmp(back.at, text.at, text.n) != 0))
        return fail(ERR_FORMAT, "decoding does not give %s back", file);
    for (size_t i = 0; print && i < ids.n; i++) printf("%s%d", i ? " " : "", ids.at[i]);
    if (print) printf("\n");
    str_deinit(&back);
    VEC_FREE(&ids);
    encoder_destroy(encoder);
    tokenizer_destroy(tokenizer);
    arena_deinit(&arena);
    return OK;
}

typedef struct Files {
    char **path;
    int n, at;
    Arena arena;
} Files;

static Status next_file(void *context, Bytes *text)
{
    Files *files = context;
    arena_deinit(&files->arena);
    *text = (Bytes){0};
    return files->at < files->n
               ? file_read(&files->arena, files->path[files->at++], (size_t)4 << 30, text)
               : OK;
}

static Status train(int vocab_size, const char *dir, Files *files)
{
    TokenizerTrainOptions options = {.vocab_size = vocab_size};
    TextSource source = {next_file, files};
    Tokenizer *tokenizer;
    const char *threads = getenv("THREADS");
    int64_t n_threads = 0;
    if (threads && parse_i64(threads, &n_threads)) options.threads = (int)n_threads;
    double start = clock_s();
    TRY(tokenizer_train(&options, &source, &tokenizer));
    printf("train %.3f s: %d tokens, %zu merges, hash %016llx, peak %zu bytes\n", clock_s() - start,
           tokenizer_vocab_size(tokenizer), tokenizer_merge_count(tokenizer),
           (unsigned long long)tokenizer_hash(tokenizer), memory_peak_rss_bytes());
    if (strcmp(dir, "-") != 0) TRY(tokenizer_save(tokenizer, dir));
    tokenizer_destroy(tokenizer);
    return OK;
}

int main(int argc, char **argv)
{
    if (argc >= 4 && (strcmp(argv[1], "encode") == 0 || strcmp(argv[1], "ids") == 0))
        return encode(argv[2], argv[3], argc > 4 ? ENCODE_SPECIALS : ENCODE_TEXT,
                      argv[1][0] == 'i') == OK
                   ? 0
                   : failed();
    if (argc == 4 && strcmp(argv[1], "save") == 0) {
        Tokenizer *tokenizer = NULL;
        Status status = tokenizer_load(argv[2], &tokenizer);
        if (status == OK) status = tokenizer_save(tokenizer, argv[3]);
        tokenizer_destroy(tokenizer);
        return status == OK ? 0 : failed();
    }
    int64_t vocab_size;
    if (argc >= 5 && strcmp(argv[1], "train") == 0 && parse_i64(argv[2], &vocab_size)) {
        Files files = {argv + 4, argc - 4, 0, {0}};
        return train((int)vocab_size, argv[3], &files) == OK ? 0 : failed();
    }
    fprintf(stderr, "text_bench train VOCAB_SIZE DIR|- FILE...\n");
    fprintf(stderr,
            "text_bench encode|ids TOKENIZER FILE [specials]\ntext_bench save TOKENIZER DIR\n");
    return 2;
}
