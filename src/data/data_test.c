/* Data from files to batches: what is read, what is refused, and that order is a pure function. */
#include "data/data_internal.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cmocka.h>

/* ---- a directory with texts, and a tokenizer ---------------------------------------------- */

typedef struct Bench {
    Arena arena;
    char *dir;
    Tokenizer *tokenizer;
    int n_caches;
} Bench;

static char *at(Bench *b, const char *name) { return path_join(&b->arena, b->dir, name); }

/* Without the care of file_write_atomic, whose fsync is slow. */
static void damage(const char *path, const void *data, size_t n)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, n, out), n);
    fclose(out);
}

static void write_file(Bench *b, const char *name, const void *data, size_t n)
{
    char *path = at(b, name), *slash = strrchr(path, '/');
    assert_int_equal(dir_create(arena_strndup(&b->arena, path, (size_t)(slash - path))), OK);
    damage(path, data, n);
}

static void write_text(Bench *b, const char *name, const char *text) { write_file(b, name, text, strlen(text)); }

/* Documents of random lengths made of distinct words: "d17w3 ". */
static char *document(Bench *b, int d)
{
    Str text = {0};
    for (uint64_t w = 0; w < 3 + rng_below(7, (uint64_t)d, 60); w++) str_printf(&text, "d%dw%d ", d, (int)w);
    char *copy = arena_strdup(&b->arena, text.at);
    str_deinit(&text);
    return copy;
}

static Status corpus_next(void *context, Bytes *text)
{
    int *n = context;
    static const char words[] = "d1w2 d3w4 d5w6 d7w8 d9w0 the words of these texts 123 456 789 ";
    *text = (*n)++ < 20 ? (Bytes){(const uint8_t *)words, sizeof words - 1} : (Bytes){0};
    return OK;
}

static int setup(void **state)
{
    Bench *b = xcalloc(1, sizeof *b);
    char name[] = "/tmp/drover-data-XXXXXX";
    assert_non_null(mkdtemp(name));
    b->dir = arena_strdup(&b->arena, name);
    int n = 0;
    TokenizerTrainOptions options = {.vocab_size = 320, .threads = 1};
    TextSource source = {corpus_next, &n};
    if (tokenizer_train(&options, &source, &b->tokenizer) != OK) fail_msg("%s", status_message());
    for (int d = 0; d < 150; d++) write_text(b, arena_printf(&b->arena, "texts/%d/%d.txt", d % 7, d), document(b, d));
    log_set_level(LOG_SILENT);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    Bench *b = *state;
    assert_int_equal(dir_remove_tree(b->dir), OK);
    tokenizer_destroy(b->tokenizer);
    arena_deinit(&b->arena);
    free(b);
    return 0;
}

static DataOptions options_for(Bench *b, const DataSource *sources, int n)
{
    return (DataOptions){.sources = sources, .n_sources = n, .tokenizer = b->tokenizer, .cache_dir = at(b, "cache"),
                         .holdout = 0.1, .bad_share = 0.001, .bos = true, .eos = true, .shuffle = true, .threads = 2};
}

static Data *open_data(Bench *b, const DataSource *sources, int n)
{
    DataOptions options = options_for(b, sources, n);
    Data *data = NULL;
    if (data_open(&options, &data) != OK) fail_msg("%s", status_message());
    return data;
}

static Data *open_path(Bench *b, const char *name)
{
    DataSource source = {.path = at(b, name), .weight = 1};
    return open_data(b, &source, 1);
}

/* The sentence of the refusal, which must contain `says`. */
static void assert_refused(Bench *b, const DataSource *source, const char *says)
{
    DataOptions options = options_for(b, source, 1);
    options.line_limit = 1000;
    Data *data;
    assert_int_not_equal(data_open(&options, &data), OK);
    if (!strstr(status_message(), says)) fail_msg("the sentence lacks '%s': %s", says, status_message());
    assert_null(strchr(status_message(), '\n'));
}

/* ---- batches ----------------------------------------------------------------------------- */

typedef struct Rows {
    DataBatch batch;
    int64_t rows, seq;
} Rows;

static Rows rows_create(int64_t rows, int64_t seq)
{
    size_t n = (size_t)(rows * seq);
    return (Rows){{xcalloc(n, 4), xcalloc(n, 4), xcalloc(n, 4), xcalloc(n, 4)}, rows, seq};
}

static void rows_destroy(Rows *r)
{
    free(r->batch.ids);
    free(r->batch.targets);
    free(r->batch.pos);
    free(r->batch.weights);
}

static DataBatch rows_from(const Rows *r, int64_t row)
{
    int64_t k = row * r->seq;
    return (DataBatch){r->batch.ids + k, r->batch.targets + k, r->batch.pos + k, r->batch.weights + k};
}

static void assert_same_rows(const Rows *a, const Rows *b)
{
    size_t n = (size_t)(a->rows * a->seq) * 4;
    assert_memory_equal(a->batch.ids, b->batch.ids, n);
    assert_memory_equal(a->batch.targets, b->batch.targets, n);
    assert_memory_equal(a->batch.pos, b->batch.pos, n);
    assert_memory_equal(a->batch.weights, b->batch.weights, n);
}

static DataLoader *loader_for(const Data *data, DataPlan plan)
{
    DataLoader *loader = NULL;
    if (data_loader_create(data, &plan, &loader) != OK) fail_msg("%s", status_message());
    return loader;
}

static void fill_step(DataLoader *loader, int64_t step, int64_t micro_batch, const Rows *r)
{
    for (int64_t m = 0; m < r->rows / micro_batch; m++) {
        DataBatch part = rows_from(r, m * micro_batch);
        if (data_fill(loader, step, m, &part) != OK) fail_msg("%s", status_message());
    }
}

static void test_any_split_and_order_gives_the_same_rows(void **state)
{
    Data *data = open_path(*state, "texts");
    DataLoader *whole = loader_for(data, (DataPlan){.seed = 5, .batch = 12, .micro_batch = 12, .seq = 33});
    DataLoader *parts = loader_for(data, (DataPlan){.seed = 5, .batch = 12, .micro_batch = 3, .seq = 33});
    DataLoader *other = loader_for(data, (DataPlan){.seed = 6, .batch = 12, .micro_batch = 12, .seq = 33});
    Rows a = rows_create(12, 33), b = rows_create(12, 33);
    int differ = 0;
    for (int64_t k = 0; k < 40; k++) {
        int64_t step = (int64_t)rng_permute(3, (uint64_t)k, 40);
        fill_step(parts, step, 3, &a);
        fill_step(whole, step, 12, &b);
        assert_same_rows(&a, &b);
        fill_step(other, step, 12, &b);
        differ += memcmp(a.batch.ids, b.batch.ids, 12 * 33 * 4) != 0;
    }
    assert_true(differ > 35);
    int64_t huge = (int64_t)1 << 40;
    fill_step(parts, huge, 3, &a); /* far away costs the same */
    DataBatch all = rows_from(&a, 0);
    assert_int_equal(data_fill(whole, INT64_MAX / 3, 0, &all), ERR_ARG);
    assert_int_equal(data_fill(whole, -1, 0, &all), ERR_ARG);
    assert_int_equal(data_fill(whole, 0, 1, &all), ERR_ARG);
    rows_destroy(&a);
    rows_destroy(&b);
    data_loader_destroy(whole);
    data_loader_destroy(parts);
    data_loader_destroy(other);
    data_close(data);
}

/* Cutting an epoch's rows at their borders and joining inputs gives each token as often as the corpus has
 * it; targets are the next inputs; positions restart where documents do. */
static void check_epoch(const Data *data, int64_t seq, int64_t epoch)
{
    const Corpus *c = &data->source[0].split[DATA_TRAIN];
    int64_t slots = (c->n_tokens + seq - 1) / seq, n_inputs = 0, n_targets = 0;
    DataLoader *loader = loader_for(data, (DataPlan){.seed = 1, .batch = 1, .micro_batch = 1, .seq = seq});
    int32_t bos = tokenizer_bos(data->tokenizer), eos = tokenizer_eos(data->tokenizer);
    int64_t *seen = xcalloc((size_t)data->vocab_size, 8), *expected = xcalloc((size_t)data->vocab_size, 8);
    int32_t *all = xcalloc((size_t)c->n_tokens, 4);
    assert_int_equal(data_corpus_read(c, 0, c->n_tokens, data->vocab_size, all), OK);
    for (int64_t i = 0; i < c->n_tokens; i++) expected[all[i]]++;
    Rows r = rows_create(1, seq);
    for (int64_t s = 0; s < slots; s++) {
        fill_step(loader, epoch * slots + s, 1, &r);
        int64_t valid = 0, counted;
        for (int64_t t = 0; t < seq; t++) {
            int32_t id = r.batch.ids[t], target = r.batch.targets[t], pos = r.batch.pos[t];
            bool padding = target < 0 && id == 0; /* token 0 never ends a document here */
            if (!padding) seen[id]++, n_inputs++;
            valid += target >= 0;
            if (id == bos) assert_int_equal(pos, 0);
            if (id == eos) assert_int_equal(target, -1);
            if (target >= 0 && t + 1 < seq) assert_int_equal(r.batch.ids[t + 1], target);
            if (target < 0 && !padding) assert_int_equal(id, eos);
            assert_true(t ? pos == 0 || pos == r.batch.pos[t - 1] + 1 : pos == 0);
            if (t && pos == 0 && id) assert_int_equal(id, bos);
            assert_true(r.batch.weights[t] >= 0 && (r.batch.weights[t] > 0) == (target >= 0));
        }
        assert_int_equal(data_step_targets(loader, epoch * slots + s, &counted), OK);
        assert_int_equal(counted, valid);
        for (int64_t t = 0; t < seq; t++)
            if (r.batch.targets[t] >= 0) assert_true(r.batch.weights[t] == 1.0f / (float)valid);
        n_targets += valid;
    }
    assert_int_equal(n_inputs, c->n_tokens);
    assert_int_equal(n_targets, c->n_tokens - c->n_docs);
    assert_memory_equal(seen, expected, (size_t)data->vocab_size * 8);
    rows_destroy(&r);
    free(seen);
    free(expected);
    free(all);
    data_loader_destroy(loader);
}

static void test_every_token_once_an_epoch(void **state)
{
    Data *data = open_path(*state, "texts");
    static const int64_t lengths[] = {1, 7, 64, 301, 100000};
    for (int i = 0; i < COUNT_OF(lengths); i++)
        for (int64_t epoch = 0; epoch < 2; epoch++) check_epoch(data, lengths[i], epoch);
    data_close(data);
}

static void test_weights_add_up_over_the_step(void **state)
{
    Data *data = open_path(*state, "texts");
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 8, .micro_batch = 2, .seq = 50});
    Rows r = rows_create(8, 50);
    for (int64_t step = 0; step < 20; step++) {
        double sum = 0;
        fill_step(loader, step, 2, &r);
        for (int i = 0; i < 400; i++) sum += (double)r.batch.weights[i];
        assert_true(fabs(sum - 1) < 1e-5);
    }
    rows_destroy(&r);
    data_loader_destroy(loader);
    data_close(data);
}

static void test_holdout(void **state)
{
    Bench *b = *state;
    Data *data = open_path(b, "texts");
    DataStats train = data_stats(data, DATA_TRAIN), held = data_stats(data, DATA_HOLDOUT);
    assert_int_equal(train.n_documents + held.n_documents, 150);
    assert_in_range(held.n_documents, 5, 30);
    Str text = {0};
    assert_int_equal(data_holdout_text(data, SIZE_MAX, &text), OK);
    assert_int_equal(text.n, held.text_bytes);
    int found = 0;
    for (int d = 0; d < 150; d++) found += strstr(text.at, document(b, d)) != NULL;
    assert_int_equal(found, held.n_documents); /* whole documents; the words of each are its own */

    /* every target once, whatever the batch, and the bytes are those of the text */
    DataLoader *loader = loader_for(data, (DataPlan){.split = DATA_HOLDOUT, .seed = 9, .batch = 4, .micro_batch = 2, .seq = 40});
    uint64_t bytes;
    assert_int_equal(data_target_bytes(loader, data_loader_steps(loader), &bytes), OK);
    assert_int_equal(bytes, held.text_bytes);
    int64_t n, sum = 0;
    for (int64_t step = 0; step < data_loader_steps(loader); step++) {
        assert_int_equal(data_step_targets(loader, step, &n), OK);
        sum += n;
    }
    assert_int_equal(sum, held.n_tokens - held.n_documents);
    assert_int_equal(data_step_targets(loader, data_loader_steps(loader), &n), OK);
    assert_int_equal(n, 0);
    data_loader_destroy(loader);
    str_deinit(&text);

    /* one document: its end is held out; two: one of them */
    write_text(b, "one/a.txt", "long enough to be cut in two; long enough to be cut in two; long enough to be cut in two; "
                               "long enough to be cut in two; long enough to be cut in two; long enough to be cut in two");
    data_close(data);
    data = open_path(b, "one");
    assert_int_equal(data_stats(data, DATA_HOLDOUT).n_documents, 1);
    assert_int_equal(data_stats(data, DATA_TRAIN).n_documents, 1);
    data_close(data);
    write_text(b, "one/b.txt", "another");
    data = open_path(b, "one");
    assert_int_equal(data_stats(data, DATA_HOLDOUT).n_documents, 1);
    assert_int_equal(data_stats(data, DATA_TRAIN).n_documents, 1);
    data_close(data);
}

static void test_mixing(void **state)
{
    Bench *b = *state;
    write_text(b, "mix/a.txt", "aaaaaaaa");
    write_text(b, "mix/b.txt", "bbbbbbbb");
    write_text(b, "mix/c.txt", "cccccccc");
    DataSource sources[] = {{.path = at(b, "mix/a.txt"), .weight = 3}, {.path = at(b, "mix/b.txt"), .weight = 1},
                            {.path = at(b, "mix/c.txt"), .weight = 2.5}};
    Data *data = open_data(b, sources, 3);
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 1, .micro_batch = 1, .seq = 64});
    Rows r = rows_create(1, 64);
    double n[3] = {0};
    for (int64_t step = 0; step < 2000; step++) {
        fill_step(loader, step, 1, &r);
        Str text = {0};
        int t = 0; /* the rows are longer than the texts: padding in front */
        while (r.batch.targets[t] < 0) t++;
        assert_int_equal(tokenizer_decode(b->tokenizer, &r.batch.targets[t], 1, &text), OK);
        n[text.at[0] - 'a']++;
        str_deinit(&text);
        for (int i = 0; i < 3; i++) /* exact at every moment, not only at the end */
            assert_true(fabs(n[i] - sources[i].weight / 6.5 * (double)(step + 1)) < 2.01);
    }
    rows_destroy(&r);
    data_loader_destroy(loader);
    data_close(data);
}

static void test_random_ids(void **state)
{
    Bench *b = *state;
    DataSource source = {.weight = 1};
    DataOptions options = options_for(b, &source, 1);
    options.tokenizer = NULL;
    options.vocab_size = 1000;
    Data *data;
    assert_int_equal(data_open(&options, &data), OK);
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 4, .micro_batch = 4, .seq = 256});
    assert_true(data_loader_steps(loader) == INT64_MAX);
    Rows r = rows_create(4, 256), again = rows_create(4, 256);
    fill_step(loader, 7, 4, &r);
    fill_step(loader, 8, 4, &again);
    assert_memory_not_equal(r.batch.ids, again.batch.ids, 4096);
    fill_step(loader, 7, 4, &again);
    assert_same_rows(&r, &again);
    int high = 0;
    for (int i = 0; i < 1024; i++) {
        assert_in_range(r.batch.ids[i], 0, 999);
        assert_true(r.batch.weights[i] == 1.0f / 1024);
        high += r.batch.ids[i] >= 500;
    }
    assert_in_range(high, 400, 624);
    rows_destroy(&r);
    rows_destroy(&again);
    data_loader_destroy(loader);
    data_close(data);
}

/* ---- readers ------------------------------------------------------------------------------ */

/* The same 50 records as .jsonl, .gz and .zst. */
static void make_jsonl(Bench *b, Str *plain)
{
    for (int d = 0; d < 50; d++) str_printf(plain, "{\"id\": %d, \"text\": \"%s\\n\\u00e9\", \"x\": [1, {}]}\n", d, document(b, d));
}

static void write_gzip(Bench *b, const char *name, const void *data, size_t n, size_t cut)
{
    gzFile out = gzopen(at(b, "gz.tmp"), "wb");
    assert_int_equal(gzwrite(out, data, (unsigned)n), (int)n);
    gzclose(out);
    Bytes packed;
    assert_int_equal(file_read(&b->arena, at(b, "gz.tmp"), 1 << 28, &packed), OK);
    write_file(b, name, packed.at, packed.n - cut);
}

static void write_zstd(Bench *b, const char *name, const void *data, size_t n, size_t cut)
{
    size_t cap = ZSTD_compressBound(n);
    void *packed = xmalloc(cap);
    size_t size = ZSTD_compress(packed, cap, data, n, 3);
    assert_false(ZSTD_isError(size));
    write_file(b, name, packed, size - cut);
    free(packed);
}

static void test_packed_json_lines_read_alike(void **state)
{
    Bench *b = *state;
    Str plain = {0};
    make_jsonl(b, &plain);
    write_file(b, "j/a.jsonl", plain.at, plain.n);
    write_gzip(b, "j/b.jsonl.gz", plain.at, plain.n, 0);
    write_zstd(b, "j/c.jsonl.zst", plain.at, plain.n, 0);
    static const char *const names[] = {"j/a.jsonl", "j/b.jsonl.gz", "j/c.jsonl.zst"};
    Rows rows[3];
    for (int i = 0; i < 3; i++) {
        Data *data = open_path(b, names[i]);
        assert_int_equal(data_stats(data, DATA_TRAIN).n_documents + data_stats(data, DATA_HOLDOUT).n_documents, 50);
        assert_int_equal(data_verify(data), OK);
        DataLoader *loader = loader_for(data, (DataPlan){.batch = 16, .micro_batch = 16, .seq = 64});
        rows[i] = rows_create(16, 64);
        fill_step(loader, 3, 16, &rows[i]);
        data_loader_destroy(loader);
        data_close(data);
        assert_same_rows(&rows[0], &rows[i]);
    }
    for (int i = 0; i < 3; i++) rows_destroy(&rows[i]);
    str_deinit(&plain);
}

static void test_globs(void **state)
{
    Bench *b = *state;
    static const char *const names[] = {"g/a.h", "g/b.c", "g/s/c.h", "g/s/t/d.h", "g/.hidden/e.h", "g/s/.f.h", "g/[x].h"};
    for (int i = 0; i < COUNT_OF(names); i++) write_text(b, names[i], names[i]);
    assert_int_equal(symlink("..", at(b, "g/s/loop")), 0);
    static const struct {
        const char *pattern;
        size_t n;
    } cases[] = {{"g", 5},       {"g/", 5},         {"g/**", 5},    {"g/**/*.h", 4},    {"g/*.h", 2}, {"g/*/*.h", 1}, {"g/[ab].?", 2},
                 {"g/[x].h", 1}, {"g/**/t/*.h", 1}, {"g/**/s", 2},  {"g/**/**/*.h", 4}, {"g/s/../a.h", 1}, {"g/.hidden/*", 1}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        SourceFiles files;
        if (data_files_find(&b->arena, at(b, cases[i].pattern), &files) != OK) fail_msg("%s", status_message());
        if (files.n != cases[i].n) fail_msg("%s matches %zu files, not %zu", cases[i].pattern, files.n, cases[i].n);
    }
}

static void test_refusals(void **state)
{
    Bench *b = *state;
    assert_refused(b, &(DataSource){.path = at(b, "nothing/*.txt"), .weight = 1}, "nothing/*.txt");
    assert_refused(b, &(DataSource){.path = at(b, "absent.txt"), .weight = 1}, "absent.txt");
    assert_refused(b, &(DataSource){.path = at(b, "texts"), .weight = -1}, "weight");
    write_text(b, "bad/empty.txt", "");
    assert_refused(b, &(DataSource){.path = at(b, "bad/empty.txt"), .weight = 1}, "empty");
    write_file(b, "bad/binary.txt", "ab\0c", 4);
    assert_refused(b, &(DataSource){.path = at(b, "bad/binary.txt"), .weight = 1}, "not UTF-8");
    write_text(b, "bad/latin.txt", "caf\xe9 au lait");
    assert_refused(b, &(DataSource){.path = at(b, "bad/latin.txt"), .weight = 1}, "latin.txt");
    static const struct {
        const char *line, *says;
    } lines[] = {{"{\"text\": \"a\"\n", "not JSON"},
                 {"[1]\n", "not a JSON object"},
                 {"{\"text\": 5}\n", "is no text"},
                 {"{\"txet\": \"a\"}\n", "no field text"},
                 {"{\"text\": \"a\", \"text\": \"b\"}\n", "not JSON"},
                 {"{\"text\": \"\xff\"}\n", "not JSON"}};
    for (int i = 0; i < COUNT_OF(lines); i++) {
        char *name = arena_printf(&b->arena, "bad/%d.jsonl", i);
        write_text(b, name, arena_printf(&b->arena, "{\"text\": \"good\"}\n\n%s", lines[i].line));
        assert_refused(b, &(DataSource){.path = at(b, name), .weight = 1}, lines[i].says);
        assert_non_null(strstr(status_message(), "line 3"));
        assert_non_null(strstr(status_message(), "1 of 2 records"));
    }
}

/* Damage within the budget is counted, and everything else is still there. */
static void test_budget(void **state)
{
    Bench *b = *state;
    Str plain = {0};
    make_jsonl(b, &plain);
    str_add(&plain, "{\"text\": broken\n");
    for (int i = 0; i < 3000; i++) str_add(&plain, "long ");
    str_add(&plain, "\n");
    make_jsonl(b, &plain);
    write_file(b, "budget/a.jsonl", plain.at, plain.n);
    DataSource source = {.path = at(b, "budget/a.jsonl"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    options.bad_share = 0.02;
    options.line_limit = 2000;
    Data *data;
    if (data_open(&options, &data) != OK) fail_msg("%s", status_message());
    DataStats s = data_stats(data, DATA_TRAIN);
    assert_int_equal(s.n_bad_records, 2);
    assert_int_equal(s.n_documents + data_stats(data, DATA_HOLDOUT).n_documents, 100);
    data_close(data);
    options.bad_share = 0.019;
    assert_int_equal(data_open(&options, &data), ERR_FORMAT);
    str_deinit(&plain);
}

static void test_hostile_files(void **state)
{
    Bench *b = *state;
    Str plain = {0};
    make_jsonl(b, &plain);
    write_gzip(b, "hostile/cut.jsonl.gz", plain.at, plain.n, 20);
    assert_refused(b, &(DataSource){.path = at(b, "hostile/cut.jsonl.gz"), .weight = 1}, "ends in the middle");
    write_zstd(b, "hostile/cut.jsonl.zst", plain.at, plain.n, 20);
    assert_refused(b, &(DataSource){.path = at(b, "hostile/cut.jsonl.zst"), .weight = 1}, "ends in the middle");
    write_text(b, "hostile/fake.jsonl.gz", "this is not gzip");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/fake.jsonl.gz"), .weight = 1}, "gzip");
    write_text(b, "hostile/fake.jsonl.zst", "this is not zstd");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/fake.jsonl.zst"), .weight = 1}, "zstd");
    write_text(b, "hostile/none.jsonl.gz", "");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/none.jsonl.gz"), .weight = 1}, "empty");

    /* a window of 2^31 bytes: refused, not allocated */
    static const uint8_t window[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 1, 0, 0};
    write_file(b, "hostile/window.jsonl.zst", window, sizeof window);
    assert_refused(b, &(DataSource){.path = at(b, "hostile/window.jsonl.zst"), .weight = 1}, "zstd");

    /* bombs: one endless line, and nothing but line ends; memory stays below a few MB */
    size_t bomb_bytes = (size_t)64 << 20, before = memory_peak_rss_bytes();
    uint8_t *zeros = xmalloc(bomb_bytes);
    memset(zeros, 'a', bomb_bytes);
    write_zstd(b, "hostile/line.jsonl.zst", zeros, bomb_bytes, 0);
    memset(zeros, '\n', bomb_bytes);
    write_zstd(b, "hostile/blank.jsonl.zst", zeros, bomb_bytes, 0);
    free(zeros);
    before = memory_peak_rss_bytes();
    assert_refused(b, &(DataSource){.path = at(b, "hostile/line.jsonl.zst"), .weight = 1}, "endless line");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/blank.jsonl.zst"), .weight = 1}, "blank lines");
    assert_true(memory_peak_rss_bytes() - before < (size_t)16 << 20);
    str_deinit(&plain);
}

/* A text without line ends becomes documents at the limit, cut between characters. */
static void test_endless_text(void **state)
{
    Bench *b = *state;
    Str text = {0};
    for (int i = 0; i < 4000; i++) str_add(&text, "\xc3\xa9\xe2\x82\xac");
    write_file(b, "endless/a.txt", text.at, text.n);
    DataSource source = {.path = at(b, "endless/a.txt"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    options.line_limit = 999;
    Data *data;
    if (data_open(&options, &data) != OK) fail_msg("%s", status_message());
    DataStats train = data_stats(data, DATA_TRAIN), held = data_stats(data, DATA_HOLDOUT);
    assert_int_equal(train.text_bytes + held.text_bytes, text.n);
    assert_int_equal(train.n_skipped_files, 0);
    assert_in_range(train.n_documents + held.n_documents, 20, 24);
    data_close(data);
    str_deinit(&text);
}

/* ---- the cache ---------------------------------------------------------------------------- */

static char *shard_path(const Data *data) { return xstrdup(data->source[0].split[DATA_TRAIN].shard[0].map.path); }

static void test_damaged_shards_are_built_again(void **state)
{
    Bench *b = *state;
    write_text(b, "damage/a.txt", "some words to be damaged");
    write_text(b, "damage/b.txt", "and others");
    Data *data = open_path(b, "damage");
    char *path = shard_path(data);
    Bytes good;
    assert_int_equal(file_read(&b->arena, path, 1 << 20, &good), OK);
    data_close(data);
    for (size_t i = 0; i < good.n; i++) { /* every byte of it, one at a time */
        uint8_t *bytes = arena_copy(&b->arena, good.at, good.n);
        bytes[i] ^= 0xff;
        damage(path, bytes, good.n);
        Shard shard;
        if (data_shard_open(path, &shard) == OK) { /* an id: found by the hash, or as out of range when read */
            assert_true(i >= 64 + 8 * (size_t)(shard.info.n_docs + 1));
            assert_int_equal(data_shard_verify(&shard), ERR_FORMAT);
            data_shard_close(&shard);
        } else if (i % 16 == 0) {
            data = open_path(b, "damage");
            data_close(data);
            Bytes again;
            assert_int_equal(file_read(&b->arena, path, 1 << 20, &again), OK);
            assert_int_equal(again.n, good.n);
            assert_memory_equal(again.at, good.at, good.n);
        }
    }
    assert_int_equal(file_write_atomic(path, good.at, good.n / 2), OK);
    data = open_path(b, "damage");
    assert_int_equal(data_verify(data), OK);
    data_close(data);
    assert_int_equal(file_unlink(path), OK);
    data_close(open_path(b, "damage"));
    uint8_t *bytes = arena_copy(&b->arena, good.at, good.n);
    bytes[good.n - 1] = 0xff; /* an id out of the vocabulary is a sentence when it is read */
    assert_int_equal(file_write_atomic(path, bytes, good.n), OK);
    data = open_path(b, "damage");
    DataLoader *loader = loader_for(data, (DataPlan){.batch = 1, .micro_batch = 1, .seq = 64});
    Rows r = rows_create(1, 64);
    assert_int_equal(data_fill(loader, 0, 0, &r.batch), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "vocabulary"));
    data_loader_destroy(loader);
    data_close(data);
    rows_destroy(&r);
    free(path);
}

static void test_cache_follows_its_inputs(void **state)
{
    Bench *b = *state;
    write_text(b, "follow/a.txt", "first");
    write_text(b, "follow/b.txt", "second");
    Data *data = open_path(b, "follow");
    char *first = shard_path(data);
    data_close(data);
    data = open_path(b, "follow");
    char *same = shard_path(data);
    assert_string_equal(first, same);
    data_close(data);
    write_text(b, "follow/b.txt", "changed");
    data = open_path(b, "follow");
    char *other = shard_path(data);
    assert_string_not_equal(first, other);
    data_close(data);
    free(first);
    free(same);
    free(other);
}

/* Whatever call fails while shards are built: a sentence, nothing half made, and the next try works. */
static void test_every_fault_of_a_build(void **state)
{
    Bench *b = *state;
    static const char *const points[] = {"open", "read", "write", "fsync", "rename", "close", "mkdir", "map"};
    DataSource source = {.path = at(b, "one"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    options.cache_dir = at(b, "faults");
    write_text(b, "one/a.txt", "one text");
    write_text(b, "one/b.txt", "another");
    for (int p = 0; p < COUNT_OF(points); p++)
        for (int n = 1, failed = 1; failed; n++) {
            Data *data = NULL;
            assert_true(n < 100);
            assert_int_equal(fault_set(arena_printf(&b->arena, "%s:%d", points[p], n)), OK);
            Status status = data_open(&options, &data);
            failed = fault_count(points[p]) >= n;
            assert_int_equal(fault_set(NULL), OK);
            if (status == OK) data_close(data);
            else assert_true(failed && strlen(status_message()) > 5);
            assert_int_equal(data_open(&options, &data), OK);
            assert_int_equal(data_verify(data), OK);
            data_close(data);
            assert_int_equal(dir_remove_tree(options.cache_dir), OK);
        }
}

static void test_threads_do_not_matter(void **state)
{
    Bench *b = *state;
    DataSource source = {.path = at(b, "texts"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    uint64_t hash[2];
    for (int i = 0; i < 2; i++) {
        Data *data;
        options.threads = 1 + 2 * i;
        options.cache_dir = at(b, i ? "three" : "single");
        assert_int_equal(data_open(&options, &data), OK);
        hash[i] = data->source[0].split[DATA_TRAIN].shard[0].info.hash;
        data_close(data);
    }
    assert_true(hash[0] == hash[1]);
}

/* ---- the rest ----------------------------------------------------------------------------- */

static void test_prefetch(void **state)
{
    Data *data = open_path(*state, "texts");
    DataPlan plan = {.seed = 2, .batch = 6, .micro_batch = 2, .seq = 20};
    DataLoader *ahead = loader_for(data, plan), *direct = loader_for(data, plan);
    DataPrefetch *prefetch;
    size_t bytes;
    assert_int_equal(data_prefetch_bytes(&plan, 3, &bytes), OK);
    assert_int_equal(bytes, 3 * 4 * 192); /* 160 bytes on lines of 64 */
    assert_int_equal(data_prefetch_bytes(&plan, 1, &bytes), ERR_ARG);
    assert_int_equal(data_prefetch_create(ahead, 5, 3, &prefetch), OK);
    Rows r = rows_create(2, 20);
    static const int64_t jumps[] = {5, 6, 7, 100, 101, 3, 4, 4, 5};
    for (int i = 0; i < COUNT_OF(jumps); i++)
        for (int64_t m = 0; m < 3; m++) {
            const DataBatch *batch;
            assert_int_equal(data_prefetch_next(prefetch, jumps[i], m, &batch), OK);
            assert_int_equal(data_fill(direct, jumps[i], m, &r.batch), OK);
            Rows got = {*batch, 2, 20};
            assert_same_rows(&r, &got);
        }
    assert_true(data_prefetch_wait_s(prefetch) >= 0);
    const DataBatch *batch;
    assert_int_equal(data_prefetch_next(prefetch, 0, 3, &batch), ERR_ARG);
    /* an error is handed to the one who asks, again each time, and does not stop the thread */
    for (int i = 0; i < 3; i++) assert_int_equal(data_prefetch_next(prefetch, INT64_MAX / 2, 0, &batch), ERR_ARG);
    assert_non_null(strstr(status_message(), "out of range"));
    assert_int_equal(data_prefetch_next(prefetch, 5, 0, &batch), OK);
    data_prefetch_destroy(prefetch);
    assert_int_equal(fault_set("tensor_alloc:1"), OK);
    assert_int_equal(data_prefetch_create(ahead, 0, 3, &prefetch), ERR_MEMORY);
    assert_int_equal(fault_set(NULL), OK);
    rows_destroy(&r);
    data_loader_destroy(ahead);
    data_loader_destroy(direct);
    data_close(data);
}

static void test_texts_and_inspect(void **state)
{
    Bench *b = *state;
    DataSource source = {.path = at(b, "texts"), .weight = 1};
    DataOptions options = options_for(b, &source, 1);
    for (int part = 0; part < 2; part++) {
        DataTexts *texts;
        assert_int_equal(data_texts_open(&options, part ? 5000 : UINT64_MAX, &texts), OK);
        uint64_t bytes = 0;
        for (Bytes text;; bytes += text.n) {
            assert_int_equal(data_texts_next(texts, &text), OK);
            if (!text.at) break;
        }
        Data *data = open_path(b, "texts");
        if (part) assert_in_range(bytes, 2500, 7500);
        else assert_int_equal(bytes, data_stats(data, DATA_TRAIN).text_bytes);
        Str out = {0};
        assert_int_equal(data_inspect(data, &out), OK);
        assert_non_null(strstr(out.at, "training: "));
        assert_non_null(strstr(out.at, "samples:"));
        str_deinit(&out);
        data_close(data);
        data_texts_close(texts);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_split_and_order_gives_the_same_rows),
        cmocka_unit_test(test_every_token_once_an_epoch),
        cmocka_unit_test(test_weights_add_up_over_the_step),
        cmocka_unit_test(test_holdout),
        cmocka_unit_test(test_mixing),
        cmocka_unit_test(test_random_ids),
        cmocka_unit_test(test_packed_json_lines_read_alike),
        cmocka_unit_test(test_globs),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_endless_text),
        cmocka_unit_test(test_damaged_shards_are_built_again),
        cmocka_unit_test(test_cache_follows_its_inputs),
        cmocka_unit_test(test_every_fault_of_a_build),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_prefetch),
        cmocka_unit_test(test_texts_and_inspect),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
