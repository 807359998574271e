/* Grok-1: its weights by their published names, and configurations that are refused by name. */
#include "model/model.h"

#include "base/testing.h"

/* The tensors of one layer by their published names and shapes; experts are separate files'
 * entries. */
static void published_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t rows, columns;
    } want[] = {
        {"model.embed_tokens.weight", 131072, 6144},
        {"model.layers.63.attn.q_proj.weight", 6144, 6144},
        {"model.layers.63.attn.k_proj.weight", 1024, 6144},
        {"model.layers.63.attn.v_proj.weight", 1024, 6144},
        {"model.layers.63.attn.o_proj.weight", 6144, 6144},
        {"model.layers.63.pre_attn_norm.scale", 6144, 1},
        {"model.layers.63.post_attn_norm.scale", 6144, 1},
        {"model.layers.63.pre_moe_norm.scale", 6144, 1},
        {"model.layers.63.post_moe_norm.scale", 6144, 1},
        {"model.layers.63.moe_block.gate.weight", 8, 6144},
        {"model.layers.63.moe_block.experts.0.linear.weight", 32768, 6144},
        {"model.layers.63.moe_block.experts.7.linear.weight", 32768, 6144},
        {"model.layers.63.moe_block.experts.7.linear_v.weight", 32768, 6144},
        {"model.layers.63.moe_block.experts.7.linear_1.weight", 6144, 32768},
        {"model.norm.scale", 6144, 1},
    };
    ModelConfig c;
    Graph *g;
    assert_ok(model_config_preset("grok-1", &c));
    ModelOptions o = {
        .purpose = MODEL_LOGITS, .batch = 1, .seq = 4, .dtype = DTYPE_BF16, .no_master = true};
    assert_ok(model_build(&c, o, &g));
    assert_false(value_ok(graph_find_state(g, "lm_head.weight"))); /* tied */
    for (int i = 0; i < COUNT_OF(want); i++) {
        const StatePart *part = NULL;
        for (int v = 1; v < g->n_values; v++)
            for (int k = 0; g->value[v].role == STATE_PARAM && k < g->value[v].n_parts; k++)
                if (!strcmp(g->value[v].part[k].name, want[i].name)) part = &g->value[v].part[k];
        if (!part) fail_msg("there is no %s", want[i].name);
        assert_int_equal(part->shape.dim[0], want[i].rows);
        assert_int_equal(part->shape.rank == 2 ? part->shape.dim[1] : 1, want[i].columns);
    }
    graph_destroy(g);
    model_config_deinit(&c);
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

static void refuse_each(const char *base, const char *const (*bad)[2], int n)
{
    for (int i = 0; i < n; i++) {
        Str text = {0};
        str_printf(&text, "%s, %s}", base, bad[i][0]);
        refuse(text.at, bad[i][1]);
        str_deinit(&text);
    }
}

static void hostile_values(void **state)
{
    (void)state;
    const char *base =
        "{\"model_type\": \"grok-1\", \"vocab_size\": 64, \"hidden_size\": 32, "
        "\"num_hidden_layers\": 2,"
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 16";
    static const char *const missing[][2] = {
        {"\"num_experts_per_tok\": 1", "num_experts is missing"},
        {"\"num_experts\": 4", "attn_output_multiplier is missing"},
        {"\"num_experts\": 4, \"attn_output_multiplier\": 1", "max_attn_value is missing"},
        {"\"num_experts\": 4, \"attn_output_multiplier\": 1, \"max_attn_value\": 30, "
         "\"embedding_multiplier_scale\": 2",
         "output_multiplier_scale is missing"},
    };
    refuse_each(base, missing, COUNT_OF(missing));
    const char *whole =
        "{\"model_type\": \"grok-1\", \"vocab_size\": 64, \"hidden_size\": 32, "
        "\"num_hidden_layers\": 2,"
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 16,"
        "\"num_experts\": 4, \"attn_output_multiplier\": 1, \"max_attn_value\": 30,"
        "\"embedding_multiplier_scale\": 2, \"output_multiplier_scale\": 0.5";
    static const char *const bad[][2] = {
        {"\"num_experts\": 0", "num_experts"},
        {"\"num_experts\": 1000000", "num_experts"},
        {"\"num_experts\": 2000", "at most 1024"},
        {"\"num_experts_per_tok\": 5", "num_experts_per_tok"},
        {"\"num_experts_per_tok\": 0", "num_experts_per_tok"},
        {"\"attn_output_multiplier\": -1", "attn_output_multiplier"},
        {"\"attn_output_multiplier\": \"1\"", "attn_output_multiplier"},
        {"\"max_attn_value\": 0", "max_attn_value"},
        {"\"output_multiplier_scale\": 1e30", "output_multiplier_scale"},
        {"\"router_logit_softcapping\": -30", "router_logit_softcapping"},
        {"\"tie_word_embeddings\": \"no\"", "tie_word_embeddings"},
        {"\"hidden_act\": \"silu\"", "hidden_act"},
    };
    refuse_each(whole, bad, COUNT_OF(bad));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_names),
        cmocka_unit_test(hostile_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
