/* Goodput over simulated months under each way to recover, and what the rest of the time is. */
#include <math.h>

#include "report/report_internal.h"

enum { LEFT = 110, ROW = 64, BINS = 60, BAR = 26 };

static const char *const losses[GOODPUT_LOSSES] = {"launch", "fsdp", "optimizer", "cp", "tp", "pp"};

static const char *scheme_words(int scheme)
{
    static const char *const words[] = {"whole job restarts", "warm spares", "copies in memory",
                                        "replicas go on"};
    return words[scheme];
}

/* A month's share counts in one of BINS columns of the axis. */
static void draw_months(const Goodput *g, const Chart *c, double bottom, Str *out)
{
    int count[BINS] = {0}, most = 1;
    for (int i = 0; i < g->n_months; i++) {
        int bin = (int)(BINS * (100 * g->month[i] - c->x0) / (c->x1 - c->x0));
        bin = bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin;
        if (++count[bin] > most) most = count[bin];
    }
    double width = c->width / BINS;
    for (int b = 0; b < BINS; b++) {
        double height = (ROW - 22.0) * count[b] / most;
        if (count[b])
            svg_rect(out, (Box){c->left + b * width, bottom - height, width - 1, height}, "matrix",
                     "%d of %d months", count[b], g->n_months);
    }
}

static void draw_scheme(const FleetReport *f, int scheme, const Chart *c, double top, Str *out)
{
    const Goodput *g = &f->goodput[scheme];
    double bottom = top + ROW - 14;
    svg_text(out, LEFT + 8, top + 14, "start", scheme == (int)f->scheme ? "strong" : "", "%s%s",
             scheme_words(scheme), scheme == (int)f->scheme ? ", counted on" : "");
    svg_line(out, c->left, bottom, c->left + c->width, bottom, "axis");
    if (!f->possible[scheme]) {
        svg_text(out, LEFT + 8, top + 32, "start", "soft",
                 "two copies of the states do not fit into the hosts' memory");
        return;
    }
    draw_months(g, c, bottom, out);
    double x = chart_x(c, 100 * g->mean);
    svg_line(out, x, top + 14, x, bottom + 4, "mark");
    svg_text(out, PAGE_WIDTH - 8, top + 14, "end", "", "%.1f%% (%.1f to %.1f)", 100 * g->mean,
             100 * g->p5, 100 * g->p95);
}

static void draw_distributions(const FleetReport *f, Str *out)
{
    double least = 1, most = 0, top = 8;
    for (int s = 0; s < RECOVERY_SCHEMES; s++) {
        const Goodput *g = &f->goodput[s];
        if (!f->possible[s]) continue;
        least = fmin(least, g->month[0]);
        most = fmax(most, g->month[g->n_months - 1]);
    }
    Chart c = {.left = LEFT, .width = PAGE_WIDTH - LEFT - 180};
    chart_fit_x(&c, 100 * least, fmin(100, 100 * most + 0.2));
    c.x1 = fmin(c.x1, 100);
    svg_begin(out, PAGE_WIDTH, top + RECOVERY_SCHEMES * ROW + 34, "Goodput of simulated months");
    for (int s = 0; s < RECOVERY_SCHEMES; s++) draw_scheme(f, s, &c, top + s * ROW, out);
    double tick[MAX_TICKS], y = top + RECOVERY_SCHEMES * ROW;
    int n = chart_ticks(c.x0, c.x1, false, tick);
    for (int i = 0; i < n; i++)
        svg_text(out, chart_x(&c, tick[i]), y + 8, "middle", "tick", "%.4g%%", tick[i]);
    svg_text(out, c.left + c.width, y + 26, "end", "label", "useful share of a month");
    svg_end(out);
}

/* Each kind of loss, on a scale of the largest sum. */
static void draw_losses(const FleetReport *f, Str *out)
{
    LegendItem item[GOODPUT_LOSSES];
    double most = 1e-9;
    for (int k = 0; k < GOODPUT_LOSSES; k++)
        item[k] = (LegendItem){losses[k], fleet_loss_name((GoodputLoss)k)};
    for (int s = 0; s < RECOVERY_SCHEMES; s++)
        if (f->possible[s]) most = fmax(most, 1 - f->goodput[s].mean);
    svg_begin(out, PAGE_WIDTH, RECOVERY_SCHEMES * (BAR + 8) + 40, "What the rest of the time is");
    double top = svg_legend(out, LEFT, 2, item, GOODPUT_LOSSES) + 10,
           width = PAGE_WIDTH - LEFT - 180;
    for (int s = 0; s < RECOVERY_SCHEMES; s++) {
        const Goodput *g = &f->goodput[s];
        double x = LEFT, y = top + s * (BAR + 8);
        svg_text(out, LEFT - 8, y + 17, "end", s == (int)f->scheme ? "strong" : "", "%s",
                 fleet_scheme_name((RecoveryScheme)s));
        if (!f->possible[s]) continue;
        for (int k = 0; k < GOODPUT_LOSSES; k++) {
            double wide = width * g->lost[k] / most;
            if (wide > 0.02)
                svg_rect(out, (Box){x, y, wide, BAR}, item[k].class, "%s: %.2f%%", item[k].name,
                         100 * g->lost[k]);
            x += wide;
        }
        svg_text(out, x + 8, y + 17, "start", "", "%.2g%% of the time is lost",
                 100 * (1 - g->mean));
    }
    svg_end(out);
}

static void table(const FleetReport *f, Str *out)
{
    const Cluster *c = f->job.cluster;
    const Goodput *g = &f->goodput[f->scheme];
    char a[32], b[32];
    str_add(out, "<table>\n");
    if (f->mtbf_s > 0)
        html_row(out, "failures", "one in %s on %lld nodes", format_duration(f->mtbf_s, a),
                 (long long)f->nodes);
    for (int i = 0; i < c->n_failures; i++)
        html_row(out, c->failure[i].name, "%.3g a day (%.3g to %.3g)",
                 fleet_cause_rate(c, &c->failure[i], f->nodes, LEVEL_CENTRAL) * 86400,
                 fleet_cause_rate(c, &c->failure[i], f->nodes, LEVEL_LOW) * 86400,
                 fleet_cause_rate(c, &c->failure[i], f->nodes, LEVEL_HIGH) * 86400);
    html_row(out, "checkpoints", "one every %s, of %s", format_duration(g->interval_s, a),
             format_bytes(f->job.state_bytes, b));
    html_row(out, "warm spares", "%lld nodes", (long long)f->spares);
    str_add(out, "</table>\n");
}

void report_goodput(const ReportInput *in, Str *out)
{
    const FleetReport *f = &in->outlook->fleet;
    Str words = {0};
    if (!in->outlook->has_fleet) return;
    str_printf(&words,
               "%d simulated months for each way to recover; a line marks their mean, beside it "
               "5%% and 95%% of the months. Counted on is what the trainer does today.",
               f->goodput[f->scheme].n_months);
    html_section(out, "Goodput: failures and how the job recovers", words.at);
    str_deinit(&words);
    draw_distributions(f, out);
    draw_losses(f, out);
    table(f, out);
    html_section_end(out);
}
