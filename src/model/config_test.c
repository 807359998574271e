/* Configurations: presets give the published counts, hostile values are refused by name. */
#include "model/model.h"
#include "base/testing.h"

static ModelCounts counts_of(const char *preset)
{
    ModelConfig c;
    if (model_config_preset(preset, &c) != OK) fail_msg("%s", status_message());
    ModelCounts n = model_counts(&c);
    model_config_deinit(&c);
    return n;
}

static void published_counts(void **state)
{
    (void)state;
    assert_int_equal(counts_of("llama3.2-1b").total, 1235814400);
    assert_int_equal(counts_of("llama3.2-3b").total, 3212749824);
    assert_int_equal(counts_of("llama3.1-8b").total, 8030261248);
    assert_int_equal(counts_of("llama3.1-70b").total, 70553706496);
    assert_int_equal(counts_of("llama3.1-405b").total, 405853388800);
    assert_int_equal(counts_of("llama4-scout").total, 107769861120);
    assert_int_equal(counts_of("llama4-scout").active, 17172894720);
    assert_int_equal(counts_of("llama4-maverick").total, 400711848960);
    assert_int_equal(counts_of("llama4-maverick").active, 17184691200);
}

static void behemoth_near_what_is_published(void **state)
{
    (void)state;
    ModelCounts n = counts_of("llama4-behemoth"); /* 288B active, nearly 2T in all */
    assert_true((double)n.active > 280e9 && (double)n.active < 296e9);
    assert_true((double)n.total > 1.9e12 && (double)n.total < 2.0e12);
}

static void every_preset_reads(void **state)
{
    (void)state;
    for (int i = 0; model_preset(i); i++) counts_of(model_preset(i)->name);
}

static void refuse(const char *json_text, const char *key)
{
    json_t *json = json_loads(json_text, 0, NULL);
    assert_non_null(json);
    ModelConfig c;
    if (model_config_from_json(json, &c) == OK) fail_msg("accepted: %s", json_text);
    if (!strstr(status_message(), key)) fail_msg("%s does not name %s", status_message(), key);
    json_decref(json);
}

static void hostile_values(void **state)
{
    (void)state;
    const char *base =
        "{\"model_type\": \"llama4_text\", \"vocab_size\": 64, \"hidden_size\": 32, "
        "\"num_hidden_layers\": 2,"
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 16,"
        "\"num_local_experts\": 4";
    static const char *const bad[][2] = {
        {"\"vocab_size\": 0", "vocab_size"},
        {"\"hidden_size\": -1", "hidden_size"},
        {"\"hidden_size\": 2147483648", "hidden_size"},
        {"\"num_hidden_layers\": 1e3", "num_hidden_layers"},
        {"\"num_key_value_heads\": 3", "num_key_value_heads"},
        {"\"head_dim\": 7", "head_dim"},
        {"\"rms_norm_eps\": -1", "rms_norm_eps"},
        {"\"num_experts_per_tok\": 5", "num_experts_per_tok"},
        {"\"moe_layers\": [2]", "moe_layers"},
        {"\"no_rope_layers\": [1]", "no_rope_layers"},
        {"\"layer_types\": [\"x\", \"y\"]", "layer_types"},
        {"\"rope_scaling\": {\"rope_type\": \"yarn\"}", "yarn"},
        {"\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2}", "dynamic"},
        {"\"rope_scaling\": {\"rope_type\": \"longrope\"}", "longrope"},
        {"\"rope_scaling\": {\"rope_type\": \"linear\"}", "factor"},
        {"\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1}",
         "high_freq_factor"},
        {"\"rope_scaling\": 3", "rope_scaling"},
        {"\"hidden_act\": \"gelu\"", "hidden_act"},
        {"\"attention_bias\": true", "attention_bias"},
        {"\"model_type\": \"lama\"", "did you mean llama"},
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Str text = {0};
        str_printf(&text, "%s, %s}", base, bad[i][0]);
        refuse(text.at, bad[i][1]);
        str_deinit(&text);
    }
    refuse("{\"model_type\": \"llama\"}", "vocab_size");
    refuse("[]", "object");
}

static void unknown_keys_survive(void **state)
{
    (void)state;
    json_t *json = json_loads(
        "{\"model_type\": \"llama\", \"vocab_size\": 64, \"hidden_size\": 32, "
        "\"num_hidden_layers\": 1,"
        "\"num_attention_heads\": 2, \"intermediate_size\": 16, \"favourite_colour\": \"blue\"}",
        0, NULL);
    ModelConfig c;
    assert_int_equal(model_config_from_json(json, &c), OK);
    char *text = model_config_text(&c, DTYPE_F32);
    assert_non_null(strstr(text, "\"favourite_colour\": \"blue\""));
    assert_non_null(strstr(text, "LlamaForCausalLM"));
    free(text);
    model_config_deinit(&c);
    json_decref(json);
}

static ModelConfig config_of(const char *text)
{
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    ModelConfig c;
    if (model_config_from_json(json, &c) != OK) fail_msg("%s", status_message());
    json_decref(json);
    return c;
}

static json_t *written(const ModelConfig *c, DType stored)
{
    char *text = model_config_text(c, stored);
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    free(text);
    return json;
}

/* What a config.json leaves open is what transformers' classes have. */
static void absent_keys_are_those_of_the_class(void **state)
{
    (void)state;
    ModelConfig a = config_of("{\"model_type\": \"llama\", \"vocab_size\": 64, \"hidden_size\": "
                              "32, \"num_hidden_layers\": 1,"
                              "\"num_attention_heads\": 2, \"intermediate_size\": 16}");
    ModelConfig b = config_of("{\"model_type\": \"llama4_text\", \"vocab_size\": 64, "
                              "\"hidden_size\": 32, \"num_hidden_layers\": 4,"
                              "\"num_attention_heads\": 2, \"intermediate_size\": 16}");
    assert_true(a.norm_eps == 1e-6 && a.rope_theta == 10000 && a.max_positions == 2048);
    assert_true(b.norm_eps == 1e-5 && b.rope_theta == 500000 && b.max_positions == 131072);
    assert_int_equal(b.layer[0].chunk, 8192);
    assert_int_equal(b.layer[3].chunk, 0); /* no positions, so all of the text */
    model_config_deinit(&a);
    model_config_deinit(&b);
}

/* Nothing is left open in what we write, and it reads as what it was. */
static void written_in_full(void **state)
{
    (void)state;
    ModelConfig c = config_of(
        "{\"model_type\": \"llama4_text\", \"vocab_size\": 64, \"hidden_size\": 32, "
        "\"num_hidden_layers\": 3,"
        "\"num_attention_heads\": 2, \"intermediate_size\": 16, \"no_rope_layer_interval\": 0,"
        "\"interleave_moe_layer_step\": 2, \"num_local_experts\": 4, \"attn_temperature_tuning\": "
        "4,"
        "\"attention_chunk_size\": null, \"torch_dtype\": \"bfloat16\"}");
    json_t *json = written(&c, DTYPE_F32);
    assert_string_equal(json_string_value(json_object_get(json, "torch_dtype")), "float32");
    assert_null(json_object_get(json, "dtype"));
    assert_true(json_is_true(json_object_get(json, "attn_temperature_tuning")));
    assert_true(json_integer_value(json_object_get(json, "no_rope_layer_interval")) > 0);
    assert_true(json_integer_value(json_object_get(json, "attention_chunk_size")) > 0);
    assert_int_equal(json_array_size(json_object_get(json, "moe_layers")), 1);
    ModelConfig again;
    assert_int_equal(model_config_from_json(json, &again), OK);
    assert_int_equal(again.ffn_dense, c.ffn_dense);
    assert_int_equal(again.head_dim, 16);
    assert_memory_equal(again.layer, c.layer, sizeof *c.layer * 3);
    json_decref(json);
    json = written(&again, DTYPE_BF16);
    assert_string_equal(json_string_value(json_object_get(json, "torch_dtype")), "bfloat16");
    json_decref(json);
    model_config_deinit(&again);
    model_config_deinit(&c);
}

/* A model with a part for images: the language model's own configuration is inside, everything else
 * comes back. */
static void text_config_inside(void **state)
{
    (void)state;
    static const char text[] = "{\"model_type\": \"llama4\", \"architectures\": "
                               "[\"Llama4ForConditionalGeneration\"], \"image_token_index\": 92,"
                               " \"vision_config\": {\"hidden_size\": 7, \"a key of ours\": [1, "
                               "null]}, \"quantization_config\": {\"x\": 1},"
                               " \"text_config\": {\"model_type\": \"llama4_text\", "
                               "\"vocab_size\": 64, \"hidden_size\": 32, \"num_hidden_layers\": 2,"
                               " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
                               "\"intermediate_size\": 16, \"num_local_experts\": 4,"
                               " \"rope_theta\": 500000.0, \"rope_scaling\": {\"rope_type\": "
                               "\"llama3\", \"factor\": 16.0, \"low_freq_factor\": 1.0,"
                               " \"high_freq_factor\": 1.0, \"original_max_position_embeddings\": "
                               "8192}, \"attn_temperature_tuning\": 4,"
                               " \"no_rope_layers\": [], \"no_rope_layer_interval\": 2, "
                               "\"attention_chunk_size\": 8, \"torch_dtype\": \"bfloat16\","
                               " \"eos_token_id\": [1, 2], \"another\": \"kept\"}}";
    json_t *json = json_loads(text, 0, NULL);
    ModelConfig c;
    if (model_config_from_json(json, &c) != OK) fail_msg("%s", status_message());
    assert_string_equal(c.weight_prefix, "language_model.");
    assert_true(c.embed == 32 && c.n_experts == 4 && c.temperature_tuning &&
                c.rope_theta == 500000);
    assert_true(c.rope_scaling.factor == 16 && c.rope_scaling.high_freq_factor == 1);
    assert_true(c.layer[0].rope && c.layer[0].chunk == 8 && !c.layer[1].rope &&
                c.layer[1].chunk == 0 && c.layer[1].moe);
    if (model_config_set_vocab(&c, 70, 3, 4, -1) != OK) fail_msg("%s", status_message());
    char *back = model_config_text(&c, DTYPE_BF16);
    json_t *again = json_loads(back, 0, NULL), *inside = json_object_get(again, "text_config");
    assert_true(json_integer_value(json_object_get(inside, "vocab_size")) == 70 &&
                !json_object_get(again, "vocab_size"));
    assert_string_equal(json_string_value(json_object_get(inside, "another")), "kept");
    assert_true(json_equal(json_object_get(again, "vision_config"),
                           json_object_get(json, "vision_config")));
    assert_null(json_object_get(again, "quantization_config")); /* what is written is plain */
    free(back);
    model_config_deinit(&c);
    json_object_set_new(json, "model_type", json_string("mllama"));
    assert_int_equal(model_config_from_json(json, &c), ERR_UNSUPPORTED);
    json_decref(again);
    json_decref(json);
}

/* The same models in the field names of transformers 4 and of the releases. */
static void older_spellings(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3-rope-3.1", "llama3-rope-3.2", "llama4-scout",
                                        "llama4-maverick"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        char path[512];
        ModelConfig now, old;
        snprintf(path, sizeof path, SOURCE_DIR "/tests/golden/%s/config.json", names[i]);
        if (model_config_load(path, &now) != OK) fail_msg("%s", status_message());
        snprintf(path, sizeof path, SOURCE_DIR "/tests/golden/%s/config.v4.json", names[i]);
        if (model_config_load(path, &old) != OK) fail_msg("%s", status_message());
        assert_memory_equal(&now.rope_scaling, &old.rope_scaling, sizeof now.rope_scaling);
        assert_true(now.rope_scaling.factor > 1 || strcmp(names[i], "llama4-maverick") == 0);
        assert_true(now.rope_theta == old.rope_theta && now.tied == old.tied &&
                    now.qk_norm == old.qk_norm &&
                    now.temperature_tuning == old.temperature_tuning &&
                    now.n_experts == old.n_experts);
        for (int64_t l = 0; l < now.n_layers; l++)
            assert_true(now.layer[l].rope == old.layer[l].rope &&
                        now.layer[l].moe == old.layer[l].moe &&
                        now.layer[l].chunk == old.layer[l].chunk);
        model_config_deinit(&now);
        model_config_deinit(&old);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_counts),
        cmocka_unit_test(behemoth_near_what_is_published),
        cmocka_unit_test(every_preset_reads),
        cmocka_unit_test(hostile_values),
        cmocka_unit_test(unknown_keys_survive),
        cmocka_unit_test(absent_keys_are_those_of_the_class),
        cmocka_unit_test(written_in_full),
        cmocka_unit_test(text_config_inside),
        cmocka_unit_test(older_spellings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
