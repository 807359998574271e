/* What commands that load a model have in common: their options, and rows of ids from a file. */
#include "cli/sampling.h"

#include <math.h>

enum { MAX_IDS_BYTES = 256 << 20 };

void model_flags_apply(const ModelFlags *flags, const Rank *rank, InferOptions *options)
{
    static const DType types[] = {DTYPE_F32, DTYPE_F32, DTYPE_BF16};
    options->dtype_set = flags->dtype > 0;
    options->dtype = types[flags->dtype];
    options->threads = (int)flags->threads;
    options->device = (DeviceKind)flags->device;
    options->tune = true;
    options->memory_limit_bytes = (size_t)flags->memory;
    options->world = rank->world;
    options->ranks_here = rank->here;
    options->layout.mesh = (Mesh){.size = {[MESH_PP] = (int)flags->pp,
                                           [MESH_DP] = (int)flags->dp,
                                           [MESH_FSDP] = (int)flags->fsdp,
                                           [MESH_EP] = (int)flags->ep,
                                           [MESH_TP] = (int)flags->tp}};
}

typedef struct Job {
    InferModel model;
    ModelMain main;
    const void *options;
} Job;

static Status run_rank(const Rank *rank, void *context)
{
    const Job *job = context;
    return job->main(rank, &job->model, job->options);
}

Status model_flags_run(const ModelFlags *flags, const char *path, ModelMain main,
                       const void *options)
{
    Job job = {.main = main, .options = options};
    int64_t n = min_i64(flags->tp * flags->ep * flags->pp,
                        INT32_MAX); /* of three and of two factors up to 4096 */
    TRY(infer_model_open(path, &job.model));
    Status status = ranks_run(
        (int)min_i64(n * min_i64(flags->fsdp * flags->dp, INT32_MAX), INT32_MAX), run_rank, &job);
    infer_model_deinit(&job.model);
    return status;
}

static Status read_row(Arena *arena, const json_t *json, const char *path, int index, IdVec *row)
{
    size_t n = json_array_size(json);
    if (!json_is_array(json) || n == 0)
        return fail(ERR_FORMAT, "%s: ids[%d] is not a list of ids", path, index);
    *row = (IdVec){ARENA_ARRAY(arena, int32_t, n), n, n};
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(json, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX)
            return fail(ERR_FORMAT, "%s: ids[%d][%zu] is not a token id", path, index, i);
        row->at[i] = (int32_t)json_integer_value(id);
    }
    return OK;
}

Status ids_read(Arena *arena, const char *path, IdRows *rows)
{
    Bytes text;
    json_error_t error;
    TRY(file_read(arena, path, MAX_IDS_BYTES, &text));
    json_t *json = json_loadb((const char *)text.at, text.n, JSON_REJECT_DUPLICATES, &error);
    if (!json) return fail(ERR_FORMAT, "%s:%d: %s", path, error.line, error.text);
    const json_t *list = json_object_get(json, "ids");
    int n = (int)json_array_size(list);
    Status status = OK;
    if (n == 0) status = fail(ERR_FORMAT, "%s has no \"ids\": [[...], ...]", path);
    IdVec *row = ARENA_ARRAY(arena, IdVec, n + 1);
    for (int i = 0; i < n && status == OK; i++)
        status = read_row(arena, json_array_get(list, (size_t)i), path, i, &row[i]);
    json_decref(json);
    *rows = (IdRows){row, n};
    return status;
}

SamplerOptions sampling_apply(const SamplingFlags *flags, const InferModel *model)
{
    SamplerOptions o = model->sampler;
    if (!isnan(flags->temperature)) o.temperature = flags->temperature;
    if (!isnan(flags->top_p)) o.top_p = flags->top_p;
    if (!isnan(flags->min_p)) o.min_p = flags->min_p;
    if (flags->top_k >= 0) o.top_k = flags->top_k;
    o.seed = (uint64_t)flags->seed;
    return o;
}
