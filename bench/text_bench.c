/* Speed of the tokenizer. Results to stdout.
 *
 *     text_bench encode TOKENIZER FILE...       three rounds of encoding, each file a text; one of
 *                                               decoding
 *     text_bench save TOKENIZER DIR             as Hugging Face files
 *     text_bench train VOCAB_SIZE DIR|- FILE...
 * THREADS=n in the environment: of encoding and training; FILE may be @LIST, a file with a path a
 * line.
 */
#include "text/text.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_THREADS = 256, ROUNDS = 3 };

/* Of all threads: on a busy machine it says more than the clock. */
static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int threads_wanted(void)
{
    const char *text = getenv("THREADS");
    int64_t n = 0;
    return text && parse_i64(text, &n) && n > 0 && n <= MAX_THREADS ? (int)n : 1;
}

/* ---- encoding --------------------------------------------------------------------------- */

/* Threads take the texts one by one, the next that nobody has. */
typedef struct Work {
    const Tokenizer *tokenizer;
    const Bytes *text;
    IdVec *ids;
    int n;
    atomic_int next;
} Work;

static void *encode_some(void *context)
{
    Work *w = context;
    Encoder *encoder;
    if (encoder_create(w->tokenizer, &encoder) != OK) return context;
    bool good = true;
    for (int i; good && (i = atomic_fetch_add(&w->next, 1)) < w->n;) {
        w->ids[i].n = 0;
        good = encoder_encode(encoder, w->text[i].at, w->text[i].n, ENCODE_TEXT, &w->ids[i]) == OK;
    }
    encoder_destroy(encoder);
    return good ? NULL : context;
}

static Status encode_all(Work *w, int threads)
{
    pthread_t thread[MAX_THREADS];
    int started = 0;
    bool good = true;
    atomic_store(&w->next, 0);
    while (started + 1 < threads && pthread_create(&thread[started], NULL, encode_some, w) == 0)
        started++;
    good = encode_some(w) == NULL;
    for (int i = 0; i < started; i++) {
        void *failed_one;
        pthread_join(thread[i], &failed_one);
        good = good && failed_one == NULL;
    }
    return good ? OK : fail(ERR_FORMAT, "a text could not be encoded");
}

static Status decode_all(const Work *w, size_t n_bytes)
{
    Str back = {0};
    Status status = OK;
    double start = clock_s(), s = 0;
    for (int i = 0; i < w->n && status == OK; i++) {
        str_clear(&back);
        start = clock_s();
        status = tokenizer_decode(w->tokenizer, w->ids[i].at, w->ids[i].n, &back);
        s += clock_s() - start;
        if (status == OK &&
            (back.n != w->text[i].n || (back.n && memcmp(back.at, w->text[i].at, back.n) != 0)))
            status = fail(ERR_FORMAT, "decoding does not give text %d back", i);
    }
    if (status == OK) printf("decode %.2f MB/s\n", (double)n_bytes / s / 1e6);
    str_deinit(&back);
    return status;
}

static Status encode(const char *path, char **file, int n_files)
{
    Arena arena = {0};
    Tokenizer *tokenizer;
    double start = clock_s();
    TRY(tokenizer_load(path, &tokenizer));
    printf("load %.3f s, %d tokens, %zu merges\n", clock_s() - start,
           tokenizer_vocab_size(tokenizer), tokenizer_merge_count(tokenizer));
    Bytes *text = ARENA_ARRAY(&arena, Bytes, n_files);
    Work w = {.tokenizer = tokenizer,
              .text = text,
              .ids = ARENA_ARRAY(&arena, IdVec, n_files),
              .n = n_files};
    size_t n_bytes = 0, n_tokens = 0;
    for (int i = 0; i < n_files; i++) {
        TRY(file_read(&arena, file[i], (size_t)4 << 30, &text[i]));
        n_bytes += text[i].n;
    }
    int threads = threads_wanted();
    for (int round = 0; round < ROUNDS; round++) {
        double cpu = cpu_s();
        start = clock_s();
        TRY(encode_all(&w, threads));
        double s = clock_s() - start;
        n_tokens = 0;
        for (int i = 0; i < n_files; i++) n_tokens += w.ids[i].n;
        printf(
            "encode %.2f MB/s: %zu bytes, %zu tokens, %d threads, %.3f s (%.3f s of processors)\n",
            (double)n_bytes / s / 1e6, n_bytes, n_tokens, threads, s, cpu_s() - cpu);
    }
    TRY(decode_all(&w, n_bytes));
    for (int i = 0; i < n_files; i++) VEC_FREE(&w.ids[i]);
    tokenizer_destroy(tokenizer);
    arena_deinit(&arena);
    return OK;
}

/* ---- training --------------------------------------------------------------------------- */

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
    options.threads = getenv("THREADS") ? threads_wanted() : 0;
    double start = clock_s();
    TRY(tokenizer_train(&options, &source, &tokenizer));
    printf("train %.3f s: %d tokens, %zu merges, hash %016llx, peak %zu bytes\n", clock_s() - start,
           tokenizer_vocab_size(tokenizer), tokenizer_merge_count(tokenizer),
           (unsigned long long)tokenizer_hash(tokenizer), memory_peak_rss_bytes());
    if (strcmp(dir, "-") != 0) TRY(tokenizer_save(tokenizer, dir));
    tokenizer_destroy(tokenizer);
    return OK;
}

/* ---- command line ----------------------------------------------------------------------- */

/* The paths, those in lists included; lines of a list end up in its text. */
static Status paths_of(Arena *arena, char **argument, int n, Files *files)
{
    VEC(char *) path = {0};
    for (int i = 0; i < n; i++) {
        Bytes list = {0};
        if (argument[i][0] != '@') {
            VEC_PUSH(&path, argument[i]);
            continue;
        }
        TRY(file_read(arena, argument[i] + 1, 1 << 26, &list));
        for (char *line = arena_strndup(arena, (const char *)list.at, list.n), *end; *line;
             line = end) {
            end = line + strcspn(line, "\n");
            if (*end) *end++ = 0;
            if (*line) VEC_PUSH(&path, line);
        }
    }
    *files = (Files){.path = path.at, .n = (int)path.n};
    return OK;
}

static Status run(int argc, char **argv)
{
    Arena arena = {0};
    Files files;
    int64_t vocab_size;
    if (argc >= 4 && strcmp(argv[1], "encode") == 0) {
        TRY(paths_of(&arena, argv + 3, argc - 3, &files));
        return encode(argv[2], files.path, files.n);
    }
    if (argc == 4 && strcmp(argv[1], "save") == 0) {
        Tokenizer *tokenizer;
        TRY(tokenizer_load(argv[2], &tokenizer));
        TRY(tokenizer_save(tokenizer, argv[3]));
        tokenizer_destroy(tokenizer);
        return OK;
    }
    if (argc >= 5 && strcmp(argv[1], "train") == 0 && parse_i64(argv[2], &vocab_size)) {
        TRY(paths_of(&arena, argv + 4, argc - 4, &files));
        return train((int)vocab_size, argv[3], &files);
    }
    return fail(ERR_ARG, "usage: text_bench encode TOKENIZER FILE... | save TOKENIZER DIR | train "
                         "VOCAB_SIZE DIR|- FILE...");
}

int main(int argc, char **argv)
{
    if (run(argc, argv) == OK) return 0;
    fprintf(stderr, "text_bench: %s\n", status_message());
    return 1;
}
