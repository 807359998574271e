/* drover plan --report: the page of a plan, of a comparison, or of what a question found. */
#include "cli/plan.h"

void plan_json_object(const Outlook *o, const PlanBeside *beside, Str *out)
{
    const SearchResult *found = beside->found;
    str_add(out, "{");
    outlook_json(o, out);
    if (found)
        str_printf(out,
                   ", \"search\": {\"layouts\": %lld, \"estimated\": %lld, \"simulated\": %d, "
                   "\"fit\": %d, \"seconds\": %.3f}",
                   (long long)found->n_layouts, (long long)found->n_estimated, found->n_simulated,
                   found->n, found->seconds);
    if (beside->limit) outlook_batch_limit_json(beside->limit, out);
    if (beside->overlay) {
        str_add(out, ", ");
        overlay_json(beside->overlay, out);
    }
    str_add(out, "}\n");
}

Status plan_write_report(const ReportInput *input, const char *path)
{
    Scaling scaling;
    Str json = {0}, page = {0};
    ReportInput in = *input;
    outlook_scale(in.outlook, &scaling);
    plan_json_object(in.outlook, &(PlanBeside){.found = in.found}, &json);
    in.scaling = &scaling;
    in.version = drover_version();
    if (!in.json) in.json = json.at;
    report_page(&in, &page);
    Status status = file_write_atomic(path, page.at, page.n);
    str_deinit(&json);
    str_deinit(&page);
    return status;
}

Status plan_report_again(const Outlook *before, const char *path)
{
    Outlook o;
    Timeline timeline;
    PlanOptions how = {.jitter = -1, .timeline = &timeline};
    TRY(outlook_make(&before->plan.config, before->cluster, &how, before->tokens, &o));
    Status status = plan_write_report(&(ReportInput){.outlook = &o, .timeline = &timeline}, path);
    timeline_deinit(&timeline);
    outlook_deinit(&o);
    return status;
}
