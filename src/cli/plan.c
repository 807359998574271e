/* drover plan RUN.yaml | --model PRESET --cluster NAME [key=value ...] */
#include <math.h>

#include "cli/plan.h"

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
    {"compare", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(PlanFlags, compare),
     "operands beside each other: run files, clusters, RUN.yaml@CLUSTER, or the word search"},
    {"days", OPTION_FLOAT, "D", 0.001, 36500, NULL, NULL, offsetof(PlanFlags, days),
     "the smallest cluster of this kind that trains --tokens in so many days"},
    {"largest", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(PlanFlags, largest),
     "the largest model of this shape that this cluster trains in --days"},
    {"tokens-per-weight", OPTION_FLOAT, "N", 0.001, 1e9, "20", NULL,
     offsetof(PlanFlags, tokens_per_weight), "with --largest: of each active weight"},
    {"max-usd", OPTION_FLOAT, "MILLIONS", 0.001, 1e9, NULL, NULL, offsetof(PlanFlags, max_usd),
     "with --days: what the run may cost, millions of dollars"},
    {"doubling", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(PlanFlags, doubling),
     "what twice the cluster buys, with --max-batch as it is and with twice of it"},
    {"json", OPTION_FLAG, NULL, 0, 0, NULL, NULL, offsetof(PlanFlags, json), "one JSON object"},
    {"trace", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(PlanFlags, trace),
     "the simulated step, for chrome://tracing or Perfetto"},
    {"measured", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(PlanFlags, measured),
     "a trace of drover train of this layout (log.trace), for a table node by node; with --trace "
     "both "
     "in one file"},
    {"report", OPTION_TEXT, "FILE.html", 0, 0, NULL, NULL, offsetof(PlanFlags, report),
     "one page of all of it with pictures, for a browser or a printer"},
    {"out", OPTION_TEXT, "FILE", 0, 0, NULL, NULL, offsetof(PlanFlags, out),
     "the run file of this plan, for drover train"},
};

enum { SHOWN = 10 };

/* ---- one plan --------------------------------------------------------------------------- */

static void print_plan(const Outlook *o, const PlanBeside *beside, bool json)
{
    Str text = {0};
    if (json) {
        plan_json_object(o, beside, &text);
    } else {
        if (beside->found) search_text(beside->found, SHOWN, &text);
        outlook_text(o, &text);
        if (beside->limit) outlook_batch_limit_text(beside->limit, &text);
        if (beside->overlay) overlay_text(beside->overlay, &text);
    }
    fputs(text.at, stdout);
    str_deinit(&text);
}

static Status plan_config(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags,
                          PlanBeside beside)
{
    Outlook o;
    Timeline timeline = {0};
    Overlay overlay = {0};
    PlanOptions how = {.trace = flags->trace,
                       .measured = flags->measured,
                       .overlay = &overlay,
                       .timeline = flags->report ? &timeline : NULL,
                       .jitter = -1};
    double tokens;
    TRY(plan_read_count("tokens", flags->tokens, &tokens));
    TRY(outlook_make(config, cluster, &how, tokens, &o));
    if (flags->measured) beside.overlay = &overlay;
    print_plan(&o, &beside, flags->json);
    ReportInput page = {.outlook = &o, .timeline = &timeline, .found = beside.found};
    Status status = flags->report ? plan_write_report(&page, flags->report) : OK;
    if (status == OK && !o.plan.fits) status = outlook_refuse(&o);
    if (status == OK && flags->out) status = run_config_write(&o.plan.config, flags->out);
    timeline_deinit(&timeline);
    overlay_deinit(&overlay);
    outlook_deinit(&o);
    return status;
}

static Status find_and_plan(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags,
                            ProfileStore *profiles)
{
    SearchResult found;
    BatchLimit limit;
    Question more = {.config = config, .cluster = cluster, .profiles = profiles};
    TRY(plan_find(config, cluster, flags, profiles, &found));
    Status status = plan_max_batch(config, flags, &more.max_batch);
    PlanBeside beside = {.found = &found};
    if (status == OK && outlook_batch_limit(&more, &found.plan[0], &limit)) beside.limit = &limit;
    if (status == OK) status = plan_config(&found.plan[0].config, cluster, flags, beside);
    search_result_deinit(&found);
    return status;
}

static Status find_layout(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags)
{
    ProfileStore *profiles = profile_store_create();
    Status status = find_and_plan(config, cluster, flags, profiles);
    profile_store_destroy(profiles);
    return status;
}

/* ---- the command ------------------------------------------------------------------------ */

static Status answer(const PlanFlags *f, const ConfigSource *source, Operands operands)
{
    RunConfig config;
    Cluster cluster;
    TRY(run_config_load(source->path, source->settings, source->n, &config));
    Status status = plan_load_cluster(f->cluster, f, &cluster);
    if (status == OK) {
        bool searches = f->search || (f->model && !plan_sets_layout(operands));
        if (!isnan(f->days) || f->largest || f->doubling)
            status = plan_inverse(f, source, &config, &cluster);
        else if (searches)
            status = find_layout(&config, &cluster, f);
        else
            status = plan_config(&config, &cluster, f, (PlanBeside){0});
        cluster_deinit(&cluster);
    }
    run_config_deinit(&config);
    return status;
}

static Status run(const void *flags, Operands operands)
{
    const PlanFlags *f = flags;
    if (f->compare) return plan_compare(f, operands);
    Arena arena = {0};
    ConfigSource source;
    const char *path = NULL;
    Status status = OK;
    for (int i = 0; i < operands.n && status == OK; i++) {
        if (plan_is_setting(operands.at[i])) continue;
        if (path)
            status = fail(ERR_ARG, "two run files, %s and %s; drover plan --compare takes several",
                          path, operands.at[i]);
        path = operands.at[i];
    }
    if (status == OK) status = plan_source(&arena, path, operands, f, &source);
    if (status == OK) status = answer(f, &source, operands);
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
