/* What the tests of data share: a directory with texts and a tokenizer, opened data, rows of
 * batches. */
#ifndef DATA_DATA_TESTKIT_H
#define DATA_DATA_TESTKIT_H

#include "data/data_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a directory with texts, and a tokenizer -------------------------------------------- */

typedef struct Bench {
    Arena arena;
    char *dir;
    Tokenizer *tokenizer;
    int n_caches;
} Bench;

static inline char *at(Bench *b, const char *name) { return path_join(&b->arena, b->dir, name); }

/* Without the care of file_write_atomic, whose fsync is slow. */
static inline void damage(const char *path, const void *data, size_t n)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, n, out), n);
    fclose(out);
}

static inline void write_file(Bench *b, const char *name, const void *data, size_t n)
{
    char *path = at(b, name), *slash = strrchr(path, '/');
    assert_int_equal(dir_create(arena_strndup(&b->arena, path, (size_t)(slash - path))), OK);
    damage(path, data, n);
}

static inline void write_text(Bench *b, const char *name, const char *text)
{
    write_file(b, name, text, strlen(text));
}

/* Documents of random lengths made of distinct words: "d17w3 ". */
static inline char *document(Bench *b, int d)
{
    Str text = {0};
    for (uint64_t w = 0; w < 3 + rng_below(7, (uint64_t)d, 60); w++)
        str_printf(&text, "d%dw%d ", d, (int)w);
    char *copy = arena_strdup(&b->arena, text.at);
    str_deinit(&text);
    return copy;
}

static inline Status corpus_next(void *context, Bytes *text)
{
    int *n = context;
    static const char words[] = "d1w2 d3w4 d5w6 d7w8 d9w0 the words of these texts 123 456 789 ";
    *text = (*n)++ < 20 ? (Bytes){(const uint8_t *)words, sizeof words - 1} : (Bytes){0};
    return OK;
}

static inline int setup(void **state)
{
    Bench *b = xcalloc(1, sizeof *b);
    char name[] = "/tmp/drover-data-XXXXXX";
    assert_non_null(mkdtemp(name));
    b->dir = arena_strdup(&b->arena, name);
    int n = 0;
    TokenizerTrainOptions options = {.vocab_size = 320, .threads = 1};
    TextSource source = {corpus_next, &n};
    if (tokenizer_train(&options, &source, &b->tokenizer) != OK) fail_msg("%s", status_message());
    for (int d = 0; d < 150; d++)
        write_text(b, arena_printf(&b->arena, "texts/%d/%d.txt", d % 7, d), document(b, d));
    log_set_level(LOG_SILENT);
    *state = b;
    return 0;
}

static inline int teardown(void **state)
{
    Bench *b = *state;
    assert_int_equal(dir_remove_tree(b->dir), OK);
    tokenizer_destroy(b->tokenizer);
    arena_deinit(&b->arena);
    free(b);
    return 0;
}

static inline DataOptions options_for(Bench *b, const DataSource *sources, int n)
{
    return (DataOptions){.sources = sources,
                         .n_sources = n,
                         .tokenizer = b->tokenizer,
                         .cache_dir = at(b, "cache"),
                         .holdout = 0.1,
                         .bad_share = 0.001,
                         .bos = true,
                         .eos = true,
                         .shuffle = true,
                         .threads = 2};
}

static inline Data *open_data(Bench *b, const DataSource *sources, int n)
{
    DataOptions options = options_for(b, sources, n);
    Data *data = NULL;
    if (data_open(&options, &data) != OK) fail_msg("%s", status_message());
    return data;
}

static inline Data *open_path(Bench *b, const char *name)
{
    DataSource source = {.path = at(b, name), .weight = 1};
    return open_data(b, &source, 1);
}

/* The sentence of the refusal, which must contain `says`. */
static inline void assert_refused(Bench *b, const DataSource *source, const char *says)
{
    DataOptions options = options_for(b, source, 1);
    options.line_limit = 1000;
    Data *data;
    assert_int_not_equal(data_open(&options, &data), OK);
    if (!strstr(status_message(), says))
        fail_msg("the sentence lacks '%s': %s", says, status_message());
    assert_null(strchr(status_message(), '\n'));
}

/* ---- batches ---------------------------------------------------------------------------- */

typedef struct Rows {
    DataBatch batch;
    int64_t rows, seq;
} Rows;

static inline Rows rows_create(int64_t rows, int64_t seq)
{
    size_t n = (size_t)(rows * seq);
    return (Rows){{xcalloc(n, 4), xcalloc(n, 4), xcalloc(n, 4), xcalloc(n, 4)}, rows, seq};
}

static inline void rows_destroy(Rows *r)
{
    free(r->batch.ids);
    free(r->batch.targets);
    free(r->batch.pos);
    free(r->batch.weights);
}

static inline DataBatch rows_from(const Rows *r, int64_t row)
{
    int64_t k = row * r->seq;
    return (DataBatch){r->batch.ids + k, r->batch.targets + k, r->batch.pos + k,
                       r->batch.weights + k};
}

static inline void assert_same_rows(const Rows *a, const Rows *b)
{
    size_t n = (size_t)(a->rows * a->seq) * 4;
    assert_memory_equal(a->batch.ids, b->batch.ids, n);
    assert_memory_equal(a->batch.targets, b->batch.targets, n);
    assert_memory_equal(a->batch.pos, b->batch.pos, n);
    assert_memory_equal(a->batch.weights, b->batch.weights, n);
}

static inline DataLoader *loader_for(const Data *data, DataPlan plan)
{
    DataLoader *loader = NULL;
    if (data_loader_create(data, &plan, &loader) != OK) fail_msg("%s", status_message());
    return loader;
}

static inline void fill_step(DataLoader *loader, int64_t step, int64_t micro_batch, const Rows *r)
{
    for (int64_t m = 0; m < r->rows / micro_batch; m++) {
        DataBatch part = rows_from(r, m * micro_batch);
        if (data_fill(loader, step, m, &part) != OK) fail_msg("%s", status_message());
    }
}

#endif
