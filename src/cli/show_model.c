/* Models, tensors and checkpoints as text. */
#include "cli/show.h"

#include <stdlib.h>
#include <string.h>

enum { SHOWN = 16, MAX_TYPES = 32 };

/* ---- configuration ---------------------------------------------------------------------- */

static void show_layers(const ModelConfig *c, Str *out)
{
    int64_t moe = 0, rope = 0, chunked = 0, chunk = 0;
    for (int64_t i = 0; i < c->n_layers; i++) {
        moe += c->layer[i].moe;
        rope += c->layer[i].rope;
        chunked += c->layer[i].chunk > 0;
        chunk = max_i64(chunk, c->layer[i].chunk);
    }
    str_printf(
        out, "  layers          %lld: %lld with experts, %lld with rotary positions, %lld chunked",
        (long long)c->n_layers, (long long)moe, (long long)rope, (long long)chunked);
    if (chunk) str_printf(out, " (%lld)", (long long)chunk);
    str_add(out, "\n");
    if (moe)
        str_printf(out, "  experts         %lld, %lld per token, width %lld%s%s\n",
                   (long long)c->n_experts, (long long)c->n_experts_per_token,
                   (long long)c->ffn_expert, c->shared_expert ? ", and a shared one" : "",
                   c->expert_bias ? "; balanced by bias" : "");
    if (moe < c->n_layers)
        str_printf(out, "  feed-forward    width %lld%s%s\n", (long long)c->ffn_dense,
                   c->gated ? "" : ", two matrices", c->bias ? ", biases" : "");
}

static void show_positions(const ModelConfig *c, Str *out)
{
    str_printf(out, "  positions       %lld", (long long)c->max_positions);
    if (c->positions == POSITIONS_LEARNED) str_add(out, ", learned");
    if (c->positions == POSITIONS_ALIBI)
        str_printf(out, ", slopes of scores (ALiBi, up to %g)", c->alibi);
    if (c->positions == POSITIONS_ROTARY) str_printf(out, ", theta %g", c->rope_theta);
    if (c->rope_scaling.factor > 1)
        str_printf(out, ", scaled by %g (%s)", (double)c->rope_scaling.factor,
                   c->rope_scaling.original_max_position > 0 ? "llama3" : "linear");
    str_add(out, "\n");
}

void show_config(const ModelConfig *c, Str *out)
{
    char total[32], active[32];
    ModelCounts counts = model_counts(c);
    str_printf(out, "model: %s\n", json_string_value(json_object_get(c->json, "model_type")));
    str_printf(out, "  weights         %s", format_count((double)counts.total, total));
    if (counts.active < counts.total)
        str_printf(out, ", of which a token meets %s", format_count((double)counts.active, active));
    str_printf(out, "\n  vocabulary      %lld%s\n", (long long)c->vocab,
               c->tied ? ", head tied to the embedding" : "");
    str_printf(out, "  width           %lld\n", (long long)c->embed);
    show_layers(c, out);
    str_printf(out, "  attention       %lld query heads on %lld key heads of %lld%s%s\n",
               (long long)c->n_heads, (long long)c->n_kv_heads, (long long)c->head_dim,
               c->qk_norm ? ", norm of q and k" : "",
               c->temperature_tuning ? ", query temperature" : "");
    if (c->attention_softcap > 0)
        str_printf(out, "  scores          capped at %g\n", c->attention_softcap);
    show_positions(c, out);
}

/* ---- tensors ---------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    const ShownTensor *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The types, in the order of their first tensor. */
static int collect_types(TensorList tensors, const char *type[MAX_TYPES], uint64_t bytes[MAX_TYPES],
                         int count[MAX_TYPES])
{
    int n = 0;
    for (int i = 0; i < tensors.n; i++) {
        int k = 0;
        while (k < n && strcmp(type[k], tensors.at[i].type)) k++;
        if (k == MAX_TYPES) continue;
        if (k == n) type[n++] = tensors.at[i].type;
        bytes[k] += tensors.at[i].bytes;
        count[k]++;
    }
    return n;
}

void show_tensors(TensorList tensors, bool all, Str *out)
{
    const char *type[MAX_TYPES];
    uint64_t bytes[MAX_TYPES] = {0};
    int count[MAX_TYPES] = {0}, widest = 5, types = collect_types(tensors, type, bytes, count);
    for (int k = 0; k < types; k++) {
        char size[32];
        widest = (int)max_i64(widest, (int64_t)strlen(type[k]));
        str_printf(out, "  %-15s %d tensors, %s\n", type[k], count[k],
                   format_bytes((double)bytes[k], size));
    }
    if (!all && tensors.n) qsort(tensors.at, (size_t)tensors.n, sizeof *tensors.at, by_size);
    int n = all || tensors.n < SHOWN ? tensors.n : SHOWN;
    for (int i = 0; i < n; i++) {
        const ShownTensor *t = &tensors.at[i];
        Str shape = {0};
        str_add(&shape, "[");
        for (int k = 0; k < t->shape.rank; k++)
            str_printf(&shape, "%s%lld", k ? ", " : "", (long long)t->shape.dim[k]);
        str_add(&shape, "]");
        str_printf(out, "  %-*s %-22s %s\n", widest, t->type, shape.at, t->name);
        str_deinit(&shape);
    }
    if (n < tensors.n)
        str_printf(out, "  and %d smaller ones; --tensors shows all\n", tensors.n - n);
}

static TensorList make_list(int n)
{
    return (TensorList){xcalloc((size_t)n + 1, sizeof(ShownTensor)), n};
}

Status show_safetensors(const char *path, bool all, Str *out)
{
    Safetensors *file;
    TRY(safetensors_open(path, &file));
    TensorList list = make_list(safetensors_count(file));
    for (int i = 0; i < list.n; i++) {
        const SafetensorsEntry *e = safetensors_at(file, i);
        list.at[i] = (ShownTensor){e->name, e->type_name, e->shape, e->bytes};
    }
    str_printf(out, "safetensors: %s, %d tensors\n", path, list.n);
    show_tensors(list, all, out);
    free(list.at);
    safetensors_close(file);
    return OK;
}

Status show_pth(const char *path, bool all, Str *out)
{
    Pth *file;
    TRY(pth_open(path, &file));
    TensorList list = make_list(pth_count(file));
    for (int i = 0; i < list.n; i++) {
        const PthTensor *t = pth_at(file, i);
        list.at[i] = (ShownTensor){t->name, t->type_name, t->shape, t->bytes};
    }
    str_printf(out, "torch.save: %s, %d tensors\n", path, list.n);
    show_tensors(list, all, out);
    free(list.at);
    pth_close(file);
    return OK;
}

/* ---- directories ------------------------------------------------------------------------ */

static int64_t count_numbers(TensorList tensors)
{
    int64_t n = 0;
    for (int i = 0; i < tensors.n; i++) n += shape_count(&tensors.at[i].shape);
    return n;
}

static void show_weights(const InferModel *model, bool all, Str *out)
{
    char size[32], numbers[32];
    const Weights *weights = model->weights;
    TensorList list = make_list(weights_count(weights));
    for (int i = 0; i < list.n; i++) {
        const Weight *w = weights_at(weights, i);
        list.at[i] = (ShownTensor){w->name, w->kind, w->shape, w->bytes};
    }
    str_add(out, "files: ");
    if (model->ckpt) str_printf(out, "%d, ", modeldir_file_count(ckpt_model(model->ckpt)));
    str_printf(out, "%s in %d tensors of %s numbers (%s)\n",
               format_bytes((double)weights_bytes(weights), size), list.n,
               format_count((double)count_numbers(list), numbers), weights_form(weights));
    if (*weights_prefix(weights))
        str_printf(out, "  prefix          %s\n", weights_prefix(weights));
    if (weights_ignored(weights))
        str_printf(out,
                   "  not used        %d tensors: frequencies, scales of activations, statistics, "
                   "the part for images\n",
                   weights_ignored(weights));
    show_tensors(list, all, out);
    free(list.at);
}

/* What the directory has beside its weights, and what of it says how to talk to the model. */
static void show_beside(const InferModel *model, Str *out)
{
    static const char *const kinds[][2] = {{"tokenizer.json", "Hugging Face"},
                                           {"tokenizer.model", "tokenizer.model"}};
    Arena arena = {0};
    const char *kind = "none",
               *template = model->tokenizer && tokenizer_chat_template(model->tokenizer) ? "yes"
                                                                                         : "none";
    for (int i = COUNT_OF(kinds) - 1; i >= 0; i--)
        if (file_exists(path_join(&arena, model->path, kinds[i][0]))) kind = kinds[i][1];
    if (file_exists(path_join(&arena, model->path, "chat_template.jinja")))
        template = "yes, chat_template.jinja";
    if (model->tokenizer)
        str_printf(out, "tokenizer: %s, %d ids, %zu merges; drover tokenizer inspect %s\n", kind,
                   tokenizer_vocab_size(model->tokenizer), tokenizer_merge_count(model->tokenizer),
                   model->path);
    else
        str_add(out, "tokenizer: none\n");
    str_printf(out, "chat template: %s\n", template);
    str_add(out, "ends a text:");
    for (int i = 0; i < model->n_stop; i++) str_printf(out, " %d", model->stop[i]);
    str_add(out, model->n_stop ? "\n" : " nothing\n");
    arena_deinit(&arena);
}

Status show_model(const char *path, bool all, Str *out)
{
    InferModel model;
    TRY(infer_model_open(path, &model));
    str_printf(out, "%s\n", model.path);
    show_config(&model.config, out);
    if (model.ckpt && ckpt_has_manifest(model.ckpt))
        str_printf(out, "checkpoint: step %lld, every hash is right, %d optimizer tensors\n  %s\n",
                   (long long)ckpt_step(model.ckpt), ckpt_optimizer_count(model.ckpt),
                   ckpt_run_json(model.ckpt));
    show_weights(&model, all, out);
    show_beside(&model, out);
    infer_model_deinit(&model);
    return OK;
}
