/* drover plan: what its command line says is planned. */
#include <stdlib.h>
#include <string.h>

#include "cli/plan.h"

enum { DEFAULT_SEQ = 8192, FRONT = 12, FEW = 4 };
static const double default_max_batch = 16e6; /* tokens, with --model */

Status plan_read_count(const char *option, const char *text, double *out)
{
    static const char letters[] = "kMBT";
    char *end;
    *out = 0;
    if (!text) return OK;
    double value = strtod(text, &end), factor = 1e3;
    const char *letter = *end && !end[1] ? strchr(letters, *end) : NULL;
    for (const char *p = letters; letter && p < letter; p++) factor *= 1e3;
    if (end == text || (*end && !letter) || !(value > 0) || value > 1e18)
        return fail(ERR_ARG, "--%s %s: a number of tokens is wanted, such as 300B or 15T", option,
                    text);
    *out = letter ? value * factor : value;
    return OK;
}

bool plan_is_setting(const char *operand) { return strchr(operand, '=') != NULL; }

bool plan_sets_layout(Operands operands)
{
    for (int i = 0; i < operands.n; i++)
        if (!strncmp(operands.at[i], "parallel.", 9)) return true;
    return false;
}

/* A preset is planned as the run file would be that names it alone, with long sequences. */
static Status add_preset(Arena *arena, const char *name, const char **settings, int *n)
{
    ModelConfig model;
    TRY(model_config_preset(name, &model));
    settings[(*n)++] = arena_printf(arena, "model.preset=%s", name);
    settings[(*n)++] = arena_printf(arena, "name=%s", name);
    settings[(*n)++] = "data=[{synthetic: uniform}]";
    settings[(*n)++] = arena_printf(arena, "train.seq=%lld",
                                    (long long)min_i64(DEFAULT_SEQ, model.max_positions));
    model_config_deinit(&model);
    return OK;
}

Status plan_source(Arena *arena, const char *path, Operands operands, const PlanFlags *flags,
                   ConfigSource *source)
{
    enum { PRESET_SETTINGS = 4 };
    int n = 0;
    const char **settings = ARENA_ARRAY(arena, const char *, operands.n + PRESET_SETTINGS);
    if (path && flags->model)
        return fail(ERR_ARG, "--model %s and a run file (%s): one of them is wanted", flags->model,
                    path);
    if (!path && !flags->model)
        return fail(ERR_ARG, "neither a run file nor --model: what is to be planned?");
    if (flags->model) TRY(add_preset(arena, flags->model, settings, &n));
    for (int i = 0; i < operands.n; i++)
        if (plan_is_setting(operands.at[i])) settings[n++] = operands.at[i];
    *source = (ConfigSource){path, settings, n};
    return OK;
}

Status plan_load_cluster(const char *name, const PlanFlags *flags, Cluster *cluster)
{
    if (!name)
        return fail(ERR_ARG, "--cluster is missing: a name, a file, or one line such as \"1024 "
                             "h100, 8 per node, 400G\"");
    TRY(cluster_load(name, cluster));
    Status status = flags->gpus ? cluster_resize(cluster, flags->gpus) : OK;
    if (status != OK) cluster_deinit(cluster);
    return status;
}

Status plan_max_batch(const RunConfig *config, const PlanFlags *flags, int64_t *out)
{
    double tokens, seq = (double)config->train.seq;
    TRY(plan_read_count("max-batch", flags->max_batch, &tokens));
    if (tokens > 0 && tokens < seq)
        return fail(ERR_REFUSED,
                    "--max-batch %s is less than one sequence of train.seq %lld; take %lld or more",
                    flags->max_batch, (long long)config->train.seq, (long long)config->train.seq);
    if (tokens <= 0) tokens = flags->model ? default_max_batch : (double)config->train.batch * seq;
    *out = max_i64(1, (int64_t)(tokens / seq));
    return OK;
}

Status plan_find(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags,
                 ProfileStore *profiles, SearchResult *found)
{
    SearchOptions how = {.devices = cluster_devices(cluster),
                         .simulate = (int)flags->simulate,
                         .front = flags->report ? FRONT : 0,
                         .profiles = profiles};
    TRY(plan_max_batch(config, flags, &how.max_batch));
    Status status = plan_search(config, cluster, &how, found);
    Question more = {
        .config = config, .cluster = cluster, .max_batch = how.max_batch, .simulate = FEW};
    return status == ERR_REFUSED ? outlook_refuse_search(&more, status) : status;
}
