/* drover plan --compare: several run files, clusters, or what a search finds, side by side.
 *
 * A column is RUN.yaml, a cluster, RUN.yaml@CLUSTER or search@CLUSTER. Without a cluster it stands
 * on --cluster; without a run file it is --model's or the first run file that is named. */
#include <stdlib.h>
#include <string.h>

#include "cli/plan.h"

typedef struct Column {
    const char *label, *path, *cluster_name; /* path NULL: the base */
    bool searches;
    RunConfig config;
    Cluster cluster;
    SearchResult found;
    Timeline timeline;
    bool has_config, has_cluster;
} Column;

typedef struct Columns {
    Arena arena;
    const PlanFlags *flags;
    Operands operands;
    Column column[MAX_CONTENDERS];
    Contender contender[MAX_CONTENDERS];
    int n, n_made;
} Columns;

/* ---- which columns ---------------------------------------------------------------------- */

/* A word alone is a file that is there, or else a cluster. */
static void read_column(Columns *c, const char *word, Column *out)
{
    const char *at = strchr(word, '@');
    *out = (Column){.label = word, .cluster_name = c->flags->cluster};
    const char *what = at ? arena_strndup(&c->arena, word, (size_t)(at - word)) : word;
    if (at) out->cluster_name = at + 1;
    if (!strcmp(what, "search"))
        out->searches = true;
    else if (*what && (at || file_exists(what) || strstr(what, ".yaml")))
        out->path = what;
    else if (*what)
        out->cluster_name = what;
}

static Status read_columns(Columns *c)
{
    const char *base = NULL;
    for (int i = 0; i < c->operands.n; i++) {
        const char *word = c->operands.at[i];
        if (plan_is_setting(word)) continue;
        if (c->n == MAX_CONTENDERS) return fail(ERR_ARG, "at most %d are compared", MAX_CONTENDERS);
        read_column(c, word, &c->column[c->n]);
        if (!base) base = c->column[c->n].path;
        c->n++;
    }
    if (c->n == 1 && c->flags->cluster &&
        strcmp(c->column[0].cluster_name, c->flags->cluster) != 0) { /* the same on --cluster */
        c->column[1] = c->column[0];
        c->column[0].label = c->column[0].cluster_name = c->flags->cluster;
        c->n = 2;
    }
    if (c->n < 2)
        return fail(ERR_ARG, "--compare needs two or more of: RUN.yaml, a cluster, "
                             "RUN.yaml@CLUSTER, search");
    for (int i = 0; i < c->n; i++) {
        Column *column = &c->column[i];
        if (column->path) continue;
        column->path = c->flags->model ? NULL : base;
        column->searches |= c->flags->search || (c->flags->model && !plan_sets_layout(c->operands));
    }
    return OK;
}

/* ---- plans ------------------------------------------------------------------------------ */

static Status make_column(Columns *c, int i, double tokens)
{
    Column *column = &c->column[i];
    ConfigSource source;
    PlanFlags flags = *c->flags;
    if (column->path) flags.model = NULL;
    TRY(plan_source(&c->arena, column->path, c->operands, &flags, &source));
    TRY(run_config_load(source.path, source.settings, source.n, &column->config));
    column->has_config = true;
    TRY(plan_load_cluster(column->cluster_name, &flags, &column->cluster));
    column->has_cluster = true;
    const RunConfig *config = &column->config;
    if (column->searches) {
        TRY(plan_find(config, &column->cluster, &flags, NULL, &column->found));
        config = &column->found.plan[0].config;
    }
    PlanOptions how = {.jitter = -1, .timeline = flags.report ? &column->timeline : NULL};
    c->contender[i].label = column->label;
    TRY(outlook_make(config, &column->cluster, &how, tokens, &c->contender[i].outlook));
    c->n_made = i + 1;
    return OK;
}

static Status make_columns(Columns *c)
{
    double tokens;
    TRY(plan_read_count("tokens", c->flags->tokens, &tokens));
    for (int i = 0; i < c->n; i++) TRY_AS(make_column(c, i, tokens), "%s", c->column[i].label);
    return OK;
}

static void release(Columns *c)
{
    for (int i = 0; i < c->n; i++) {
        Column *column = &c->column[i];
        if (i < c->n_made) outlook_deinit(&c->contender[i].outlook);
        timeline_deinit(&column->timeline);
        search_result_deinit(&column->found);
        if (column->has_cluster) cluster_deinit(&column->cluster);
        if (column->has_config) run_config_deinit(&column->config);
    }
    arena_deinit(&c->arena);
}

/* ---- results ---------------------------------------------------------------------------- */

static void add_json(const Columns *c, Str *out)
{
    str_add(out, "{");
    outlook_compare_json(c->contender, c->n, out);
    str_add(out, "}\n");
}

/* The page is the better one's, the comparison in it. */
static Status write_report(const Columns *c, const char *path)
{
    int best = outlook_better(c->contender, c->n);
    const Column *column = &c->column[best];
    Str json = {0};
    add_json(c, &json);
    ReportInput in = {.outlook = &c->contender[best].outlook,
                      .timeline = &column->timeline,
                      .found = column->found.n ? &column->found : NULL,
                      .compared = c->contender,
                      .n_compared = c->n,
                      .json = json.at};
    Status status = plan_write_report(&in, path);
    str_deinit(&json);
    return status;
}

static Status finish(const Columns *c)
{
    Str text = {0};
    int best = outlook_better(c->contender, c->n);
    const Plan *plan = &c->contender[best].outlook.plan;
    if (c->flags->json)
        add_json(c, &text);
    else
        outlook_compare_text(c->contender, c->n, &text);
    fputs(text.at, stdout);
    str_deinit(&text);
    Status status = c->flags->report ? write_report(c, c->flags->report) : OK;
    if (status == OK && !plan->fits) return outlook_refuse(&c->contender[best].outlook);
    if (status == OK && c->flags->out) status = run_config_write(&plan->config, c->flags->out);
    return status;
}

Status plan_compare(const PlanFlags *flags, Operands operands)
{
    Columns *c = xcalloc(1, sizeof *c);
    *c = (Columns){.flags = flags, .operands = operands};
    Status status = read_columns(c);
    if (status == OK) status = make_columns(c);
    if (status == OK) status = finish(c);
    release(c);
    free(c);
    return status;
}
