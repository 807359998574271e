/* From files to documents: what is read, what is skipped and counted, what is refused. */
#include "data/data_testkit.h"

#include <zlib.h>
#include <zstd.h>

/* The same 50 records as .jsonl, .gz and .zst. */
static void make_jsonl(Bench *b, Str *plain)
{
    for (int d = 0; d < 50; d++)
        str_printf(plain, "{\"id\": %d, \"text\": \"%s\\n\\u00e9\", \"x\": [1, {}]}\n", d,
                   document(b, d));
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
        assert_int_equal(data_stats(data, DATA_TRAIN).n_documents +
                             data_stats(data, DATA_HOLDOUT).n_documents,
                         50);
        assert_int_equal(data_verify(data), OK);
        DataLoader *loader = loader_for(data,
                                        (DataPlan){.batch = 16, .micro_batch = 16, .seq = 64});
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
    static const char *const names[] = {"g/a.h",         "g/b.c",    "g/s/c.h", "g/s/t/d.h",
                                        "g/.hidden/e.h", "g/s/.f.h", "g/[x].h"};
    for (int i = 0; i < COUNT_OF(names); i++) write_text(b, names[i], names[i]);
    assert_int_equal(symlink("..", at(b, "g/s/loop")), 0);
    static const struct {
        const char *pattern;
        size_t n;
    } cases[] = {{"g", 5},          {"g/", 5},      {"g/**", 5},        {"g/**/*.h", 4},
                 {"g/*.h", 2},      {"g/*/*.h", 1}, {"g/[ab].?", 2},    {"g/[x].h", 1},
                 {"g/**/t/*.h", 1}, {"g/**/s", 2},  {"g/**/**/*.h", 4}, {"g/s/../a.h", 1},
                 {"g/.hidden/*", 1}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        SourceFiles files;
        if (data_files_find(&b->arena, at(b, cases[i].pattern), &files) != OK)
            fail_msg("%s", status_message());
        if (files.n != cases[i].n)
            fail_msg("%s matches %zu files, not %zu", cases[i].pattern, files.n, cases[i].n);
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
    assert_refused(b, &(DataSource){.path = at(b, "hostile/cut.jsonl.gz"), .weight = 1},
                   "ends in the middle");
    write_zstd(b, "hostile/cut.jsonl.zst", plain.at, plain.n, 20);
    assert_refused(b, &(DataSource){.path = at(b, "hostile/cut.jsonl.zst"), .weight = 1},
                   "ends in the middle");
    write_text(b, "hostile/fake.jsonl.gz", "this is not gzip");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/fake.jsonl.gz"), .weight = 1}, "gzip");
    write_text(b, "hostile/fake.jsonl.zst", "this is not zstd");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/fake.jsonl.zst"), .weight = 1}, "zstd");
    write_text(b, "hostile/none.jsonl.gz", "");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/none.jsonl.gz"), .weight = 1}, "empty");

    /* a window of 2^31 bytes: refused, not allocated */
    static const uint8_t window[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 1, 0, 0};
    write_file(b, "hostile/window.jsonl.zst", window, sizeof window);
    assert_refused(b, &(DataSource){.path = at(b, "hostile/window.jsonl.zst"), .weight = 1},
                   "zstd");

    /* bombs: one endless line, and nothing but line ends; memory stays below a few MB */
    size_t bomb_bytes = (size_t)64 << 20, before = memory_peak_rss_bytes();
    uint8_t *zeros = xmalloc(bomb_bytes);
    memset(zeros, 'a', bomb_bytes);
    write_zstd(b, "hostile/line.jsonl.zst", zeros, bomb_bytes, 0);
    memset(zeros, '\n', bomb_bytes);
    write_zstd(b, "hostile/blank.jsonl.zst", zeros, bomb_bytes, 0);
    free(zeros);
    before = memory_peak_rss_bytes();
    assert_refused(b, &(DataSource){.path = at(b, "hostile/line.jsonl.zst"), .weight = 1},
                   "endless line");
    assert_refused(b, &(DataSource){.path = at(b, "hostile/blank.jsonl.zst"), .weight = 1},
                   "blank lines");
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
        if (part)
            assert_in_range(bytes, 2500, 7500);
        else
            assert_int_equal(bytes, data_stats(data, DATA_TRAIN).text_bytes);
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
        cmocka_unit_test(test_packed_json_lines_read_alike),
        cmocka_unit_test(test_globs),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_endless_text),
        cmocka_unit_test(test_texts_and_inspect),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
