/* What the names of tensors in Hugging Face directories say. */
#include <string.h>

#include "weights/weights_internal.h"

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* Of no use for the weights of a text model: frequencies that follow from the configuration; scales
 * of activations and of caches, which are not quantised here; the part that sees images. */
static bool is_ignored(const char *name)
{
    static const char *const ends[] = {
        ".rotary_emb.inv_freq", ".input_scale",     ".activation_scale", ".input_scale_ub",
        ".output_scale",        ".k_scale",         ".v_scale",          ".q_scale",
        ".attn.bias",           ".attn.masked_bias"}; /* GPT-2's causal mask */
    static const char *const begins[] = {"vision_model.", "multi_modal_projector.",
                                         "vision_tower."};
    for (int i = 0; i < COUNT_OF(ends); i++)
        if (ends_with(name, ends[i])) return true;
    for (int i = 0; i < COUNT_OF(begins); i++)
        if (!strncmp(name, begins[i], strlen(begins[i]))) return true;
    return false;
}

/* "PREFIX.feed_forward.experts.7.gate_proj.weight": true, with its parts; base is the fused
 * weight's name. */
static bool split_expert(Arena *arena, const char *name, NameParts *parts)
{
    static const char marker[] = ".feed_forward.experts.";
    static const char *const tails[] = {".gate_proj.weight", ".up_proj.weight",
                                        ".down_proj.weight"};
    enum { MAX_DIGITS = 6 };
    const char *at = strstr(name, marker);
    if (!at) return false;
    const char *digits = at + strlen(marker);
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > MAX_DIGITS || (n > 1 && digits[0] == '0')) return false;
    for (int part = 0; part < COUNT_OF(tails); part++) {
        if (strcmp(digits + n, tails[part]) != 0) continue;
        int64_t expert;
        if (!parse_i64(arena_strndup(arena, digits, n), &expert)) return false;
        const char *fused = part == EXPERT_DOWN ? "down_proj" : "gate_up_proj";
        *parts = (NameParts){
            .kind = NAME_EXPERT,
            .expert = (int)expert,
            .part = (ExpertPart)part,
            .base = arena_printf(arena, "%.*s%s", (int)(digits - name), name, fused)};
        return true;
    }
    return false;
}

/* X.weight_scale and X.weight_scale_inv belong to X.weight, gate_up_proj_scale to gate_up_proj. */
static bool split_scale(Arena *arena, const char *name, NameParts *parts)
{
    static const char *const ends[] = {"_scale_inv", "_scale"};
    for (int i = 0; i < COUNT_OF(ends); i++)
        if (ends_with(name, ends[i])) {
            *parts = (NameParts){
                .kind = NAME_SCALE,
                .base = arena_strndup(arena, name, strlen(name) - strlen(ends[i]))};
            return true;
        }
    return false;
}

NameParts hf_name_parts(Arena *arena, const char *name, const char *prefix)
{
    NameParts parts;
    if (!strncmp(name, prefix, strlen(prefix))) name += strlen(prefix);
    if (is_ignored(name)) return (NameParts){.kind = NAME_IGNORED, .base = name};
    if (split_scale(arena, name, &parts) || split_expert(arena, name, &parts)) return parts;
    return (NameParts){.kind = NAME_PLAIN, .base = name};
}
