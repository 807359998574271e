/* Models, tensors and checkpoints as text. */
#include "cli/show.h"

#include <stdlib.h>
#include <string.h>

enum { SHOWN = 16, MAX_TYPES = 32 };

/* ---- configuration ---------------------------------------------------------------------------- */

static void show_layers(const ModelConfig *c, Str *out)
{
    int64_t moe = 0, rope = 0, chunked = 0, chunk = 0;
    for (int64_t i = 0; i < c->n_layers; i++) {
        moe += c->layer[i].moe;
        rope += c->layer[i].rope;
        chunked += c->layer[i].chunk > 0;
        chunk = max_i64(chunk, c->layer[i].chunk);
    }
    str_printf(out, "  layers          %lld: %lld with experts, %lld with rotary positions, %lld chunked", (long long)c->n_layers,
               (long long)moe, (long long)rope, (long long)chunked);
    if (chunk) str_printf(out, " (%lld)", (long long)chunk);
    str_add(out, "\n");
    if (moe)
        str_printf(out, "  experts         %lld, %lld per token, width %lld%s%s\n", (long long)c->n_experts,
                   (long long)c->n_experts_per_token, (long long)c->ffn_expert, c->shared_expert ? ", and a shared one" : "",
                   c->expert_bias ? "; balanced by bias" : "");
    if (moe < c->n_layers) str_printf(out, "  feed-forward    width %lld\n", (long long)c->ffn_dense);
}

void show_config(const ModelConfig *c, Str *out)
{
    char total[32], active[32];
    ModelCounts counts = model_counts(c);
    str_printf(out, "model: %s\n", json_string_value(json_object_get(c->json, "model_type")));
    str_printf(out, "  weights         %s", format_count((double)counts.total, total));
    if (counts.active < counts.total) str_printf(out, ", of which a token meets %s", format_count((double)counts.active, active));
    str_printf(out, "\n  vocabulary      %lld%s\n", (long long)c->vocab, c->tied ? ", head tied to the embedding" : "");
    str_printf(out, "  width           %lld\n", (long long)c->embed);
    show_layers(c, out);
    str_printf(out, "  attention       %lld query heads on %lld key heads of %lld%s%s", (long long)c->n_heads,
               (long long)c->n_kv_heads, (long long)c->head_dim, c->qk_norm ? ", norm of q and k" : "",
               c->temperature_tuning ? ", query temperature" : "");
    if (c->attention_softcap > 0) str_printf(out, ", scores capped at %g", c->attention_softcap);
    str_add(out, "\n");
    str_printf(out, "  positions       %lld, theta %g", (long long)c->max_positions, c->rope_theta);
    if (c->rope_scaling.factor > 1) str_printf(out, ", scaled by %g", (double)c->rope_scaling.factor);
    str_add(out, "\n");
}

/* ---- tensors ---------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    const SafetensorsEntry *x = *(const SafetensorsEntry *const *)a, *y = *(const SafetensorsEntry *const *)b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void show_types(TensorList tensors, Str *out)
{
    const char *type[MAX_TYPES];
    uint64_t bytes[MAX_TYPES] = {0};
    int count[MAX_TYPES] = {0}, n = 0;
    for (int i = 0; i < tensors.n; i++) {
        int k = 0;
        while (k < n && strcmp(type[k], tensors.at[i]->type_name)) k++;
        if (k == MAX_TYPES) continue;
        if (k == n) type[n++] = tensors.at[i]->type_name;
        bytes[k] += tensors.at[i]->bytes;
        count[k]++;
    }
    for (int k = 0; k < n; k++) {
        char size[32];
        str_printf(out, "  %-15s %d tensors, %s\n", type[k], count[k], format_bytes((double)bytes[k], size));
    }
}

void show_tensors(TensorList tensors, bool all, Str *out)
{
    show_types(tensors, out);
    if (!all) qsort(tensors.at, (size_t)tensors.n, sizeof *tensors.at, by_size);
    int n = all || tensors.n < SHOWN ? tensors.n : SHOWN;
    for (int i = 0; i < n; i++) {
        const SafetensorsEntry *e = tensors.at[i];
        Str shape = {0};
        str_add(&shape, "[");
        for (int k = 0; k < e->shape.rank; k++) str_printf(&shape, "%s%lld", k ? ", " : "", (long long)e->shape.dim[k]);
        str_add(&shape, "]");
        str_printf(out, "  %-5s %-22s %s\n", e->type_name, shape.at, e->name);
        str_deinit(&shape);
    }
    if (n < tensors.n) str_printf(out, "  and %d smaller ones; --tensors shows all\n", tensors.n - n);
}

Status show_safetensors(const char *path, bool all, Str *out)
{
    Safetensors *file;
    TRY(safetensors_open(path, &file));
    TensorList list = {xcalloc((size_t)safetensors_count(file) + 1, sizeof *list.at), safetensors_count(file)};
    for (int i = 0; i < list.n; i++) list.at[i] = safetensors_at(file, i);
    str_printf(out, "safetensors: %s, %d tensors\n", path, list.n);
    show_tensors(list, all, out);
    free(list.at);
    safetensors_close(file);
    return OK;
}

/* ---- directories -------------------------------------------------------------------------------- */

static void show_weights(const ModelDir *dir, bool all, Str *out)
{
    TensorList list = {xcalloc((size_t)modeldir_count(dir) + 1, sizeof *list.at), modeldir_count(dir)};
    for (int i = 0; i < list.n; i++) list.at[i] = modeldir_at(dir, i);
    show_tensors(list, all, out);
    free(list.at);
}

Status show_model(const char *path, bool all, Str *out)
{
    InferModel model;
    TRY(infer_model_open(path, &model));
    char size[32];
    str_printf(out, "%s\n", model.path);
    show_config(&model.config, out);
    if (ckpt_has_manifest(model.ckpt))
        str_printf(out, "checkpoint: step %lld, every hash is right, %d optimizer tensors\n  %s\n", (long long)ckpt_step(model.ckpt),
                   ckpt_optimizer_count(model.ckpt), ckpt_run_json(model.ckpt));
    str_printf(out, "files: %s in %d tensors\n", format_bytes((double)modeldir_bytes(ckpt_model(model.ckpt)), size),
               modeldir_count(ckpt_model(model.ckpt)));
    show_weights(ckpt_model(model.ckpt), all, out);
    if (model.tokenizer)
        str_printf(out, "tokenizer: %d ids, %zu merges; drover tokenizer inspect %s\n", tokenizer_vocab_size(model.tokenizer),
                   tokenizer_merge_count(model.tokenizer), model.path);
    else
        str_add(out, "tokenizer: none\n");
    infer_model_deinit(&model);
    return OK;
}
