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
    assert_true(n.active > 280e9 && n.active < 296e9);
    assert_true(n.total > 1.9e12 && n.total < 2.0e12);
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
    const char *base = "{\"model_type\": \"llama4_text\", \"vocab_size\": 64, \"hidden_size\": 32, \"num_hidden_layers\": 2,"
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
    json_t *json = json_loads("{\"model_type\": \"llama\", \"vocab_size\": 64, \"hidden_size\": 32, \"num_hidden_layers\": 1,"
                              "\"num_attention_heads\": 2, \"intermediate_size\": 16, \"favourite_colour\": \"blue\"}",
                              0, NULL);
    ModelConfig c;
    assert_int_equal(model_config_from_json(json, &c), OK);
    char *text = model_config_text(&c);
    assert_non_null(strstr(text, "\"favourite_colour\": \"blue\""));
    assert_non_null(strstr(text, "LlamaForCausalLM"));
    free(text);
    model_config_deinit(&c);
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_counts),     cmocka_unit_test(behemoth_near_what_is_published),
        cmocka_unit_test(every_preset_reads),   cmocka_unit_test(hostile_values),
        cmocka_unit_test(unknown_keys_survive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
