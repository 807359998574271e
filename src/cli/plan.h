/* Shared by the files of drover plan. */
#ifndef CLI_PLAN_H
#define CLI_PLAN_H

#include "cli/cli.h"
#include "report/report.h"

typedef struct PlanFlags {
    const char *model, *cluster, *trace, *measured, *out, *report, *tokens, *max_batch;
    int64_t gpus, simulate;
    double days, max_usd, tokens_per_weight;
    bool json, search, compare, largest, doubling;
} PlanFlags;

/* ---- what is planned (plan_input.c) ----------------------------------------------------- */

/* "15T", "300B", "16M", "2e12" of an option. 0: not given. */
Status plan_read_count(const char *option, const char *text, double *out);
/* A run file (NULL: none; then --model's preset) with the operands that are settings. */
Status plan_source(Arena *arena, const char *path, Operands operands, const PlanFlags *flags,
                   ConfigSource *source);
Status plan_load_cluster(const char *name, const PlanFlags *flags, Cluster *cluster);
bool plan_is_setting(const char *operand); /* key=value */
/* That the operands set the layout: a preset's is searched for otherwise. */
bool plan_sets_layout(Operands operands);
/* Sequences in a step at most, by --max-batch or the run file. */
Status plan_max_batch(const RunConfig *config, const PlanFlags *flags, int64_t *out);
/* The best layout; profiles may be NULL. */
Status plan_find(const RunConfig *config, const Cluster *cluster, const PlanFlags *flags,
                 ProfileStore *profiles, SearchResult *found);

/* ---- results (plan_report.c) ------------------------------------------------------------ */

/* What is told beside a plan, where there is any: NULL else. */
typedef struct PlanBeside {
    const SearchResult *found;
    const BatchLimit *limit;
    const Overlay *overlay;
} PlanBeside;
/* All figures as one object. */
void plan_json_object(const Outlook *outlook, const PlanBeside *beside, Str *out);
/* The page; scaling, version and, where it is NULL, json are filled in. */
Status plan_write_report(const ReportInput *input, const char *path);
/* The page of a plan whose step was not watched: it is planned again. */
Status plan_report_again(const Outlook *outlook, const char *path);

/* ---- questions -------------------------------------------------------------------------- */

/* drover plan --compare A B (plan_compare.c) */
Status plan_compare(const PlanFlags *flags, Operands operands);
/* drover plan --days, --largest, --doubling (plan_inverse.c) */
Status plan_inverse(const PlanFlags *flags, const ConfigSource *source, const RunConfig *config,
                    const Cluster *cluster);

#endif
