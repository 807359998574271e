/* Model directories: written and read again, dtype conversion, strides, shards, and hostile
 * indices. */
#include "ckpt/ckpt_testkit.h"

static NamedTensor named(const char *name, DType dtype, void *data, int64_t rows, int64_t columns)
{
    Axis axes[] = {AXIS_ANY, AXIS_ANY};
    return (NamedTensor){name,
                         tensor_make(data, dtype, shape_make(2, (int64_t[]){rows, columns}, axes))};
}

static void write_text(const char *dir, const char *name, const char *text)
{
    Arena arena = {0};
    assert_ok(file_write_atomic(path_join(&arena, dir, name), text, strlen(text)));
    arena_deinit(&arena);
}

static void test_shards(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Arena arena = {0};
    float data[60], back[60] = {0};
    for (int i = 0; i < 60; i++) data[i] = (float)i / 7;
    NamedTensor tensors[] = {named("c", DTYPE_F32, data, 2, 10),
                             named("a", DTYPE_F32, data + 20, 1, 10),
                             named("b", DTYPE_F32, data + 30, 3, 10)};
    assert_ok(
        modeldir_write(dir, tensors, 3, 100)); /* 80, 40, 120 bytes: each in a shard of its own */
    assert_true(file_exists(path_join(&arena, dir, "model-00003-of-00003.safetensors")));
    Bytes index;
    assert_ok(
        file_read(&arena, path_join(&arena, dir, "model.safetensors.index.json"), 1 << 20, &index));
    assert_non_null(strstr((const char *)index.at, "\"total_size\": 240"));
    ModelDir *opened;
    assert_ok(modeldir_open(dir, &opened));
    assert_int_equal(modeldir_count(opened), 3);
    assert_int_equal(modeldir_bytes(opened), 240);
    assert_string_equal(modeldir_at(opened, 0)->name, "a");
    assert_null(modeldir_find(opened, "d"));
    NamedTensor wanted[] = {named("a", DTYPE_F32, back + 20, 1, 10),
                            named("b", DTYPE_F32, back + 30, 3, 10),
                            named("c", DTYPE_F32, back, 2, 10)};
    assert_ok(modeldir_load(opened, wanted, 3));
    assert_memory_equal(data, back, sizeof data);
    NamedTensor missing = named("d", DTYPE_F32, back, 2, 10),
                other = named("a", DTYPE_F32, back, 10, 1);
    assert_int_equal(modeldir_load(opened, &missing, 1), ERR_FORMAT);
    assert_int_equal(modeldir_load(opened, &other, 1), ERR_SHAPE);
    assert_non_null(
        strstr(status_message(), "tensor a is [any=1 any=10], but [any=10 any=1] is needed"));
    modeldir_close(opened);
    arena_deinit(&arena);
    scratch_destroy(dir);
}

/* bf16 in the file, f32 in memory, transposed and in a larger buffer. */
static void test_convert_and_strides(void **state)
{
    (void)state;
    char *dir = scratch_create();
    uint16_t half[6];
    for (int i = 0; i < 6; i++) half[i] = bf16_from_f32((float)(i + 1));
    NamedTensor source = named("w", DTYPE_BF16, half, 2, 3);
    assert_ok(modeldir_write(dir, &source, 1, 0));
    ModelDir *opened;
    assert_ok(modeldir_open(dir, &opened));
    float wide[16], across[6];
    for (int i = 0; i < 16; i++) wide[i] = -1;
    NamedTensor pitch = named("w", DTYPE_F32, wide, 2, 3),
                transposed = named("w", DTYPE_F32, across, 2, 3);
    pitch.tensor.stride[0] = 8;
    transposed.tensor.stride[0] = 1;
    transposed.tensor.stride[1] = 2;
    assert_ok(modeldir_load(opened, &pitch, 1));
    assert_ok(modeldir_load(opened, &transposed, 1));
    static const float want_wide[16] = {1, 2, 3, -1, -1, -1, -1, -1, 4, 5, 6, -1, -1, -1, -1, -1};
    static const float want_across[6] = {1, 4, 2, 5, 3, 6};
    assert_memory_equal(wide, want_wide, sizeof wide);
    assert_memory_equal(across, want_across, sizeof across);
    modeldir_close(opened);
    /* and from strides to a file */
    NamedTensor list[] = {pitch, transposed};
    list[1].name = "t";
    assert_ok(modeldir_write(dir, list, 2, 0));
    assert_ok(modeldir_open(dir, &opened));
    float a[6], b[6];
    NamedTensor back[] = {named("w", DTYPE_F32, a, 2, 3), named("t", DTYPE_F32, b, 2, 3)};
    assert_ok(modeldir_load(opened, back, 2));
    for (int i = 0; i < 6; i++) assert_true(a[i] == (float)(i + 1) && b[i] == (float)(i + 1));
    modeldir_close(opened);
    scratch_destroy(dir);
}

typedef struct Case {
    const char *what, *index;
    Status want;
} Case;

#define A1 "\"a\":\"model-00001-of-00002.safetensors\""
#define B2 "\"b\":\"model-00002-of-00002.safetensors\""

static const Case cases[] = {
    {"right", "{\"metadata\":{\"total_size\":80},\"weight_map\":{" A1 "," B2 "}}", OK},
    {"no size", "{\"weight_map\":{" A1 "," B2 "}}", OK},
    {"size as float", "{\"metadata\":{\"total_size\":80.0},\"weight_map\":{" A1 "," B2 "}}", OK},
    {"wrong size", "{\"metadata\":{\"total_size\":81},\"weight_map\":{" A1 "," B2 "}}", ERR_FORMAT},
    {"negative size", "{\"metadata\":{\"total_size\":-1},\"weight_map\":{" A1 "," B2 "}}",
     ERR_FORMAT},
    {"size a text", "{\"metadata\":{\"total_size\":\"80\"},\"weight_map\":{" A1 "," B2 "}}",
     ERR_FORMAT},
    {"not listed", "{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}", OK},
    {"absolute", "{\"weight_map\":{" A1 ",\"b\":\"/etc/passwd\"}}", ERR_FORMAT},
    {"dotted", "{\"weight_map\":{" A1 ",\"b\":\"../x.safetensors\"}}", ERR_FORMAT},
    {"folder", "{\"weight_map\":{" A1 ",\"b\":\"sub/x.safetensors\"}}", ERR_FORMAT},
    {"itself", "{\"weight_map\":{" A1 ",\"b\":\"model.safetensors.index.json\"}}", ERR_FORMAT},
    {"dot", "{\"weight_map\":{" A1 ",\"b\":\".\"}}", ERR_FORMAT},
    {"empty name", "{\"weight_map\":{" A1 ",\"b\":\"\"}}", ERR_FORMAT},
    {"absent shard", "{\"weight_map\":{" A1 ",\"b\":\"model-00003-of-00002.safetensors\"}}",
     ERR_IO},
    {"wrong shard",
     "{\"weight_map\":{\"b\":\"model-00001-of-00002.safetensors\",\"a\":\"model-00002-of-00002."
     "safetensors\"}}",
     ERR_FORMAT},
    {"tensor too many",
     "{\"weight_map\":{" A1 "," B2 ",\"c\":\"model-00002-of-00002.safetensors\"}}", ERR_FORMAT},
    {"tensor twice", "{\"weight_map\":{" A1 "," A1 "," B2 "}}", ERR_FORMAT},
    {"number", "{\"weight_map\":{" A1 ",\"b\":2}}", ERR_FORMAT},
    {"no map", "{}", ERR_FORMAT},
    {"empty map", "{\"weight_map\":{}}", ERR_FORMAT},
    {"map a list", "{\"weight_map\":[]}", ERR_FORMAT},
    {"list", "[]", ERR_FORMAT},
    {"empty", "", ERR_FORMAT},
    {"cut", "{\"weight_map\":{" A1, ERR_FORMAT},
};

static void test_index(void **state)
{
    (void)state;
    char *dir = scratch_create();
    float data[20] = {0};
    NamedTensor tensors[] = {named("a", DTYPE_F32, data, 1, 10),
                             named("b", DTYPE_F32, data + 10, 1, 10)};
    assert_ok(modeldir_write(dir, tensors, 2, 40));
    for (int i = 0; i < COUNT_OF(cases); i++) {
        write_text(dir, "model.safetensors.index.json", cases[i].index);
        ModelDir *opened = NULL;
        Status status = modeldir_open(dir, &opened);
        modeldir_close(opened);
        if (status != cases[i].want)
            fail_msg("%s: %s (%s)", cases[i].what, status_name(status),
                     status == OK ? "" : status_message());
    }
    scratch_destroy(dir);
}

/* A shard that holds what the index puts elsewhere, or does not list. */
static void test_shards_disagree(void **state)
{
    (void)state;
    char *dir = scratch_create();
    Arena arena = {0};
    float data[20] = {0};
    NamedTensor tensors[] = {named("a", DTYPE_F32, data, 1, 10),
                             named("b", DTYPE_F32, data + 10, 1, 10)};
    ModelDir *opened = NULL;
    const char *one = path_join(&arena, dir, "model-00001-of-00001.safetensors");
    const char *index = "{\"weight_map\":{\"a\":\"model-00001-of-00001.safetensors\"}}";
    assert_ok(modeldir_write(dir, tensors, 2, 0));
    write_text(dir, "model.safetensors.index.json", index);
    assert_int_equal(modeldir_open(dir, &opened), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "holds tensor b, which"));
    assert_ok(file_rename(one, path_join(&arena, dir, "x.safetensors")));
    assert_ok(modeldir_write(dir, tensors, 1, 0));
    write_text(
        dir, "model.safetensors.index.json",
        "{\"weight_map\":{\"a\":\"model-00001-of-00001.safetensors\",\"b\":\"x.safetensors\"}}");
    assert_int_equal(modeldir_open(dir, &opened), ERR_FORMAT);
    assert_non_null(strstr(status_message(), "tensor a is in"));
    /* a single file wins over an index, and needs none */
    assert_ok(file_rename(one, path_join(&arena, dir, "model.safetensors")));
    assert_ok(modeldir_open(dir, &opened));
    assert_int_equal(modeldir_count(opened), 1);
    modeldir_close(opened);
    assert_int_equal(modeldir_open("/dev", &opened), ERR_FORMAT);
    assert_int_equal(modeldir_write(dir, tensors, 0, 0), ERR_ARG);
    arena_deinit(&arena);
    scratch_destroy(dir);
}

static void test_deep_index(void **state)
{
    (void)state;
    Str deep = {0};
    Arena arena = {0};
    ModelIndex index;
    str_add(&deep, "{\"weight_map\":{\"a\":\"m\"},\"x\":");
    for (int i = 0; i < 100; i++) str_add(&deep, "[");
    for (int i = 0; i < 100; i++) str_add(&deep, "]");
    str_add(&deep, "}");
    assert_int_equal(model_index_parse(&arena, "deep", deep.at, deep.n, &index), ERR_FORMAT);
    str_clear(&deep);
    for (int i = 0; i < 100000; i++) str_add(&deep, "{\"a\":");
    assert_int_equal(model_index_parse(&arena, "deep", deep.at, deep.n, &index), ERR_FORMAT);
    str_deinit(&deep);
    arena_deinit(&arena);
}

/* Shards and index as transformers writes them. */
static void test_reference_shards(void **state)
{
    (void)state;
    ModelDir *opened;
    assert_ok(modeldir_open(SOURCE_DIR "/tests/golden/llama3-sharded", &opened));
    assert_int_equal(modeldir_count(opened), 21);
    assert_int_equal(modeldir_bytes(opened), 74736);
    assert_non_null(modeldir_find(opened, "model.layers.1.self_attn.q_proj.weight"));
    modeldir_close(opened);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shards),     cmocka_unit_test(test_convert_and_strides),
        cmocka_unit_test(test_index),      cmocka_unit_test(test_shards_disagree),
        cmocka_unit_test(test_deep_index), cmocka_unit_test(test_reference_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
