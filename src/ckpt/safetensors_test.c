/* safetensors files: hostile headers (each row of the table must be refused with a sentence), files
 * that are no files, a file cut short while open, and what is written comes back. */
#include "ckpt/ckpt_testkit.h"

#include <sys/stat.h>

static void write_bytes(const char *path, const void *data, size_t n)
{
    int fd;
    assert_ok(file_create(path, &fd));
    assert_ok(file_write(fd, data, n, path));
    assert_ok(file_close(fd, path));
}

/* A file of length field, header and `data` zero bytes. */
static void write_file(const char *path, uint64_t length, const char *header, size_t header_n,
                       size_t data)
{
    Str s = {0};
    for (int i = 0; i < 8; i++) str_add_n(&s, (char[]){(char)(length >> (8 * i))}, 1);
    str_add_n(&s, header, header_n);
    for (size_t i = 0; i < data; i++) str_add_n(&s, "\0", 1);
    write_bytes(path, s.at, s.n);
    str_deinit(&s);
}

static Status open_text(const char *dir, const char *header, size_t data)
{
    Arena arena = {0};
    const char *path = path_join(&arena, dir, "x.safetensors");
    Safetensors *file = NULL;
    write_file(path, strlen(header), header, strlen(header), data);
    Status status = safetensors_open(path, &file);
    if (status != OK) assert_non_null(strstr(status_message(), path)); /* says which file */
    safetensors_close(file);
    arena_deinit(&arena);
    return status;
}

#define T(name, dtype, shape, from, to)                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" from "," to   \
    "]}"

typedef struct Case {
    const char *what, *header;
    size_t data;
    Status want;
} Case;

static const Case cases[] = {
    {"empty object", "{}", 0, OK},
    {"metadata only", "{\"__metadata__\":{\"format\":\"pt\"}}", 0, OK},
    {"empty metadata", "{\"__metadata__\":{}}", 0, OK},
    {"one", "{" T("a", "F32", "2,3", "0", "24") "}", 24, OK},
    {"scalar", "{" T("a", "F32", "", "0", "4") "}", 4, OK},
    {"no elements", "{" T("a", "F32", "0", "0", "0") "," T("b", "F32", "0,3", "0", "0") "}", 0, OK},
    {"padded", "{" T("a", "U8", "1", "0", "1") "}    ", 1, OK},
    {"white space",
     "{ \"a\" : {\n\"shape\":[ 1 ] , \"dtype\" : \"U8\",\t\"data_offsets\":[0 , 1]}\r\n}", 1, OK},
    {"unordered", "{" T("a", "U8", "1", "1", "2") "," T("b", "U8", "1", "0", "1") "}", 2, OK},
    {"type we cannot read", "{" T("a", "BOOL", "3", "0", "3") "," T("b", "F4", "2", "3", "4") "}",
     4, OK},
    {"escaped name", "{" T("\\u00e9\\ud83d\\ude00\\n\\\"", "U8", "1", "0", "1") "}", 1, OK},
    {"leading space", " {}", 0, ERR_FORMAT},
    {"array", "[]", 0, ERR_FORMAT},
    {"not closed", "{", 0, ERR_FORMAT},
    {"text after", "{} x", 0, ERR_FORMAT},
    {"two objects", "{}{}", 0, ERR_FORMAT},
    {"zero byte after", "{}\x01", 0, ERR_FORMAT},
    {"comma at the end", "{" T("a", "U8", "1", "0", "1") ",}", 1, ERR_FORMAT},
    {"bad UTF-8", "{" T("\xff", "U8", "1", "0", "1") "}", 1, ERR_FORMAT},
    {"overlong UTF-8", "{" T("\xc0\x80", "U8", "1", "0", "1") "}", 1, ERR_FORMAT},
    {"half a surrogate", "{" T("\\ud83d", "U8", "1", "0", "1") "}", 1, ERR_FORMAT},
    {"zero in a name", "{" T("a\\u0000b", "U8", "1", "0", "1") "}", 1, ERR_FORMAT},
    {"control character", "{" T("a\nb", "U8", "1", "0", "1") "}", 1, ERR_FORMAT},
    {"wrong escape", "{" T("a\\x41", "U8", "1", "0", "1") "}", 1, ERR_FORMAT},
    {"duplicate", "{" T("a", "U8", "1", "0", "1") "," T("a", "U8", "1", "1", "2") "}", 2,
     ERR_FORMAT},
    {"duplicate, escaped",
     "{" T("a", "U8", "1", "0", "1") "," T("\\u0061", "U8", "1", "1", "2") "}", 2, ERR_FORMAT},
    {"duplicate, empty", "{" T("a", "U8", "0", "0", "0") "," T("a", "U8", "0", "0", "0") "}", 0,
     ERR_FORMAT},
    {"duplicate key",
     "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     ERR_FORMAT},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, ERR_FORMAT},
    {"metadata number", "{\"__metadata__\":{\"a\":1}}", 0, ERR_FORMAT},
    {"metadata nested", "{\"__metadata__\":{\"a\":{}}}", 0, ERR_FORMAT},
    {"key missing", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 0, ERR_FORMAT},
    {"key unknown", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
     ERR_FORMAT},
    {"type unknown", "{" T("a", "F31", "1", "0", "4") "}", 4, ERR_FORMAT},
    {"type empty", "{" T("a", "", "1", "0", "4") "}", 4, ERR_FORMAT},
    {"type a number", "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, ERR_FORMAT},
    {"product overflows", "{" T("a", "F32", "4294967296,4294967296", "0", "0") "}", 0, ERR_FORMAT},
    {"product overflows, then zero", "{" T("a", "F32", "4294967296,4294967296,0", "0", "0") "}", 0,
     ERR_FORMAT},
    {"bits overflow", "{" T("a", "F32", "576460752303423488", "0", "0") "}", 0, ERR_FORMAT},
    {"dimension 2^63", "{" T("a", "U8", "9223372036854775808", "0", "1") "}", 1, ERR_FORMAT},
    {"dimension 2^64", "{" T("a", "U8", "18446744073709551616", "0", "0") "}", 0, ERR_FORMAT},
    {"negative dimension", "{" T("a", "U8", "-1", "0", "1") "}", 1, ERR_FORMAT},
    {"float dimension", "{" T("a", "U8", "1.0", "0", "1") "}", 1, ERR_FORMAT},
    {"exponent", "{" T("a", "U8", "1e0", "0", "1") "}", 1, ERR_FORMAT},
    {"leading zero", "{" T("a", "U8", "01", "0", "1") "}", 1, ERR_FORMAT},
    {"shape not a list", "{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1,
     ERR_FORMAT},
    {"too many axes", "{" T("a", "U8", "1,1,1,1,1,1", "0", "1") "}", 1, ERR_UNSUPPORTED},
    {"half a byte", "{" T("a", "F4", "3", "0", "2") "}", 2, ERR_FORMAT},
    {"half a byte, rounded down", "{" T("a", "F4", "3", "0", "1") "}", 1, ERR_FORMAT},
    {"negative offset", "{" T("a", "U8", "1", "-1", "0") "}", 1, ERR_FORMAT},
    {"float offset", "{" T("a", "U8", "1", "0.0", "1") "}", 1, ERR_FORMAT},
    {"one offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, ERR_FORMAT},
    {"three offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1,
     ERR_FORMAT},
    {"reverse", "{" T("a", "U8", "1", "1", "0") "}", 1, ERR_FORMAT},
    {"out of range", "{" T("a", "U8", "2", "0", "2") "}", 1, ERR_FORMAT},
    {"far out of range", "{" T("a", "U8", "1", "18446744073709551614", "18446744073709551615") "}",
     1, ERR_FORMAT},
    {"larger than its shape", "{" T("a", "U8", "1", "0", "2") "}", 2, ERR_FORMAT},
    {"smaller than its shape", "{" T("a", "F32", "1", "0", "2") "}", 2, ERR_FORMAT},
    {"overlap", "{" T("a", "U8", "2", "0", "2") "," T("b", "U8", "2", "1", "3") "}", 3, ERR_FORMAT},
    {"same place", "{" T("a", "U8", "2", "0", "2") "," T("b", "U8", "2", "0", "2") "}", 2,
     ERR_FORMAT},
    {"hole", "{" T("a", "U8", "1", "0", "1") "," T("b", "U8", "1", "2", "3") "}", 3, ERR_FORMAT},
    {"overlap and hole of one size",
     "{" T("a", "U8", "2", "0", "2") "," T("b", "U8", "2", "1", "3") "}", 4, ERR_FORMAT},
    {"hole at the start", "{" T("a", "U8", "1", "1", "2") "}", 2, ERR_FORMAT},
    {"trailing data", "{" T("a", "U8", "1", "0", "1") "}", 2, ERR_FORMAT},
    {"nothing but trailing data", "{}", 1, ERR_FORMAT},
    {"cut short", "{" T("a", "U8", "8", "0", "8") "}", 7, ERR_FORMAT},
};

static void test_headers(void **state)
{
    (void)state;
    char *dir = scratch_create();
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Status status = open_text(dir, cases[i].header, cases[i].data);
        if (status != cases[i].want)
            fail_msg("%s: %s (%s)", cases[i].what, status_name(status),
                     status == OK ? "" : status_message());
    }
    scratch_destroy(dir);
}

/* Every prefix of a good header is refused. */
static void test_every_prefix(void **state)
{
    (void)state;
    char *dir = scratch_create();
    const char *good = "{\"__metadata__\":{\"k\":\"v\\u00e9\"}," T("a", "F32", "2,3", "0",
                                                                   "24") "}";
    char prefix[256];
    for (size_t n = 0; n < strlen(good); n++) {
        memcpy(prefix, good, n);
        prefix[n] = 0;
        assert_int_equal(open_text(dir, prefix, 24), ERR_FORMAT);
    }
    assert_int_equal(open_text(dir, good, 24), OK);
    scratch_destroy(dir);
}

static void test_lengths(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Arena arena = {0};
    const char *path = path_join(&arena, dir, "x.safetensors");
    static const uint64_t lengths[] = {0,          3,          1 << 20, 99999999, 100000001,
                                       1ull << 32, 1ull << 63, ~0ull,   ~0ull - 7};
    Safetensors *file;
    for (int i = 0; i < COUNT_OF(lengths); i++) {
        write_file(path, lengths[i], "{}", 2, 0);
        assert_int_equal(safetensors_open(path, &file), ERR_FORMAT);
    }
    write_file(path, SAFETENSORS_MAX_HEADER + 1, "{}", 2,
               0); /* over the cap, though the file has it */
    assert_int_equal(truncate(path, SAFETENSORS_MAX_HEADER + 100), 0);
    assert_int_equal(safetensors_open(path, &file), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "at most 100000000 are accepted"));
    for (size_t n = 0; n < 8; n++) {
        write_bytes(path, "\2\0\0\0\0\0\0", n);
        assert_int_equal(safetensors_open(path, &file), ERR_FORMAT);
    }
    arena_deinit(&arena);
    scratch_destroy(dir);
}

/* 100,000 levels, and a header of two million bytes that is all names: neither costs much memory.
 */
static void test_deep_and_wide(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Str deep = {0}, wide = {0};
    str_add(&deep, "{\"a\":");
    for (int i = 0; i < 100000; i++) str_add(&deep, "[");
    assert_int_equal(open_text(dir, deep.at, 0), ERR_FORMAT);
    str_clear(&deep);
    for (int i = 0; i < 100000; i++) str_add(&deep, "{\"a\":");
    assert_int_equal(open_text(dir, deep.at, 0), ERR_FORMAT);
    size_t before = memory_peak_rss_bytes();
    str_add(&wide, "{");
    for (int i = 0; i < 40000; i++)
        str_printf(&wide, "%s" T("%d", "U8", "", "%d", "%d"), i ? "," : "", i, i, i + 1);
    str_add(&wide, "}");
    assert_int_equal(open_text(dir, wide.at, 40000), OK);
    assert_true(memory_peak_rss_bytes() - before < 4 * wide.n + (16 << 20));
    str_deinit(&deep);
    str_deinit(&wide);
    scratch_destroy(dir);
}

static void test_not_a_file(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Arena arena = {0};
    const char *good = path_join(&arena, dir, "good"), *link = path_join(&arena, dir, "link");
    const char *loop = path_join(&arena, dir, "loop"), *fifo = path_join(&arena, dir, "fifo");
    Safetensors *file;
    write_file(good, 2, "{}", 2, 0);
    assert_int_equal(symlink("good", link), 0);
    assert_int_equal(symlink("loop", loop), 0);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_ok(safetensors_open(link, &file)); /* model hubs keep their files behind links */
    safetensors_close(file);
    assert_int_equal(safetensors_open(loop, &file), ERR_IO);
    assert_int_equal(safetensors_open(fifo, &file), ERR_IO); /* and does not wait for a writer */
    assert_int_equal(safetensors_open(dir, &file), ERR_IO);
    assert_int_equal(safetensors_open("/dev/zero", &file), ERR_IO);
    assert_int_equal(safetensors_open(path_join(&arena, dir, "none"), &file), ERR_IO);
    arena_deinit(&arena);
    scratch_destroy(dir);
}

/* ---- reading and writing ---------------------------------------------------------------- */

static SafetensorsItem make_item(const char *name, DType dtype, int64_t count, const void *data)
{
    Axis axis[] = {AXIS_ANY};
    return (SafetensorsItem){
        .name = name, .dtype = dtype, .shape = shape_make(1, &count, axis), .data = data};
}

static Status fill_counting(void *context, uint64_t offset, void *out, size_t bytes)
{
    uint64_t *expected = context;
    if (offset != *expected) return ERR_ARG; /* in order, without gaps */
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)out)[i] = (uint8_t)((offset + i) * 7);
    *expected += bytes;
    return OK;
}

static void test_round_trip(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Arena arena = {0};
    const char *path = path_join(&arena, dir, "x.safetensors");
    float f[] = {1.5f, -2, 3e-5f};
    uint16_t h[] = {0x3f80, 0xc000};
    int64_t big[] = {-5};
    uint64_t filled = 0;
    enum { FILLED = 9 << 20 }; /* more than one piece */
    SafetensorsItem items[] = {make_item("b\"\\\n\x01\xc3\xa9", DTYPE_F32, 3, f),
                               make_item("a", DTYPE_BF16, 2, h), make_item("i", DTYPE_I64, 1, big),
                               make_item("u", DTYPE_U8, FILLED, NULL)};
    items[3].fill = fill_counting;
    items[3].context = &filled;
    Hash128 hashes[4];
    SafetensorsDigest digest = {.tensors = hashes};
    assert_ok(safetensors_write(path, items, 4, &digest));
    Bytes all;
    assert_ok(file_read(&arena, path, 64 << 20, &all));
    Hash128 whole = hash128_bytes(all.at, all.n), one = hash128_bytes(f, sizeof f);
    assert_int_equal(digest.bytes, all.n);
    assert_memory_equal(&whole, &digest.file, sizeof whole);
    assert_memory_equal(&one, &hashes[0], sizeof one);
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"},\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_"
        "offsets\":[0,8]},"
        "\"b\\\"\\\\\\n\\u0001\xc3\xa9\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[8,20]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[20,24]},";
    assert_memory_equal(all.at + 8, header, strlen(header));

    Safetensors *file;
    assert_ok(safetensors_open(path, &file));
    assert_int_equal(safetensors_count(file), 4);
    const SafetensorsEntry *b = safetensors_find(file, items[0].name),
                           *a = safetensors_find(file, "a");
    assert_non_null(b);
    assert_null(safetensors_find(file, "nothing"));
    float back[3];
    assert_ok(safetensors_read(b, 0, 3, DTYPE_F32, back));
    assert_memory_equal(back, f, sizeof f);
    assert_ok(safetensors_read(b, 1, 1, DTYPE_F32, back));
    assert_true(back[0] == f[1]);
    assert_ok(safetensors_read(a, 0, 2, DTYPE_F32, back)); /* converts */
    assert_true(back[0] == 1 && back[1] == -2);
    assert_int_equal(safetensors_read(a, 1, 2, DTYPE_F32, back), ERR_ARG);
    assert_int_equal(safetensors_read(a, -1, 1, DTYPE_F32, back), ERR_ARG);
    assert_int_equal(safetensors_read(a, 2, 0, DTYPE_F32, back), OK);
    Hash128 again;
    assert_ok(safetensors_hash(file, safetensors_find(file, "u"), &again));
    assert_memory_equal(&again, &hashes[3], sizeof again);
    safetensors_close(file);
    arena_deinit(&arena);
    scratch_destroy(dir);
}

/* Pages behind the new end are gone: reading them is an error that names file and tensor. */
static void test_cut_while_open(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Arena arena = {0};
    const char *path = path_join(&arena, dir, "x.safetensors");
    enum { COUNT = 1 << 20 };
    float *data = xcalloc(COUNT, sizeof *data);
    SafetensorsItem item = make_item("weight", DTYPE_F32, COUNT, data);
    Safetensors *file;
    assert_ok(safetensors_write(path, &item, 1, NULL));
    assert_ok(safetensors_open(path, &file));
    assert_int_equal(truncate(path, 8192), 0);
    const SafetensorsEntry *entry = safetensors_at(file, 0);
    Hash128 hash;
    assert_int_equal(safetensors_read(entry, 0, COUNT, DTYPE_F32, data), ERR_IO);
    assert_non_null(strstr(status_message(), "weight"));
    assert_non_null(strstr(status_message(), path));
    assert_int_equal(safetensors_read(entry, 0, COUNT, DTYPE_BF16, data), ERR_IO);
    assert_int_equal(safetensors_hash(file, entry, &hash), ERR_IO);
    assert_ok(safetensors_read(entry, 0, 100, DTYPE_F32, data)); /* what is left can be read */
    safetensors_close(file);
    free(data);
    arena_deinit(&arena);
    scratch_destroy(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* first: it needs the handler of SIGBUS that the first mapping installs, and cmocka puts
         * its own in
         * that place before each test */
        cmocka_unit_test(test_cut_while_open), cmocka_unit_test(test_headers),
        cmocka_unit_test(test_every_prefix),   cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_deep_and_wide),  cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
