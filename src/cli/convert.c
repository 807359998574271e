/* drover convert: any model that drover reads, as a Hugging Face directory. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "cli/meter.h"
#include "run/run.h"

typedef struct ConvertFlags {
    int dtype;
    const char *shard_size;
} ConvertFlags;

static const Option options[] = {
    {"dtype", OPTION_CHOICE, "TYPE", 0, 0, "same", "same|f32|bf16|f16",
     offsetof(ConvertFlags, dtype),
     "what the weights are stored as; same: as they are, bit for bit"},
    {"shard-size", OPTION_TEXT, "BYTES", 0, 0, "5GB", NULL, offsetof(ConvertFlags, shard_size),
     "of a file at most: 5GB, 512MB"},
};

enum { MAX_FILES = 3 + TOKENIZER_MAX_FILES };

typedef struct Job {
    Arena arena;
    const ConvertFlags *flags;
    InferModel model;
    Meter meter;
    Export what;
    CkptFile file[MAX_FILES];
} Job;

/* ---- tensors ---------------------------------------------------------------------------- */

static DType wanted(const Job *job, DType have)
{
    static const DType types[] = {DTYPE_COUNT, DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    bool number = have == DTYPE_F64 || have == DTYPE_F32 || have == DTYPE_BF16 || have == DTYPE_F16;
    return job->flags->dtype > 0 && number ? types[job->flags->dtype] : have;
}

static Status read_weight(const void *context, int64_t first, int64_t n, DType to, void *out)
{
    return weights_read_range(context, first, n, to, out);
}

/* Whatever the files hold, as a plain Hugging Face model. */
static Status list_weights(Job *job)
{
    const Weights *w = job->model.weights;
    int n = weights_count(w);
    if (*weights_prefix(w))
        return fail(
            ERR_UNSUPPORTED,
            "%s is quantised and has a part for images; only --dtype same can be made of it",
            job->model.path);
    ExportTensor *tensors = ARENA_ARRAY(&job->arena, ExportTensor, n);
    for (int i = 0; i < n; i++) {
        const Weight *weight = weights_at(w, i);
        bool tied = job->model.config.tied && !strcmp(weight->name, "lm_head.weight");
        if (weight->dtype == DTYPE_COUNT)
            return fail(ERR_UNSUPPORTED,
                        "%s: tensor %s has elements of type %s, which drover cannot read",
                        job->model.path, weight->name, weight->kind);
        if (!tied)
            tensors[job->what.n++] = (ExportTensor){weight->name, wanted(job, weight->dtype),
                                                    weight->shape, read_weight, weight};
    }
    job->what.tensors = tensors;
    return OK;
}

static Status list_tensors(Job *job)
{
    if (!job->model.ckpt) return list_weights(job); /* Meta's layout */
    bool scaled = job->flags->dtype > 0 &&
                  json_is_object(json_object_get(job->model.config.json, "quantization_config"));
    if (scaled) return list_weights(job);
    const ModelDir *dir = ckpt_model(job->model.ckpt);
    int n = modeldir_count(dir);
    ExportTensor *tensors = ARENA_ARRAY(&job->arena, ExportTensor, n);
    for (int i = 0; i < n; i++) {
        const SafetensorsEntry *e = modeldir_at(dir, i);
        if (e->dtype == DTYPE_COUNT)
            return fail(ERR_UNSUPPORTED,
                        "%s: tensor %s has elements of type %s, which drover cannot read",
                        safetensors_path(e->file), e->name, e->type_name);
        tensors[i] = export_entry(e, wanted(job, e->dtype));
    }
    job->what.tensors = tensors;
    job->what.n = n;
    return OK;
}

/* ---- other files ------------------------------------------------------------------------ */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* Weights in any form, what is hidden, and what is written anew. */
static bool stays_behind(const Job *job, const char *name)
{
    static const char *const ends[] = {".safetensors", ".safetensors.index.json",
                                       ".bin",         ".bin.index.json",
                                       ".pth",         ".pt",
                                       ".gguf",        ".h5",
                                       ".msgpack",     ".onnx"};
    if (name[0] == '.' ||
        (job->model.ckpt && ckpt_has_manifest(job->model.ckpt) && !strcmp(name, "manifest.json")))
        return true;
    if (!job->model.ckpt && !strcmp(name, "params.json")) return true;
    for (int i = 0; i < COUNT_OF(ends); i++)
        if (ends_with(name, ends[i])) return true;
    for (int i = 0; i < job->what.n_files; i++)
        if (!strcmp(name, job->file[i].name)) return true;
    return false;
}

static Status list_copies(Job *job)
{
    DirEntries entries;
    TRY(dir_list(&job->arena, job->model.path, &entries));
    const char **copies = ARENA_ARRAY(&job->arena, const char *, entries.n + 1);
    for (int i = 0; i < entries.n; i++) {
        const char *path = path_join(&job->arena, job->model.path, entries.name[i]);
        if (dir_exists(path))
            log_info("%s is a directory; it is not copied", path);
        else if (!stays_behind(job, entries.name[i]))
            copies[job->what.n_copies++] = path;
    }
    job->what.copies = copies;
    return OK;
}

static void set_dtype(json_t *json, const char *name)
{
    bool old = json_object_get(json, "torch_dtype") != NULL;
    if (old) json_object_set_new(json, "torch_dtype", json_string(name));
    if (!old || json_object_get(json, "dtype"))
        json_object_set_new(json, "dtype", json_string(name));
}

/* What config.json calls the type of the weights; NULL: as the source says. Meta's layout does not
 * say: as they are stored. */
static const char *dtype_written(const Job *job)
{
    static const char *const names[] = {NULL, "float32", "bfloat16", "float16"};
    if (job->model.ckpt || job->flags->dtype > 0) return names[job->flags->dtype];
    const Weight *embedding = weights_find(job->model.weights, "model.embed_tokens.weight");
    if (!embedding) return NULL;
    return embedding->dtype == DTYPE_F32    ? names[1]
           : embedding->dtype == DTYPE_BF16 ? names[2]
                                            : names[3];
}

/* As it is, but for the element type, and for our bias, which has no place in the published
 * architecture. */
static void edit_config(const Job *job, json_t *json)
{
    static const char *const parts[] = {"text_config", "vision_config"};
    json_object_del(json, "drover_expert_bias");
    if (job->flags->dtype > 0)
        json_object_del(json, "quantization_config"); /* what is written is plain */
    const char *name = dtype_written(job);
    if (!name) return;
    set_dtype(json, name);
    for (int i = 0; i < COUNT_OF(parts); i++) {
        json_t *part = json_object_get(json, parts[i]);
        if (json_object_get(part, "dtype") || json_object_get(part, "torch_dtype"))
            set_dtype(part, name);
    }
}

static void add_file(Job *job, const char *name, const char *text, size_t n)
{
    job->file[job->what.n_files++] = (CkptFile){name, {(const uint8_t *)text, n}};
}

static Status make_config(Job *job)
{
    json_t *json;
    bool as_it_is = job->model.ckpt &&
                    job->flags->dtype == 0; /* Meta's layout has no config.json to copy */
    if (job->model.config.expert_bias)
        log_warn("the experts' biases stay behind: the published architecture chooses without "
                 "them, so logits will differ");
    if (as_it_is && !job->model.config.expert_bias) return OK; /* copied */
    TRY(weights_config(job->model.weights, &json));
    edit_config(job, json);
    char *edited = json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17));
    json_decref(json);
    if (!edited)
        return fail(ERR_FORMAT, "the configuration of %s cannot be written again as JSON",
                    job->model.path);
    add_file(job, "config.json", arena_strdup(&job->arena, edited), strlen(edited));
    free(edited);
    return OK;
}

/* Meta's layout has none: params.json knows the family, and so the ids that end a text. */
static void make_generation_config(Job *job)
{
    if (job->model.ckpt ||
        file_exists(path_join(&job->arena, job->model.path, "generation_config.json")))
        return;
    char *text = model_generation_text(&job->model.config);
    add_file(job, "generation_config.json", arena_strdup(&job->arena, text), strlen(text));
    free(text);
}

/* What transformers wants and the source does not have: tokenizer.json of a tiktoken file, a
 * tokenizer_config.json. */
static void make_tokenizer(Job *job)
{
    TokenizerFile made[TOKENIZER_MAX_FILES];
    int n = 0;
    if (job->model.tokenizer) tokenizer_files(job->model.tokenizer, &job->arena, made, &n);
    for (int i = 0; i < n; i++)
        if (!file_exists(path_join(&job->arena, job->model.path, made[i].name)))
            add_file(job, made[i].name, (const char *)made[i].text.at, made[i].text.n);
}

/* ---- the work --------------------------------------------------------------------------- */

static Status show(void *context, const char *tensor, uint64_t done, uint64_t total)
{
    Job *job = context;
    char a[32], b[32];
    if (cli_interrupted()) return fail(ERR_CANCELLED, "interrupted; nothing was left behind");
    if (meter_due(&job->meter))
        meter_show(&job->meter, "%s of %s  %s", format_bytes((double)done, a),
                   format_bytes((double)total, b), tensor);
    return OK;
}

static Status convert(Job *job, const char *target)
{
    int64_t shard;
    if (!setting_parse_bytes(job->flags->shard_size, &shard) || shard < 1)
        return fail(ERR_ARG, "--shard-size is '%s', which is not a number of bytes such as 5GB",
                    job->flags->shard_size);
    job->what.shard_bytes = (uint64_t)shard;
    job->what.files = job->file;
    job->what.progress = show;
    job->what.progress_context = job;
    TRY(weights_verify(
        job->model.weights)); /* checksums in Meta's files, which opening did not read */
    TRY(list_tensors(job));
    TRY(make_config(job));
    make_generation_config(job);
    make_tokenizer(job);
    TRY(list_copies(job));
    cli_catch_interrupts();
    meter_begin(&job->meter);
    Status status = modeldir_export(target, &job->what);
    meter_end(&job->meter);
    TRY(status);
    char took[32];
    printf("%s: %d tensors and %d other files from %s, in %s\n", target, job->what.n,
           job->what.n_files + job->what.n_copies, job->model.path,
           format_duration(clock_s() - job->meter.start_s, took));
    return OK;
}

static Status run(const void *opaque, Operands operands)
{
    Job job = {.flags = opaque};
    Status status = infer_model_open(operands.at[0], &job.model);
    if (status == OK) {
        status = convert(&job, operands.at[1]);
        infer_model_deinit(&job.model);
    }
    arena_deinit(&job.arena);
    return status;
}

const Command command_convert = {
    .name = "convert",
    .operands = "SRC DST",
    .min_operands = 2,
    .max_operands = 2,
    .sentence = "any model as a Hugging Face directory",
    .details = "SRC is a model directory (Meta's layout too), a checkpoint or a run. DST must not "
               "be there yet;\n"
               "it appears when it is complete. Tensors are read and written a few MB at a time, "
               "whatever the\n"
               "size of the model.",
    COMMAND_OPTIONS(ConvertFlags, options),
    .run = run,
};
