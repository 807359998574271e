/* Configurations of GPT blocks: the families' own field names, published counts, what is written,
 * what is refused. */
#include "model/model.h"

#include "base/testing.h"

static ModelConfig config_of(const char *text)
{
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    ModelConfig c;
    if (model_config_from_json(json, &c) != OK) fail_msg("%s: %s", text, status_message());
    json_decref(json);
    return c;
}

static json_t *written(const ModelConfig *c)
{
    char *text = model_config_text(c, DTYPE_F32);
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    free(text);
    return json;
}

static void check_count(const char *preset, int64_t total)
{
    ModelConfig c;
    assert_ok(model_config_preset(preset, &c));
    if (model_counts(&c).total != total)
        fail_msg("%s: %lld weights", preset, (long long)model_counts(&c).total);
    model_config_deinit(&c);
}

/* GPT-2 as transformers counts its files; MPT is published as 6.7B and 30B. */
static void published_counts(void **state)
{
    (void)state;
    check_count("gpt2", 124439808);
    check_count("gpt2-medium", 354823168);
    check_count("gpt2-large", 774030080);
    check_count("gpt2-xl", 1557611200);
    check_count("mpt-7b", 6649286656);
    check_count("mpt-30b", 29957200896);
}

static void gpt2_fields(void **state)
{
    (void)state;
    ModelConfig c = config_of("{\"model_type\": \"gpt2\", \"vocab_size\": 64, \"n_embd\": 24, "
                              "\"n_layer\": 3, \"n_head\": 4, \"n_inner\": null}");
    assert_true(c.embed == 24 && c.n_layers == 3 && c.n_heads == 4 && c.n_kv_heads == 4);
    assert_true(c.head_dim == 6 && c.ffn_dense == 96 && c.max_positions == 1024);
    assert_true(c.tied && c.bias && c.norm_bias && c.layer_norm && !c.gated);
    assert_true(c.activation == ACTIVATION_GELU_TANH && c.positions == POSITIONS_LEARNED);
    json_t *json = written(&c);
    assert_int_equal(json_integer_value(json_object_get(json, "n_positions")), 1024);
    assert_string_equal(json_string_value(json_object_get(json, "activation_function")),
                        "gelu_new");
    assert_true(json_real_value(json_object_get(json, "layer_norm_epsilon")) == 1e-5);
    assert_null(json_object_get(json, "num_key_value_heads")); /* nothing of Llama's */
    assert_null(json_object_get(json, "rope_theta"));
    assert_null(json_object_get(json, "hidden_act"));
    json_decref(json);
    model_config_deinit(&c);
    c = config_of("{\"model_type\": \"gpt2\", \"vocab_size\": 64, \"n_embd\": 24, \"n_layer\": 1, "
                  "\"n_head\": 4, \"n_inner\": 50, \"activation_function\": \"gelu\", "
                  "\"scale_attn_weights\": false, \"tie_word_embeddings\": false}");
    assert_true(c.ffn_dense == 50 && c.activation == ACTIVATION_GELU && !c.tied);
    assert_true(c.attention_scale == 1);
    model_config_deinit(&c);
}

static void mpt_fields(void **state)
{
    (void)state;
    ModelConfig c = config_of("{\"model_type\": \"mpt\", \"vocab_size\": 64, \"d_model\": 24, "
                              "\"n_layers\": 2, \"n_heads\": 6, \"expansion_ratio\": 3, "
                              "\"max_seq_len\": 100, \"attn_config\": {\"alibi_bias_max\": 4, "
                              "\"softmax_scale\": 0.5, \"clip_qkv\": null}}");
    assert_true(c.embed == 24 && c.n_layers == 2 && c.n_heads == 6 && c.ffn_dense == 72);
    assert_true(c.max_positions == 100 && c.alibi == 4 && c.attention_scale == 0.5);
    assert_true(c.positions == POSITIONS_ALIBI && c.tied && !c.bias && !c.norm_bias);
    model_config_deinit(&c);
}

/* The family of our own says everything, and reads as what it was. */
static void gpt_fields(void **state)
{
    (void)state;
    ModelConfig c = config_of(
        "{\"model_type\": \"gpt\", \"vocab_size\": 64, \"hidden_size\": 24, \"num_hidden_layers\": "
        "2, "
        "\"num_attention_heads\": 6, \"num_key_value_heads\": 2, \"hidden_act\": \"relu2\", "
        "\"position_embedding_type\": \"rope\", \"use_bias\": false, \"tie_word_embeddings\": "
        "false, "
        "\"layer_norm_eps\": 1e-3}");
    json_t *json = written(&c);
    ModelConfig again;
    assert_int_equal(model_config_from_json(json, &again), OK);
    assert_true(again.norm_eps == 1e-3 && again.n_kv_heads == 2 && again.ffn_dense == 96);
    assert_true(again.positions == POSITIONS_ROTARY && again.layer[1].rope && !again.bias);
    assert_true(again.activation == ACTIVATION_RELU2 && !again.tied);
    json_decref(json);
    model_config_deinit(&again);
    model_config_deinit(&c);
}

static void refuse(const char *base, const char *more, const char *words)
{
    Str text = {0};
    ModelConfig c;
    str_printf(&text, "%s%s}", base, more);
    json_t *json = json_loads(text.at, 0, NULL);
    assert_non_null(json);
    if (model_config_from_json(json, &c) == OK) fail_msg("accepted: %s", text.at);
    if (!strstr(status_message(), words))
        fail_msg("%s: %s does not name %s", text.at, status_message(), words);
    json_decref(json);
    str_deinit(&text);
}

static void refusals(void **state)
{
    (void)state;
    static const char gpt2[] = "{\"model_type\": \"gpt2\", \"vocab_size\": 64, \"n_embd\": 24, "
                               "\"n_layer\": 1, \"n_head\": 4";
    static const char mpt[] = "{\"model_type\": \"mpt\", \"vocab_size\": 64, \"d_model\": 24, "
                              "\"n_layers\": 1, \"n_heads\": 4";
    static const char gpt[] = "{\"model_type\": \"gpt\", \"vocab_size\": 64, \"hidden_size\": 24, "
                              "\"num_hidden_layers\": 1, \"num_attention_heads\": 4";
    refuse("{\"model_type\": \"gpt2\", \"vocab_size\": 64", "", "n_embd is missing");
    refuse(gpt2, ", \"n_head\": 5", "n_embd 24 is not a multiple of n_head 5");
    refuse(gpt2, ", \"n_layer\": -1", "n_layer is -1");
    refuse(gpt2, ", \"n_positions\": 1000000000000", "n_positions is 1000000000000, at most");
    refuse(gpt2, ", \"activation_function\": \"relu\"", "activation_function is relu");
    refuse(gpt2, ", \"scale_attn_by_inverse_layer_idx\": true", "scale_attn_by_inverse_layer_idx");
    refuse(gpt2, ", \"add_cross_attention\": true", "add_cross_attention");
    refuse(mpt, ", \"no_bias\": false", "no_bias");
    refuse(mpt, ", \"expansion_ratio\": 0", "expansion_ratio");
    refuse(mpt, ", \"norm_type\": \"rmsnorm\"", "norm_type");
    refuse(mpt, ", \"logit_scale\": \"inv_sqrt_d_model\"", "logit_scale");
    refuse(mpt, ", \"attn_config\": {\"alibi\": false}", "alibi");
    refuse(mpt, ", \"attn_config\": {\"clip_qkv\": 6}", "clip_qkv");
    refuse(mpt, ", \"attn_config\": {\"qk_ln\": true}", "qk_ln");
    refuse(mpt, ", \"attn_config\": {\"attn_type\": \"multiquery_attention\"}", "attn_type");
    refuse(gpt, ", \"position_embedding_type\": \"absolute\"", "learned, alibi or rope");
    refuse(gpt, ", \"position_embedding_type\": 3", "position_embedding_type");
    refuse(gpt, ", \"head_dim\": 7, \"position_embedding_type\": \"rope\"",
           "head_dim 7 is not even");
    refuse(gpt, ", \"num_attention_heads\": 25", "head_dim 0 is not 1 to 65536");
    refuse(gpt, ", \"hidden_size\": 16777216, \"num_attention_heads\": 25",
           "head_dim 671088 is not 1 to 65536"); /* its config.json could not be read again */
    refuse(gpt, ", \"hidden_act\": \"silu\"", "hidden_act is silu");
    refuse(gpt, ", \"alibi_bias_max\": 0", "alibi_bias_max");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_counts), cmocka_unit_test(gpt2_fields),
        cmocka_unit_test(mpt_fields),       cmocka_unit_test(gpt_fields),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
