/* Residuals as a table and as JSON. */
#include "validate/validate.h"

#include <math.h>

#include "setting/setting.h"

static const char *recompute_name(PublishedRecompute recompute)
{
    static const char *const names[] = {"none", "selective", "full", "open"};
    return names[recompute];
}

static void add_row(const ValidateRow *r, Str *out)
{
    if (r->skip) {
        str_printf(out, "%-10s skipped: %s\n", r->row->id, r->skip);
        return;
    }
    str_printf(out, "%-10s %5lld %-9s %8.3f ", r->row->id, (long long)r->row->devices,
               r->row->device, r->row->step_s);
    str_printf(out, "%8.3f %+7.1f%%  %5.1f GB", r->step_s, r->row->step_s > 0 ? 100 * r->error : 0,
               r->peak_bytes / 1e9);
    if (!r->fits)
        str_printf(out, ", does not fit into %.1f%s", r->limit_bytes / 1e9,
                   r->row->out_of_memory ? ", as measured" : "");
    if (r->row->peak_bytes > 0) str_printf(out, " (measured %.1f", r->row->peak_bytes / 1e9);
    if (r->row->peak_bytes > 0 && r->context_bytes > 0)
        str_printf(out, " with about %.1f outside of programs", r->context_bytes / 1e9);
    if (r->row->peak_bytes > 0) str_add(out, ")");
    if (r->fits && r->row->out_of_memory) str_add(out, "; was out of memory");
    if (r->chose_micro)
        str_printf(out, "; micro-batch %lld is our choice", (long long)r->micro_batch);
    if (r->row->open_stages)
        str_printf(out, "; %lld stages on a rank are our choice", (long long)r->virtual_stages);
    if (r->chose_recompute)
        str_printf(out, "; recompute %s is our choice", recompute_name(r->recompute));
    str_add(out, "\n");
}

static void add_group(const char *name, const ValidateGroup *g, Str *out)
{
    if (g->n)
        str_printf(out, "%-14s %4d rows: median %4.1f%%, worst %4.1f%%, in the middle %+.1f%%\n",
                   name, g->n, 100 * g->median, 100 * g->worst, 100 * g->bias);
}

static void add_bar(const ValidateBar *b, Str *out)
{
    str_printf(out, "%-44s", b->what);
    if (b->n == 0)
        str_add(out, " no rows\n");
    else if (b->is_count)
        str_printf(out, " %8.0f of %4.0f  %s\n", b->reached, (double)b->n,
                   validate_bar_met(b) ? "met" : "missed");
    else if (b->at_least)
        str_printf(out, " %8.3f >= %4.2f  %s\n", b->reached, b->bar,
                   validate_bar_met(b) ? "met" : "missed");
    else
        str_printf(out, " %7.1f%% <= %3.0f%%  %s\n", 100 * b->reached, 100 * b->bar,
                   validate_bar_met(b) ? "met" : "missed");
}

void validate_text(const ValidateResult *v, Str *out)
{
    str_add(out, "id          GPUs device     measured predicted   error     peak\n");
    for (int i = 0; i < v->n; i++) add_row(&v->row[i], out);
    str_printf(out, "\n%d rows, %d predicted, %d skipped, in %.1f s\n", v->n, v->n_predicted,
               v->n_skipped, v->seconds);
    for (int k = 0; k < ROW_KINDS; k++) add_group(validate_kind_name((RowKind)k), &v->kind[k], out);
    for (int k = 0; k < FRAMEWORKS; k++)
        add_group(published_framework_name((Framework)k), &v->framework[k], out);
    for (int k = 0; k < v->n_grids; k++) {
        const ValidateGrid *g = &v->grid[k];
        str_printf(out, "grid %-14s %4d rows: rank correlation %.3f\n", g->name, g->n,
                   g->correlation);
    }
    str_printf(
        out, "memory: %d rows that ran are planned not to fit, %d that were out of memory to fit\n",
        v->n_wrong_refusals, v->n_wrong_fits);
    str_add(out, "\nbar\n");
    for (int i = 0; i < v->n_bars; i++) add_bar(&v->bar[i], out);
}

/* ---- JSON ------------------------------------------------------------------------------- */

static void json_row(const ValidateRow *r, Str *out)
{
    str_add(out, "{\"id\": ");
    setting_write_quoted(r->row->id, out);
    str_printf(out, ", \"kind\": \"%s\", \"framework\": \"%s\"", validate_kind_name(r->kind),
               published_framework_name(r->row->framework));
    if (r->row->step_s > 0)
        str_printf(out, ", \"measured_s\": %.9g", r->row->step_s);
    else
        str_add(out, ", \"measured_s\": null");
    if (r->skip) {
        str_add(out, ", \"predicted_s\": null, \"error\": null, \"skipped\": ");
        setting_write_quoted(r->skip, out);
    } else {
        str_printf(out, ", \"predicted_s\": %.9g", r->step_s);
        if (r->row->step_s > 0)
            str_printf(out, ", \"error\": %.9g", r->error);
        else
            str_add(out, ", \"error\": null");
        str_printf(out,
                   ", \"fits\": %s, \"peak_bytes\": %.0f, \"limit_bytes\": %.0f, \"micro_batch\": "
                   "%lld, \"recompute\": \"%s\"",
                   r->fits ? "true" : "false", r->peak_bytes, r->limit_bytes,
                   (long long)r->micro_batch, recompute_name(r->recompute));
    }
    str_add(out, "}");
}

static void json_group(const char *name, const ValidateGroup *g, const char *lead, Str *out)
{
    str_printf(out, "%s\"%s\": {\"n\": %d, \"median\": %.6g, \"worst\": %.6g, \"bias\": %.6g}",
               lead, name, g->n, g->median, g->worst, g->bias);
}

static void json_bar(const ValidateBar *b, const char *lead, Str *out)
{
    str_printf(out, "%s{\"what\": \"%s\", \"n\": %d, \"bar\": %.6g, \"reached\": ", lead, b->what,
               b->n, b->bar);
    if (b->n)
        str_printf(out, "%.6g, \"met\": %s}", b->reached, validate_bar_met(b) ? "true" : "false");
    else
        str_add(out, "null, \"met\": false}");
}

void validate_json(const ValidateResult *v, Str *out)
{
    str_add(out, "{\"rows\": [");
    for (int i = 0; i < v->n; i++) {
        str_add(out, i ? ",\n" : "\n");
        json_row(&v->row[i], out);
    }
    str_printf(out,
               "\n], \"predicted\": %d, \"skipped\": %d, \"wrong_fits\": %d, \"wrong_refusals\": "
               "%d, \"seconds\": %.3f, \"kinds\": {",
               v->n_predicted, v->n_skipped, v->n_wrong_fits, v->n_wrong_refusals, v->seconds);
    for (int k = 0; k < ROW_KINDS; k++)
        json_group(validate_kind_name((RowKind)k), &v->kind[k], k ? ", " : "", out);
    str_add(out, "}, \"frameworks\": {");
    for (int k = 0; k < FRAMEWORKS; k++)
        json_group(published_framework_name((Framework)k), &v->framework[k], k ? ", " : "", out);
    str_add(out, "}, \"grids\": {");
    for (int k = 0; k < v->n_grids; k++) {
        str_printf(out, "%s\"%s\": {\"n\": %d, \"rank_correlation\": ", k ? ", " : "",
                   v->grid[k].name, v->grid[k].n);
        if (isnan(v->grid[k].correlation))
            str_add(out, "null}");
        else
            str_printf(out, "%.6g}", v->grid[k].correlation);
    }
    str_add(out, "}, \"bars\": [");
    for (int i = 0; i < v->n_bars; i++) json_bar(&v->bar[i], i ? ", " : "", out);
    str_add(out, "]}\n");
}
