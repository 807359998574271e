/* Meta's names of tensors: which weight each is, and how the files of one model cut it among them.
 */
#include <string.h>

#include "weights/weights_internal.h"

typedef struct NameRule {
    const char *name; /* after "layers.{i}.", or the whole */
    MetaRule rule;
    const char *llama3,
        *llama4; /* after "model.layers.{i}.", or the whole; NULL: not of this family */
} NameRule;

static const NameRule outside[] = {
    {"tok_embeddings.weight", META_ROWS, "model.embed_tokens.weight", "model.embed_tokens.weight"},
    {"norm.weight", META_SAME, "model.norm.weight", "model.norm.weight"},
    {"output.weight", META_ROWS, "lm_head.weight", "lm_head.weight"},
    {"rope.freqs", META_IGNORED, "", ""}, /* follow from params.json */
    {"freqs_cis", META_IGNORED, "", ""},
};

static const char input_norm[] = "input_layernorm.weight",
                  ffn_norm[] = "post_attention_layernorm.weight";

static const NameRule inside[] = {
    {"attention_norm.weight", META_SAME, input_norm, input_norm},
    {"attention.wqkv.layer_norm_weight", META_SAME, NULL, input_norm},
    {"attention.wq.weight", META_QUERY, "self_attn.q_proj.weight", "self_attn.q_proj.weight"},
    {"attention.wk.weight", META_KEY, "self_attn.k_proj.weight", "self_attn.k_proj.weight"},
    {"attention.wv.weight", META_ROWS, "self_attn.v_proj.weight", "self_attn.v_proj.weight"},
    {"attention.wqkv.weight", META_QKV, NULL, "self_attn."},
    {"attention.wo.weight", META_COLUMNS, "self_attn.o_proj.weight", "self_attn.o_proj.weight"},
    {"attention.inner_attention.rope.freqs", META_IGNORED, "", ""},
    {"ffn_norm.weight", META_SAME, ffn_norm, ffn_norm},
    {"feed_forward.norm.weight", META_SAME, NULL, ffn_norm},
    {"feed_forward.mlp.layer_norm_weight", META_SAME, NULL, ffn_norm},
    {"feed_forward.w1.weight", META_ROWS, "mlp.gate_proj.weight", "feed_forward.gate_proj.weight"},
    {"feed_forward.w3.weight", META_ROWS, "mlp.up_proj.weight", "feed_forward.up_proj.weight"},
    {"feed_forward.w2.weight", META_COLUMNS, "mlp.down_proj.weight",
     "feed_forward.down_proj.weight"},
    {"feed_forward.mlp.fc1_weight", META_GATE_UP, NULL, "feed_forward."},
    {"feed_forward.mlp.fc2_weight", META_COLUMNS, NULL, "feed_forward.down_proj.weight"},
    {"feed_forward.router_DE", META_ROUTER, NULL, "feed_forward.router.weight"},
    {"feed_forward.experts.moe_w_in_eD_F", META_EXPERT_GATE, NULL,
     "feed_forward.experts.gate_up_proj"},
    {"feed_forward.experts.moe_w_swiglu_eD_F", META_EXPERT_UP, NULL,
     "feed_forward.experts.gate_up_proj"},
    {"feed_forward.experts.moe_w_out_eF_D", META_EXPERT_DOWN, NULL,
     "feed_forward.experts.down_proj"},
    {"feed_forward.w_in_shared_FD.weight", META_ROWS, NULL,
     "feed_forward.shared_expert.gate_proj.weight"},
    {"feed_forward.w_swiglu_FD.weight", META_ROWS, NULL,
     "feed_forward.shared_expert.up_proj.weight"},
    {"feed_forward.w_out_shared_DF.weight", META_COLUMNS, NULL,
     "feed_forward.shared_expert.down_proj.weight"},
    /* statistics of the training, which nothing reads */
    {"feed_forward.global_gate_stats_3E", META_IGNORED, "", ""},
    {"feed_forward.running_gate_stats_3E", META_IGNORED, "", ""},
    {"feed_forward.expert_activation_DE", META_IGNORED, "", ""},
    {"feed_forward.experts.expert_activation_DE", META_IGNORED, "", ""},
};

static const NameRule *find(const NameRule *rules, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(rules[i].name, name)) return &rules[i];
    return NULL;
}

/* The part that sees images. */
static bool is_vision(const char *name)
{
    return !strncmp(name, "vision_embeddings.", 18) || !strncmp(name, "vision_projection.", 18);
}

/* "layers.17.REST": true, with the number and the rest. */
static bool split_layer(Arena *arena, const char *name, int64_t *layer, const char **rest)
{
    enum { MAX_DIGITS = 5 };
    if (strncmp(name, "layers.", 7) != 0) return false;
    size_t n = strspn(name + 7, "0123456789");
    if (n == 0 || n > MAX_DIGITS || name[7 + n] != '.') return false;
    *rest = name + 7 + n + 1;
    return parse_i64(arena_strndup(arena, name + 7, n), layer);
}

MetaRule meta_rule(Arena *arena, const char *name, bool llama4, const char **hf_name)
{
    int64_t layer = -1;
    const char *rest = name;
    bool in_layer = split_layer(arena, name, &layer, &rest);
    if (is_vision(name)) return META_IGNORED;
    const NameRule *rule = in_layer ? find(inside, COUNT_OF(inside), rest)
                                    : find(outside, COUNT_OF(outside), name);
    const char *ours = !rule ? NULL : llama4 ? rule->llama4 : rule->llama3;
    if (!ours) return META_UNKNOWN;
    *hf_name = in_layer ? arena_printf(arena, "model.layers.%lld.%s", (long long)layer, ours)
                        : ours;
    return rule->rule;
}
