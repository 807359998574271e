/* What the search planned: tokens per second against the memory of a device. */
#include <math.h>

#include "report/report_internal.h"

static double peak_gb(const Plan *p) { return (double)p->memory[p->largest].total * 1e-9; }
static double rate(const Plan *p) { return p->tokens_per_s; }

/* Nothing else is faster and needs no more memory. */
static bool on_front(const SearchResult *found, int i)
{
    for (int k = 0; k < found->n; k++) {
        const Plan *a = &found->plan[k], *b = &found->plan[i];
        if (k != i && rate(a) >= rate(b) && peak_gb(a) <= peak_gb(b) &&
            (rate(a) > rate(b) || peak_gb(a) < peak_gb(b)))
            return false;
    }
    return true;
}

static void point_words(const Plan *p, Str *out)
{
    static const char *const recompute[] = {"none", "selective", "full"};
    plan_layout_words(p, out);
    str_printf(out,
               "; %lld micro-batches of %lld, recompute %s: %.4g s a step, %.1f GB, MFU %.1f%%",
               (long long)run_n_micro(&p->config), (long long)run_micro_batch(&p->config),
               recompute[p->config.train.recompute], p->time.step_s, peak_gb(p), 100 * p->mfu);
}

static void draw_point(const Plan *p, const Chart *c, const char *class, double radius, Str *out)
{
    Str words = {0};
    point_words(p, &words);
    str_printf(out, "<circle cx=\"%.5g\" cy=\"%.5g\" r=\"%.3g\" class=\"%s\"><title>",
               chart_x(c, peak_gb(p)), chart_y(c, rate(p)), radius, class);
    html_add(out, words.at);
    str_add(out, "</title></circle>\n");
    str_deinit(&words);
}

/* Plans are sorted, the fastest first: along the front memory falls. */
static void draw_front(const SearchResult *found, const Chart *c, Str *out)
{
    Str path = {0};
    double below = 0;
    for (int i = 0; i < found->n; i++) {
        if (!on_front(found, i)) continue;
        double x = chart_x(c, peak_gb(&found->plan[i])), y = chart_y(c, rate(&found->plan[i]));
        if (path.n) str_printf(&path, "L%.5g %.5g", below, y);
        str_printf(&path, "%s%.5g %.5g", path.n ? "L" : "M", x, y);
        below = x;
    }
    if (path.n) str_printf(out, "<path class=\"front\" d=\"%s\"/>\n", path.at);
    str_deinit(&path);
}

static void draw(const SearchResult *found, double limit, Str *out)
{
    Chart c = {.left = 70, .top = 34, .width = PAGE_WIDTH - 70 - 120, .height = 300};
    double least_x = limit, most_x = 0, least_y = (double)INFINITY, most_y = 0;
    for (int i = 0; i < found->n; i++) {
        const Plan *p = &found->plan[i];
        least_x = fmin(least_x, peak_gb(p));
        most_x = fmax(most_x, peak_gb(p));
        least_y = fmin(least_y, rate(p));
        most_y = fmax(most_y, rate(p));
    }
    bool near = limit < 1.6 * most_x;
    chart_fit_x(&c, least_x, near ? fmax(most_x, limit) : most_x);
    chart_fit_y(&c, least_y, most_y);
    svg_begin(out, PAGE_WIDTH, c.top + c.height + 48, "Plans that the search made");
    chart_axes(out, &c, "memory of the fullest device, GB", "tokens/s");
    if (near) {
        double x = chart_x(&c, limit);
        svg_line(out, x, c.top, x, c.top + c.height, "limit");
        svg_text(out, x + 6, c.top + 12, "start", "strong", "limit %.1f GB", limit);
    }
    draw_front(found, &c, out);
    for (int i = found->n - 1; i >= 0; i--)
        draw_point(&found->plan[i], &c, on_front(found, i) ? "best" : "point", i ? 4 : 6, out);
    const Plan *best = &found->plan[0];
    double x = chart_x(&c, peak_gb(best));
    bool right = x < c.left + 0.6 * c.width;
    svg_text(out, x + (right ? 10 : -10), chart_y(&c, rate(best)) - 8, right ? "start" : "end",
             "strong", "this plan");
    svg_end(out);
}

void report_front(const ReportInput *in, Str *out)
{
    const SearchResult *found = in->found;
    char count[32], fit[32];
    Str words = {0};
    if (!found || !found->n) return;
    str_printf(&words,
               "%s layouts divide, %s seem to fit, %d were simulated and %d of them fit, in %.1f "
               "s. Filled: no other plan is faster with as little memory.",
               format_count((double)found->n_layouts, count),
               format_count((double)found->n_estimated, fit), found->n_simulated, found->n,
               found->seconds);
    html_section(out, "What the search found", words.at);
    str_deinit(&words);
    draw(found, (double)in->outlook->plan.limit_bytes * 1e-9, out);
    html_section_end(out);
}
