/* Meta's layout against the same models in Hugging Face's, bit by bit; and what params.json means.
 * The files are those of tools/golden/make_meta.py. */
#include "weights/weights_testkit.h"

#define GOLDEN SOURCE_DIR "/tests/golden_meta/"

static const char *const families[] = {"llama3", "llama4"};
static const int counts[] = {1, 2, 8};

static Weights *open_golden(const char *family, const char *form)
{
    char path[512];
    Weights *weights;
    snprintf(path, sizeof path, GOLDEN "%s/%s", family, form);
    assert_ok(weights_open(path, CKPT_VERIFY_SIZES, &weights));
    return weights;
}

static Weights *open_meta(const char *family, int n)
{
    char form[16];
    snprintf(form, sizeof form, "meta%d", n);
    return open_golden(family, form);
}

/* ---- the same bits ---------------------------------------------------------------------- */

static void compare(const Weights *hf, const Weights *meta)
{
    assert_int_equal(weights_count(meta), weights_count(hf));
    for (int i = 0; i < weights_count(hf); i++) {
        const Weight *a = weights_at(hf, i), *b = weights_find(meta, a->name);
        if (!b) fail_msg("no %s", a->name);
        assert_true(shape_equal(&a->shape, &b->shape));
        assert_true(a->dtype == DTYPE_BF16 && b->dtype == DTYPE_BF16 && a->bytes == b->bytes);
        int64_t n = shape_count(&a->shape);
        uint16_t *x = xcalloc((size_t)n, 2), *y = xcalloc((size_t)n, 2);
        assert_ok(weights_read_range(a, 0, n, DTYPE_BF16, x));
        assert_ok(weights_read_range(b, 0, n, DTYPE_BF16, y));
        for (int64_t k = 0; k < n; k++)
            if (x[k] != y[k])
                fail_msg("%s in %s: element %lld differs", a->name, weights_form(meta),
                         (long long)k);
        free(x);
        free(y);
    }
}

static void test_same_bits(void **state)
{
    (void)state;
    for (int f = 0; f < COUNT_OF(families); f++) {
        Weights *hf = open_golden(families[f], "hf");
        for (int i = 0; i < COUNT_OF(counts); i++) {
            Weights *meta = open_meta(families[f], counts[i]);
            assert_ok(weights_verify(meta));
            compare(hf, meta);
            assert_int_equal(weights_ignored(meta), 1); /* frequencies, statistics */
            weights_close(meta);
        }
        weights_close(hf);
    }
}

/* Boxes that begin and end anywhere, across the borders of files. */
static void test_boxes(void **state)
{
    (void)state;
    for (int f = 0; f < COUNT_OF(families); f++) {
        Weights *hf = open_golden(families[f], "hf"), *meta = open_meta(families[f], 8);
        for (int i = 0; i < weights_count(hf); i++) {
            const Weight *w = weights_at(hf, i);
            uint64_t key = rng_key(2, w->name);
            for (uint64_t round = 0; round < 60; round++) {
                int64_t first[MAX_RANK] = {0}, dim[MAX_RANK] = {0}, n = 1;
                for (int d = 0; d < w->shape.rank; d++) {
                    first[d] = (int64_t)rng_below(key, 8 * round + (uint64_t)d,
                                                  (uint64_t)w->shape.dim[d]);
                    dim[d] = 1 + (int64_t)rng_below(key, 8 * round + 4 + (uint64_t)d,
                                                    (uint64_t)(w->shape.dim[d] - first[d]));
                    n *= dim[d];
                }
                float *x = xcalloc((size_t)n, 4), *y = xcalloc((size_t)n, 4);
                Tensor a = tensor_make(x, DTYPE_F32, shape_make(w->shape.rank, dim, NULL)), b = a;
                b.data = y;
                WeightSlice slice = {.name = w->name, .tensor = b};
                memcpy(slice.first, first, sizeof first);
                assert_ok(weights_read(w, first, &a));
                assert_ok(weights_load_slices(meta, &slice, 1));
                if (memcmp(x, y, (size_t)n * 4) != 0) fail_msg("%s, box %d", w->name, (int)round);
                free(x);
                free(y);
            }
        }
        weights_close(hf);
        weights_close(meta);
    }
}

/* ---- configuration ---------------------------------------------------------------------- */

/* What the published config.json says must follow from params.json. */
static void compare_json(const json_t *want, const json_t *have, const char *where)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)want, key, value)
    {
        const json_t *other = json_object_get(have, key);
        if (!strcmp(key, "torch_dtype")) continue;
        if (!strcmp(key, "attn_temperature_tuning")) {
            assert_true(json_is_true(other)); /* an early spelling: 4 for true */
        } else if (json_is_object(value)) {
            compare_json(value, other, key);
        } else {
            bool same = json_is_number(value) ? json_number_value(value) == json_number_value(other)
                                              : json_equal(value, other);
            if (!same) fail_msg("%s: %s differs", where, key);
        }
    }
}

static void test_config(void **state)
{
    (void)state;
    for (int f = 0; f < COUNT_OF(families); f++) {
        Weights *hf = open_golden(families[f], "hf"), *meta = open_meta(families[f], 2);
        json_t *want, *have;
        assert_ok(weights_config(hf, &want));
        assert_ok(weights_config(meta, &have));
        compare_json(want, have, families[f]);
        json_decref(want);
        json_decref(have);
        weights_close(hf);
        weights_close(meta);
    }
}

static json_t *config_of(const char *params, int64_t vocab, bool tied)
{
    json_t *json = json_loads(params, 0, NULL), *config;
    assert_non_null(json);
    assert_ok(params_config(json, "params.json", vocab, tied, &config));
    json_decref(json);
    return config;
}

/* Dimensions, widths and scaling of every published model (models.md 1.1 and 2.1). */
static void test_published(void **state)
{
    (void)state;
    const struct {
        const char *params;
        int64_t vocab, width, width_mlp;
        double factor, high;
    } cases[] = {
        {"{\"dim\": 2048, \"n_layers\": 16, \"n_heads\": 32, \"n_kv_heads\": 8, "
         "\"ffn_dim_multiplier\": 1.5, \"multiple_of\": 256,"
         "\"use_scaled_rope\": true}",
         128256, 8192, 0, 32, 4},
        {"{\"dim\": 3072, \"n_layers\": 28, \"n_heads\": 24, \"n_kv_heads\": 8, "
         "\"ffn_dim_multiplier\": 1.0, \"multiple_of\": 256,"
         "\"use_scaled_rope\": true}",
         128256, 8192, 0, 32, 4},
        {"{\"dim\": 4096, \"n_layers\": 32, \"n_heads\": 32, \"n_kv_heads\": 8, "
         "\"ffn_dim_multiplier\": 1.3, \"multiple_of\": 1024}",
         128256, 14336, 0, 0, 0},
        {"{\"dim\": 8192, \"n_layers\": 80, \"n_heads\": 64, \"n_kv_heads\": 8, "
         "\"ffn_dim_multiplier\": 1.3, \"multiple_of\": 4096,"
         "\"use_scaled_rope\": true}",
         128256, 28672, 0, 8, 4},
        {"{\"dim\": 16384, \"n_layers\": 126, \"n_heads\": 128, \"n_kv_heads\": 8, "
         "\"ffn_dim_multiplier\": 1.2, \"multiple_of\": 4096,"
         "\"use_scaled_rope\": true}",
         128256, 53248, 0, 8, 4},
        {"{\"dim\": 5120, \"n_layers\": 48, \"n_heads\": 40, \"n_kv_heads\": 8, \"ffn_exp\": 4.0, "
         "\"ffn_dim_multiplier\": 1.2,"
         "\"multiple_of\": 2048, \"use_scaled_rope\": true, \"nope_layer_interval\": 4, "
         "\"use_qk_norm\": true, \"moe_args\":"
         "{\"num_experts\": 16, \"capacity_factor\": 1.0, \"auto_scale_F\": true, \"top_k\": 1, "
         "\"interleave_moe_layer_step\": 1}}",
         202048, 8192, 16384, 16, 1},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        json_t *config = config_of(cases[i].params, cases[i].vocab, false);
        assert_int_equal(json_integer_value(json_object_get(config, "intermediate_size")),
                         cases[i].width);
        if (cases[i].width_mlp)
            assert_int_equal(json_integer_value(json_object_get(config, "intermediate_size_mlp")),
                             cases[i].width_mlp);
        const json_t *scaling = json_object_get(config, "rope_scaling");
        assert_true(json_number_value(json_object_get(scaling, "factor")) == cases[i].factor);
        assert_true(json_number_value(json_object_get(scaling, "high_freq_factor")) ==
                    cases[i].high);
        json_decref(config);
    }
}

static void test_bad_params(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"[]", "not a JSON object"},
        {"{}", "dim is missing"},
        {"{\"dim\": -1, \"n_layers\": 1, \"n_heads\": 1}", "dim is not a number"},
        {"{\"dim\": 64, \"n_layers\": 1e9, \"n_heads\": 1}", "n_layers"},
        {"{\"dim\": 64.5, \"n_layers\": 1, \"n_heads\": 1}", "dim is not a whole number"},
        {"{\"dim\": 64, \"n_layers\": 1, \"n_heads\": 7}", "not n_heads 7 times"},
        {"{\"dim\": 64, \"n_layers\": 1, \"n_heads\": 8, \"multiple_of\": 0}", "multiple_of"},
        {"{\"dim\": 64, \"n_layers\": 1, \"n_heads\": 8, \"ffn_dim_multiplier\": \"x\"}",
         "ffn_dim_multiplier"},
        {"{\"dim\": 64, \"n_layers\": 1, \"n_heads\": 8, \"vocab_size\": 9}",
         "vocab_size is 9, but"},
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        json_t *json = json_loads(bad[i][0], 0, NULL), *config;
        assert_int_not_equal(params_config(json, "params.json", 10, false, &config), OK);
        if (!strstr(status_message(), bad[i][1]))
            fail_msg("'%s' lacks '%s'", status_message(), bad[i][1]);
        json_decref(json);
    }
}

/* ---- directories that are not whole ----------------------------------------------------- */

static void copy_file(Kit *kit, const char *from, const char *name)
{
    Bytes bytes;
    assert_ok(file_read(&kit->arena, from, 1 << 20, &bytes));
    assert_ok(file_write_atomic(path_join(&kit->arena, kit->dir, name), bytes.at, bytes.n));
}

static void refuse(Kit *kit, const char *sentence)
{
    Weights *weights;
    assert_int_not_equal(weights_open(kit->dir, CKPT_VERIFY_SIZES, &weights), OK);
    if (!strstr(status_message(), sentence))
        fail_msg("'%s' lacks '%s'", status_message(), sentence);
    kit_end(kit);
}

static void test_directories(void **state)
{
    (void)state;
    Kit kit;
    kit_begin(&kit);
    copy_file(&kit, GOLDEN "llama3/meta2/params.json", "params.json");
    copy_file(&kit, GOLDEN "llama3/meta2/consolidated.01.pth", "consolidated.01.pth");
    refuse(&kit, "consolidated.00.pth is not among them");
    kit_begin(&kit); /* one file of two: the rows of q do not fill the heads */
    copy_file(&kit, GOLDEN "llama3/meta2/params.json", "params.json");
    copy_file(&kit, GOLDEN "llama3/meta2/consolidated.00.pth", "consolidated.00.pth");
    refuse(&kit, "dim, n_heads and n_kv_heads say otherwise");
    kit_begin(&kit); /* a part of another model */
    copy_file(&kit, GOLDEN "llama3/meta2/params.json", "params.json");
    copy_file(&kit, GOLDEN "llama3/meta2/consolidated.00.pth", "consolidated.00.pth");
    copy_file(&kit, GOLDEN "llama3/meta8/consolidated.01.pth", "consolidated.01.pth");
    refuse(&kit, "consolidated.01.pth: tensor");
    kit_begin(&kit); /* Llama 4's names in a Llama 3 */
    copy_file(&kit, GOLDEN "llama3/meta1/params.json", "params.json");
    copy_file(&kit, GOLDEN "llama4/meta1/consolidated.00.pth", "consolidated.00.pth");
    refuse(&kit, "is not known in Meta's layout of Llama 3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),  cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_config),     cmocka_unit_test(test_published),
        cmocka_unit_test(test_bad_params), cmocka_unit_test(test_directories),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
