/* drover inspect: whatever lies at a path, as text. */
#include <stdlib.h>
#include <string.h>

#include "cli/show.h"
#include "cluster/cluster.h"
#include "run/run.h"
#include "train/train.h"

typedef struct InspectFlags {
    int graph, program, dtype;
    int64_t batch, seq;
    bool dot, tensors, cluster;
} InspectFlags;

enum { PICTURE_COLUMNS = 120 };

#define KINDS "none|loss|logits|decode|prefill|step"

static const Option options[] = {
    {"tensors", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(InspectFlags, tensors),
     "all tensors, not only the largest"},
    {"graph", OPTION_CHOICE, "KIND", 0, 0, "none", KINDS, offsetof(InspectFlags, graph),
     "the model's graph, one node a line"},
    {"program", OPTION_CHOICE, "KIND", 0, 0, "none", KINDS, offsetof(InspectFlags, program),
     "instructions with their memory, and what all needs"},
    {"dot", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(InspectFlags, dot),
     "the graph for graphviz"},
    {"batch", OPTION_INT, "N", 1, 1 << 20, "1", NULL, offsetof(InspectFlags, batch),
     "sequences, for --graph and --program"},
    {"seq", OPTION_INT, "N", 1, 1 << 30, "256", NULL, offsetof(InspectFlags, seq),
     "tokens of each; with decode: of the cache"},
    {"dtype", OPTION_CHOICE, "TYPE", 0, 0, "f32", "f32|bf16", offsetof(InspectFlags, dtype),
     "of activations"},
    {"cluster", OPTION_FLAG, "", 0, 0, NULL, NULL, offsetof(InspectFlags, cluster),
     "a cluster instead: a preset, a file or a line such as \"1024 h100, 400G\", all figures with "
     "their sources; `list`: the presets"},
};

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static bool holds(Arena *arena, const char *dir, const char *name)
{
    return file_exists(path_join(arena, dir, name)) || dir_exists(path_join(arena, dir, name));
}

/* ---- configurations: --graph and --program ---------------------------------------------- */

static Status find_config(Arena *arena, const char *path, ModelConfig *config)
{
    if (ends_with(path, ".json") && file_exists(path)) return model_config_load(path, config);
    if (!file_exists(path) && !dir_exists(path)) return model_config_preset(path, config);
    if (holds(arena, path, "config.json"))
        return model_config_load(path_join(arena, path, "config.json"), config);
    InferModel model;
    TRY(infer_model_open(path, &model));
    Status status = model_config_from_json(model.config.json, config);
    infer_model_deinit(&model);
    return status;
}

static Status inspect_program(Arena *arena, const char *path, const InspectFlags *f, Str *out)
{
    ModelConfig config;
    ProgramFlags flags = {.kind = f->program ? f->program : f->graph,
                          .batch = f->batch,
                          .seq = f->seq,
                          .dtype = f->dtype,
                          .program = f->program > 0,
                          .dot = f->dot};
    TRY(find_config(arena, path, &config));
    Status status = show_program(&config, &flags, out);
    model_config_deinit(&config);
    return status;
}

/* ---- clusters --------------------------------------------------------------------------- */

static void list_clusters(Str *out)
{
    ClusterPreset p;
    for (int devices = 0; devices < 2; devices++) {
        str_add(out, devices ? "devices:\n" : "clusters:\n");
        for (int i = 0; (p = cluster_list(i)).name; i++)
            if (p.is_device == (devices > 0))
                str_printf(out, "  %-16s %.*s\n", p.name, p.about_length, p.about);
    }
}

static Status inspect_cluster(const char *text, Str *out)
{
    Cluster cluster;
    if (!strcmp(text, "list")) {
        list_clusters(out);
        return OK;
    }
    TRY(cluster_load(text, &cluster));
    cluster_text(&cluster, out);
    cluster_deinit(&cluster);
    return OK;
}

/* ---- files and directories -------------------------------------------------------------- */

static Status inspect_tokenizer(const char *path, Str *out)
{
    Tokenizer *tokenizer;
    TRY(tokenizer_load(path, &tokenizer));
    show_tokenizer(tokenizer, out);
    tokenizer_destroy(tokenizer);
    return OK;
}

static Status inspect_run_file(const char *path, Str *out)
{
    RunConfig config;
    TRY(run_config_load(path, NULL, 0, &config));
    run_config_text(&config, out);
    run_config_deinit(&config);
    return OK;
}

static Status inspect_config(const char *path, Str *out)
{
    ModelConfig config;
    TRY(model_config_load(path, &config));
    show_config(&config, out);
    model_config_deinit(&config);
    return OK;
}

static Status inspect_pipeline(const char *path, Str *out)
{
    Pipeline *pipeline;
    TRY(pipeline_load(path, &pipeline));
    train_pipeline_report(pipeline, NULL, PICTURE_COLUMNS, out);
    pipeline_destroy(pipeline);
    return OK;
}

static Status inspect_file(const char *path, bool all, Str *out)
{
    const char *name = path_base(path);
    if (ends_with(name, ".safetensors")) return show_safetensors(path, all, out);
    if (ends_with(name, ".pth") || ends_with(name, ".pt")) return show_pth(path, all, out);
    if (ends_with(name, ".pipeline")) return inspect_pipeline(path, out);
    if (ends_with(name, ".yaml") || ends_with(name, ".yml")) return inspect_run_file(path, out);
    if (!strcmp(name, "config.json")) return inspect_config(path, out);
    if (!strcmp(name, "tokenizer.json") || ends_with(name, ".model"))
        return inspect_tokenizer(path, out);
    return fail(ERR_FORMAT,
                "%s: not a kind of file that inspect knows: .safetensors, .pth, .yaml, .pipeline, "
                "config.json, tokenizer.json, .model",
                path);
}

static Status inspect_preset(const char *name, Str *out)
{
    ModelConfig config;
    Status status = model_config_preset(name, &config);
    if (status != OK) return fail(ERR_IO, "there is nothing at %s, and %s", name, status_message());
    for (int i = 0; model_preset(i); i++)
        if (!strcmp(model_preset(i)->name, name))
            str_printf(out, "preset %s: %s\n", name, model_preset(i)->about);
    show_config(&config, out);
    model_config_deinit(&config);
    return OK;
}

static Status inspect_path(Arena *arena, const char *path, bool all, Str *out)
{
    if (!dir_exists(path))
        return file_exists(path) ? inspect_file(path, all, out) : inspect_preset(path, out);
    if (holds(arena, path, "config.json") || holds(arena, path, "params.json"))
        return show_model(path, all, out);
    if (holds(arena, path, "run.yaml") || holds(arena, path, "metrics.jsonl") ||
        holds(arena, path, "ckpt"))
        return show_run(path, out);
    if (holds(arena, path, "tokenizer.json") || holds(arena, path, "tokenizer.model"))
        return inspect_tokenizer(path, out);
    return show_model(path, all, out);
}

static Status run(const void *opaque, Operands operands)
{
    const InspectFlags *f = opaque;
    Arena arena = {0};
    Str out = {0};
    if (f->dot && !f->graph && !f->program)
        return fail(ERR_ARG, "--dot draws a graph: say which with --graph KIND");
    Status status = f->cluster ? inspect_cluster(operands.at[0], &out)
                    : f->graph || f->program
                        ? inspect_program(&arena, operands.at[0], f, &out)
                        : inspect_path(&arena, operands.at[0], f->tensors, &out);
    if (status == OK && out.n) fwrite(out.at, 1, out.n, stdout);
    str_deinit(&out);
    arena_deinit(&arena);
    return status;
}

const Command command_inspect = {
    .name = "inspect",
    .operands = "PATH",
    .min_operands = 1,
    .max_operands = 1,
    .sentence = "a model, checkpoint, run, cluster or file as text",
    .details = "PATH is a model directory, a checkpoint, a run's directory, a .safetensors, .pth, "
               ".pipeline or run\n"
               "file, a tokenizer, or the name of a preset. --graph and --program take a model or "
               "a preset;\n"
               "step is all of a training step, the others are forward passes.",
    COMMAND_OPTIONS(InspectFlags, options),
    .run = run,
};
