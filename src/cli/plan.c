/* drover plan RUN.yaml | --model PRESET --cluster NAME [key=value ...] */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "fleet/fleet.h"
#include "planner/planner.h"

typedef struct PlanFlags {
    const char *model, *cluster, *trace, *out, *tokens, *max_batch;
    int64_t gpus, simulate;
    bool json, search;
} PlanFlags;

static const Option options[] = {
    {"model", OPTION_TEXT, "PRESET", 0, 0, NULL, NULL, offsetof(PlanFlags, model),
     "instead of a run file: a model by name, on random ids"},
    {"cluster", OPTION_TEXT, "NAME", 0, 0, NULL, NULL, offsetof(PlanFlags, cluster),
     "a cluster by name, a file, or one line such as \"1024 h100, 8 per node, 400G, spine 1:4\""},
    {"gpus", OPTION_INT, "N", 0, 1e9, "0", NULL, offsetof(PlanFlags, gpus),
     "the same cluster with so many devices; 0: as it is"},
    {"tokens", OPTION_TEXT, "N", 0, 0, NULL, NULL, offsetof(PlanFlags, tokens),
     "how long so many take: 15T, 300B"},
    {"search", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(PlanFlags, search),
     "find the layout: of all that fit, what trains most tokens per second"},
    {"max-batch", OPTION_TEXT, "TOKENS", 0, 0, NULL, NULL, offsetof(PlanFlags, max_batch),
     "with a search: tokens in a step at most; default: the run file's batch, with --model 16M"},
    {"simulate", OPTION_INT, "N", 1, 100000, "48", NULL, offsetof(PlanFlags, simulate),
     "with a search: how many of the best estimates are simulated"},
    {"json", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(PlanFlags, json), "one JSON object"},
    {"trace", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(PlanFlags, trace),
     "the simulated step, for chrome://tracing or Perfetto"},
    {"out", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(PlanFlags, out),
     "the run file of this plan, for drover train"},
};

enum { DEFAULT_SEQ = 8192, SHOWN = 10 };

/* ---- what is planned -------------------------------------------------------------------- */

/* "15T", "300B", "16M", "2e12". 0: not given. */
static Status read_count(const char *option, const char *text, double *out)
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

static Status load_config(Arena *arena, Operands operands, const PlanFlags *flags,
                          RunConfig *config)
{
    enum { PRESET_SETTINGS = 4 };
    const char *path = operands.n > 0 && !strchr(operands.at[0], '=') ? operands.at[0] : NULL;
    int n = operands.n - (path != NULL), k = 0;
    if (path && flags->model)
        return fail(ERR_ARG, "--model %s and a run file (%s): one of them is wanted", flags->model,
                    path);
    if (!path && !flags->model)
        return fail(ERR_ARG, "neither a run file nor --model: what is to be planned?");
    const char **settings = ARENA_ARRAY(arena, const char *, n + PRESET_SETTINGS);
    if (flags->model) TRY(add_preset(arena, flags->model, settings, &k));
    for (int i = 0; i < n; i++) settings[k++] = operands.at[operands.n - n + i];
    return run_config_load(path, settings, k, config);
}

static Status load_cluster(const PlanFlags *flags, Cluster *cluster)
{
    if (!flags->cluster)
        return fail(ERR_ARG, "--cluster is missing: a name, a file, or one line such as \"1024 "
                             "h100, 8 per node, 400G\"");
    TRY(cluster_load(flags->cluster, cluster));
    Status status = flags->gpus ? cluster_resize(cluster, flags->gpus) : OK;
    if (status != OK) cluster_deinit(cluster);
    return status;
}

/* ---- results ---------------------------------------------------------------------------- */

static void add_duration(const Plan *plan, double tokens, Str *out)
{
    char count[32];
    double seconds = tokens / plan->tokens_per_s, days = seconds / 86400;
    str_printf(out, "budget   %s tokens: %.0f steps, %.*f days without failures\n",
               format_count(tokens, count), tokens / plan->tokens, days < 10 ? 2 : 1, days);
}

/* Kernels of either kind keep their units as busy as the better published ones do; in the rest of a
 * step devices wait. */
enum { POWER_PHASES = 2 };
static void power_phases(const Plan *plan, PowerPhase *phase)
{
    const StepTime *t = &plan->time;
    phase[0] = (PowerPhase){
        "products", (t->part.work_s[SIM_MATRIX] + t->part.work_s[SIM_ATTENTION]) / t->step_s, 0.9,
        0.4};
    phase[1] = (PowerPhase){"what memory limits",
                            (t->part.work_s[SIM_MEMORY] + t->part.optimizer_s) / t->step_s, 0, 0.9};
}

/* Weeks of such steps: failures, goodput, power, money. Of whole nodes of accelerators; false:
 * nothing can be said. */
static bool make_report(const Plan *plan, const Cluster *cluster, double tokens, Arena *arena,
                        FleetReport *report)
{
    enum { STATE_BYTES = 12 }; /* of a weight in a checkpoint: f32, and both moments */
    PowerPhase *phase = ARENA_ARRAY(arena, PowerPhase, POWER_PHASES);
    if (cluster->device.cores || plan->ranks % cluster->node.devices) return false;
    power_phases(plan, phase);
    FleetJob job = {.cluster = cluster,
                    .devices = plan->ranks,
                    .replicas = plan->config.parallel.dp,
                    .state_bytes = STATE_BYTES * plan->weights,
                    .step_s = plan->time.step_s,
                    .batch_tokens = plan->tokens,
                    .tokens = tokens,
                    .phase = phase,
                    .n_phases = POWER_PHASES};
    Status status = fleet_report_make(&job, arena, report);
    if (status != OK)
        log_warn("nothing is said of failures, power and money: %s", status_message());
    return status == OK;
}

static void print_plan(const Plan *plan, const SearchResult *found, const FleetReport *report,
                       const PlanFlags *flags, double tokens)
{
    Str text = {0};
    if (flags->json) {
        str_add(&text, "{");
        plan_json(plan, &text);
        if (report) str_add(&text, ", ");
        if (report) fleet_report_json(report, &text);
        if (tokens > 0)
            str_printf(&text, ", \"budget_tokens\": %.17g, \"budget_s\": %.17g", tokens,
                       tokens / plan->tokens_per_s);
        if (found)
            str_printf(&text,
                       ", \"search\": {\"layouts\": %lld, \"estimated\": %lld, \"simulated\": %d, "
                       "\"fit\": %d, \"seconds\": %.3f}",
                       (long long)found->n_layouts, (long long)found->n_estimated,
                       found->n_simulated, found->n, found->seconds);
        str_add(&text, "}\n");
    } else {
        if (found) search_text(found, SHOWN, &text);
        plan_text(plan, &text);
        if (tokens > 0) add_duration(plan, tokens, &text);
        if (report) fleet_report_text(report, &text);
    }
    fputs(text.at, stdout);
    str_deinit(&text);
}

static Status plan_config(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags,
                          const SearchResult *found)
{
    Plan plan;
    PlanOptions how = {.trace = flags->trace, .jitter = -1};
    double tokens;
    TRY(read_count("tokens", flags->tokens, &tokens));
    TRY(plan_make(config, cluster, &how, &plan));
    Arena arena = {0};
    FleetReport report;
    bool reported = plan.fits && make_report(&plan, cluster, tokens, &arena, &report);
    print_plan(&plan, found, reported ? &report : NULL, flags, tokens);
    arena_deinit(&arena);
    Status status = plan.fits ? OK : plan_refuse(&plan);
    if (status == OK && flags->out) status = run_config_write(&plan.config, flags->out);
    plan_deinit(&plan);
    return status;
}

static Status find_layout(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags)
{
    double tokens;
    SearchResult found;
    TRY(read_count("max-batch", flags->max_batch, &tokens));
    if (tokens <= 0)
        tokens = flags->model ? 16e6 : (double)config->train.batch * (double)config->train.seq;
    SearchOptions how = {.devices = cluster_devices(cluster),
                         .max_batch = (int64_t)(tokens / (double)config->train.seq),
                         .simulate = (int)flags->simulate};
    TRY(plan_search(config, cluster, &how, &found));
    Status status = plan_config(&found.plan[0].config, cluster, flags, &found);
    search_result_deinit(&found);
    return status;
}

/* A model alone says nothing of a layout: it is found. */
static bool has_layout(Operands operands)
{
    for (int i = 0; i < operands.n; i++)
        if (!strncmp(operands.at[i], "parallel.", 9)) return true;
    return false;
}

static Status run(const void *flags, Operands operands)
{
    const PlanFlags *f = flags;
    Arena arena = {0};
    RunConfig config;
    Cluster cluster;
    Status status = load_config(&arena, operands, f, &config);
    if (status == OK) {
        status = load_cluster(f, &cluster);
        if (status == OK) {
            bool searches = f->search || (f->model && !has_layout(operands));
            status = searches ? find_layout(&config, &cluster, f)
                              : plan_config(&config, &cluster, f, NULL);
            cluster_deinit(&cluster);
        }
        run_config_deinit(&config);
    }
    arena_deinit(&arena);
    return status;
}

const Command command_plan = {
    .name = "plan",
    .operands = "[RUN.yaml] ...",
    .max_operands = ANY_NUMBER,
    .sentence = "memory, time and rates of a run on any cluster",
    .details =
        "Builds the programs that drover train would run on every rank, and runs them on a\n"
        "simulated cluster. Nothing is trained and no device is needed. Settings may follow\n"
        "as on drover train: parallel.tp=8 train.batch=1024. Exit code 3: it does not fit.\n",
    COMMAND_OPTIONS(PlanFlags, options),
    .run = run,
};
