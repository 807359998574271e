/* Files of torch.save: every type and view as torch means it, and every way of being wrong. */
#include "weights/weights_testkit.h"

#define GOLDEN SOURCE_DIR "/tests/golden_meta/"

/* ---- right ------------------------------------------------------------------------------ */

static void test_types(void **state)
{
    (void)state;
    Pth *file;
    Safetensors *expected;
    assert_ok(pth_open(GOLDEN "small.pth", &file));
    assert_ok(safetensors_open(GOLDEN "expected.safetensors", &expected));
    assert_ok(pth_verify(file));
    assert_int_equal(pth_count(file), safetensors_count(expected));
    for (int i = 0; i < pth_count(file); i++) {
        const PthTensor *t = pth_at(file, i);
        const SafetensorsEntry *e = safetensors_find(expected, t->name);
        assert_non_null(e);
        assert_string_equal(t->type_name, e->type_name);
        assert_true(shape_equal(&t->shape, &e->shape) && t->bytes == e->bytes);
        Stored stored = {.name = t->name,
                         .map = pth_map(file),
                         .mapped = true,
                         .dtype = t->dtype,
                         .type_name = t->type_name,
                         .shape = t->shape,
                         .offset = t->offset,
                         .bytes = t->bytes};
        memcpy(stored.stride, t->stride, sizeof stored.stride);
        WeightPiece piece = piece_whole(&stored);
        Weight w = {.name = t->name,
                    .shape = t->shape,
                    .dtype = t->dtype,
                    .kind = "",
                    .piece = &piece,
                    .n_pieces = 1};
        uint8_t have[512], want[512];
        int64_t n = shape_count(&t->shape);
        assert_ok(weights_read_range(&w, 0, n, t->dtype, have));
        assert_ok(safetensors_read(e, 0, n, t->dtype, want));
        if (memcmp(have, want, (size_t)e->bytes) != 0) fail_msg("%s differs", t->name);
    }
    safetensors_close(expected);
    pth_close(file);
}

/* ---- damaged ---------------------------------------------------------------------------- */

static Bytes read_small(Arena *arena)
{
    Bytes bytes;
    assert_ok(file_read(arena, GOLDEN "small.pth", 1 << 20, &bytes));
    return bytes;
}

/* However much is missing, the sentence names the file and where it ends. */
static void test_truncated(void **state)
{
    (void)state;
    Arena arena = {0};
    Bytes bytes = read_small(&arena);
    Pth *file;
    for (size_t n = 0; n < bytes.n; n++) {
        char end[32];
        Status status = pth_open_memory((Bytes){bytes.at, n}, "cut.pth", &file);
        if (status == OK) fail_msg("%zu bytes were accepted", n);
        snprintf(end, sizeof end, "byte %zu", n);
        if (!strstr(status_message(), "cut.pth") || (n > 64 && !strstr(status_message(), end)) ||
            (n > 64 && !strstr(status_message(), "small/")))
            fail_msg("%zu: %s", n, status_message());
    }
    arena_deinit(&arena);
}

/* One bit in what counts: found when the file is opened or verified. Padding and dates do not
 * count. */
static void test_flipped(void **state)
{
    (void)state;
    Arena arena = {0};
    Bytes bytes = read_small(&arena);
    uint8_t *copy = arena_copy(&arena, bytes.at, bytes.n);
    Zip zip;
    FileMap map = {bytes.at, bytes.n, (char *)(uintptr_t) "small.pth"};
    assert_ok(zip_read(&arena, &map, &zip));
    int flips = 0;
    for (int i = 0; i < zip.n; i++)
        for (uint64_t at = zip.entry[i].offset; at < zip.entry[i].offset + zip.entry[i].bytes;
             at++, flips++) {
            Pth *file;
            uint8_t bit = (uint8_t)(1 << at % 8);
            copy[at] ^= bit;
            Status status = pth_open_memory((Bytes){copy, bytes.n}, "flip.pth", &file);
            if (status == OK) {
                status = pth_verify(file);
                pth_close(file);
                if (status == OK)
                    fail_msg("byte %d of %s", (int)(at - zip.entry[i].offset), zip.entry[i].name);
                if (!strstr(status_message(), zip.entry[i].name)) fail_msg("%s", status_message());
            }
            copy[at] ^= bit;
        }
    assert_true(flips > 1500);
    arena_deinit(&arena);
}

/* Anything in the headers may be wrong: never a crash, never a tensor outside the file. */
static void test_any_byte(void **state)
{
    (void)state;
    Arena arena = {0};
    Bytes bytes = read_small(&arena);
    uint8_t *copy = arena_copy(&arena, bytes.at, bytes.n);
    for (size_t at = 0; at < bytes.n; at++)
        for (int k = 0; k < 3; k++) {
            Pth *file;
            copy[at] = k == 0 ? 0xff : k == 1 ? 0 : (uint8_t)(bytes.at[at] + 1);
            if (pth_open_memory((Bytes){copy, bytes.n}, "byte.pth", &file) == OK) {
                for (int i = 0; i < pth_count(file); i++) {
                    const PthTensor *t = pth_at(file, i);
                    assert_true(t->offset <= bytes.n && t->bytes <= bytes.n - t->offset);
                }
                pth_close(file);
            }
            copy[at] = bytes.at[at];
        }
    arena_deinit(&arena);
}

/* ---- pickles that are none -------------------------------------------------------------- */

static void refuse(const char *text, size_t n, const char *sentence)
{
    Arena arena = {0};
    Pickle pickle;
    Status status = pickle_read(&arena, "x.pth", (Bytes){(const uint8_t *)text, n}, &pickle);
    if (status == OK) fail_msg("accepted; should say '%s'", sentence);
    if (!strstr(status_message(), sentence))
        fail_msg("'%s' lacks '%s'", status_message(), sentence);
    arena_deinit(&arena);
}
#define REFUSE(text, sentence) refuse(text, sizeof text - 1, sentence)

static void test_pickles(void **state)
{
    (void)state;
    REFUSE("\x80\x02"
           "cbuiltins\neval\nX\x01\0\0\0a\x85R.",
           "x.pth asks for builtins.eval: refused");
    REFUSE("\x80\x04\x8c\x05posix\x8c\x06system\x93.", "x.pth asks for posix.system: refused");
    REFUSE("cos\nsystem\n(S'x'\ntR.", "x.pth asks for os.system: refused");
    REFUSE("ctorch.storage\n_load_from_bytes\n.",
           "asks for torch.storage._load_from_bytes: refused");
    REFUSE("(ios\nsystem\n.", "instruction 0x69"); /* INST */
    REFUSE("(o.", "instruction 0x6f");             /* OBJ */
    REFUSE(")\x81.", "instruction 0x81");          /* NEWOBJ */
    REFUSE("\x82\x01.", "instruction 0x82");       /* EXT1 */
    REFUSE("Pname\n.", "instruction 0x50");        /* PERSID as text */
    REFUSE("\x80\x07}.", "protocol");
    REFUSE("", "ends early");
    REFUSE(".", "no dictionary of tensors");
    REFUSE("}X\x01\0\0\0aNs.", "a is no tensor");
    REFUSE("}NNNu.", "a mark is missing");
    REFUSE("}(Nu.", "odd number");
    REFUSE("N(NNu.", "should be a dictionary is none");
    REFUSE("R.", "empty stack");
    REFUSE("(R.", "a mark for a value");
    REFUSE("}h\x05.", "memo");
    REFUSE("}r\xff\xff\xff\xff.", "memo is not in order");
    REFUSE("NQ.", "persistent id is no storage");
    REFUSE("X\xff\xff\xff\x7f.", "ends early");
    REFUSE("X\x01\0\0\0\xff.", "not UTF-8");
    REFUSE("ctorch._utils\n_rebuild_tensor_v2\n)R.", "description is none");
    REFUSE("ctorch\nFloatStorage\n)R.", "calls a type");
    REFUSE("ccollections\nOrderedDict\nN\x85R.", "made from something");
    REFUSE("}N\x85"
           "b.",
           "attributes");
}

/* Long texts of one instruction: time and memory stay in proportion. */
static void test_bombs(void **state)
{
    (void)state;
    static const char codes[] = "N)(}\x85\x94";
    enum { N = 4 << 20 };
    char *text = xmalloc(N);
    for (int i = 0; codes[i]; i++) {
        memset(text, codes[i], N);
        text[0] = 'N';
        size_t before = memory_peak_rss_bytes();
        Arena arena = {0};
        Pickle pickle;
        assert_int_not_equal(pickle_read(&arena, "x.pth", (Bytes){(uint8_t *)text, N}, &pickle),
                             OK);
        arena_deinit(&arena);
        assert_true(memory_peak_rss_bytes() - before < (size_t)16 * N + (32 << 20));
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),   cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped), cmocka_unit_test(test_any_byte),
        cmocka_unit_test(test_pickles), cmocka_unit_test(test_bombs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
